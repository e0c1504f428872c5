import { Feed, type Step } from '../../../src/audit/feed.js';
import { type EventAnswer } from '../../../src/audit/audit.schemas.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { type FeedFilter } from '../../../src/event-store/feed-reader.js';
import { upcast } from '../../../src/domain/session.events.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { startProxy } from '../../support/tcp-proxy.js';
import { expectProblemCode } from './fixture.js';
import { expectSoundLog, Nodes, seeded, sized } from '../event-store/fixture.js';

const TYPES = ['SessionResumed', 'SessionExpired', 'ConversationReset'] as const;
const TENANTS = ['acme', 'other', 'acme2'];
const ACTORS = ['alice', 'bob'];

let db: TestDatabase;
const nodes = new Nodes();
let store: EventLog;
let feed: Feed;

beforeEach(async () => {
  db = await createTestDatabase();
  store = await nodes.start(db.url, { upcast });
  feed = new Feed(store);
});
afterEach(async () => {
  feed.onModuleDestroy();
  await nodes.stopAll();
  await expectSoundLog(db);
  await db.drop();
});

const pick = <T>(random: (below: number) => number, items: readonly T[]): T => {
  const item = items[random(items.length)];
  if (item === undefined) throw new Error('there is none');
  return item;
};

/** Appends to sessions of several tenants. Only this writer appends to them, so it knows their versions. */
class Writer {
  private readonly versions = new Map<string, number>();
  constructor(
    private readonly to: EventLog,
    private readonly random: (below: number) => number,
    private readonly name = 's',
  ) {}

  async append(tenant = pick(this.random, TENANTS)): Promise<void> {
    const streamId = `${this.name}${this.random(8)}`;
    const key = `${tenant}/${streamId}`;
    const version = this.versions.get(key) ?? 0;
    const events = Array.from({ length: 1 + this.random(3) }, () => ({
      type: pick(this.random, TYPES),
      data: {},
    }));
    this.versions.set(key, version + events.length);
    const actor = pick(this.random, ACTORS);
    const { status } = await this.to.append(appendOf({ tenant, streamId }, version, events, { actor }));
    expect(status).toBe('ok');
  }
}

interface Logged {
  readonly id: string;
  readonly type: string;
  readonly streamId: string;
  readonly actor: string;
  readonly time: Date;
}

/** A tenant's events by the table itself; the filter is applied to each event in the test. */
async function expected(tenant: string, filter: FeedFilter = {}): Promise<string[]> {
  const rows = await db.query<Logged>(
    `select id, type, stream_id as "streamId", actor, time from event where tenant = $1 order by stream_id, version`,
    [tenant],
  );
  return rows
    .filter(
      ({ type, streamId, actor, time }) =>
        (!filter.types || filter.types.includes(type)) &&
        (!filter.streamId || streamId === filter.streamId) &&
        (!filter.actor || actor === filter.actor) &&
        (!filter.from || time >= new Date(filter.from)) &&
        (!filter.to || time < new Date(filter.to)),
    )
    .map(({ id }) => id);
}

/** Ids by session and version, to compare two lists whose order across sessions may differ. */
const bySession = (events: readonly EventAnswer[]): string[] =>
  [...events]
    .sort((a, b) => (a.sessionId < b.sessionId ? -1 : a.sessionId > b.sessionId ? 1 : a.version - b.version))
    .map(({ id }) => id);

/** The versions of each session must rise one by one, whatever events of other sessions stand between them. */
function expectOrdered(events: readonly EventAnswer[]): void {
  const last = new Map<string, number>();
  for (const { sessionId, version } of events) {
    expect(version).toBeGreaterThan(last.get(sessionId) ?? 0);
    last.set(sessionId, version);
  }
}

async function walk(tenant: string, filter: FeedFilter, limit: () => number, from?: string) {
  const events: EventAnswer[] = [];
  let after = from;
  for (let pages = 1; ; pages += 1) {
    const size = limit();
    const page = await feed.page(tenant, { after, limit: size, filter });
    expect(page.data.length).toBeLessThanOrEqual(size);
    events.push(...page.data);
    after = page.cursor;
    if (page.nextCursor === null) return { events, cursor: after, pages };
    expect(page.nextCursor).toBe(page.cursor);
  }
}

/** Runs a reader until `until` is true. The reader always ends by disconnecting. */
async function readSteps(steps: (gone: AbortSignal) => AsyncIterable<Step>, until: (step: Step) => boolean) {
  const gone = new AbortController();
  const seen: (Step & { event: EventAnswer })[] = [];
  for await (const step of steps(gone.signal)) {
    if (step.event) seen.push(step as Step & { event: EventAnswer });
    if (until(step)) gone.abort();
    if (gone.signal.aborted) break;
  }
  return seen;
}

