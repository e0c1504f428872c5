import { createHash } from 'node:crypto';
import { CompleteGeneration } from '../../../src/domain/session.commands.js';
import { HOUR, logOf, World } from './fixture.js';

const world = World.perTest();
const none = { ttl: 0, cap: 0, lease: 0, retention: 0, schedule: 0, erasure: 0 };
const DAY = 24 * HOUR;
const hash = (key: string) => createHash('sha256').update(key).digest('hex');

describe('generations whose node is gone', () => {
  it('given valid leases and an expired one, when the sweeper runs, then the generation without a lease fails and the others go on', async () => {
    const node = await world.start();
    for (const id of ['dead', 'alive', 'forgotten']) await node.create(id);
    await node.generate('dead', 'gen-dead', 'missing');
    await node.generate('alive', 'gen-alive');
    // This is the state after a restart on the embedded database, which forgets all leases.
    await node.generate('forgotten', 'gen-forgotten', 'missing');
    // Of another node, which does not renew it.
    await world.db.query(
      `insert into lease (name, owner, epoch, until)
       values ('generation:gen-dead', gen_random_uuid(), nextval('lease_epoch'), colloquy_now())`,
    );

    await node.sweep();

    // On a busy machine the first sweep, which runs by itself, may have come upon one of them.
    expect(node.sweeper.status().totals).toMatchObject({ ...none, lease: 2 });
    for (const id of ['dead', 'forgotten']) {
      const events = await world.db.query<{
        type: string;
        data: { code?: string };
        actor: string;
        causation_id: string;
      }>('select type, data, actor, causation_id from event where stream_id = $1 order by version', [id]);
      expect(events.at(-1)).toMatchObject({
        type: 'GenerationFailed',
        data: { code: 'lease-expired', generationId: `gen-${id}` },
        actor: 'system:sweeper',
        causation_id: `gen-${id}`,
      });
    }
    expect((await logOf(world.db, 'alive')).at(-1)).toBe('GenerationStarted');
    // A reply that still arrives is dropped.
    const late = new CompleteGeneration(
      { generationId: 'gen-dead', finishReason: 'stop' },
      { messageId: 'late', content: 'too late' },
    );
    expect((await node.handle('dead', late)).events).toEqual([]);
    // And the session can generate again.
    await node.generate('dead', 'gen-next');
    expect((await node.sweep()).found.lease).toBe(0);
  });
});

describe('retention', () => {
  it('given no deleteAfter, when sessions stay expired for years, then none is deleted', async () => {
    const node = await world.start();
    await node.create('a');
    await world.db.setClock({ offsetMs: 2 * HOUR });
    await node.sweep();
    await world.db.setClock({ offsetMs: 2_000 * DAY });
    expect((await node.sweep()).found).toEqual(none);
  });

  it('given deleteAfter, when sessions stayed expired for that long, then they are deleted, but not those that were used or are under legal hold', async () => {
    const node = await world.start({ sessions: { deleteAfter: 30 * DAY } });
    for (const id of ['gone', 'held', 'used', 'active']) await node.create(id);
    await node.inject('PATCH', '/v1/sessions/held', { legalHold: true });
    await world.db.setClock({ offsetMs: 2 * HOUR });
    expect((await node.sweep()).swept).toEqual({ ...none, ttl: 4 });
    await world.db.setClock({ offsetMs: 20 * DAY });
    await node.say('used', 'back');
    await world.db.setClock({ offsetMs: 20 * DAY + 2 * HOUR });
    await node.sweep();

    await world.db.setClock({ offsetMs: 30 * DAY });
    await node.say('active', 'here');
    expect((await node.sweep()).swept).toEqual(none);
    await world.db.setClock({ offsetMs: 30 * DAY + 2 * HOUR + 60_000 });
    await node.say('active', 'still here');
    expect((await node.sweep()).swept).toEqual({ ...none, retention: 1 });
    expect(await logOf(world.db, 'gone')).toEqual([
      'SessionCreated',
      'SessionExpired:ttl',
      'SessionDeleted:retention: deleteAfter 2592000000 ms',
    ]);
    expect((await node.inject('GET', '/v1/sessions/gone')).status).toBe(404);
    expect(await logOf(world.db, 'held')).toEqual([
      'SessionCreated',
      'SessionDetailsChanged',
      'SessionExpired:ttl',
    ]);

    // The session is kept as long as the hold lasts. Only a use restarts the time until deletion.
    await node.inject('PATCH', '/v1/sessions/held', { legalHold: false });
    expect((await node.sweep()).swept).toEqual({ ...none, retention: 1 });
    expect(await logOf(world.db, 'held')).toContain('SessionDeleted:retention: deleteAfter 2592000000 ms');
    await world.db.setClock({ offsetMs: 51 * DAY });
    await node.say('active', 'and still');
    expect((await node.sweep()).swept).toEqual({ ...none, retention: 1 });
    expect((await logOf(world.db, 'used')).at(-1)).toBe(
      'SessionDeleted:retention: deleteAfter 2592000000 ms',
    );
  });
});

it('given a session that expires soon after its creation, when the sweeper runs, then its retention counts from the expiry', async () => {
  const node = await world.start({ sessions: { sessionTTL: 60_000, deleteAfter: 600_000 } });
  await node.create('a');
  await world.db.setClock({ offsetMs: 120_000 });
  await node.sweep();
  await world.db.setClock({ offsetMs: 690_000 });
  expect((await node.sweep()).found).toEqual(none);
  await world.db.setClock({ offsetMs: 730_000 });
  expect((await node.sweep()).swept).toEqual({ ...none, retention: 1 });
});

