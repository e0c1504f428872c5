import { randomUUID } from 'node:crypto';
import { Client, Pool } from 'pg';
import { DatabaseUnavailable } from '../../../src/database/connection.js';
import { LogRanges, RangeRefused } from '../../../src/event-store/log-ranges.js';
import { asAdmin, type TestDatabase } from '../../support/database.js';
import { blocked, logPerTest, seeded, sized, sleep, StreamWriter } from './fixture.js';

const TENANT = 'acme';
let db: TestDatabase;
let pool: Pool;
let ranges: LogRanges;
let tablespace: string;
const nodes = logPerTest((made) => (db = made));
beforeEach(async () => {
  pool = new Pool({ connectionString: db.url, max: 2 });
  // Its idle connections end with the database.
  pool.on('error', () => undefined);
  ranges = new LogRanges(pool, { attempts: 3 });
  tablespace = `cold_${randomUUID().replaceAll('-', '')}`;
  // It lies in the server's own folder, so that the test needs none that the server may use.
  await db.query('set allow_in_place_tablespaces = on');
  await db.query(`create tablespace ${tablespace} location ''`);
});
// Hooks run in the order in which they are defined: the database is gone, and with it all that was in the tablespace.
afterEach(async () => {
  await pool.end();
  await asAdmin((admin) => admin.query(`drop tablespace ${tablespace}`));
});

const events = () => db.query('select e.*, e.data::text as data from event e order by lane, position');
const ofLane = async (lane: number) =>
  (await ranges.list())
    .filter((range) => range.lane === lane)
    .map(({ from, to, isFull, tablespace: place }) => ({ from, to, isFull, isCold: place === tablespace }));

/** Grows lanes by one stream, and tells which lane that is. */
async function grow(streamId: string, count: number): Promise<number> {
  const store = await nodes.start(db.url);
  const writer = new StreamWriter(store, { tenant: TENANT, streamId });
  for (let n = 0; n < count; n += 1) expect(await writer.append()).toBe('ok');
  const [row] = await db.query<{ lane: number }>('select lane from event where stream_id = $1 limit 1', [
    streamId,
  ]);
  return row?.lane ?? -1;
}

it('given a log that is written and read, when its lanes begin new ranges and the full ones are moved, then no append and no read fails, and every event is what it was', async () => {
  const random = seeded();
  const writing = [await nodes.start(db.url), await nodes.start(db.url)];
  const reading = await nodes.start(db.url);
  let isDone = false;
  let appends = 0;
  const clients = Array.from({ length: 16 }, async (_, index) => {
    const store = writing[index % 2];
    if (!store) throw new Error('there are two nodes');
    const writer = new StreamWriter(store, { tenant: TENANT, streamId: `s${index}` });
    while (!isDone) {
      const count = 1 + random(3);
      const before = writer.version;
      expect(await writer.append(count)).toBe('ok');
      appends += count;
      if (random(4) === 0) {
        const read = await reading.streams.read({ tenant: TENANT, streamId: `s${index}` });
        expect(read.slice(0, before + count).map(({ version }) => version)).toEqual(
          Array.from({ length: before + count }, (__, n) => n + 1),
        );
      }
    }
  });
  const rounds = sized(4, 2);
  for (let round = 0; round < rounds; round += 1) {
    const before = await events();
    const lanes = reading.laneCount;
    for (let lane = 0; lane < lanes; lane += 1) await ranges.begin(lane, 20);
    // Those lanes that have streams grow past the ends of their ranges.
    const grown = new Set(
      (await db.query<{ lane: number }>('select distinct lane from event')).map((r) => r.lane),
    );
    while ((await ranges.list()).some(({ lane, to, isFull }) => grown.has(lane) && to !== null && !isFull))
      await sleep(20);
    for (const range of await ranges.list())
      if (range.isFull && range.tablespace !== tablespace) await ranges.move(range, tablespace);
    const now = await events();
    expect(now.filter(({ id }) => before.some((one) => one['id'] === id))).toEqual(before);
  }
  isDone = true;
  await Promise.all(clients);

  expect(await events()).toHaveLength(appends);
  const all = await ranges.list();
  const grown = new Set(
    (await db.query<{ lane: number }>('select distinct lane from event')).map((e) => e.lane),
  );
  expect(all).toHaveLength(reading.laneCount * 2 + grown.size * (rounds - 1));
  expect(all.filter((range) => range.tablespace === tablespace).every(({ isFull }) => isFull)).toBe(true);
  expect(all.filter((range) => range.tablespace === tablespace).length).toBeGreaterThan(rounds);
  // Every table of a range refuses changes, like the one that it was part of.
  for (const { table } of all)
    await expect(db.query(`delete from ${table}`)).rejects.toMatchObject({ code: '42501' });
}, 120_000);