it('given tenants that write in all lanes, when the feed of one is read in pages of any size with any filter, then it holds the events that a filter over the table gives, in order', async () => {
  const random = seeded();
  const writer = new Writer(store, random);
  const times: number[] = [];
  for (let round = 0; round < sized(40, 8); round += 1) {
    // The clock is also set back, which must not lose or reorder any event.
    const offsetMs = random(2) ? round * 60_000 : -round * 30_000;
    times.push(Date.now() + offsetMs);
    await db.setClock({ offsetMs });
    await Promise.all(Array.from({ length: 5 }, (_, index) => writer.append(TENANTS[index % 3])));
    for (let index = 0; index < 15; index += 1) await writer.append();
  }
  const maybe = <T>(value: T): T | undefined => (random(2) ? value : undefined);
  for (let round = 0; round < sized(200, 40); round += 1) {
    const tenant = pick(random, TENANTS);
    const filter: FeedFilter = {
      streamId: random(4) ? undefined : `s${random(9)}`,
      types: maybe([pick(random, TYPES), pick(random, TYPES)]),
      actor: maybe(pick(random, ACTORS)),
      from: random(3) ? undefined : new Date(pick(random, times)).toISOString(),
      to: random(3) ? undefined : new Date(pick(random, times)).toISOString(),
    };
    const { events } = await walk(tenant, filter, () => 1 + random(40));
    expectOrdered(events);
    expect({ filter, ids: bySession(events) }).toEqual({ filter, ids: await expected(tenant, filter) });
    for (const event of events) expect(event.tenant).toBe(tenant);
  }
});

it('given a clock that only goes forward, when the feed is read, then sessions are merged by time', async () => {
  const writer = new Writer(store, seeded());
  for (let index = 0; index < 60; index += 1) {
    await db.setClock({ offsetMs: index * 1_000 });
    await writer.append('acme');
  }
  const { events } = await walk('acme', {}, () => 7);
  const times = events.map(({ time }) => time);
  expect(times).toEqual([...times].sort());
  const { events: some } = await walk('acme', { actor: 'bob' }, () => 3);
  const theirs = some.map(({ time }) => time);
  expect(theirs).toEqual([...theirs].sort());
});

it('given the end of the feed, when its cursor is used later, then it returns the events since, and the same place has the same cursor', async () => {
  const writer = new Writer(store, seeded());
  for (let index = 0; index < 10; index += 1) await writer.append();
  const first = await walk('acme', {}, () => 5);
  const again = await walk('acme', {}, () => 200);
  expect(again.cursor).toBe(first.cursor);
  for (let index = 0; index < 10; index += 1) await writer.append();
  const { events } = await walk('acme', {}, () => 5, first.cursor);
  expect(bySession([...first.events, ...events])).toEqual(await expected('acme'));
  const end = await feed.page('acme', { after: 'end', limit: 5, filter: {} });
  expect(end).toMatchObject({ data: [], nextCursor: null });
});

it('given a cursor of another tenant or a forged one, when it is used, then it is refused', async () => {
  await new Writer(store, seeded()).append('acme');
  const { cursor } = await walk('acme', {}, () => 5);
  for (const after of [
    cursor.slice(1),
    `${cursor.startsWith('A') ? 'B' : 'A'}${cursor.slice(1)}`,
    '1',
    '{}',
  ]) {
    await expectProblemCode(feed.page('acme', { after, limit: 5, filter: {} }), 'invalid-cursor');
  }
  await expectProblemCode(feed.page('acme2', { after: cursor, limit: 5, filter: {} }), 'invalid-cursor');
});

/**
 * Inserts events of `acme` by SQL. The given SQL expressions of n give the lane and the second of event n of `count`.
 */
async function fill(count: number, lane: string, second: string, actor: string): Promise<void> {
  await db.query(
    `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                        correlation_id, data)
     select lane, row_number() over w, 'acme', 'l' || lane, row_number() over w, 1, gen_random_uuid(),
            'SessionResumed', 1, '2026-01-01T00:00:00Z'::timestamptz + second * interval '1 s', actor, 'test', '{}'
     from (select n, ${lane} as lane, ${second} as second, ${actor} as actor
           from generate_series(0, $1::int - 1) as n) e
     window w as (partition by lane order by n)`,
    [count],
  );
  await db.query(
    `insert into stream_state select 'acme', 'l' || lane, lane, max(position), 1, max(position), max(time), max(time),
       max(time), '{}', 1 from event group by lane`,
  );
}

