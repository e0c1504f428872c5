import { SessionLimitReached } from '../../../src/sessions/session-commands.js';
import { laneOf } from '../../../src/event-store/lane.js';
import { eventually } from '../../support/http.js';
import { HOUR, logOf, nth, World } from './fixture.js';

const world = World.perTest();
const tenant = '/v1/admin/tenants/acme';

describe('the settings of a tenant', () => {
  it('given defaults, settings of the file and settings of the tenant, when they are requested, then the most specific ones apply', async () => {
    const node = await world.start({
      sessions: { maxSessions: 10, sessionTTL: HOUR },
      tenants: { acme: { maxSessions: 7, sessionTTL: 2 * HOUR } },
    });
    const defaults = { maxSessions: 10, sessionTTL: HOUR, capPolicy: 'reject' };
    expect((await node.inject('GET', '/v1/admin/tenants/other')).body).toEqual({
      id: 'other',
      version: 0,
      effective: defaults,
      own: {},
      activeSessions: 0,
    });
    expect((await node.inject('GET', tenant)).body).toMatchObject({
      effective: { ...defaults, maxSessions: 7, sessionTTL: 2 * HOUR },
      own: {},
    });

    const put = await node.inject('PUT', tenant, { maxSessions: 2, capPolicy: 'evict' });
    expect([put.status, put.headers['etag']]).toEqual([200, '"1"']);
    expect(put.body).toEqual({
      id: 'acme',
      version: 1,
      effective: { maxSessions: 2, sessionTTL: 2 * HOUR, capPolicy: 'evict' },
      own: { maxSessions: 2, capPolicy: 'evict' },
      activeSessions: 0,
    });
    expect((await node.inject('PUT', tenant, { maxSessions: null, sessionTTL: 5_000 })).body).toMatchObject({
      version: 2,
      effective: { maxSessions: 7, sessionTTL: 5_000, capPolicy: 'evict' },
      own: { sessionTTL: 5_000, capPolicy: 'evict' },
    });
    expect(await logOf(world.db, '~tenant', 'acme')).toEqual([
      'TenantSettingsChanged',
      'TenantSettingsChanged',
    ]);
    // A change that changes nothing appends no event.
    expect((await node.inject('PUT', tenant, { sessionTTL: 5_000 })).body).toMatchObject({ version: 2 });
    expect(node.sweeper.status().intervalMs).toBe(1_250);
  });

  it('given a change of settings, when the next command of the tenant is handled, then the change applies at once; on another node soon', async () => {
    const nodes = [await world.start(), await world.start()];
    const [one, two] = nodes;
    if (!one || !two) throw new Error('no nodes');
    await one.create('a', 'acme');
    await one.inject('PUT', tenant, { maxSessions: 1 });
    await expect(one.create('b', 'acme')).rejects.toBeInstanceOf(SessionLimitReached);
    const until = performance.now() + 3_000;
    while (two.policies.of('acme').maxSessions !== 1) {
      if (performance.now() > until) throw new Error('the other node has not heard of it');
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await expect(two.create('b', 'acme')).rejects.toBeInstanceOf(SessionLimitReached);
    // A node that starts later has the change from the beginning.
    const three = await world.start();
    expect(three.policies.of('acme').maxSessions).toBe(1);
    expect(three.policies.of('other').maxSessions).toBe(100);

    await one.inject('PUT', tenant, { maxSessions: 1, capPolicy: 'evict' });
    await one.create('b', 'acme');
    expect(await logOf(world.db, 'a', 'acme')).toEqual(['SessionCreated', 'SessionExpired:cap']);
  });

  it('given a shorter time to live of a tenant, when sessions are read and swept, then it applies', async () => {
    const node = await world.start();
    await node.inject('PUT', tenant, { sessionTTL: 2 * HOUR });
    const created = await node.create('a', 'acme');
    const { body } = await node.inject('GET', '/v1/sessions/a', undefined, { 'colloquy-tenant': 'acme' });
    expect(Date.parse(String(body['expiresAt'])) - Date.parse(created.time)).toBe(2 * HOUR);
    await world.db.setClock({ offsetMs: HOUR + 60_000 });
    expect((await node.sweep()).found.ttl).toBe(0);
    await world.db.setClock({ offsetMs: 2 * HOUR + 60_000 });
    expect((await node.sweep()).swept.ttl).toBe(1);
  });

  it.each([
    [{ maxSessions: 0 }, '/maxSessions'],
    [{ maxSessions: 1.5 }, '/maxSessions'],
    [{ sessionTTL: -1 }, '/sessionTTL'],
    [{ sessionTTL: 1e15 }, '/sessionTTL'],
    [{ capPolicy: 'maybe' }, '/capPolicy'],
    [{ colour: 'red' }, '/colour'],
  ])(
    'given the settings %j, when they are put, then they are refused and nothing changes',
    async (body, pointer) => {
      const node = await world.start();
      const answer = await node.inject('PUT', tenant, body);
      expect(answer.status).toBe(400);
      expect(answer.body['errors']).toMatchObject([{ pointer }]);
      expect((await node.inject('GET', '/v1/admin/tenants/~tenant')).status).toBe(400);
      expect((await node.inject('GET', tenant)).body).toMatchObject({ version: 0 });
    },
  );

  it('given If-Match and Idempotency-Key, when settings are put, then both headers work as on other routes', async () => {
    const node = await world.start();
    const put = (body: object, headers: Record<string, string>) => node.inject('PUT', tenant, body, headers);
    expect((await put({ maxSessions: 5 }, { 'if-match': '"3"' })).status).toBe(412);
    expect((await put({ maxSessions: 5 }, { 'idempotency-key': 'k' })).body).toMatchObject({ version: 1 });
    expect((await put({ maxSessions: 6 }, { 'if-match': '"1"' })).body).toMatchObject({ version: 2 });
    // A retry of the first change does not undo the second one.
    expect((await put({ maxSessions: 5 }, { 'idempotency-key': 'k' })).body).toMatchObject({
      version: 2,
      effective: { maxSessions: 6 },
    });
    expect((await put({ maxSessions: 9 }, { 'idempotency-key': 'k' })).status).toBe(409);
  });
});

describe('the settings of very many tenants', () => {
  /** Inserts tenants of one lane with settings of their own into the log. */
  async function fill(count: number): Promise<string[]> {
    const tenants: string[] = [];
    for (let n = 0; tenants.length < count; n += 1)
      if (laneOf({ tenant: `t${n}`, streamId: '~tenant' }, 16) === 3) tenants.push(`t${n}`);
    await world.db.query(
      `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                          correlation_id, data)
       select 3, n, tenant, '~tenant', 1, 1, gen_random_uuid(), 'TenantSettingsChanged', 1, '2026-01-01', 'test', 'test',
              jsonb_build_object('maxSessions', n)
       from unnest($1::text[]) with ordinality as t (tenant, n)`,
      [tenants],
    );
    await world.db.query(
      `insert into stream_state (tenant, stream_id, lane, version, incarnation, position, time, created_at,
                                 last_activity_at, state, state_version)
       select tenant, '~tenant', 3, 1, 1, n, '2026-01-01', '2026-01-01', '2026-01-01',
              jsonb_build_object('version', 1, 'overrides', jsonb_build_object('maxSessions', n)), 1
       from unnest($1::text[]) with ordinality as t (tenant, n)`,
      [tenants],
    );
    return tenants;
  }

  it('given more than one page of tenants, when a node starts, then it knows all of them; when another node changes one, then only that one is read', async () => {
    const tenants = await fill(2_100);
    const reader = await world.start();
    expect(tenants.map((one) => reader.policies.of(one).maxSessions)).toEqual(
      tenants.map((_, index) => index + 1),
    );
    const writer = await world.start();
    const looks = jest.spyOn(reader.store.streams, 'reservedStates');

    await writer.inject('PUT', `/v1/admin/tenants/${nth(tenants, 7)}`, { maxSessions: 7_777 });
    await eventually(() => Promise.resolve(reader.policies.of(nth(tenants, 7)).maxSessions === 7_777));

    const read = await Promise.all(looks.mock.results.map(({ value }) => value as Promise<unknown[]>));
    expect(read.flat()).toEqual([expect.objectContaining({ tenant: nth(tenants, 7), version: 2 })]);
  });

  it('given settings that a newer version wrote, when a node starts, then it ignores these and applies the others', async () => {
    const [newer, usual] = await fill(2);
    await world.db.query(
      `update stream_state set state_version = 99 where tenant = $1 and stream_id = '~tenant'`,
      [newer],
    );
    await world.db.query(
      `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                          correlation_id, data)
       values (3, 3, $1, '~tenant', 2, 1, gen_random_uuid(), 'TenantSettingsChanged', 99, '2026-01-02', 'test', 'test', '{}')`,
      [newer],
    );

    const node = await world.start();

    expect(node.policies.of(newer ?? '').maxSessions).toBe(100);
    expect(node.policies.of(usual ?? '').maxSessions).toBe(2);
  });
});
