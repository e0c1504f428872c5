import { type Decider } from '../../../src/domain/decider.js';
import { type StreamId } from '../../../src/event-store/lane.js';
import { type Appended, EventLog, type EventLogOptions } from '../../../src/event-store/log.js';
import { StreamHandler } from '../../../src/event-store/stream-handler.js';
import { type StreamKind } from '../../../src/event-store/stream-states.js';
import { type StateLag } from '../../../src/event-store/stream-reader.js';
import { appendOf, type AppendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';

export { sized } from '../../support/heavy.js';

/** A random number generator with the same numbers in every run (mulberry32); SEED=n gives others. */
export function seeded(seed = Number(process.env['SEED'] ?? 20_261_122)): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until so many statements wait for a lock of this type in a database; commits wait for advisory locks. */
export async function blocked(
  db: TestDatabase,
  count: number,
  { locktype = 'advisory' }: { locktype?: 'advisory' | 'relation' } = {},
): Promise<void> {
  for (;;) {
    const [row] = await db.query<{ count: number }>(
      `select count(*)::int from pg_locks where locktype = $1 and not granted
       and database = (select oid from pg_database where datname = current_database())`,
      [locktype],
    );
    if ((row?.count ?? 0) >= count) return;
    await sleep(5);
  }
}

/** Nodes of one test file: each an EventLog with connections of its own. */
export class Nodes {
  private readonly open: EventLog[] = [];

  async start(url: string, options: EventLogOptions = {}): Promise<EventLog> {
    const store = await EventLog.open(url, options);
    this.open.push(store);
    return store;
  }

  /**
   * A node that has begun to listen for notifications. When it begins, it forgets the ends of lanes, because other nodes
   * may have appended before. A test that relies on known ends must therefore wait until the node listens.
   */
  async startListening(url: string): Promise<EventLog> {
    const store = await this.start(url);
    const connected = new Promise<void>((resolve) => {
      store.telemetry.on('wakeUp', (wakeUp) => {
        if (wakeUp.connected) resolve();
      });
    });
    store.wakeUp.subscribe(() => undefined);
    await connected;
    return store;
  }

  async stopAll(): Promise<void> {
    await Promise.all(this.open.splice(0).map((store) => store.close()));
  }
}

/** A writer of one stream that knows its end from the last append, as a command handler does. */
export class StreamWriter {
  version = 0;
  last: Appended | undefined;
  private lag: StateLag | undefined;

  constructor(
    private readonly store: EventLog,
    readonly stream: StreamId,
  ) {}

  async append(events = 1, more: Partial<AppendOf> = {}): Promise<Appended['status']> {
    const data = Array.from({ length: events }, () => ({ type: 'Written', data: { text: 'one of many' } }));
    const append = appendOf(this.stream, this.version, data, { lag: this.lag, ...more });
    const result = await this.store.append(append);
    if (result.status === 'ok') this.lag = result.lag;
    if ('version' in result) this.version = result.version;
    this.last = result;
    return result.status;
  }
}

/** Provides each test of a file with a database of its own and nodes for it. After each test the log must be sound. */
export function logPerTest(take: (db: TestDatabase) => void): Nodes {
  const nodes = new Nodes();
  let db: TestDatabase;
  beforeEach(async () => {
    db = await createTestDatabase();
    take(db);
  });
  afterEach(async () => {
    await nodes.stopAll();
    await expectSoundLog(db).finally(() => db.drop());
  });
  return nodes;
}

/** A stream that sums up numbers: a minimal decider. `digest` depends on the order of the events. */
export interface Tally {
  readonly version: number;
  readonly sum: number;
  readonly digest: number;
}
export interface Add {
  readonly numbers: readonly number[];
  /** The command is refused when the sum is another one. */
  readonly onlyAt?: number;
  /** The command also changes the counter of this name. */
  readonly count?: number;
}
export interface Added {
  readonly type: 'Added';
  readonly data: { readonly number: number };
}

export const tallyDecider: Decider<Tally, Add, Added> = {
  initialState: { version: 0, sum: 0, digest: 0 },
  decide: ({ numbers, onlyAt, count }, state) => {
    if (onlyAt !== undefined && state.sum !== onlyAt) throw new Error(`the sum is ${state.sum}`);
    return {
      events: numbers.map((number) => ({ type: 'Added', data: { number } })),
      ...(count !== undefined && { counters: { added: count } }),
    };
  },
  evolve: (state, { data }) => ({
    version: state.version + 1,
    sum: state.sum + data.number,
    digest: (state.digest * 31 + data.number) % 1_000_000_007,
  }),
};

export function tallies(
  store: EventLog,
  more: Partial<StreamKind<Tally, Add, Added>> = {},
): StreamHandler<Tally, Add, Added> {
  return new StreamHandler(store, {
    decider: tallyDecider,
    stateVersion: 1,
    schemaVersion: () => 1,
    isActivity: () => true,
    incarnation: () => 1,
    ...more,
  });
}

export const by = { actor: 'tester', correlationId: 'test' };

/** What must be true of every log at any time. Each query finds the violations. */
export async function expectSoundLog(db: TestDatabase): Promise<void> {
  const offenders = {
    'gaps or doubles in a lane': `
      select lane, count(*), min(position), max(position) from event group by lane
      having count(*) <> max(position) or min(position) <> 1 or count(distinct position) <> count(*)`,
    'gaps or doubles in a stream': `
      select tenant, stream_id, count(*), max(version) from event group by 1, 2
      having count(*) <> max(version) or min(version) <> 1 or count(distinct version) <> count(*)`,
    'an order of positions or times other than that of versions': `
      select * from (
        select tenant, stream_id, version, position, time, lane,
               lag(position) over w as before, lag(time) over w as earlier, lag(lane) over w as same
        from event window w as (partition by tenant, stream_id order by version)
      ) e where before >= position or earlier > time or same <> lane`,
    'an event stored twice': 'select id from event group by id having count(*) > 1',
    'a stream without a stored state': `
      select tenant, stream_id from event except select tenant, stream_id from stream_state`,
    'a stored state that is not that of one of the last events': `
      select s.*, e.*, l.version from stream_state s
      left join event e on (e.tenant, e.stream_id, e.version) = (s.tenant, s.stream_id, s.version)
      cross join lateral (
        select max(version) as version from event e where (e.tenant, e.stream_id) = (s.tenant, s.stream_id)
      ) l
      where (s.lane, s.version, s.position, s.time, s.incarnation)
            is distinct from (e.lane, e.version, e.position, e.time, e.incarnation) or s.version + 8 <= l.version`,
  };
  for (const [what, sql] of Object.entries(offenders)) {
    expect({ [what]: await db.query(sql) }).toEqual({ [what]: [] });
  }
}
