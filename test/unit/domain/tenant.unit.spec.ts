import { SESSION_ID } from '../../../src/domain/session.events.js';
import { ChangeTenantSettings, TENANT_ID, TENANT_STREAM, tenantDecider } from '../../../src/domain/tenant.js';
import { type EventData } from '../../../src/domain/session.events.js';
import { specs } from './given-when-then.js';

const given = specs(tenantDecider);
const changed = (data: EventData<'TenantSettingsChanged'>) =>
  ({ type: 'TenantSettingsChanged', data }) as const;
const change = (settings: EventData<'TenantSettingsChanged'>) => new ChangeTenantSettings(settings);
const overridesAfter = (...events: ReturnType<typeof changed>[]) =>
  events.reduce((state, event) => tenantDecider.evolve(state, event), tenantDecider.initialState);

describe('the settings of a tenant', () => {
  it('change as requested', () => {
    const settings = { sessionTTL: 60_000, maxSessions: 5, capPolicy: 'evict' } as const;
    given()
      .when(change(settings))
      .then([changed(settings)]);
    expect(overridesAfter(changed(settings))).toEqual({ version: 1, overrides: settings });
  });

  it('record what changed and nothing else', () => {
    given(changed({ maxSessions: 5, sessionTTL: 60_000 }))
      .when(change({ maxSessions: 6, sessionTTL: 60_000, capPolicy: undefined }))
      .then([changed({ maxSessions: 6 })]);
    expect(
      overridesAfter(changed({ maxSessions: 5, sessionTTL: 60_000 }), changed({ maxSessions: 6 })),
    ).toEqual({ version: 2, overrides: { maxSessions: 6, sessionTTL: 60_000 } });
  });

  it('stay as they are when nothing changes', () => {
    given(changed({ maxSessions: 5 }))
      .when(change({ maxSessions: 5 }))
      .then([]);
    given().when(change({})).then([]);
  });

  it('fall back to the defaults with null', () => {
    given(changed({ maxSessions: 5 }))
      .when(change({ maxSessions: null }))
      .then([changed({ maxSessions: null })]);
    expect(overridesAfter(changed({ maxSessions: 5 }), changed({ maxSessions: null }))).toEqual({
      version: 2,
      overrides: {},
    });
  });

  it('are unchanged when a setting that was not set is removed', () => {
    given()
      .when(change({ maxSessions: null }))
      .then([]);
    given(changed({ maxSessions: 5 }), changed({ maxSessions: null }))
      .when(change({ maxSessions: null }))
      .then([]);
  });
});

describe('ids of tenants and sessions', () => {
  it('reserve the stream of the tenant, so that no session can have its id', () => {
    expect(TENANT_STREAM).not.toMatch(SESSION_ID);
    expect(TENANT_STREAM).not.toMatch(TENANT_ID);
  });

  it.each(['a', '0', 'default', 'a-b_c', 'a'.repeat(63)])('accept the tenant %s', (id) => {
    expect(id).toMatch(TENANT_ID);
  });

  it.each(['', '-a', '_a', 'A', 'a b', 'a.b', 'a\n', 'a'.repeat(64)])('refuse the tenant %j', (id) => {
    expect(id).not.toMatch(TENANT_ID);
  });

  it.each(['a', 'A', '7', 'user-alice.support_1:x@y~z', 'a'.repeat(128)])('accept the session %s', (id) => {
    expect(id).toMatch(SESSION_ID);
  });

  it.each(['', '~a', '-a', '.a', 'a/b', 'a b', 'ä', 'a\n', 'a'.repeat(129)])(
    'refuse the session %j',
    (id) => {
      expect(id).not.toMatch(SESSION_ID);
    },
  );
});
