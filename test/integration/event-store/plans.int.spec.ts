import { Pool } from 'pg';
import { LogRanges } from '../../../src/event-store/log-ranges.js';
import { appendOf } from '../../support/append.js';
import { masterKey } from '../../support/master-keys.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { Nodes, sized, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = new Nodes();
const EVENTS = sized(100_000, 20_000);
const LENGTH = 50;

/** Each lane gets so many ranges, with as many events in each. */
async function write(ranges: number): Promise<void> {
  const pool = new Pool({ connectionString: db.url });
  const log = new LogRanges(pool);
  const each = EVENTS / 16 / ranges;
  for (let range = 0; range < ranges; range += 1) {
    if (range > 0) for (let lane = 0; lane < 16; lane += 1) await log.begin(lane, 0);
    await db.query(
      `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                          actor, correlation_id, data)
       select n % 16, n / 16 + 1, 'load', 'lane' || n % 16 || '-' || n / 16 / $1, n / 16 % $1 + 1, 1,
              gen_random_uuid(), 'Written', 1, now(), 'tester', 'test', '{"text": "some words"}'
       from generate_series($2::int, $3::int) as n`,
      [LENGTH, range * each * 16, (range + 1) * each * 16 - 1],
    );
  }
  await pool.end();
  await db.query('vacuum analyze event');
}

beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(async () => {
  await nodes.stopAll();
  await db.drop();
});

/** Rows and blocks of the events that were read so far, through an index or not. */
async function reads(): Promise<{ sequential: number; byIndex: number; rows: number }> {
  await db.query('select pg_stat_clear_snapshot()');
  const [row] = await db.query<{ sequential: number; byIndex: number; rows: number }>(
    `select coalesce(sum(seq_scan), 0)::int as sequential, coalesce(sum(idx_scan), 0)::int as "byIndex",
            coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::int as rows
     from pg_stat_user_tables where relname like 'event%'`,
  );
  return row ?? { sequential: -1, byIndex: -1, rows: -1 };
}

it.each([1, 5])(
  'given a long log of lanes with %i ranges each, when a lane, a stream, a tenant and the ends are read and appended to, then only indexes are used, and few rows are read',
  async (ranges) => {
    await write(ranges);
    const before = await reads();
    const store = await nodes.start(db.url);
    const keyed = await nodes.start(db.url, { masterKeys: [masterKey('one')] });
    const keyId = '00000000-0000-4000-8000-000000000001';
    // Each statement runs often enough for the server to choose a generic plan.
    const ROUNDS = 12;
    const lanes = new Map(Array.from({ length: store.laneCount }, (_, lane) => [lane, EVENTS / 32]));
    for (let round = 0; round < ROUNDS; round += 1) {
      expect(await store.lanes.read(lanes, 10)).toHaveLength(160);
      expect((await store.lanes.ends())[3]).toBe(EVENTS / 16);
      // The events of this stream were inserted into another lane than its hash gives, so reading it searches its own
      // lane in vain.
      expect(await store.streams.read({ tenant: 'load', streamId: 'nothing' })).toEqual([]);
      await keyed.keyOfEvent({ tenant: 'load', streamId: 'nothing', version: 7, keyId });
      await store.streams.lastVersion({ tenant: 'load', streamId: 'nothing' }, 1, { version: 7 });
      // A tenant with few events in this log, read from its beginning.
      const feed = await store.feed.read('acme', new Map([...lanes.keys()].map((lane) => [lane, 0])), 5);
      expect(feed.events).toHaveLength(round === 0 ? 0 : 5);
      for (const streamId of ['one', 'two']) {
        await store.append(appendOf({ tenant: 'acme', streamId }, round, [{ type: 'Written', data: {} }]));
      }
      await Promise.all(
        ['a', 'b', 'c', 'd', 'e', 'f'].map((streamId) =>
          store.append(appendOf({ tenant: 'acme', streamId }, round, [{ type: 'Written', data: {} }])),
        ),
      );
      expect(await store.streams.read({ tenant: 'acme', streamId: 'one' }, { from: round })).toHaveLength(
        round === 0 ? 1 : 2,
      );
    }
    await tallies(store, { stateVersion: 9 }).load({ tenant: 'acme', streamId: 'none' });
    // PostgreSQL backends report their statistics when they end.
    await nodes.stopAll();
    let after = await reads();
    for (let wait = 0; wait < 100 && after.byIndex < before.byIndex + 100; wait += 1) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      after = await reads();
    }

    expect(after.sequential - before.sequential).toBe(0);
    expect(after.byIndex - before.byIndex).toBeGreaterThan(100);
    expect(after.rows - before.rows).toBeLessThan(ROUNDS * 400);
  },
  120_000,
);
