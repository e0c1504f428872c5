import { type AppendResult } from '../../../src/event-store/append.js';
import { CounterAtLimit } from '../../../src/event-store/refusals.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { by, logPerTest, seeded, sized, sleep, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

const written = [{ type: 'Written', data: {} }];
const stream = (streamId: string) => ({ tenant: 'acme', streamId });
const change = (delta: number, max = 50, key = 'active') => ({ counters: [{ key, delta, max }] });
const numberOf = (results: readonly AppendResult[], status: string) =>
  results.filter((result) => result.status === status).length;

describe('a counter', () => {
  it('given a limit of 50, when 200 appends on two nodes add one each at once, then exactly 50 succeed', async () => {
    const stores = [await nodes.start(db.url), await nodes.start(db.url)];

    const results = await Promise.all(
      Array.from({ length: 200 }, (_, index) =>
        (stores[index % 2] ?? fail()).append(appendOf(stream(`s${index}`), 0, written, change(1))),
      ),
    );

    expect([numberOf(results, 'ok'), numberOf(results, 'counter')]).toEqual([50, 150]);
    expect(await stores[0]?.counters.value('active')).toBe(50);
    // Refused appends left nothing behind.
    const ok = results.flatMap(({ status }, index) => (status === 'ok' ? [`s${index}`] : []));
    for (const table of ['event', 'stream_state']) {
      const rows = await db.query<{ stream_id: string }>(`select stream_id from ${table}`);
      expect(rows.map((row) => row.stream_id).sort()).toEqual(ok.sort());
    }

    // A decrement makes room for exactly one.
    await stores[0]?.append(appendOf(stream(ok[0] ?? ''), 1, written, change(-1)));
    const more = await Promise.all(
      Array.from({ length: 20 }, (_, index) =>
        (stores[index % 2] ?? fail()).append(appendOf(stream(`t${index}`), 0, written, change(1))),
      ),
    );
    expect(numberOf(more, 'ok')).toBe(1);
    expect(await stores[0]?.counters.value('active')).toBe(50);
  });

  it('given a limit that was lowered, when the counter stands above it, then it may fall but not rise', async () => {
    const store = await nodes.start(db.url);
    await store.append(appendOf(stream('a'), 0, written, change(7)));
    const statuses = [];
    for (const [version, delta] of [
      [1, 1],
      [1, -1],
      [2, 0],
      [3, -4],
      [4, 1],
      [5, 1],
    ] as const) {
      statuses.push((await store.append(appendOf(stream('a'), version, written, change(delta, 3)))).status);
    }
    expect(statuses).toEqual(['counter', 'ok', 'ok', 'ok', 'ok', 'counter']);
    expect(await store.counters.value('active')).toBe(3);
  });

  it('given appends that conflict or are guarded, when they would change a counter, then it stays', async () => {
    const store = await nodes.start(db.url);
    const results = await Promise.all([
      store.append(appendOf(stream('a'), 3, written, change(1))),
      store.append(appendOf(stream('b'), 0, written, change(2))),
      store.append(
        appendOf(stream('c'), 0, written, { ...change(4), guard: { before: '2001-01-01T00:00:00Z' } }),
      ),
    ]);
    expect(results.map(({ status }) => status)).toEqual(['conflict', 'ok', 'guard']);
    expect(await store.counters.value('active')).toBe(2);
  });

  it('given an append with several counters, when one counter is at its limit, then none of them is changed', async () => {
    const store = await nodes.start(db.url);
    const several = (last: number) => ({
      counters: [
        { key: 'a', delta: 1, max: 9 },
        { key: 'b', delta: 2, max: 9 },
        { key: 'c', delta: last, max: 3 },
      ],
    });
    const results = await Promise.all([
      store.append(appendOf(stream('s1'), 0, written, several(4))),
      store.append(appendOf(stream('s2'), 0, written, several(3))),
    ]);
    expect(results.map(({ status }) => status)).toEqual(['counter', 'ok']);
    expect(await db.query('select key, value::int from counter order by key')).toEqual([
      { key: 'a', value: 1 },
      { key: 'b', value: 2 },
      { key: 'c', value: 3 },
    ]);
  });

  it('given a command whose counter is at its limit, when it is handled, then the error names the counter', async () => {
    const handler = tallies(await nodes.start(db.url));
    const options = { ...by, counter: () => ({ key: 'active:acme', max: 1 }) };
    await handler.handle(stream('a'), { numbers: [1], count: 1 }, options);

    const refused = handler.handle(stream('b'), { numbers: [1], count: 1 }, options);

    await expect(refused).rejects.toBeInstanceOf(CounterAtLimit);
    await expect(refused).rejects.toMatchObject({ key: 'active:acme', max: 1 });
  });
});

it('given three nodes, when random batches share counters, keys, lanes and streams, then there is no deadlock and every sum is right', async () => {
  const random = seeded();
  const stores = await Promise.all([1, 2, 3].map(() => nodes.start(db.url)));
  const sums = new Map<string, number>();
  const keys = new Set<string>();
  let clash = 0;

  for (let round = 0; round < sized(200, 40, 20); round += 1) {
    const ids = Array.from({ length: 60 }, () => stream(`s${random(200)}`));
    const versions = await Promise.all(
      ids.map(async (id) => (await stores[0]?.streams.load(id))?.version ?? 0),
    );
    await Promise.all(
      ids.map(async (id, index) => {
        // In every other round the nodes have lanes of their own, so that they compete only for counters and keys.
        const lane = stores[0]?.laneOf(id) ?? 0;
        const store = stores[round % 2 ? random(3) : Math.floor(lane / 2) % 3] ?? fail();
        const counters = Array.from({ length: random(4) }, () => ({
          key: `c${random(4)}`,
          delta: random(3) - 1,
          max: 1e6,
        }));
        const key = `k${random(200)}-${Math.floor(round / 4)}`;
        const isKeyed = random(2) === 0;
        const result = await store.append(
          appendOf(id, versions[index] ?? 0, random(2) === 0 ? written : [...written, ...written], {
            counters,
            ...(isKeyed && { key: { scope: 's', key, fingerprint: 'f', reference: null } }),
          }),
        );
        if (result.status === 'ok') {
          for (const counter of counters) {
            sums.set(counter.key, (sums.get(counter.key) ?? 0) + counter.delta);
          }
          if (isKeyed) keys.add(key);
        } else clash += 1;
      }),
    );
  }

  expect(clash).toBeGreaterThan(0);
  for (const [key, sum] of sums) expect([key, await stores[0]?.counters.value(key)]).toEqual([key, sum]);
  const kept = await db.query<{ key: string }>('select key from command');
  expect(kept.map(({ key }) => key).sort()).toEqual([...keys].sort());
  await nodes.stopAll();
  // PostgreSQL backends report their statistics when they end.
  await sleep(100);
  expect(
    await db.query('select deadlocks::int from pg_stat_database where datname = current_database()'),
  ).toEqual([{ deadlocks: 0 }]);
}, 60_000);

function fail(): never {
  throw new Error('there is no such node');
}
