import { Erased, VersionMismatch } from '../../../src/event-store/refusals.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { type StateLag } from '../../../src/event-store/stream-reader.js';
import { type Added, by, logPerTest, seeded, sized, tallies, tallyDecider } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});
const stream = { tenant: 'acme', streamId: 'a' };

it.each([1, 999, 1_000, 1_001, 3_000])(
  'given a stream of %i events, when its state was stored by other code, then it is folded from the log and is the same',
  async (length) => {
    const random = seeded();
    const store = await nodes.start(db.url);
    const handler = tallies(store);
    const numbers = Array.from({ length }, () => random(1_000));
    for (let from = 0; from < length; from += 700) {
      await handler.handle(stream, { numbers: numbers.slice(from, from + 700) }, by);
    }
    // The stored state is marked, so that the test can tell from where a state was loaded.
    await db.query(`update stream_state set state = state || '{"stored": true}'`);

    const stored = await tallies(store).load(stream);
    const folded = await tallies(store, { stateVersion: 2 }).load(stream);

    expect(stored.state).toMatchObject({ stored: true });
    const expected = numbers.reduce(
      (state, number) => tallyDecider.evolve(state, { type: 'Added', data: { number } }),
      tallyDecider.initialState,
    );
    expect(folded.state).toEqual(expected);
    expect({ ...folded, state: 0, lag: 0 }).toEqual({ ...stored, state: 0, lag: 0 });
    // The next append stores the new state, so that no later load has to fold.
    await tallies(store, { stateVersion: 2 }).handle(stream, { numbers: [1] }, by);
    expect(await store.streams.load(stream)).toMatchObject({
      stateVersion: 2,
      state: { version: length + 1 },
    });
  },
);

it('given two nodes that write in turn, when a stream is loaded with and without a cached state, then both equal a fold of all events', async () => {
  const random = seeded();
  const stores = [await nodes.start(db.url), await nodes.start(db.url)] as const;
  const more = { isActivity: (event: Added) => event.data.number % 2 === 0 };
  const warm = stores.map((store) => tallies(store, more));
  let version = 0;
  for (let round = 0; round < sized(200, 60, 25); round += 1) {
    // Sometimes one node appends so much that the other has less to read from the stored state than from its cached
    // one.
    const count = random(10) === 0 ? 50 : 1 + random(3);
    const numbers = Array.from({ length: count }, () => random(1_000));
    await warm[random(2)]?.handle(stream, { numbers }, by);
    version += count;
    if (random(3) === 0) continue;

    const [folded, cold, ...others] = await Promise.all([
      tallies(stores[0], { ...more, stateVersion: 2 }).load(stream),
      tallies(stores[0], more).load(stream),
      ...warm.map((handler) => handler.load(stream)),
    ]);
    expect(folded.state).toMatchObject({ version });
    for (const loaded of [cold, ...others]) expect({ ...loaded, lag: 0 }).toEqual({ ...folded, lag: 0 });
    expect(cold.lag?.events).toBeLessThan(8);
  }
});

it('given events small and large, when they are appended one by one, then the state is stored after eight of them or 64 KiB', async () => {
  const store = await nodes.start(db.url);
  let end: { version: number; lag: StateLag | undefined } = { version: 0, lag: { events: 0, bytes: 0 } };
  const storedAfter = async (bytes: number): Promise<number> => {
    for (let count = 1; ; count += 1) {
      const events = [{ type: 'Written', data: { text: 'x'.repeat(bytes) } }];
      const result = await store.append(appendOf(stream, end.version, events, { lag: end.lag }));
      if (result.status !== 'ok') throw new Error(result.status);
      end = result;
      if ((await store.streams.load(stream))?.version === end.version) return count;
    }
  };
  // The state of a new stream is stored at once.
  expect(await storedAfter(10)).toBe(1);
  expect([await storedAfter(10), await storedAfter(10)]).toEqual([8, 8]);
  expect([await storedAfter(30_000), await storedAfter(70_000)]).toEqual([3, 1]);
});

