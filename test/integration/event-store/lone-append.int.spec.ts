import { type EventLog } from '../../../src/event-store/log.js';
import { laneOf } from '../../../src/event-store/lane.js';
import { type AppendOf } from '../../support/append.js';
import { connect } from '../../../src/database/connection.js';
import { type TestDatabase } from '../../support/database.js';
import { logPerTest, seeded, sized, StreamWriter } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

const stream = { tenant: 'acme', streamId: 'a' };
/** In the same lane. */
const neighbour = Array.from({ length: 1_000 }, (_, n) => ({ tenant: 'acme', streamId: `n${n}` })).find(
  (one) => laneOf(one, 16) === laneOf(stream, 16),
) ?? { tenant: '', streamId: '' };
const written = [{ type: 'Written', data: { text: 'one of several' } }];

const dropFunctions = async (): Promise<void> => {
  for (const name of ['append_event', 'append_chains']) await db.query(`drop function ${name}`);
};
const eventsOf = (query = '') =>
  db.query<{ version: number; position: string }>(`select version, position from event ${query}`);

it('given the only writer of a lane, when it appends right after its last event, then a plain insert is used instead of a function', async () => {
  const writer = new StreamWriter(await nodes.startListening(db.url), stream);
  await writer.append();
  await dropFunctions();

  for (let version = 2; version <= 8; version += 1) expect(await writer.append()).toBe('ok');

  // The next append has to store the state, which an insert alone cannot do.
  await expect(writer.append()).rejects.toThrow('append_event');
  expect(await eventsOf('order by position')).toHaveLength(8);
});

it.each<[string, Partial<AppendOf>]>([
  ['several events', { events: [...written, ...written].map((event) => ({ ...event, schemaVersion: 1 })) }],
  ['a lease', { lease: { name: 'work', owner: '00000000-0000-4000-8000-000000000001', ms: 1_000 } }],
  ['a state to store', { lag: undefined }],
  ['a guard', { guard: { idleFor: 0 } }],
  ['a counter', { counters: [{ key: 'c', delta: 1, max: 1 }] }],
  ['a key', { key: { scope: 's', key: 'k', fingerprint: 'f', reference: null } }],
  ['another stream', { stream: neighbour, expected: 1 }],
  ['another version', { expected: 7 }],
])(
  'given the only writer of a lane, when its append has %s, then a function is used',
  async (_what, more) => {
    const writer = new StreamWriter(await nodes.start(db.url), stream);
    await writer.append();
    await dropFunctions();
    await expect(writer.append(1, more)).rejects.toThrow(/append_/);
    expect(await eventsOf()).toHaveLength(1);
  },
);

it('given three processes that append to one stream and to one lane, when none knows of the appends of the others yet, then an append with the right version succeeds, and there are no gaps', async () => {
  const random = seeded();
  const stores = await Promise.all([1, 2, 3].map(() => nodes.start(db.url)));
  const writers = stores.map((store) => new StreamWriter(store, stream));
  const beside = new StreamWriter(stores[2] as EventLog, neighbour);
  let version = 0;
  for (let round = 0; round < sized(3_000, 500, 200); round += 1) {
    const writer = writers[random(3)];
    if (random(6) === 0) expect(await beside.append()).toBe('ok');
    const knows = writer?.version === version;
    expect(await writer?.append()).toBe(knows ? 'ok' : 'conflict');
    if (knows) version += 1;
    expect(writer?.version).toBe(version);
  }
  expect(version).toBeGreaterThan(100);
});

it('given a lane that another transaction has locked, when a writer appends right after its last event, then it waits', async () => {
  const store = await nodes.start(db.url);
  const writer = new StreamWriter(store, stream);
  await writer.append();
  const holder = await connect(db.url, 'holder');
  await holder.query('begin');
  await holder.query('select pg_advisory_xact_lock(7301, $1)', [store.laneOf(stream)]);

  const appended = writer.append();
  // The lock is released only when the append is seen waiting for it.
  for (;;) {
    const waiting = await db.query(`select from pg_locks where locktype = 'advisory' and not granted`);
    if (waiting.length > 0) break;
  }
  expect(await eventsOf()).toHaveLength(1);
  const { rows } = await holder.query<{ now: string }>('select colloquy_now() as now');
  await holder.query('commit');
  await holder.end();

  expect(await appended).toBe('ok');
  const [event] = await store.streams.read(stream, { from: 2 });
  // The time is taken while the lock is held.
  expect(Date.parse(event?.time ?? '')).toBeGreaterThanOrEqual(Date.parse(rows[0]?.now ?? ''));
});

it('given a clock that went back, when a writer appends right after its last event, then the time of the stream does not go back', async () => {
  const store = await nodes.start(db.url);
  const writer = new StreamWriter(store, stream);
  await writer.append();
  await db.setClock({ offsetMs: -3_600_000 });
  await writer.append();
  const [first, second] = await store.streams.read(stream);
  expect(second?.time).toBe(first?.time);
});

it('given another server behind the same address, when it has less of the log, then the known ends of the first server are not used', async () => {
  const store = await nodes.startListening(db.url);
  const writer = new StreamWriter(store, stream);
  for (let n = 0; n < 5; n += 1) await writer.append();
  const { ends, writer: batches } = store as unknown as {
    ends: { run: string };
    writer: { halves: { committer: { connection?: { run: string } } }[] };
  };
  const lane = store.laneOf(stream);
  await db.query(`alter table event_lane_${lane} disable trigger refuse_change`);
  await db.query(`delete from event_lane_${lane} where version > 3`);
  // This is what a failover behind a proxy looks like: only the start time of the server differs.
  ends.run = '2026-01-01 00:00:00+00';
  for (const { committer } of batches.halves)
    if (committer.connection) committer.connection.run = '2026-01-01 00:00:00+00';

  expect(await writer.append()).toBe('conflict');
  expect(await writer.append()).toBe('ok');
  expect(await eventsOf('order by position')).toEqual(
    [1, 2, 3, 4].map((version) => ({ version, position: String(version) })),
  );
});
