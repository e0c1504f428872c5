import { type AppendResult } from '../../../src/event-store/append.js';
import { DatabaseUnavailable } from '../../../src/database/connection.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { type Fate, startProxy, type TcpProxy } from '../../support/tcp-proxy.js';
import { by, expectSoundLog, Nodes, seeded, sized, sleep, tallies } from './fixture.js';

let db: TestDatabase;
let proxy: TcpProxy;
const nodes = new Nodes();
beforeEach(async () => {
  db = await createTestDatabase();
  proxy = await startProxy(db.url);
});
afterEach(async () => {
  proxy.decide(() => 'pass');
  proxy.up();
  await nodes.stopAll();
  await proxy.close();
  await expectSoundLog(db).finally(() => db.drop());
});

const written = (number = 0) => ({ type: 'Written', data: { number } });
const stream = (streamId: string) => ({ tenant: 'acme', streamId });
/** Requests of the writer are recognised by the name of their prepared statement. */
const isAppend = (request: Buffer): boolean => request.includes('append_');

/** The next append has this fate, and the network is down from then on until `proxy.up()`. */
async function loseNext(
  fate: Fate,
  appends: () => readonly Promise<AppendResult>[],
): Promise<Promise<AppendResult>[]> {
  proxy.decide((request) => {
    if (!isAppend(request)) return 'pass';
    proxy.refuse();
    return fate;
  });
  const begun = [...appends()];
  while (proxy.cuts === 0) await sleep(1);
  proxy.decide(() => 'pass');
  return begun;
}

it.each<Fate>(['lose answer', 'lose request'])(
  'given a connection that breaks so: %s, when an append was on its way, then it is acknowledged and in the log once',
  async (fate) => {
    const store = await nodes.start(proxy.url);
    await store.append(appendOf(stream('a'), 0, [written(1)]));
    proxy.decide((request) => {
      if (!isAppend(request)) return 'pass';
      proxy.decide(() => 'pass');
      return fate;
    });

    const result = await store.append(appendOf(stream('a'), 1, [written(2)]));

    const [row] = await db.query<{ position: string; version: number }>(
      `select position, version from event where stream_id = 'a' order by version desc limit 1`,
    );
    expect(proxy.cuts).toBe(1);
    expect(result).toMatchObject({ status: 'ok', version: 2, position: Number(row?.position) });
    expect(row?.version).toBe(2);
    // The answer of the second attempt equals that of the first: the end of the stream.
    const { status, ...end } = result as AppendResult & { status: 'ok' };
    expect(status).toBe('ok');
    expect(await store.streams.load(stream('a'))).toMatchObject(end);
  },
);

it('given appends of every kind, when connections break again and again during commits, then each append is made exactly once', async () => {
  const random = seeded();
  const store = await nodes.start(proxy.url);
  let requests = 0;
  let lost = { 'lose answer': 0, 'lose request': 0 };
  proxy.decide((request) => {
    if (!isAppend(request)) return 'pass';
    // Every third request is hit, by count and not at random, because the number of requests depends on the load of the
    // machine.
    requests += 1;
    const fate = requests % 3 > 0 ? 'pass' : requests % 2 > 0 ? 'lose answer' : 'lose request';
    if (fate !== 'pass') lost = { ...lost, [fate]: lost[fate] + 1 };
    return fate;
  });
  const rounds = sized(200, 60, 25);
  let counted = 0;
  let keyed = 0;

  await Promise.all(
    Array.from({ length: 16 }, async (_, index) => {
      let version = 0;
      for (let round = 0; round < rounds; round += 1) {
        const events = Array.from({ length: 1 + random(3) }, () => written(round));
        const kind = random(3);
        if (kind === 1) counted += 1;
        if (kind === 2) keyed += 1;
        const result = await store.append(
          appendOf(stream(`s${index}`), version, events, {
            ...(kind === 1 && { counters: [{ key: 'c', delta: 1, max: 1e6 }] }),
            ...(kind === 2 && {
              key: { scope: 's', key: `${index}-${round}`, fingerprint: 'f', reference: null },
            }),
          }),
        );
        // After a lost answer the key shows that the stored event is that of this append.
        expect(kind === 2 ? ['ok', 'duplicate'] : ['ok']).toContain(result.status);
        version += events.length;
        expect(result).toMatchObject({ version });
      }
      expect(await store.streams.versions([stream(`s${index}`)])).toEqual([version]);
    }),
  );

  expect(lost['lose answer']).toBeGreaterThan(5);
  expect(lost['lose request']).toBeGreaterThan(5);
  expect(await store.counters.value('c')).toBe(counted);
  expect(await db.query('select count(*)::int from command')).toEqual([{ count: keyed }]);
}, 60_000);

it('given a lost answer, when another node has appended to the stream since, then the first append is still recognised as committed', async () => {
  const [cut, other] = [await nodes.start(proxy.url), await nodes.start(db.url)];
  const [append] = await loseNext('lose answer', () => [
    cut.append(appendOf(stream('a'), 0, [written(1), written(2)])),
  ]);
  await other.append(appendOf(stream('a'), 2, [written(3)]));

  proxy.up();

  expect(await append).toMatchObject({ status: 'ok', version: 2, position: 2 });
  expect(await db.query('select version from event')).toHaveLength(3);
});