it('given a filter that no event of a long log matches, when the feed is read, then each page scans a bounded part of the log and says where to go on', async () => {
  const EVENTS = sized(100_000, 45_000, 20_000);
  await fill(EVENTS, 'n % 16', '0', `'tester'`);
  const { events, pages } = await walk('acme', { actor: 'nobody' }, () => 50);
  expect(events).toEqual([]);
  expect(pages).toBeGreaterThanOrEqual(Math.floor(EVENTS / 20_000));
  expect(pages).toBeLessThanOrEqual(Math.ceil(EVENTS / 20_000) + 1);
});

it('given one lane with many events and others with few, when few events match a filter, then the lanes are merged by time all the same', async () => {
  await fill(
    10_000,
    'case when n % 500 = 0 then 1 + n / 500 % 3 else 0 end',
    'n',
    `case when n % 250 = 0 then 'bob' else 'eve' end`,
  );
  const { events, pages } = await walk('acme', { actor: 'bob' }, () => 50);
  expect(pages).toBeGreaterThan(3);
  expect(events).toHaveLength(40);
  const times = events.map(({ time }) => time);
  expect(times).toEqual([...times].sort());
});

it('given an event of a type that this code does not know, when feed and trail are read, then they hold the event as it is stored, in its place', async () => {
  await store.append(appendOf({ tenant: 'acme', streamId: 's' }, 0, [{ type: 'SessionCreated', data: {} }]));
  await store.append(
    appendOf({ tenant: 'acme', streamId: 's' }, 1, [
      { type: 'SessionSummarised', data: { summary: 'short' } },
    ]),
  );
  await store.append(appendOf({ tenant: 'acme', streamId: 's' }, 2, [{ type: 'SessionDeleted', data: {} }]));
  const { events } = await walk('acme', {}, () => 2);
  const trail = await feed.trail({ tenant: 'acme', sessionId: 's' }, { after: 0, limit: 10, filter: {} });
  for (const seen of [events, trail]) {
    expect(seen.map(({ type }) => type)).toEqual(['SessionCreated', 'SessionSummarised', 'SessionDeleted']);
    expect(seen[1]?.data).toEqual({ summary: 'short' });
  }
  await db.query('update counter set value = 0');
});

it('given writers on two nodes and readers that reconnect again and again, when they follow the feed, then each sees every event once and in order', async () => {
  const random = seeded();
  const other = await nodes.start(db.url, { upcast });
  const COUNT = sized(400, 60);
  const writing = Promise.all(
    [store, other, other, store].map(async (node, index) => {
      const writer = new Writer(node, seeded(index), `w${index}-`);
      for (let count = 0; count < COUNT; count += 1) await writer.append();
    }),
  );
  const filters: FeedFilter[] = [
    {},
    {},
    { actor: 'bob' },
    { types: ['SessionExpired'] },
    { streamId: 'w0-3' },
  ];
  /** How many events each reader is to see, once that is known. */
  const totals = new Map<FeedFilter, number>();
  const reading = filters.map(async (filter) => {
    const seen: EventAnswer[] = [];
    const isDone = () => seen.length >= (totals.get(filter) ?? Infinity);
    let id: string | undefined;
    let visits = 0;
    for (; !isDone(); visits += 1) {
      // One that misses something would come back for ever.
      if (visits > 2_000) throw new Error(`${seen.length} events after ${visits} visits`);
      const place = await feed.placeOf('acme', id);
      let left = 1 + random(20);
      await readSteps(
        (gone) => feed.follow('acme', place, filter, gone),
        (step) => {
          ({ id } = step);
          if (step.event) seen.push(step.event);
          left -= 1;
          return left === 0 || isDone();
        },
      );
    }
    return { filter, seen, visits };
  });
  await writing;
  for (const filter of filters) totals.set(filter, (await expected('acme', filter)).length + 1);
  // One more event that every reader sees, so that none waits for ever.
  const stream = { tenant: 'acme', streamId: 'w0-3' };
  const [version = 0] = await store.streams.versions([stream]);
  const last = [{ type: 'SessionExpired', data: {} }];
  await store.append(appendOf(stream, version, last, { actor: 'bob' }));
  for (const { filter, seen, visits } of await Promise.all(reading)) {
    expectOrdered(seen);
    expect({ filter, ids: bySession(seen) }).toEqual({ filter, ids: await expected('acme', filter) });
    if (filter.streamId === undefined) expect(visits).toBeGreaterThan(2);
  }
}, 60_000);

