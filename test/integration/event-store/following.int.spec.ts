import { type EventLog } from '../../../src/event-store/log.js';
import { type LaneEvent } from '../../../src/event-store/recorded-event.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { by, logPerTest, seeded, sized, sleep, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

const written = (text: string) => [{ type: 'Written', data: { text, nested: { list: [1, null, 'ä'] } } }];
const allLanes = (store: EventLog) =>
  new Map(Array.from({ length: store.laneCount }, (_, lane) => [lane, 0]));
const stored = async (store: EventLog) => store.lanes.read(allLanes(store), 1_000_000);
/** Streams that share a lane. */
const sameLane = (store: EventLog, count: number): string[] => {
  const found: string[] = [];
  for (let n = 0; found.length < count; n += 1) {
    if (store.laneOf({ tenant: 'acme', streamId: `s${n}` }) === 3) found.push(`s${n}`);
  }
  return found;
};

it('given events that a process has appended, when it follows the log, then it gets the same events as by reading', async () => {
  const store = await nodes.start(db.url);
  for (let n = 0; n < 5; n += 1) {
    await store.append(appendOf({ tenant: 'acme', streamId: `lone${n}` }, 0, written('alone')));
  }
  await Promise.all(
    Array.from({ length: 40 }, (_, n) =>
      store.append(
        appendOf({ tenant: 'acme', streamId: `many${n}` }, 0, [...written('one'), ...written('two')], {
          causationId: 'cause',
        }),
      ),
    ),
  );

  const followed = await store.lanes.follow(allLanes(store), 1_000);
  const inOrder = (events: readonly LaneEvent[]) =>
    [...events].sort((a, b) => a.lane - b.lane || a.position - b.position);
  expect(followed).toHaveLength(85);
  expect(inOrder(followed)).toEqual(inOrder(await stored(store)));
});

it('given two processes that append to one lane in turn, when neither knows of the appends of the other yet, then positions have no gap', async () => {
  const stores = [await nodes.start(db.url), await nodes.start(db.url)];
  const [first, second] = sameLane(stores[0] as EventLog, 2);
  const random = seeded();
  const versions = [0, 0];
  for (let round = 0; round < sized(2_000, 300); round += 1) {
    const turn = random(2);
    const stream = { tenant: 'acme', streamId: (turn === 0 ? first : second) ?? '' };
    const result = await stores[turn]?.append(appendOf(stream, versions[turn] ?? 0, written(`${round}`)));
    expect(result).toMatchObject({ status: 'ok', position: round + 1 });
    versions[turn] = (versions[turn] ?? 0) + 1;
  }
});

it('given two processes that append, when one of them follows the log as it is woken, then it sees each event once and in order', async () => {
  const [own, other] = [await nodes.start(db.url), await nodes.start(db.url)];
  const positions = allLanes(own);
  const disorder: unknown[] = [];
  let [seen, isOver] = [0, false];
  const dirty = new Set<number>();
  own.wakeUp.subscribe((lanes) => {
    for (const lane of lanes) dirty.add(lane);
  });
  const following = (async () => {
    while (!isOver || dirty.size > 0) {
      const lanes = [...dirty];
      dirty.clear();
      const from = new Map(lanes.map((lane) => [lane, positions.get(lane) ?? 0]));
      for (const event of from.size > 0 ? await own.lanes.follow(from, 20) : []) {
        if (event.position !== (positions.get(event.lane) ?? 0) + 1) disorder.push(event);
        positions.set(event.lane, event.position);
        dirty.add(event.lane);
        seen += 1;
      }
      await sleep(1);
    }
  })();
  const handlers = [tallies(own), tallies(other)];
  const rounds = sized(500, 60);
  await Promise.all(
    Array.from({ length: 24 }, async (_, writer) => {
      const stream = { tenant: 'acme', streamId: `s${writer % 12}` };
      for (let round = 0; round < rounds; round += 1) {
        await handlers[writer % 2]?.handle(stream, { numbers: [round] }, by);
      }
    }),
  );
  // The last events of the other process must arrive without another append.
  const total = 24 * rounds;
  for (let wait = 0; seen < total && wait < 10_000; wait += 20) await sleep(20);
  isOver = true;
  await following;
  expect(disorder).toEqual([]);
  expect(seen).toBe(total);
}, 60_000);

it('given many large events, when lanes are read, then a page ends before it is too large, says so, and no event is left out', async () => {
  const store = await nodes.start(db.url);
  const [one, other] = sameLane(store, 2);
  // Text that cannot be compressed.
  const large = (seed: number) => {
    const random = seeded(seed);
    return Array.from({ length: 300_000 }, () => random(36).toString(36)).join('');
  };
  for (let n = 0; n < 12; n += 1) {
    for (const streamId of [one ?? '', other ?? '', 'elsewhere']) {
      await store.append(appendOf({ tenant: 'acme', streamId }, n, written(large(n))));
    }
  }

  const positions = new Map<number, number[]>();
  let pages = 0;
  for (let from: ReadonlyMap<number, number> = allLanes(store); from.size > 0; pages += 1) {
    const page = await store.lanes.read(from, 500);
    // An event counts for eight times its size, since it might be compressed, and a lane has a share of the page.
    expect(page.length).toBeLessThanOrEqual(8);
    for (const { lane, position } of page) positions.set(lane, [...(positions.get(lane) ?? []), position]);
    const unfinished = page.filter(({ hasMore }) => hasMore);
    from = new Map(unfinished.map(({ lane, position }) => [lane, position]));
  }

  expect(pages).toBeGreaterThan(3);
  const elsewhere = store.laneOf({ tenant: 'acme', streamId: 'elsewhere' });
  const upTo = (count: number) => Array.from({ length: count }, (_, index) => index + 1);
  expect(positions.get(3)).toEqual(upTo(elsewhere === 3 ? 36 : 24));
  if (elsewhere !== 3) expect(positions.get(elsewhere)).toEqual(upTo(12));
});
