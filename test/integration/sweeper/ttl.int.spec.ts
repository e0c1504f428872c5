import { ExpireSession } from '../../../src/domain/session.commands.js';
import { VersionMismatch } from '../../../src/event-store/refusals.js';
import { seeded, sized } from '../event-store/fixture.js';
import { HOUR, logOf, nth, World } from './fixture.js';
import { heavy } from '../../support/heavy.js';

const world = World.perTest();
const none = { ttl: 0, cap: 0, lease: 0, retention: 0, schedule: 0, erasure: 0 };

describe('the time to live', () => {
  it('given sessions, when their time to live has passed since the last write, then they expire, and those in use do not', async () => {
    const node = await world.start();
    for (const id of ['idle', 'used', 'generating']) await node.create(id);
    await world.db.setClock({ offsetMs: HOUR / 2 });
    await node.say('used', 'still here');

    await world.db.setClock({ offsetMs: HOUR - 10_000 });
    await node.generate('generating', 'gen1');
    expect(await node.sweep()).toMatchObject({ found: none, swept: none, lagMs: 0 });

    await world.db.setClock({ offsetMs: HOUR });
    await node.leases.take(['generation:gen1']);
    const report = await node.sweep();
    expect(report.swept).toEqual({ ...none, ttl: 1 });
    expect(report.lagMs).toBeLessThan(10_000);
    expect(await logOf(world.db, 'idle')).toEqual(['SessionCreated', 'SessionExpired:ttl']);
    expect(await logOf(world.db, 'used')).toEqual(['SessionCreated', 'MessageAppended']);

    // A session that is generating stays active, however long ago the last write was.
    await world.db.setClock({ offsetMs: 3 * HOUR });
    await node.leases.take(['generation:gen1']);
    expect((await node.sweep()).swept).toEqual({ ...none, ttl: 1 });
    expect(await logOf(world.db, 'generating')).toHaveLength(3);

    // Another sweep finds nothing.
    await node.leases.take(['generation:gen1']);
    expect(await node.sweep()).toMatchObject({ found: none });
  });

  it('given an expired session, when it is read it stays expired; when it is written to it is back with its history, in one append', async () => {
    const node = await world.start();
    await node.create('chat');
    await node.say('chat', 'remember me');
    await world.db.setClock({ offsetMs: 2 * HOUR });
    await node.sweep();

    const read = await node.inject('GET', '/v1/sessions/chat/messages');
    expect(read.body).toMatchObject({ data: [{ content: 'remember me' }] });
    expect((await node.inject('GET', '/v1/sessions/chat')).body).toMatchObject({
      status: 'expired',
      expiresAt: null,
    });

    const { events } = await node.say('chat', 'back');
    expect(events.map((event) => event.type)).toEqual(['SessionResumed', 'MessageAppended']);
    const { body } = await node.inject('GET', '/v1/sessions/chat/messages');
    expect((body['data'] as { content: string }[]).map(({ content }) => content)).toEqual([
      'remember me',
      'back',
    ]);
    expect(node.sweeper.status().totals).toMatchObject({ ttl: 1, restored: 1 });
  });

  it('given a session that is used regularly, when the sweeper runs at any time, then the session stays active', async () => {
    const node = await world.start();
    await node.create('busy');
    for (let minutes = 30; minutes <= 300; minutes += 30) {
      await world.db.setClock({ offsetMs: minutes * 60_000 });
      await node.say('busy', `minute ${minutes}`);
      await node.sweep();
    }
    expect((await logOf(world.db, 'busy')).filter((type) => type !== 'MessageAppended')).toEqual([
      'SessionCreated',
    ]);
    await world.db.setClock({ offsetMs: 300 * 60_000 + HOUR + 1_000 });
    expect((await node.sweep()).swept.ttl).toBe(1);
  });

  it('given a candidate that was used since the read model was queried, when its expiry is decided, then the log refuses it', async () => {
    const node = await world.start();
    const created = await node.create('a');
    const seen = {
      tenant: 'default',
      sessionId: 'a',
      version: 1,
      lastActivityAt: created.time,
      overdueMs: 0,
    };
    const by = { actor: 'system:sweeper', correlationId: 'test' };
    // The version is right, but the session is not idle by the clock of the database.
    expect(await node.commands.expire(seen, 'ttl', by, HOUR)).toBe(false);
    await world.db.setClock({ offsetMs: 2 * HOUR });
    await node.say('a', 'in time');
    expect(await node.commands.expire(seen, 'ttl', by, HOUR)).toBe(false);
    expect(await node.commands.expire(seen, 'cap', by)).toBe(false);
    await expect(
      node.handle('a', new ExpireSession('cap', created.time), { ifMatch: [1] }),
    ).rejects.toBeInstanceOf(VersionMismatch);
    expect(await logOf(world.db, 'a')).toEqual(['SessionCreated', 'MessageAppended']);
  });

  it('given tenants with a shorter and a longer time to live, when the sweeper runs, then each tenant gets its own', async () => {
    const node = await world.start({
      sessions: { sessionTTL: HOUR },
      tenants: { short: { sessionTTL: 600_000 }, long: { sessionTTL: 24 * HOUR } },
    });
    const tenants = ['default', 'short', 'long', 'other'];
    for (const tenant of tenants) await node.create('a', tenant);
    const expired = async () => {
      await node.sweep();
      const rows = await world.db.query<{ tenant: string }>(
        `select tenant from event where type = 'SessionExpired' order by position, tenant`,
      );
      return rows.map(({ tenant }) => tenant).sort();
    };
    await world.db.setClock({ offsetMs: 590_000 });
    expect(await expired()).toEqual([]);
    await world.db.setClock({ offsetMs: 610_000 });
    expect(await expired()).toEqual(['short']);
    await world.db.setClock({ offsetMs: HOUR + 1_000 });
    expect(await expired()).toEqual(['default', 'other', 'short']);
    await world.db.setClock({ offsetMs: 25 * HOUR });
    expect(await expired()).toEqual(['default', 'long', 'other', 'short']);
  });

  it('given a session that only a newer version can read, when it is due, then the sweep skips it and expires the others, and reads of it report a newer version', async () => {
    const node = await world.start();
    for (const id of ['newer', 'usual']) await node.create(id);
    await node.caughtUp();
    await world.db.query(
      `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                          correlation_id, data)
       select e.lane, (select max(position) + 1 from event l where l.lane = e.lane), tenant, stream_id, 2, 1,
              gen_random_uuid(), 'MessageAppended', 99, time, 'newer', 'newer', '{}'
       from event e where stream_id = 'newer'`,
    );
    await world.db.setClock({ offsetMs: 2 * HOUR });

    expect((await node.sweeper.sweep('all')).swept).toEqual({ ...none, ttl: 1 });

    expect(await logOf(world.db, 'usual')).toEqual(['SessionCreated', 'SessionExpired:ttl']);
    expect(await logOf(world.db, 'newer')).toEqual(['SessionCreated', 'MessageAppended']);
    const message = { role: 'user', content: 'hello' };
    expect(await node.inject('POST', '/v1/sessions/newer/messages', message)).toMatchObject({
      status: 503,
      body: {
        code: 'upgrade-in-progress',
        detail: expect.stringContaining('MessageAppended v99 is newer than this version') as string,
      },
    });
  });

  it('given more sessions than a page holds, when they are due, then one sweep expires all of them, many in one commit', async () => {
    const node = await world.start({ sessions: { maxSessions: 10_000 } });
    const count = sized(10_000, 4_500, 2_200);
    for (let from = 0; from < count; from += 500) {
      const some = Array.from({ length: Math.min(500, count - from) }, (_, index) =>
        node.create(`s${from + index}`),
      );
      await Promise.all(some);
    }
    await world.db.setClock({ offsetMs: 2 * HOUR });
    const report = await node.sweep();
    expect(report.swept).toEqual({ ...none, ttl: count });
    // Events of one commit have the same time.
    const [row] = await world.db.query<{ commits: number }>(
      `select count(distinct (time, lane % 2))::int as commits from event where type = 'SessionExpired'`,
    );
    expect(row?.commits).toBeLessThan(count / 8);
  }, 60_000);
});