it('given a lost request, when another node has taken its version since, then it is a conflict and leaves nothing', async () => {
  const [cut, other] = [await nodes.start(proxy.url), await nodes.start(db.url)];
  const [append] = await loseNext('lose request', () => [
    cut.append(appendOf(stream('a'), 0, [written(1)], { counters: [{ key: 'c', delta: 1, max: 9 }] })),
  ]);
  await other.append(appendOf(stream('a'), 0, [written(2)]));

  proxy.up();

  expect(await append).toEqual({ status: 'conflict', version: 1 });
  expect(await db.query('select data from event')).toEqual([{ data: { number: 2 } }]);
  expect(await other.counters.value('c')).toBe(0);
});

it('given a lost answer, when the server refuses the second attempt as a whole, then each append is still recognised as committed', async () => {
  const store = await nodes.start(proxy.url);
  // Both streams have the same writer, so that their appends are in one batch.
  const names = ['a', 'b', 'c', 'd', 'e', 'f'].filter((name) => store.laneOf(stream(name)) % 2 === 0);
  expect(names.length).toBeGreaterThan(1);
  const appends = await loseNext('lose answer', () =>
    names.map((name) => store.append(appendOf(stream(name), 0, [written(1)]))),
  );
  // The trigger fails once, as when the lock of a lane is held for too long. A sequence counts its calls, because it is
  // not rolled back.
  await db.query('create sequence tries');
  await db.query(`create or replace function colloquy_now() returns timestamptz language plpgsql volatile as $$
    begin
      if nextval('tries') = 1 then raise exception 'lock timeout' using errcode = 'lock_not_available'; end if;
      return clock_timestamp();
    end $$`);

  proxy.up();

  const results = await Promise.all(appends);
  expect(results.map(({ status }) => status)).toEqual(names.map(() => 'ok'));
  expect(await db.query('select is_called from tries')).toEqual([{ is_called: true }]);
});

it('given load, when the writer’s backends are terminated again and again, then each acknowledged append is in the log exactly once', async () => {
  const handler = tallies(await nodes.start(db.url));
  // The test goes on until the intended number of backends was terminated: one is terminated only while it works.
  const aim = sized(100, 12, 6);
  let kills = 0;
  const killing = (async () => {
    while (kills < aim) {
      const killed = await db.query(
        `select pg_terminate_backend(pid) from pg_stat_activity
         where application_name = 'colloquy writer' and datname = current_database() and state = 'active'`,
      );
      kills += killed.length;
      await sleep(15);
    }
  })();
  const acknowledged = new Map<string, number[]>();
  let unavailable = 0;
  await Promise.all(
    Array.from({ length: 24 }, async (_, index) => {
      const streamId = `s${index % 12}`;
      for (let number = index * 1e6; kills < aim; number += 1) {
        try {
          await handler.handle(stream(streamId), { numbers: [number] }, by);
          acknowledged.set(streamId, [...(acknowledged.get(streamId) ?? []), number]);
        } catch (error) {
          expect(error).toBeInstanceOf(DatabaseUnavailable);
          unavailable += 1;
        }
      }
    }),
  );
  await killing;

  expect(kills).toBeGreaterThanOrEqual(aim);
  let stored = 0;
  for (const [streamId, numbers] of acknowledged) {
    const rows = await db.query<{ number: number }>(
      `select (data ->> 'number')::int as number from event where stream_id = $1 order by version`,
      [streamId],
    );
    stored += rows.length;
    const times = new Map<number, number>();
    for (const { number } of rows) times.set(number, (times.get(number) ?? 0) + 1);
    expect([...times].filter(([, count]) => count !== 1)).toEqual([]);
    expect(numbers.filter((number) => !times.has(number))).toEqual([]);
  }
  const told = [...acknowledged.values()].reduce((sum, numbers) => sum + numbers.length, 0);
  expect(stored).toBeLessThanOrEqual(told + unavailable);
}, 60_000);

it('given a database that stays unavailable, when appends are made, then the first one waits a little, and the node works again once the database is back', async () => {
  const store = await nodes.start(proxy.url);
  proxy.down();

  const began = Date.now();
  const outcome = await store.append(appendOf(stream('a'), 0, [written(1)])).catch((error: unknown) => error);
  const waited = Date.now() - began;

  expect(outcome).toBeInstanceOf(DatabaseUnavailable);
  expect(waited).toBeGreaterThan(2_000);
  expect(waited).toBeLessThan(8_000);
  await expect(store.streams.load(stream('a'))).rejects.toBeInstanceOf(DatabaseUnavailable);

  proxy.up();
  expect(await store.append(appendOf(stream('a'), 0, [written(2)]))).toMatchObject({ status: 'ok' });
  expect(await db.query('select data from event')).toEqual([{ data: { number: 2 } }]);
}, 30_000);
