import { VersionMismatch } from '../../../src/event-store/stream-handler.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { by, logPerTest, seeded, sized, tallies, tallyDecider } from './fixture.js';

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
    // A state that tells where it came from.
    await db.query(`update stream set state = state || '{"stored": true}'`);

    const stored = await tallies(store).load(stream);
    const folded = await tallies(store, { stateVersion: 2 }).load(stream);

    expect(stored.state).toMatchObject({ stored: true });
    const expected = numbers.reduce(
      (state, number) => tallyDecider.evolve(state, { type: 'Added', data: { number } }),
      tallyDecider.initialState,
    );
    expect(folded.state).toEqual(expected);
    expect({ ...folded, state: 0 }).toEqual({ ...stored, state: 0 });
    // The next append stores it anew, and then nobody folds.
    await tallies(store, { stateVersion: 2 }).handle(stream, { numbers: [1] }, by);
    expect(await store.loadStream(stream)).toMatchObject({ stateVersion: 2, state: { version: length + 1 } });
  },
);

it('given a node with an old state in its cache, when that would refuse a command, then it looks again first', async () => {
  const handlers = [tallies(await nodes.start(db.url)), tallies(await nodes.start(db.url))] as const;
  await handlers[0].handle(stream, { numbers: [1] }, by);
  await handlers[1].handle(stream, { numbers: [4] }, by);

  // Refused by the sum of 1 that it remembers, right by the log's.
  const handled = await handlers[0].handle(stream, { numbers: [7], onlyAt: 5 }, by);
  expect(handled.state).toMatchObject({ version: 3, sum: 12 });
  // And the other way round: right by what the other remembers, refused by the log.
  await expect(handlers[1].handle(stream, { numbers: [1], onlyAt: 5 }, by)).rejects.toThrow('the sum is 12');
  // The same for the version that a caller asks for.
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

it('given 16 callers who all saw the same version, when each writes under If-Match, then one succeeds', async () => {
  const handlers = [tallies(await nodes.start(db.url)), tallies(await nodes.start(db.url))] as const;
  await handlers[0].handle(stream, { numbers: [1] }, by);
  for (let round = 1; round <= sized(100, 15); round += 1) {
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

it('given a command that changes nothing, when it is handled, then the state of the log is answered and nothing is added', async () => {
  const handlers = [tallies(await nodes.start(db.url)), tallies(await nodes.start(db.url))] as const;
  await handlers[0].handle(stream, { numbers: [1] }, by);
  await handlers[1].handle(stream, { numbers: [2] }, by);

  const handled = await handlers[0].handle(stream, { numbers: [] }, by);

  expect(handled).toMatchObject({ events: [], state: { version: 2, sum: 3 } });
  expect(await db.query('select from event')).toHaveLength(2);
});

it('given parts of a stream, when they are read, then range, limit and types are kept to, in order', async () => {
  const store = await nodes.start(db.url);
  const events = Array.from({ length: 10 }, (_, index) => ({
    type: index % 2 ? 'Odd' : 'Even',
    data: { index },
  }));
  await store.append(appendOf(stream, 0, events, { causationId: 'cause' }));
  await store.append(appendOf({ tenant: 'acme', streamId: 'aa' }, 0, events));
  const versions = async (range: Parameters<typeof store.readStream>[1]) =>
    (await store.readStream(stream, range)).map(({ version }) => version);

  expect(await versions({})).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  expect(await versions({ from: 3, to: 6 })).toEqual([3, 4, 5, 6]);
  expect(await versions({ from: 2, types: ['Even'], limit: 2 })).toEqual([3, 5]);
  expect((await store.readStream(stream, { to: 1 }))[0]).toMatchObject({
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
  expect((await store.readStream(stream))[0]?.data).toEqual({ old: 1, from: 'Written v1' });
  const lanes = new Map([[store.laneOf(stream), 0]]);
  expect((await store.readLanes(lanes, 5))[0]?.data).toEqual({ old: 1, from: 'Written v1' });
});