heavy(
  'given a write and a sweep of the same session, when they race in random order, then none expires after a newer write',
  async () => {
    const random = seeded();
    const nodes = [await world.start(), await world.start()];
    const [one] = nodes;
    if (!one) throw new Error('no node');
    const sessions = Array.from({ length: 50 }, (_, index) => `s${index}`);
    await Promise.all(sessions.map((id) => one.create(id)));
    const races = sized(10_000, 1_500);
    // The delays are chosen so that writes come before, during and after a sweep, however long it takes on this
    // machine.
    let sweepMs = 6;

    for (let round = 1, done = 0; done < races; round += 1) {
      await world.db.setClock({ offsetMs: round * 2 * HOUR });
      await Promise.all(nodes.map((node) => node.caughtUp()));
      const sweeps = nodes.map(async (node) => {
        await pause(random(6));
        const { durationMs } = await node.sweeper.sweep('all');
        sweepMs = Math.max(6, Math.min(durationMs, 500));
      });
      const writes = sessions.map(async (id) => {
        await pause(random(2 * sweepMs));
        await nodes[random(2)]?.say(id, `round ${round}`);
      });
      await Promise.all([...sweeps, ...writes]);
      done += sessions.length;
    }

    // Both orders must have occurred. What must hold for each expiry is checked after every test.
    const counts = await world.db.query<{ type: string; count: number }>(
      `select type, count(*)::int from event where type <> 'MessageAppended' group by type order by type`,
    );
    const count = (type: string) => counts.find((row) => row.type === type)?.count ?? 0;
    expect(count('SessionExpired')).toBeGreaterThan(races / 20);
    expect(count('SessionExpired')).toBeLessThan(races);
    const [row] = await world.db.query<{ written: number }>(
      `select count(*)::int as written from event where type = 'MessageAppended'`,
    );
    expect(row?.written).toBe(Math.ceil(races / 50) * 50);
  },
  240_000,
);