it('given ranges, when a lane grows within the last one, then only that one is not full, and only full ones can be moved', async () => {
  const lane = await grow('one', 5);
  expect(await ranges.begin(lane, 2)).toBe(8);
  expect(await ofLane(lane)).toEqual([
    { from: 1, to: 8, isFull: false, isCold: false },
    { from: 8, to: null, isFull: false, isCold: false },
  ]);
  const [first] = (await ranges.list()).filter((range) => range.lane === lane);
  if (!first) throw new Error('there is no range');
  await expect(ranges.move(first, tablespace)).rejects.toThrow(RangeRefused);

  const store = await nodes.start(db.url);
  const writer = new StreamWriter(store, { tenant: TENANT, streamId: 'one' });
  writer.version = 5;
  await writer.append(4);
  const [full] = (await ranges.list()).filter((range) => range.lane === lane);
  expect(full).toMatchObject({ from: 1, to: 8, isFull: true });
  expect(await ranges.move(full ?? first, tablespace)).toBe(7);
  expect(await ofLane(lane)).toEqual([
    { from: 1, to: 8, isFull: true, isCold: true },
    { from: 8, to: null, isFull: false, isCold: false },
  ]);
}, 30_000);

it('given a range that was begun and broken off when its end was written down, when it is begun again, then it ends there', async () => {
  const lane = await grow('one', 5);
  await db.query(
    `alter table event_lane_${lane} add constraint range_end
     check (lane = ${lane} and "position" >= 1 and "position" < 8) not valid`,
  );
  expect(await ranges.begin(lane, 1_000)).toBe(8);
  // Once more: the range that has begun has no events yet.
  expect(await ranges.begin(lane, 1_000)).toBe(8);
  expect(await ofLane(lane)).toEqual([
    { from: 1, to: 8, isFull: false, isCold: false },
    { from: 8, to: null, isFull: false, isCold: false },
  ]);
}, 30_000);

it('given a range that was begun and broken off, when its lane grows to the end, then its streams cannot be written to until it is begun again, and those of other lanes can', async () => {
  const lane = await grow('one', 5);
  await db.query(
    `alter table event_lane_${lane} add constraint range_end
     check (lane = ${lane} and "position" >= 1 and "position" < 7) not valid`,
  );
  const store = await nodes.start(db.url);
  const writer = new StreamWriter(store, { tenant: TENANT, streamId: 'one' });
  writer.version = 5;
  expect(await writer.append()).toBe('ok');
  const other = Array.from({ length: 100 }, (_, n) => ({ tenant: TENANT, streamId: `other-${n}` })).find(
    (stream) => store.laneOf(stream) !== lane,
  );
  if (!other) throw new Error('all are of one lane');
  const [full, written] = await Promise.allSettled([
    writer.append(),
    new StreamWriter(store, other).append(),
  ]);
  expect(full).toMatchObject({ reason: expect.any(DatabaseUnavailable) as unknown });
  expect(written).toMatchObject({ value: 'ok' });
  await ranges.begin(lane, 1_000);
  expect(await writer.append()).toBe('ok');
}, 30_000);

it('given a move that was broken off when its copy was made, when it is done again, then all is as if it had not been', async () => {
  const lane = await grow('one', 5);
  await ranges.begin(lane, 0);
  const [full] = (await ranges.list()).filter((range) => range.lane === lane);
  if (!full) throw new Error('there is no range');
  await db.query(`create table ${full.table}_copy (like ${full.table})`);
  const before = await events();
  expect(await ranges.move(full, tablespace)).toBe(5);
  expect(await events()).toEqual(before);
  expect(await db.query(`select from pg_class where relname like 'event%copy'`)).toEqual([]);
}, 30_000);

it('given somebody who reads the log as of a moment, when a range is moved, then it waits, and all is there for the reader', async () => {
  const lane = await grow('one', 5);
  await ranges.begin(lane, 0);
  const [full] = (await ranges.list()).filter((range) => range.lane === lane);
  if (!full) throw new Error('there is no range');
  const reader = new Client({ connectionString: db.url });
  await reader.connect();
  try {
    await reader.query('begin isolation level repeatable read');
    // A snapshot, without a lock on any table of the log.
    await reader.query('select from log_settings');
    let isMoved = false;
    const moving = ranges.move(full, tablespace).then(() => (isMoved = true));
    while ((await db.query(`select from pg_class where relname = '${full.table}_copy'`)).length === 0)
      await sleep(20);
    await sleep(1_000);
    expect(isMoved).toBe(false);
    expect((await reader.query('select from event')).rowCount).toBe(5);
    await reader.query('commit');
    await moving;
  } finally {
    await reader.end();
  }
}, 30_000);

it('given somebody who holds the tables of the log for long, when a range is begun, then it is refused, and those who write do not wait behind it', async () => {
  const lane = await grow('one', 5);
  const reader = new Client({ connectionString: db.url });
  await reader.connect();
  const store = await nodes.start(db.url);
  const writer = new StreamWriter(store, { tenant: TENANT, streamId: 'one' });
  writer.version = 5;
  try {
    await reader.query('begin');
    await reader.query('select from event');
    const begun = ranges.begin(lane, 10);
    const refused = expect(begun).rejects.toThrow(RangeRefused);
    await blocked(db, 1, { locktype: 'relation' });
    expect(await writer.append()).toBe('ok');
    await refused;
    expect(await ofLane(lane)).toEqual([{ from: 1, to: null, isFull: false, isCold: false }]);
  } finally {
    await reader.end();
  }
}, 30_000);
