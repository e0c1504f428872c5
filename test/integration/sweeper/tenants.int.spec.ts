import { SessionLimitReached } from '../../../src/sessions/session-commands.js';
import { HOUR, logOf, World } from './fixture.js';

const world = World.perTest();
const tenant = '/v1/admin/tenants/acme';

describe('the settings of a tenant', () => {
  it('given defaults, settings of the file and its own, when they are asked for, then the nearer ones hold', async () => {
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
    // What changes nothing is no event.
    expect((await node.inject('PUT', tenant, { sessionTTL: 5_000 })).body).toMatchObject({ version: 2 });
    expect(node.sweeper.status().intervalMs).toBe(1_250);
  });

  it('given a change, when the tenant’s next command comes, then it holds at once; on another node soon', async () => {
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
    // One that starts later has it from the beginning.
    const three = await world.start();
    expect(three.policies.of('acme').maxSessions).toBe(1);
    expect(three.policies.of('other').maxSessions).toBe(100);

    await one.inject('PUT', tenant, { maxSessions: 1, capPolicy: 'evict' });
    await one.create('b', 'acme');
    expect(await logOf(world.db, 'a', 'acme')).toEqual(['SessionCreated', 'SessionExpired:cap']);
  });

  it('given a tenant’s shorter time to live, when sessions are shown and swept, then it counts', async () => {
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
  ])('given %j, when it is put, then it is refused and nothing changes', async (body, pointer) => {
    const node = await world.start();
    const answer = await node.inject('PUT', tenant, body);
    expect(answer.status).toBe(400);
    expect(answer.body['errors']).toMatchObject([{ pointer }]);
    expect((await node.inject('GET', '/v1/admin/tenants/~tenant')).status).toBe(400);
    expect((await node.inject('GET', tenant)).body).toMatchObject({ version: 0 });
  });

  it('given If-Match and Idempotency-Key, when settings are put, then they mean what they mean everywhere', async () => {
    const node = await world.start();
    const put = (body: object, headers: Record<string, string>) => node.inject('PUT', tenant, body, headers);
    expect((await put({ maxSessions: 5 }, { 'if-match': '"3"' })).status).toBe(412);
    expect((await put({ maxSessions: 5 }, { 'idempotency-key': 'k' })).body).toMatchObject({ version: 1 });
    expect((await put({ maxSessions: 6 }, { 'if-match': '"1"' })).body).toMatchObject({ version: 2 });
    // A retry of the first one changes nothing back.
    expect((await put({ maxSessions: 5 }, { 'idempotency-key': 'k' })).body).toMatchObject({
      version: 2,
      effective: { maxSessions: 6 },
    });
    expect((await put({ maxSessions: 9 }, { 'idempotency-key': 'k' })).status).toBe(409);
  });
});