it('given an event that a newer version wrote, when older nodes load its stream, then they can do so again once a state was stored after that event', async () => {
  const newer = await nodes.start(db.url);
  const older = await nodes.start(db.url, {
    upcast: (_type, _version, data) => {
      if (data['number'] === 1_000) throw new Error('newer than this code');
      return data;
    },
  });
  const other = { tenant: 'acme', streamId: 'other' };
  const [writing, reading] = [tallies(newer), tallies(older)] as const;
  for (const one of [stream, other]) await writing.handle(one, { numbers: [1] }, by);
  await reading.load(stream);
  await writing.handle(stream, { numbers: [1_000] }, by);

  await expect(reading.load(stream)).rejects.toThrow('newer than this code');
  await expect(tallies(older).load(stream)).rejects.toThrow('newer than this code');
  // Among several streams, this one is left out.
  expect(await older.streams.loadMany([stream, other])).toMatchObject([{ streamId: 'other' }]);

  for (let count = 0; count < 8; count += 1) await writing.handle(stream, { numbers: [1] }, by);
  for (const handler of [reading, tallies(older)])
    expect((await handler.load(stream)).state).toMatchObject({ version: 10, sum: 1_009 });
});

it('given a log that was restored to an earlier point, when a node with a newer cached state writes, then it continues at the end of the log', async () => {
  const store = await nodes.start(db.url);
  const handler = tallies(store);
  for (const number of [1, 2, 3, 4, 5]) await handler.handle(stream, { numbers: [number] }, by);
  const [{ lane } = { lane: -1 }] = await db.query<{ lane: number }>('select lane from event');
  await db.query(`alter table event_lane_${lane} disable trigger refuse_change`);
  const setBack = async (version: number): Promise<void> => {
    await db.query(`delete from event_lane_${lane} where version > ${version}`);
    await db.query(`delete from stream_state where version > ${version}`);
    // The server is unavailable in between, as during a restore.
    await db.query(
      'select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()',
    );
    for (;;) {
      if (await store.now().catch(() => undefined)) return;
    }
  };

  await setBack(3);
  expect((await handler.load(stream)).state).toMatchObject({ version: 3, sum: 6 });
  for (const number of [1, 2]) await handler.handle(stream, { numbers: [number] }, by);
  await setBack(4);
  // This also holds for a write without a read before it.
  expect((await handler.handle(stream, { numbers: [10] }, by)).state).toMatchObject({ version: 5, sum: 17 });

  // And when other nodes have written at the same versions since.
  await setBack(4);
  await tallies(store).handle(stream, { numbers: [20] }, by);
  expect((await handler.load(stream)).state).toMatchObject({ version: 5, sum: 27 });
});

it('given a node with an outdated cached state, when this state would refuse a command, then the node loads the state again first', async () => {
  const handlers = [tallies(await nodes.start(db.url)), tallies(await nodes.start(db.url))] as const;
  await handlers[0].handle(stream, { numbers: [1] }, by);
  await handlers[1].handle(stream, { numbers: [4] }, by);

  // The command would be refused by the cached sum of 1, and is accepted by the sum of the log.
  const handled = await handlers[0].handle(stream, { numbers: [7], onlyAt: 5 }, by);
  expect(handled.state).toMatchObject({ version: 3, sum: 12 });
  // The other way round: the command would be accepted by the cached state, and is refused by the log.
  await expect(handlers[1].handle(stream, { numbers: [1], onlyAt: 5 }, by)).rejects.toThrow('the sum is 12');
  // The same holds for a version in If-Match.
  await handlers[1].handle(stream, { numbers: [1] }, by);
  expect((await handlers[0].handle(stream, { numbers: [1] }, { ...by, ifMatch: [4] })).state.version).toBe(5);
  await expect(handlers[1].handle(stream, { numbers: [1] }, { ...by, ifMatch: [4] })).rejects.toMatchObject({
    name: 'VersionMismatch',
    version: 5,
  });
  await expect(
    handlers[1].handle({ tenant: 'acme', streamId: 'none' }, { numbers: [1] }, { ...by, ifMatch: '*' }),
  ).rejects.toBeInstanceOf(VersionMismatch);
});

it('given 16 callers that saw the same version, when each writes with If-Match, then exactly one succeeds', async () => {
  const handlers = [tallies(await nodes.start(db.url)), tallies(await nodes.start(db.url))] as const;
  await handlers[0].handle(stream, { numbers: [1] }, by);
  for (let round = 1; round <= sized(100, 15, 8); round += 1) {
    const outcomes = await Promise.allSettled(
      Array.from({ length: 16 }, (_, index) =>
        (index % 2 ? handlers[0] : handlers[1]).handle(stream, { numbers: [1] }, { ...by, ifMatch: [round] }),
      ),
    );
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    for (const outcome of outcomes) {
      if (outcome.status === 'rejected') expect(outcome.reason).toBeInstanceOf(VersionMismatch);
    }
  }
});

