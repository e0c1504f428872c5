import { SessionLimitReached } from '../../../src/sessions/session-commands.js';
import { activeInLog, HOUR, logOf, nth, type Node, World } from './fixture.js';
import { sized } from '../../support/heavy.js';

const world = World.perTest();

const CREATES = sized(500, 500, 250);
const CAP = 100;

/** Creates sessions at once on all nodes, and watches the number of active sessions meanwhile. */
async function createAtOnce(nodes: readonly Node[], count = CREATES, prefix = 's') {
  let most = 0;
  const state = { running: true };
  const sampling = (async () => {
    while (state.running) {
      const [row] = await world.db.query<{ value: number }>(
        `select value::int from counter where key = 'active:default'`,
      );
      most = Math.max(most, row?.value ?? 0, await activeInLog(world.db));
    }
  })();
  const results = await Promise.allSettled(
    Array.from({ length: count }, (_, index) => nth(nodes, index).create(`${prefix}${index}`)),
  );
  state.running = false;
  await sampling;
  const refused = results
    .filter((result) => result.status === 'rejected')
    .map((result) => result.reason as unknown);
  return { refused, created: count - refused.length, most };
}

async function expectNoDeadlock(): Promise<void> {
  await world.stopAll();
  // PostgreSQL backends report their statistics when they end.
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(
    await world.db.query('select deadlocks::int from pg_stat_database where datname = current_database()'),
  ).toEqual([{ deadlocks: 0 }]);
}

describe('at the cap under reject', () => {
  it('given many creates at once on two nodes, when the cap is 100, then exactly 100 succeed', async () => {
    const nodes = [await world.start(), await world.start()];

    const { refused, created, most } = await createAtOnce(nodes);

    expect(created).toBe(CAP);
    expect(most).toBeLessThanOrEqual(CAP);
    for (const error of refused) {
      expect(error).toBeInstanceOf(SessionLimitReached);
      expect(error).toMatchObject({ details: { activeSessions: CAP, maxSessions: CAP } });
    }
    expect(await activeInLog(world.db)).toBe(CAP);
    expect(nodes.map((node) => node.sweeper.status().totals.rejected).reduce((a, b) => a + b)).toBe(
      CREATES - CAP,
    );
    await expectNoDeadlock();
  }, 60_000);

  it('given overdue sessions that were not swept yet, when another session is created, then the overdue ones expire first', async () => {
    const node = await world.start({ sessions: { maxSessions: 3 } });
    await node.create('a');
    await node.create('b');
    await world.db.setClock({ offsetMs: HOUR / 2 });
    await node.create('c');
    await node.caughtUp();
    await expect(node.create('d')).rejects.toBeInstanceOf(SessionLimitReached);

    await world.db.setClock({ offsetMs: HOUR + 5_000 });
    await node.create('d');
    expect(await logOf(world.db, 'a')).toEqual(['SessionCreated', 'SessionExpired:ttl']);
    expect(await logOf(world.db, 'c')).toEqual(['SessionCreated']);
    expect(node.sweeper.status().totals).toMatchObject({ overdue: 2, evicted: 0, rejected: 1 });
  });

  it('given a tenant at its cap, when an expired session is used, then resuming is refused too and leaves nothing behind', async () => {
    const node = await world.start({ sessions: { maxSessions: 1 } });
    await node.create('old');
    await world.db.setClock({ offsetMs: 2 * HOUR });
    await node.sweep();
    await node.create('new');
    await expect(node.say('old', 'may I?')).rejects.toBeInstanceOf(SessionLimitReached);
    expect(await logOf(world.db, 'old')).toEqual(['SessionCreated', 'SessionExpired:ttl']);
    await node.inject('DELETE', '/v1/sessions/new');
    expect((await node.say('old', 'now?')).state.status).toBe('active');
  });

  it('given a tenant at its cap, when other tenants create sessions, then they succeed', async () => {
    const node = await world.start({ sessions: { maxSessions: 1 } });
    await node.create('a');
    await node.create('a', 'other');
    await expect(node.create('b')).rejects.toBeInstanceOf(SessionLimitReached);
    await expect(node.create('b', 'other')).rejects.toBeInstanceOf(SessionLimitReached);
  });
});

