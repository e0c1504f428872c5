import { type Appended, type EventLog } from '../../../src/event-store/log.js';
import { type TestDatabase } from '../../support/database.js';
import { blocked, logPerTest, seeded, sized, StreamWriter } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

const writersOf = (store: EventLog, count: number): StreamWriter[] =>
  Array.from({ length: count }, (_, n) => new StreamWriter(store, { tenant: 'acme', streamId: `s${n}` }));
/** In one commit. */
const together = async (appends: readonly (() => Promise<Appended['status']>)[]) => {
  await db.query('select pg_advisory_lock(7301, l) from generate_series(0, 15) as l');
  const statuses = Promise.all(appends.map((append) => append()));
  await blocked(db, 1);
  await db.query('select pg_advisory_unlock_all()');
  return statuses;
};
const all = (count: number, status = 'ok') => Array.from({ length: count }, () => status);

it('given streams to which a process appended, when it appends to all of them again, then nothing is looked up, and states are stored as ever', async () => {
  const writers = writersOf(await nodes.startListening(db.url), 40);
  await together(writers.map((writer) => () => writer.append()));
  await db.query('drop function append_chains');

  for (let round = 0; round < 9; round += 1)
    expect(await together(writers.map((writer, n) => () => writer.append(1 + (n % 3))))).toEqual(all(40));

  expect(writers.map(({ version }) => version)).toEqual(writers.map((_, n) => 1 + 9 * (1 + (n % 3))));
});

it('given a batch in which some streams are known, when it is committed, then one commit holds all of it, and each append has its own outcome', async () => {
  const store = await nodes.startListening(db.url);
  const writers = writersOf(store, 30);
  const known = writers.slice(0, 20);
  await together(known.map((writer) => () => writer.append()));
  // It believes that its stream does not exist.
  const late = new StreamWriter(store, known[3]?.stream ?? { tenant: '', streamId: '' });
  const key = { scope: 's', key: 'k', fingerprint: 'f', reference: 7 };

  const statuses = await together(
    writers.map((writer, n) => () => (n === 3 ? late.append() : writer.append(2, n === 5 ? { key } : {}))),
  );

  expect(statuses).toEqual(all(30).map((status, n) => (n === 3 ? 'conflict' : status)));
  expect(writers.map(({ version }) => version)).toEqual(
    writers.map((_, n) => (n === 3 ? 1 : n < 20 ? 3 : 2)),
  );
  const ends = await store.streams.versions(writers.map(({ stream }) => stream));
  expect(ends).toEqual(writers.map(({ version }) => version));
});

it('given a lane to which another process has appended unheard, when the first one appends to many lanes, then nothing is lost or doubled', async () => {
  const writers = writersOf(await nodes.startListening(db.url), 30);
  await together(writers.map((writer) => () => writer.append()));
  await db.query(
    `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                        actor, correlation_id)
     select lane, (select max(position) + 1 from event l where l.lane = e.lane), tenant, stream_id, version + 1,
            incarnation, gen_random_uuid(), type, schema_version, time, actor, correlation_id
     from event e where stream_id = 's7'`,
  );

  const statuses = await together(writers.map((writer) => () => writer.append()));
  expect(statuses).toEqual(all(30).map((status, n) => (n === 7 ? 'conflict' : status)));
  expect(writers[7]?.version).toBe(2);
  expect(await together(writers.map((writer) => () => writer.append()))).toEqual(all(30));
});

it('given another server behind the same address, when it has less of the log, then what is known of the first server is not used', async () => {
  const store = await nodes.startListening(db.url);
  const writers = writersOf(store, 20);
  for (let round = 0; round < 3; round += 1) await together(writers.map((writer) => () => writer.append()));
  for (let lane = 0; lane < store.laneCount; lane += 1) {
    await db.query(`alter table event_lane_${lane} disable trigger refuse_change`);
    await db.query(`delete from event_lane_${lane} where version > 2`);
  }
  // This is what a failover behind a proxy looks like: only the start time of the server differs.
  const run = '2026-01-01 00:00:00+00';
  const { ends, writer: batches } = store as unknown as {
    ends: { run: string };
    writer: { halves: { committer: { connection?: { run: string } } }[] };
  };
  ends.run = run;
  for (const { committer } of batches.halves) if (committer.connection) committer.connection.run = run;

  expect(await together(writers.map((writer) => () => writer.append()))).toEqual(all(20, 'conflict'));
  expect(await together(writers.map((writer) => () => writer.append()))).toEqual(all(20));
  expect(writers.map(({ version }) => version)).toEqual(all(20).map(() => 3));
});

it('given a clock that went back, when known streams are appended to, then no time goes back', async () => {
  const writers = writersOf(await nodes.start(db.url), 10);
  await together(writers.map((writer) => () => writer.append()));
  const times = writers.map(({ last }) => last?.status === 'ok' && last.time);
  await db.setClock({ offsetMs: -3_600_000 });
  await together(writers.map((writer) => () => writer.append()));
  expect(writers.map(({ last }) => last?.status === 'ok' && last.time)).toEqual(times);
});

it('given three processes that append to the same streams at random, when each knows only what it saw, then an append succeeds exactly when it expects the version that the stream is at', async () => {
  const random = seeded();
  const stores = [await nodes.startListening(db.url), await nodes.start(db.url), await nodes.start(db.url)];
  const writers = stores.map((store) => writersOf(store, 12));
  const versions = writers[0]?.map(() => 0) ?? [];
  let appended = 0;
  for (let round = 0; round < sized(2_000, 300, 80); round += 1) {
    // Runs of one process, so that it comes to know ends before another one takes them from it.
    const own = writers[random(4) === 0 ? random(3) : 0] ?? [];
    const chosen = own.flatMap((writer, n) =>
      random(2) === 0 ? [{ writer, n, events: 1 + random(2) }] : [],
    );
    const expected = chosen.map(({ writer, n }) => (writer.version === versions[n] ? 'ok' : 'conflict'));
    expect(await Promise.all(chosen.map(({ writer, events }) => writer.append(events)))).toEqual(expected);
    chosen.forEach(({ n, events }, index) => {
      if (expected[index] === 'ok') versions[n] = (versions[n] ?? 0) + events;
    });
    appended += expected.filter((status) => status === 'ok').length;
    expect(chosen.map(({ writer }) => writer.version)).toEqual(chosen.map(({ n }) => versions[n]));
  }
  expect(appended).toBeGreaterThan(100);
});
