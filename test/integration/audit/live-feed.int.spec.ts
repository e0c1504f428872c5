import { setTimeout as sleep } from 'node:timers/promises';
import { upcast } from '../../../src/domain/session.events.js';
import { Feed } from '../../../src/audit/feed.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { startProxy } from '../../support/tcp-proxy.js';
import { logPerTest, seeded, sized } from '../event-store/fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});
const feeds: Feed[] = [];
afterEach(() => {
  for (const feed of feeds.splice(0)) feed.onModuleDestroy();
});

function feedOf(store: EventLog): Feed {
  const feed = new Feed(store);
  feeds.push(feed);
  return feed;
}

/** Appends to streams of its own. Only this writer appends to them, so it knows their versions. */
function writerTo(store: EventLog, name: string, random: (below: number) => number = () => 0) {
  const versions = new Map<string, number>();
  return async (tenant: string, content = ''): Promise<void> => {
    const streamId = `${name}${random(6)}`;
    const key = `${tenant}/${streamId}`;
    const version = versions.get(key) ?? 0;
    const events = Array.from({ length: 1 + random(3) }, () => ({ type: 'Written', data: { content } }));
    versions.set(key, version + events.length);
    const { status } = await store.append(appendOf({ tenant, streamId }, version, events));
    expect(status).toBe('ok');
  };
}

const idsOf = async (tenant: string): Promise<string[]> =>
  (
    await db.query<{ id: string }>(
      'select id from event where tenant = $1 order by stream_id collate "C", version',
      [tenant],
    )
  ).map(({ id }) => id);

/** A live reader that pauses for the given time between two events. */
function startReader(feed: Feed, tenant: string, from: readonly number[], pauseMs: () => number = () => 0) {
  const gone = new AbortController();
  const seen: { id: string; sessionId: string; version: number }[] = [];
  const ended = (async () => {
    for await (const { event } of feed.follow(tenant, from, {}, gone.signal)) {
      if (event) seen.push(event);
      const ms = pauseMs();
      if (ms > 0) await sleep(ms);
    }
  })();
  return {
    seen,
    leave: () => {
      gone.abort();
      return ended;
    },
    until: async (count: number) => {
      for (const end = Date.now() + 20_000; seen.length < count && Date.now() < end;) await sleep(5);
    },
    /**
     * The events that the reader has seen, by session and version, after a check that the versions of each session rise
     * one by one.
     */
    sound: () => {
      const last = new Map<string, number>();
      for (const { sessionId, version } of seen) {
        expect([sessionId, version]).toEqual([sessionId, (last.get(sessionId) ?? 0) + 1]);
        last.set(sessionId, version);
      }
      const bySession = [...seen].sort((a, b) =>
        a.sessionId < b.sessionId ? -1 : a.sessionId > b.sessionId ? 1 : a.version - b.version,
      );
      return bySession.map(({ id }) => id);
    },
  };
}

async function idleReaders(feed: Feed, tenant: string, count: number) {
  const end = await feed.placeOf(tenant, 'end');
  const readers = Array.from({ length: count }, () => startReader(feed, tenant, end));
  // By then each reader has asked once for the events after its place.
  await sleep(300);
  return readers;
}

/** Number of queries on the connections that are used for reading, while `work` runs. */
async function queriesOf(store: EventLog, work: () => Promise<void>): Promise<number> {
  let queries = 0;
  const count = () => (queries += 1);
  store.pool.on('acquire', count);
  await work();
  store.pool.off('acquire', count);
  return queries;
}

it('given another tenant that writes on this node and on another one, when 50 readers follow instead of one, then the number of queries is that of one reader', async () => {
  const store = await nodes.start(db.url, { upcast });
  const elsewhere = await nodes.start(db.url, { upcast });
  const feed = feedOf(store);
  const writers = [writerTo(store, 'here', seeded()), writerTo(elsewhere, 'there', seeded(1))];
  const write = async () => {
    for (let round = 0; round < 20; round += 1) {
      for (const writer of writers) await writer('busy');
      await sleep(25);
    }
  };
  const asked: number[] = [];
  for (const count of [1, 50]) {
    const readers = await idleReaders(feed, 'idle', count);
    asked.push(await queriesOf(store, write));
    await Promise.all(readers.map((reader) => reader.leave()));
    expect(readers.flatMap(({ seen }) => seen)).toEqual([]);
  }
  const [forOne = 0, forFifty = 0] = asked;
  expect(forOne).toBeGreaterThan(0);
  expect(forFifty).toBeLessThan(2 * forOne);
  // Without readers there are no queries.
  expect(await queriesOf(store, write)).toBe(0);
});