it('given a command that changes nothing, when it is handled, then the state of the log is returned and nothing is appended', async () => {
  const handlers = [tallies(await nodes.start(db.url)), tallies(await nodes.start(db.url))] as const;
  await handlers[0].handle(stream, { numbers: [1] }, by);
  await handlers[1].handle(stream, { numbers: [2] }, by);

  const handled = await handlers[0].handle(stream, { numbers: [] }, by);

  expect(handled).toMatchObject({ events: [], state: { version: 2, sum: 3 } });
  expect(await db.query('select from event')).toHaveLength(2);
});

it('given a stream, when parts of it are read, then range, limit and types apply, in order', async () => {
  const store = await nodes.start(db.url);
  const events = Array.from({ length: 10 }, (_, index) => ({
    type: index % 2 ? 'Odd' : 'Even',
    data: { index },
  }));
  await store.append(appendOf(stream, 0, events, { causationId: 'cause' }));
  await store.append(appendOf({ tenant: 'acme', streamId: 'aa' }, 0, events));
  const versions = async (range: Parameters<typeof store.streams.read>[1]) =>
    (await store.streams.read(stream, range)).map(({ version }) => version);

  expect(await versions({})).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  expect(await versions({ from: 3, to: 6 })).toEqual([3, 4, 5, 6]);
  expect(await versions({ from: 2, types: ['Even'], limit: 2 })).toEqual([3, 5]);
  expect((await store.streams.read(stream, { to: 1 }))[0]).toMatchObject({
    type: 'Even',
    schemaVersion: 1,
    tenant: 'acme',
    streamId: 'a',
    incarnation: 1,
    version: 1,
    lane: store.laneOf(stream),
    actor: 'tester',
    correlationId: 'test',
    causationId: 'cause',
    data: { index: 0 },
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/) as string,
  });
});

it('given data of an older schema, when it is read, then it is lifted by type and version', async () => {
  await (await nodes.start(db.url)).append(appendOf(stream, 0, [{ type: 'Written', data: { old: 1 } }]));
  const store = await nodes.start(db.url, {
    upcast: (type, schemaVersion, data) => ({ ...data, from: `${type} v${schemaVersion}` }),
  });
  expect((await store.streams.read(stream))[0]?.data).toEqual({ old: 1, from: 'Written v1' });
  const lanes = new Map([[store.laneOf(stream), 0]]);
  expect((await store.lanes.read(lanes, 5))[0]?.data).toEqual({ old: 1, from: 'Written v1' });
});

it('given a stream of large events, when all of it is read, then few of them are in memory at a time, and none is missing', async () => {
  const store = await nodes.start(db.url);
  const handler = tallies(store);
  const stream = { tenant: 'acme', streamId: 'large' };
  for (let n = 0; n < 30; n += 1) await handler.handle(stream, { numbers: [n] }, by);
  // As if each had two megabytes that can hardly be compressed.
  const lane = store.laneOf(stream);
  await db.query(`alter table event_lane_${lane} disable trigger refuse_change`);
  await db.query(
    `update event_lane_${lane} set data = data || jsonb_build_object('text',
       (select string_agg(md5(random()::text || n), '') from generate_series(1, 65000) n))`,
  );
  const pages: number[] = [];
  const pool = store.pool as unknown as { query: (query: { name?: string }) => Promise<{ rows: unknown[] }> };
  const query = pool.query.bind(pool);
  const spy = jest.spyOn(pool, 'query').mockImplementation(async (asked) => {
    const result = await query(asked);
    if (asked.name === 'page_of_stream') pages.push(result.rows.length);
    return result;
  });
  const versions: number[] = [];
  for await (const { version } of store.streams.events(stream, { from: 2 })) versions.push(version);
  spy.mockRestore();
  expect(versions).toEqual(Array.from({ length: 29 }, (_, n) => n + 2));
  expect(Math.max(...pages)).toBeLessThanOrEqual(3);
});

it('given a command whose preparation meets what was erased since the state was loaded, when it is handled, then it is decided anew', async () => {
  let prepared = 0;
  const handler = tallies(await nodes.start(db.url), {
    prepare: (command) => {
      prepared += 1;
      if (prepared === 1) throw new Erased(1);
      return Promise.resolve(command);
    },
  });
  const { state } = await handler.handle({ tenant: 'acme', streamId: 'raced' }, { numbers: [1] }, by);
  expect(state).toMatchObject({ version: 1, sum: 1 });
  expect(prepared).toBe(2);
});