it('given a reader that stops reading, when many events are written, then nothing is read from the log for it; when it goes on, it misses nothing', async () => {
  const writer = new Writer(store, seeded());
  await writer.append('acme');
  const gone = new AbortController();
  const steps = feed.follow('acme', await feed.placeOf('acme', undefined), {}, gone.signal);
  const seen = [await steps.next()];
  for (let index = 0; index < 100; index += 1) await writer.append('acme');
  let reads = 0;
  const count = () => (reads += 1);
  store.pool.on('acquire', count);
  store.wakeUp.appended(Array.from({ length: store.laneCount }, (_, lane) => lane));
  await db.query('select 1');
  expect(reads).toBe(0);
  store.pool.off('acquire', count);
  const all = (await expected('acme')).length;
  while (seen.filter(({ value }) => (value as Step).event).length < all) seen.push(await steps.next());
  gone.abort();
  expect((await steps.next()).done).toBe(true);
  const events = seen.flatMap(({ value }) => (value as Step).event ?? []);
  expect(bySession(events)).toEqual(await expected('acme'));
});

it('given waiting readers, when they disconnect or the service closes, then they end and leave nothing behind', async () => {
  const listeners = (store.wakeUp as unknown as { listeners: Set<unknown> }).listeners;
  const before = listeners.size;
  const gone = new AbortController();
  const place = await feed.placeOf('acme', 'end');
  const waiting = [
    readSteps(
      () => feed.follow('acme', place, {}, gone.signal),
      () => false,
    ),
    readSteps(
      () => feed.follow('acme', place, {}, new AbortController().signal),
      () => false,
    ),
    readSteps(
      () => feed.followSession({ tenant: 'acme', sessionId: 's' }, 0, {}, new AbortController().signal),
      () => false,
    ),
  ];
  // However many readers there are, one subscription serves all of them.
  expect(listeners.size).toBe(before + 1);
  gone.abort();
  expect(await waiting[0]).toEqual([]);
  expect(listeners.size).toBe(before + 1);
  feed.onModuleDestroy();
  expect(await Promise.all(waiting)).toEqual([[], [], []]);
  expect(listeners.size).toBe(before);
  // A reader that comes after the close ends at once.
  expect(
    await readSteps(
      (signal) => feed.follow('acme', place, {}, signal),
      () => false,
    ),
  ).toEqual([]);
});

it('given a reader, when the database becomes unavailable and comes back, then the reader goes on where it was', async () => {
  const proxy = await startProxy(db.url);
  await using _network = {
    [Symbol.asyncDispose]: async () => {
      proxy.up();
      await nodes.stopAll();
      await proxy.close();
    },
  };
  const away = await nodes.start(proxy.url, { upcast });
  const writer = new Writer(store, seeded());
  await writer.append('acme');
  const gone = new AbortController();
  const steps = new Feed(away).follow('acme', await feed.placeOf('acme', undefined), {}, gone.signal);
  const seen: Step[] = [(await steps.next()).value as Step];
  const all = async () => (await expected('acme')).length;
  const take = async () => {
    const total = await all();
    while (seen.filter(({ event }) => event).length < total) seen.push((await steps.next()).value as Step);
  };
  await take();
  proxy.down();
  const next = steps.next();
  for (let index = 0; index < 10; index += 1) await writer.append('acme');
  away.wakeUp.appended(Array.from({ length: away.laneCount }, (_, lane) => lane));
  // The outage is longer than the reader gathers events, so that its queries fail as well.
  for (const end = performance.now() + 100; performance.now() < end;) {
    await expect(away.lanes.ends()).rejects.toMatchObject({ code: 'database-unavailable' });
  }
  proxy.up();
  seen.push((await next).value as Step);
  await take();
  gone.abort();
  expect(bySession(seen.flatMap(({ event }) => event ?? []))).toEqual(await expected('acme'));
}, 20_000);

it('given a session, when its trail is followed from a version on, then the later events come, and events that do not match a filter move the event id all the same', async () => {
  const stream = { tenant: 'acme', streamId: 's' };
  const append = (version: number, ...types: string[]) =>
    store.append(
      appendOf(
        stream,
        version,
        types.map((type) => ({ type, data: {} })),
      ),
    );
  await append(0, 'SessionResumed', 'SessionExpired', 'SessionResumed');
  await new Writer(store, seeded()).append('acme');
  const session = { tenant: 'acme', sessionId: 's' };
  const ids: string[] = [];
  const reading = readSteps(
    (gone) => feed.followSession(session, 1, { types: ['SessionResumed'] }, gone),
    (step) => {
      ids.push(step.id);
      return step.id === '5';
    },
  );
  await append(3, 'SessionExpired', 'SessionResumed');
  expect((await reading).map(({ id }) => id)).toEqual(['3', '5']);
  expect(ids).toEqual(['2', '3', '4', '5']);
});