describe('a legal hold', () => {
  const auth = {
    mode: 'api-key',
    keys: [
      { name: 'app', tenant: 'default', sha256: hash('app-key') },
      { name: 'root', tenant: '*', sha256: hash('root-key') },
    ],
  };
  const app = { authorization: 'Bearer app-key' };
  const root = { authorization: 'Bearer root-key' };

  it('given an operator, when they put a session under legal hold, then it cannot be deleted until the hold is lifted', async () => {
    const node = await world.start({ auth });
    await node.create('a');
    const refused = await node.inject('PATCH', '/v1/sessions/a', { legalHold: true }, app);
    expect([refused.status, refused.body['code']]).toEqual([403, 'forbidden']);
    expect(await logOf(world.db, 'a')).toEqual(['SessionCreated']);
    expect((await node.inject('PATCH', '/v1/sessions/a', { title: 'mine' }, app)).status).toBe(200);

    expect((await node.inject('PATCH', '/v1/sessions/a', { legalHold: true }, root)).status).toBe(200);
    for (const who of [app, root]) {
      const kept = await node.inject('DELETE', '/v1/sessions/a', undefined, who);
      expect([kept.status, kept.body['code']]).toEqual([409, 'legal-hold']);
    }
    // It may be used, and expires like any other.
    expect((await node.say('a', 'hello')).state.status).toBe('active');

    expect((await node.inject('PATCH', '/v1/sessions/a', { legalHold: false }, app)).status).toBe(403);
    expect((await node.inject('PATCH', '/v1/sessions/a', { legalHold: false }, root)).status).toBe(200);
    expect((await node.inject('DELETE', '/v1/sessions/a', undefined, app)).status).toBe(204);
  });

  it('given a key that is not an operator’s, when it is used for admin routes, then the request is forbidden', async () => {
    const node = await world.start({ auth });
    for (const [method, url, body] of [
      ['GET', '/v1/admin/sweep', undefined],
      ['POST', '/v1/admin/sweep', undefined],
      ['GET', '/v1/admin/tenants/default', undefined],
      ['PUT', '/v1/admin/tenants/default', { maxSessions: 1_000 }],
    ] as const) {
      expect((await node.inject(method, url, body, app)).status).toBe(403);
      expect((await node.inject(method, url, body)).status).toBe(401);
      expect((await node.inject(method, url, body, root)).status).toBe(200);
    }
  });
});

describe('a dry run', () => {
  it('given sessions that are due for every reason, when a dry run is made, then it lists the actions with their reasons, and changes nothing', async () => {
    const node = await world.start({
      sessions: { deleteAfter: 10 * DAY },
      tenants: { small: { maxSessions: 5 } },
    });
    await node.create('old');
    await world.db.setClock({ offsetMs: 2 * HOUR });
    await node.sweep();
    await world.db.setClock({ offsetMs: 11 * DAY });
    await node.create('idle');
    for (const id of ['s1', 's2', 's3']) await node.create(id, 'small');
    await world.db.setClock({ offsetMs: 11 * DAY + 2 * HOUR });
    await node.say('s3', 'used', 'small');
    // Uses within the same millisecond would be ordered by id.
    await world.db.setClock({ offsetMs: 11 * DAY + 2 * HOUR + 1_000 });
    await node.say('s2', 'used', 'small');
    await node.create('dead');
    await node.generate('dead', 'gen-dead', 'missing');
    await node.inject('PUT', '/v1/admin/tenants/small', { maxSessions: 1 });
    await node.caughtUp();
    const before = await world.db.query('select count(*) from event');

    const { status, body } = await node.inject('GET', '/v1/admin/sweep?dryRun=true');

    expect(status).toBe(200);
    const { actions, isComplete } = body['dryRun'] as {
      actions: Record<string, string>[];
      isComplete: boolean;
    };
    expect(isComplete).toBe(true);
    expect(
      actions.map(({ tenant, sessionId, action, reason }) => [tenant, sessionId, action, reason]),
    ).toEqual([
      ['default', 'dead', 'fail-generation', 'lease'],
      ['default', 'idle', 'expire', 'ttl'],
      ['small', 's1', 'expire', 'ttl'],
      // After `s1` two sessions are left, of which the least recently used one exceeds the cap.
      ['small', 's3', 'expire', 'cap'],
      ['default', 'old', 'delete', 'retention'],
    ]);
    for (const { why } of actions) expect(why).toMatch(/gone|sessionTTL is|maxSessions is 1|deleteAfter is/);
    expect(await world.db.query('select count(*) from event')).toEqual(before);
    expect((await node.inject('GET', '/v1/admin/sweep?dryRun=true&limit=2')).body).toMatchObject({
      dryRun: { actions: [{ sessionId: 'dead' }, { sessionId: 'idle' }], isComplete: false },
    });
    expect((await node.inject('GET', '/v1/admin/sweep?dryRun=maybe')).status).toBe(400);

    // A sweep then does what the dry run has listed.
    expect((await node.inject('POST', '/v1/admin/sweep')).body).toMatchObject({
      swept: { lease: 1, ttl: 2, cap: 1, retention: 1 },
    });
    expect((await node.inject('GET', '/v1/admin/sweep')).body).toMatchObject({
      intervalMs: 60_000,
      lanes: 16,
      last: { swept: { lease: 1, ttl: 2, cap: 1, retention: 1 } },
      totals: { lease: 1, ttl: 3, cap: 1, retention: 1, restored: 0, rejected: 0 },
    });
  });
});
