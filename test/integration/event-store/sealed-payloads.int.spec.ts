import { type EventLog } from '../../../src/event-store/log.js';
import { type TestDatabase } from '../../support/database.js';
import { masterKey } from '../../support/master-keys.js';
import { sealingCodec } from '../../support/sealing-codec.js';
import { by, logPerTest, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

const STREAM = { tenant: 'acme', streamId: 'sealed' };
const NUMBERS = Array.from({ length: 30 }, (_, index) => index + 1);
/** What every way of reading must return for the stream. */
const EVENTS = NUMBERS.map((number) => ({ version: number, data: { number } }));

/** A stream of 30 events, with stored states and snapshots. Every reader of `read` starts with empty caches. */
async function written(options: Parameters<typeof nodes.start>[1]): Promise<EventLog> {
  const writer = tallies(await nodes.start(db.url, options), { snapshotEvery: 10 });
  for (const number of NUMBERS) await writer.handle(STREAM, { numbers: [number] }, by);
  return nodes.start(db.url, options);
}

const all = async <T>(pages: AsyncGenerator<T[]>): Promise<T[]> => {
  const items: T[] = [];
  for await (const page of pages) items.push(...page);
  return items;
};

/** The events of the stream as each way of reading the log gives them. */
async function read(log: EventLog): Promise<Record<string, unknown>> {
  const lane = log.laneOf(STREAM);
  const start = new Map([[lane, 0]]);
  const stored = await log.lanes.readStored(start, 100);
  const past = tallies(log, { snapshotEvery: 10 });
  await past.stateAt(STREAM, 29);
  return {
    stream: await log.streams.read(STREAM),
    lane: await log.lanes.read(start, 100),
    follow: await log.lanes.follow(start, 100),
    stored: stored.map(({ version, json }) => ({ version, data: JSON.parse(json) as unknown })),
    feed: (await log.feed.read(STREAM.tenant, start, 100)).events,
    cut: await all(log.cuts.eventsUpTo(await log.lanes.ends(), [{ ...STREAM, version: 30 }])),
    since: [...EVENTS.slice(0, 20), ...(await sinceVersion20(log))],
  };
}

async function sinceVersion20(log: EventLog): Promise<readonly unknown[]> {
  const [known] = await log.streams.read(STREAM, { from: 20, to: 20 });
  return (known && (await log.streams.since(STREAM, known))?.since) ?? [];
}

const sealing = (isSealing: (payload: { version: number }) => boolean) => () => ({
  codec: sealingCodec({ isSealing }),
});
const keyed = () => ({ masterKeys: [masterKey('one')] });
const byAes = () => ({ ...keyed(), cipher: 'aes-256-gcm' as const });

describe.each([
  ['by one that takes its time: all', sealing(() => true)],
  ['by one that takes its time: none', sealing(() => false)],
  ['by one that takes its time: every second one', sealing(({ version }) => version % 2 === 0)],
  ['by a master key', keyed],
  ['by a master key and AES', byAes],
])('given a codec that seals payloads %s', (_, options) => {
  it('when the log is read in every possible way, then each returns what was written, and states are right', async () => {
    const log = await written(options());

    for (const [way, events] of Object.entries(await read(log))) {
      expect({ [way]: events }).toMatchObject({ [way]: EVENTS });
    }
    const handler = tallies(log, { snapshotEvery: 10 });
    const sum = (version: number): number => (version * (version + 1)) / 2;
    expect((await handler.load(STREAM)).state).toMatchObject({ version: 30, sum: sum(30) });
    for (const version of [1, 10, 15, 29]) {
      expect(await handler.stateAt(STREAM, version)).toMatchObject({ version, sum: sum(version) });
    }
    const other = tallies(log);
    await other.preload([STREAM]);
    expect(other.known(STREAM)?.state).toMatchObject({ version: 30, sum: sum(30) });
  });
});

it('given sealed payloads, when the database is searched, then none of their JSON is there', async () => {
  const log = await written(keyed());
  await tallies(log, { snapshotEvery: 10 }).stateAt(STREAM, 30);

  expect(await db.query('select from event where data is not null or sealed is null')).toEqual([]);
  expect(await db.query('select from stream_state where state is not null or sealed is null')).toEqual([]);
  expect(await db.query('select from stream_snapshot where state is not null or sealed is null')).toEqual([]);
});

it('given a log in which nodes with different ciphers sealed, when it is read in every possible way, then each returns what was written', async () => {
  const writers = [keyed(), byAes()];
  const handlers = await Promise.all(
    writers.map(async (options) => tallies(await nodes.start(db.url, options), { snapshotEvery: 10 })),
  );
  for (const number of NUMBERS) await handlers[number % 2]?.handle(STREAM, { numbers: [number] }, by);
  // Forms 2 and 4 are events of AES-GCM and of ChaCha20-Poly1305.
  const forms = await db.query(
    'select get_byte(sealed, 0) as form, count(*)::int from event group by 1 order by 1',
  );
  expect(forms).toEqual([
    { form: 2, count: 15 },
    { form: 4, count: 15 },
  ]);

  for (const options of [keyed(), byAes()])
    for (const [way, events] of Object.entries(await read(await nodes.start(db.url, options))))
      expect({ [way]: events }).toMatchObject({ [way]: EVENTS });
});

it('given sealed bytes that were moved to another event, when the lane is read, then that event is marked as unreadable and its neighbours are read', async () => {
  const log = await written(keyed());
  await db.query(`
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, sealed, key_id)
    select e.lane, e.position + 1, e.tenant, e.stream_id, e.version + 1, e.incarnation, gen_random_uuid(), e.type,
           e.schema_version, e.time, e.actor, e.correlation_id, forged.sealed, e.key_id
    from event e, event forged where e.version = 30 and forged.version = 7`);

  const events = await log.lanes.read(new Map([[log.laneOf(STREAM), 28]]), 100);

  expect(events.map(({ version, data }) => ({ version, data }))).toEqual([
    { version: 29, data: { number: 29 } },
    { version: 30, data: { number: 30 } },
    { version: 31, data: undefined },
  ]);
  expect(events[2]?.unreadable).toBeInstanceOf(Error);
  await expect(log.streams.read(STREAM)).rejects.toThrow('version 31 does not authenticate');
});

it('given a payload in a form of a later version, when it is read, then that is no fault of the event, and the error says what to do', async () => {
  const log = await written(keyed());
  await db.query(`
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, sealed, key_id)
    select lane, position + 1, tenant, stream_id, version + 1, incarnation, gen_random_uuid(), type,
           schema_version, time, actor, correlation_id, set_byte(sealed, 0, 200), key_id
    from event where version = 30`);

  const later = {
    code: 'upgrade-in-progress',
    message: expect.stringContaining('by a newer version') as string,
  };
  await expect(log.lanes.read(new Map([[log.laneOf(STREAM), 28]]), 100)).rejects.toMatchObject(later);
  await expect(log.streams.read(STREAM)).rejects.toMatchObject(later);
});

it('given sealed payloads, when a process reads them that has no keys, then that is an error of the process, and no event is taken for unreadable', async () => {
  const log = await nodes.start(db.url);
  await tallies(await nodes.start(db.url, keyed())).handle(STREAM, { numbers: [1] }, by);

  const lane = new Map([[log.laneOf(STREAM), 0]]);
  const reads = [
    () => log.streams.read(STREAM),
    () => log.lanes.read(lane, 10),
    () => log.lanes.readStored(lane, 10),
  ];
  for (const read of reads)
    await expect(read()).rejects.toThrow(
      'the payload of acme/sealed at version 1 is sealed, and this process has no keys',
    );
  // Whoever passes on what is sealed opens nothing, and needs none.
  const [passedOn] = await log.lanes.readStored(lane, 10, true);
  const [row] = await db.query<{ sealed: Buffer; key: string }>(
    'select sealed, key_id::text as key from event',
  );
  expect(passedOn).toMatchObject({
    version: 1,
    json: 'null',
    sealed: { bytes: row?.sealed, keyId: row?.key },
  });
});