it('given two nodes that sweep everything at once, when sessions are due, then each is handled once', async () => {
  const nodes = [
    await world.start({ sessions: { maxSessions: 1_000 } }),
    await world.start({ sessions: { maxSessions: 1_000 } }),
  ];
  await Promise.all(Array.from({ length: 400 }, (_, index) => nth(nodes, index).create(`s${index}`)));
  await world.db.setClock({ offsetMs: 2 * HOUR });
  await Promise.all(nodes.map((node) => node.caughtUp()));

  const reports = await Promise.all([...nodes, ...nodes].map((node) => node.sweeper.sweep('all')));

  expect(reports.reduce((sum, report) => sum + report.swept.ttl, 0)).toBe(400);
  const [row] = await world.db.query<{ count: number }>(
    `select count(*)::int from event where type = 'SessionExpired'`,
  );
  expect(row?.count).toBe(400);
});

it('given two nodes, when each sweeps its own lanes, then they share the work', async () => {
  const one = await world.start({ sessions: { maxSessions: 1_000 } });
  const two = await world.start({ sessions: { maxSessions: 1_000 } });
  await Promise.all(Array.from({ length: 200 }, (_, index) => one.create(`s${index}`)));
  // The lanes are balanced at the next renewals of the leases.
  const until = performance.now() + 10_000;
  while (one.sweeper.status().lanes !== 8 || two.sweeper.status().lanes !== 8) {
    if (performance.now() > until) throw new Error('the lanes are not shared');
    await pause(50);
  }
  await world.db.setClock({ offsetMs: 2 * HOUR });
  // All leases have run out by this clock. Whoever comes first takes them, and the nodes share them anew.
  const isShared = async (): Promise<boolean> => {
    const held = await world.db.query<{ lanes: number }>(
      `select count(*)::int as lanes from lease
       where starts_with(name, 'sweeper/lane/') and until > colloquy_now() group by owner`,
    );
    const known = [one, two].map(({ sweeper }) => sweeper.status().lanes);
    return [...held.map(({ lanes }) => lanes), ...known].join() === '8,8,8,8';
  };
  while (!(await isShared())) await pause(50);
  await one.caughtUp();
  const reports = [await one.sweeper.sweep(), await two.sweeper.sweep()];
  expect(reports.map((report) => report.swept.ttl).reduce((a, b) => a + b)).toBe(200);
  for (const report of reports) expect(report.swept.ttl).toBe(report.found.ttl);
  for (const report of reports) expect(report.swept.ttl).toBeGreaterThan(20);
}, 30_000);

it('given a short time to live, when the sweeper runs on its own schedule, then sessions expire in time', async () => {
  const node = await world.start({ sessions: { sessionTTL: 1_000 } });
  expect(node.sweeper.status().intervalMs).toBe(250);
  await node.create('a');
  const until = performance.now() + 10_000;
  while ((await logOf(world.db, 'a')).length < 2) {
    if (performance.now() > until) throw new Error('nothing was swept');
    await pause(20);
  }
  const [row] = await world.db.query<{ late: number }>(
    `select extract(epoch from e.time - c.time)::float8 * 1000 - 1000 as late
     from event e join event c on c.stream_id = e.stream_id and c.version = 1 where e.type = 'SessionExpired'`,
  );
  expect(row?.late).toBeLessThan(1_000);
});

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