describe('at the cap under evict', () => {
  const evict = { sessions: { capPolicy: 'evict' } };

  it('given many creates at once on two nodes, when the cap is 100, then all succeed, never more than 100 are active, and evicted sessions can be resumed', async () => {
    const nodes = [await world.start(evict), await world.start(evict)];
    const [one] = nodes;
    if (!one) throw new Error('no node');

    const { refused, created, most } = await createAtOnce(nodes);

    expect(refused).toEqual([]);
    expect(created).toBe(CREATES);
    expect(most).toBeLessThanOrEqual(CAP);
    expect(await activeInLog(world.db)).toBe(CAP);
    const expired = await world.db.query<{ stream_id: string; reason: string }>(
      `select stream_id, data ->> 'reason' as reason from event where type = 'SessionExpired'`,
    );
    expect(expired).toHaveLength(CREATES - CAP);
    expect(new Set(expired.map(({ reason }) => reason))).toEqual(new Set(['cap']));
    for (const { stream_id: id } of expired.slice(0, 150)) {
      const { events, state } = await one.say(id, 'again');
      expect(events.map((event) => event.type)).toEqual(['SessionResumed', 'MessageAppended']);
      expect(state.messageCount).toBe(1);
    }
    expect(await activeInLog(world.db)).toBe(CAP);
    await expectNoDeadlock();
  }, 120_000);

  it('given a tenant at its cap, when one more session is created, then the least recently used one expires, and never one that is generating', async () => {
    const node = await world.start({ sessions: { capPolicy: 'evict', maxSessions: 4 } });
    for (const [index, id] of ['a', 'b', 'c', 'd'].entries()) {
      await world.db.setClock({ offsetMs: index * 1_000 });
      await node.create(id);
    }
    await world.db.setClock({ offsetMs: 10_000 });
    await node.say('a', 'used again');
    await node.generate('b', 'gen-b');
    await node.caughtUp();

    await node.create('e');
    await node.caughtUp();
    await node.create('f');
    expect(await logOf(world.db, 'c')).toEqual(['SessionCreated', 'SessionExpired:cap']);
    expect(await logOf(world.db, 'd')).toEqual(['SessionCreated', 'SessionExpired:cap']);
    expect(await activeInLog(world.db)).toBe(4);
    // Overdue sessions expire first, with the reason ttl.
    await world.db.setClock({ offsetMs: HOUR + 60_000 });
    await node.leases.take(['generation:gen-b']);
    await node.create('g');
    expect(await logOf(world.db, 'a')).toEqual(['SessionCreated', 'MessageAppended', 'SessionExpired:ttl']);
  });

  it('given a tenant at its cap whose sessions are all generating, when one more is created, then it is refused', async () => {
    const node = await world.start({ sessions: { capPolicy: 'evict', maxSessions: 2 } });
    for (const id of ['a', 'b']) {
      await node.create(id);
      await node.generate(id, `gen-${id}`);
    }
    await expect(node.create('c')).rejects.toBeInstanceOf(SessionLimitReached);
    expect(await activeInLog(world.db)).toBe(2);
  });

  it('given a tenant at its cap, when 60 expired sessions are used at once, then all are resumed', async () => {
    const nodes = [await world.start({ sessions: { capPolicy: 'evict', maxSessions: 20 } })];
    nodes.push(await world.start({ sessions: { capPolicy: 'evict', maxSessions: 20 } }));
    await createAtOnce(nodes, 80, 'r');
    const ids = (
      await world.db.query<{ stream_id: string }>(
        `select stream_id from event where type = 'SessionExpired' order by stream_id limit 60`,
      )
    ).map((row) => row.stream_id);
    await Promise.all(ids.map((id, index) => nth(nodes, index).say(id, 'all of us')));
    expect(await activeInLog(world.db)).toBe(20);
  }, 60_000);
});

describe('a cap that is lowered', () => {
  it('given more sessions than a lowered cap allows, when the sweeper runs, then the least recently used ones expire', async () => {
    const node = await world.start({ sessions: { maxSessions: 1_000 } });
    const ids = Array.from({ length: 600 }, (_, index) => `s${index}`);
    await Promise.all(ids.map((id) => node.create(id)));
    await world.db.setClock({ offsetMs: 60_000 });
    const kept = ids.filter((_, index) => index % 60 === 0);
    for (const id of kept) await node.say(id, 'I stay');

    await node.inject('PUT', '/v1/admin/tenants/default', { maxSessions: kept.length });
    await expect(node.create('one more')).rejects.toMatchObject({
      details: { activeSessions: 600, maxSessions: 10 },
    });
    expect((await node.sweep()).swept).toMatchObject({ ttl: 0, cap: 590, lease: 0, retention: 0 });

    expect(await activeInLog(world.db)).toBe(10);
    for (const id of kept) expect(await logOf(world.db, id)).toEqual(['SessionCreated', 'MessageAppended']);
    expect((await node.sweep()).found.cap).toBe(0);
  }, 30_000);

  it('given two nodes that sweep at once, when both have ended, then no more sessions have expired than necessary', async () => {
    const nodes = [
      await world.start({ sessions: { maxSessions: 500 } }),
      await world.start({ sessions: { maxSessions: 500 } }),
    ];
    await createAtOnce(nodes, 300);
    await nodes[0]?.inject('PUT', '/v1/admin/tenants/default', { maxSessions: 40 });
    await nodes[1]?.policies.read('default');
    for (let round = 0; round < 3; round += 1) {
      await Promise.all(nodes.map((node) => node.sweeper.sweep('all')));
    }
    expect(await activeInLog(world.db)).toBe(40);
  }, 30_000);
});