it('given many readers of one tenant, when another node appends, then each event is read once for all of them', async () => {
  const store = await nodes.start(db.url, { upcast });
  const feed = feedOf(store);
  const write = writerTo(await nodes.start(db.url, { upcast }), 's', seeded());
  const readers = await idleReaders(feed, 'acme', 50);
  const began = performance.now();
  const queries = await queriesOf(store, async () => {
    for (let round = 0; round < 10; round += 1) await write('acme');
    const { length } = await idsOf('acme');
    await Promise.all(readers.map((reader) => reader.until(length)));
  });
  const seconds = (performance.now() - began) / 1000;
  await Promise.all(readers.map((reader) => reader.leave()));
  const expected = await idsOf('acme');
  for (const reader of readers) expect(reader.sound()).toEqual(expected);
  // At most two queries for each append, and a few for each second of polling: none for each reader.
  expect(queries).toBeLessThan(30 + 8 * seconds);
});

it('given two nodes that write and readers of any speed that come at any time, when all is written, then each has seen every event of its tenant once and in order', async () => {
  const random = seeded();
  const stores = [await nodes.start(db.url, { upcast }), await nodes.start(db.url, { upcast })];
  const [here, there] = stores.map(feedOf);
  if (!here || !there) throw new Error('two nodes were started');
  const begins = jest.spyOn(Object.getPrototypeOf(stores[0]?.live.subscribe({ tenant: 'acme' })), 'begin');
  const tenants = ['acme', 'other', 'acme2'];
  const rounds = sized(600, 150, 60);
  const writing = Promise.all(
    stores.flatMap((store, index) =>
      ['a', 'b', 'c'].map(async (name) => {
        const write = writerTo(store, `${name}${index}-`, random);
        for (let round = 0; round < rounds; round += 1) {
          // Some events are too large to be kept in memory, and a few of them fill the buffer of a reader.
          const size = random(40) === 0 ? 200_000 : random(8) === 0 ? 10_000 : 10;
          // The text must not compress well.
          await write(tenants[random(3)] ?? '', Array.from({ length: size / 10 }, () => random(1e9)).join());
          if (random(4) === 0) await sleep(random(10));
        }
      }),
    ),
  );
  const zero = await here.placeOf('acme', undefined);
  const readers: { tenant: string; reader: ReturnType<typeof startReader> }[] = [];
  for (let count = 0; count < 24; count += 1) {
    const tenant = tenants[random(3)] ?? '';
    let isSlow = count % 3 === 0;
    // Slow readers sometimes pause for so long that more events arrive than their buffer holds.
    const pauseMs = () => (isSlow && random(30) === 0 ? 250 : 0);
    void writing.then(() => (isSlow = false));
    readers.push({ tenant, reader: startReader(count % 2 ? here : there, tenant, zero, pauseMs) });
    await sleep(random(20));
  }
  await writing;
  for (const { tenant, reader } of readers) {
    const expected = await idsOf(tenant);
    await reader.until(expected.length);
    expect(reader.sound()).toEqual(expected);
  }
  // Some readers fell behind and read from the log again; otherwise the slow path was not tested.
  expect(begins.mock.calls.length).toBeGreaterThan(readers.length);
  begins.mockRestore();
  await Promise.all(readers.map(({ reader }) => reader.leave()));
}, 120_000);

it('given a node that gets no notifications, when another node appends, then readers of the first one get the events all the same', async () => {
  const proxy = await startProxy(db.url);
  await using _network = {
    [Symbol.asyncDispose]: async () => {
      await nodes.stopAll();
      await proxy.close();
    },
  };
  proxy.decide((request) => (request.includes('listen colloquy_log') ? 'lose request' : 'pass'));
  const deaf = await nodes.start(proxy.url, { upcast });
  const write = writerTo(await nodes.start(db.url, { upcast }), 's');
  const [reader] = await idleReaders(feedOf(deaf), 'acme', 1);
  await write('acme');
  await reader?.until(1);
  expect(reader?.sound()).toEqual(await idsOf('acme'));
  expect(proxy.cuts).toBeGreaterThan(0);
  await reader?.leave();
});

it('given a database that becomes unavailable again and again, when events are written meanwhile, then every reader gets each event once and none is refused', async () => {
  const proxy = await startProxy(db.url);
  await using _network = {
    [Symbol.asyncDispose]: async () => {
      proxy.up();
      await nodes.stopAll();
      await proxy.close();
    },
  };
  const random = seeded();
  const feed = feedOf(await nodes.start(proxy.url, { upcast }));
  const write = writerTo(await nodes.start(db.url, { upcast }), 's', random);
  const readers = await idleReaders(feed, 'acme', 10);
  for (let round = 0; round < sized(10, 3); round += 1) {
    for (let count = 0; count < 10; count += 1) await write('acme');
    proxy.down();
    for (let count = 0; count < 10; count += 1) await write('acme');
    await sleep(random(200));
    proxy.up();
  }
  const expected = await idsOf('acme');
  for (const reader of readers) {
    await reader.until(expected.length);
    expect(reader.sound()).toEqual(expected);
  }
  await Promise.all(readers.map((reader) => reader.leave()));
}, 60_000);
