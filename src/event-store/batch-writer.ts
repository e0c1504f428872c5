import { type Client, type QueryResultRow } from 'pg';
import { type GuardCondition } from '../domain/decider.js';
import { arrayLiteral, type Element } from '../database/array-literal.js';
import { DatabaseUnavailable, isConnectionError, rfc3339 } from '../database/connection.js';
import { type StreamId, streamKey } from './lane.js';
import { type EncodedPayload } from './payload-codec.js';

export interface Append {
  readonly stream: StreamId;
  readonly lane: number;
  /** The version that the stream must be at; 0 when it must not exist. */
  readonly expected: number;
  readonly incarnation: number;
  /** Whether this counts as use of the stream for `idleFor`. */
  readonly activity: boolean;
  readonly state: EncodedPayload;
  readonly stateVersion: number;
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId: string | null;
  /** None is allowed for a keyed append: then only the result is kept. */
  readonly events: readonly AppendEvent[];
  readonly guard?: GuardCondition | undefined;
  readonly counters?: readonly CounterChange[] | undefined;
  readonly key?: AppendKey | undefined;
  /** A lease that begins with the append, so that nobody ever sees the one without the other. */
  readonly lease?: NewLease | undefined;
}

export interface NewLease {
  readonly name: string;
  /** UUID of the process that works under it, and renews it. */
  readonly owner: string;
  readonly ms: number;
}

export interface AppendEvent {
  readonly id: string;
  readonly type: string;
  readonly schemaVersion: number;
  readonly data: unknown;
  /** `data` as it is stored. */
  readonly payload: EncodedPayload;
}

export interface CounterChange {
  readonly key: string;
  readonly delta: number;
  /** A positive change that would pass this is refused. */
  readonly max: number;
}

/** Makes an append happen once: a second one with the same scope and key gets the first one's reference. */
export interface AppendKey {
  readonly scope: string;
  readonly key: string;
  readonly fingerprint: string;
  readonly reference: unknown;
}

export type AppendResult =
  | ({ readonly status: 'ok' } & StreamEnd)
  | { readonly status: 'duplicate'; readonly version: number; readonly reference: unknown }
  | { readonly status: 'conflict'; readonly version: number }
  | { readonly status: 'reused' | 'guard' | 'counter' | 'retry' };

/** The end of a stream after an append; times are RFC 3339. */
export interface StreamEnd {
  readonly version: number;
  readonly position: number;
  readonly time: string;
  readonly createdAt: string;
  readonly lastActivityAt: string;
}

/** More work arrives than the database takes; nothing of this append was done. */
export class Overloaded extends Error {
  override readonly name = 'Overloaded';
  readonly code = 'overloaded';
}

interface Pending {
  readonly append: Append;
  readonly key: string;
  readonly bytes: number;
  readonly resolve: (result: AppendResult) => void;
  readonly reject: (error: unknown) => void;
}

interface Row extends QueryResultRow {
  status: string;
  r_version: number;
  r_position: number;
  r_time: string;
  r_created_at: string;
  r_last_activity_at: string;
  r_reference?: unknown;
}

/** Who remembers what this process appended. */
export interface Memory {
  /** These were committed, with at least one event each; those of a lane in the order of their positions. */
  committed(appends: readonly (readonly [Append, StreamEnd])[]): void;
  /** The connection is gone, and who knows what database the next one leads to. */
  lost(): void;
  /** Position of the last event that was seen in a lane; others may have appended since. */
  endOf(lane: number): number | undefined;
}

export interface WriterOptions {
  /** Appends waiting at most, over all writers; past it an append is `overloaded`. */
  readonly queueLimit?: number;
  /** Bytes of payload waiting at most, over all writers. */
  readonly queueBytes?: number;
}

/** From here on a bigger batch costs more per append than it saves (measured). */
const BATCH_APPENDS = 256;
const BATCH_BYTES = 8 * 1024 * 1024;

/** How long a batch waits for a lost database before its callers hear of it. */
const PATIENCE_MS = 4_000;

/**
 * Lanes are split in two halves, even and odd. A half gets a commit of its own beside the other's only if so many
 * of its appends wait: with fewer, one bigger batch for both is cheaper than two commits side by side (measured).
 */
const HALF_APPENDS = 32;

/**
 * Coalesces appends: what arrives while a commit is in flight forms the next batch. Nothing waits for a timer: an
 * idle writer commits at the end of the event loop's turn, or at once if the last append came alone, too.
 *
 * Under load there are two commits in flight, one per half of the lanes, so that one batch is prepared while another
 * is flushed to disk; their locks never meet. Every append is one autocommit statement, so that a process stopped at
 * any point holds no lock.
 */
export class BatchWriter {
  /** Appends that were asked for so far. */
  appends = 0;
  private readonly halves: readonly Half[];
  private readonly queueLimit: number;
  private readonly queueBytes: number;
  private readonly commits = new Set<Promise<void>>();
  private starting = false;
  private isLone = true;

  constructor(connect: () => Promise<Client>, memory: Memory, options: WriterOptions = {}) {
    this.halves = [0, 1].map(() => new Half(new Committer(connect, memory)));
    this.queueLimit = options.queueLimit ?? 10_000;
    this.queueBytes = options.queueBytes ?? 64 * 1024 * 1024;
  }

  /**
   * @throws Overloaded when too much waits already; nothing was done.
   * @throws DatabaseUnavailable when the database stays away; whether this append was committed is then unknown.
   */
  append(append: Append): Promise<AppendResult> {
    this.appends += 1;
    const half = this.halves[append.lane % this.halves.length];
    if (!half) throw new Error('no half');
    const waiting = this.halves.reduce((sum, one) => sum + one.queue.length, 0);
    const bytes = this.halves.reduce((sum, one) => sum + one.bytes, 0);
    if (waiting >= this.queueLimit || bytes >= this.queueBytes) {
      return Promise.reject(new Overloaded('more arrives than the database takes at the moment; try again'));
    }
    return new Promise((resolve, reject) => {
      const pending = { append, key: streamKey(append.stream), bytes: weigh(append), resolve, reject };
      half.queue.push(pending);
      half.bytes += pending.bytes;
      this.start();
    });
  }

  /** Ends when all that was accepted is answered. */
  async close(): Promise<void> {
    while (this.starting || this.commits.size > 0) {
      await Promise.all(this.commits);
      await endOfTurn();
    }
    await Promise.all(this.halves.map((half) => half.committer.close()));
  }

  /**
   * So late that requests which arrive together are committed together: those of this callback, and where there were
   * several lately, all of the event loop's turn. A lone append would only lose time by that: its database connection
   * falls asleep in between.
   */
  private start(): void {
    if (this.starting) return;
    this.starting = true;
    const begin = (): void => {
      this.starting = false;
      this.startCommits();
    };
    if (this.isLone) process.nextTick(begin);
    else setImmediate(begin);
  }

  private startCommits(): void {
    const full = this.halves.filter((half) => !half.busy && half.queue.length >= HALF_APPENDS);
    const idle = this.halves.every((half) => !half.busy);
    if (idle && full.length < this.halves.length) this.commit(this.halves);
    else for (const half of full) this.commit([half]);
  }

  private commit(halves: readonly Half[]): void {
    const batch = take(halves);
    const [first] = halves;
    if (!first || batch.length === 0) return;
    this.isLone = batch.length === 1 && this.commits.size === 0;
    for (const half of halves) half.busy = true;
    const commit = first.committer.commit(batch).finally(() => {
      this.commits.delete(commit);
      for (const half of halves) half.busy = false;
      this.startCommits();
    });
    this.commits.add(commit);
  }
}

/** Of the event loop: whatever arrived together has been seen by then. */
export const endOfTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** What waits for one half of the lanes. */
class Half {
  queue: Pending[] = [];
  bytes = 0;
  busy = false;

  constructor(readonly committer: Committer) {}
}

/** The next batch: a stream stands in it once, further appends to it wait, in order, for the next one. */
function take(halves: readonly Half[]): Pending[] {
  const batch: Pending[] = [];
  const streams = new Set<string>();
  let bytes = 0;
  for (const half of halves) {
    const rest: Pending[] = [];
    for (const pending of half.queue) {
      const fits =
        batch.length < BATCH_APPENDS && (batch.length === 0 || bytes + pending.bytes <= BATCH_BYTES);
      if (fits && !streams.has(pending.key)) {
        batch.push(pending);
        bytes += pending.bytes;
        half.bytes -= pending.bytes;
      } else rest.push(pending);
      streams.add(pending.key);
    }
    half.queue = rest;
  }
  return batch;
}

/** One connection that commits one batch at a time. */
class Committer {
  private client: Client | undefined;
  private outageSince: number | undefined;

  constructor(
    private readonly connect: () => Promise<Client>,
    private readonly memory: Memory,
  ) {}

  async close(): Promise<void> {
    await this.client?.end().catch(() => undefined);
    this.client = undefined;
  }

  /** @param sent whether it was sent before and may be committed already. */
  async commit(batch: Pending[], sent = false): Promise<void> {
    const started = Date.now();
    for (let attempt = 0; ; attempt += 1) {
      try {
        const client = (this.client ??= await this.connect());
        const results = await send(client, batch, this.memory);
        this.outageSince = undefined;
        await this.settle(client, batch, results, sent || attempt > 0);
        return;
      } catch (error) {
        if (!isConnectionError(error)) {
          await this.isolate(batch, error, sent || attempt > 0);
          return;
        }
        this.drop();
        this.outageSince ??= Date.now();
        // In a long outage each batch gets one try, so that callers hear at once and not one after the other.
        const patience = started - this.outageSince > PATIENCE_MS ? 0 : PATIENCE_MS;
        if (Date.now() - started >= patience) {
          const unavailable = new DatabaseUnavailable(error);
          for (const pending of batch) pending.reject(unavailable);
          return;
        }
        await new Promise((resolve) => setTimeout(resolve, Math.min(50 * 2 ** attempt, 500)));
      }
    }
  }

  private async settle(
    client: Client,
    batch: Pending[],
    results: AppendResult[],
    repeated: boolean,
  ): Promise<void> {
    if (repeated) await this.recognise(client, batch, results);
    const committed: [Append, StreamEnd][] = [];
    results.forEach((result, index) => {
      const append = batch[index]?.append;
      if (append && result.status === 'ok' && append.events.length > 0) committed.push([append, result]);
    });
    if (committed.length > 0) this.memory.committed(committed);
    results.forEach((result, index) => batch[index]?.resolve(result));
  }

  /**
   * After a lost connection nobody knows whether the commit happened. It did, if the event at the expected version
   * is our own; the conflict that the second try met is then our own first one.
   */
  private async recognise(client: Client, batch: Pending[], results: AppendResult[]): Promise<void> {
    for (const [index, { append }] of batch.entries()) {
      const first = append.events[0];
      const last = append.events.at(-1);
      if (!first || !last || results[index]?.status !== 'conflict') continue;
      const { rows } = await client.query<{ own: boolean; position: number; time: string } & StreamTimes>(
        `select f.id = $5::uuid as own, l.position, l.time, s.created_at, s.last_activity_at
         from event f
         join event l on l.lane = f.lane and l.tenant = f.tenant and l.stream_id = f.stream_id
                     and l.version = $4::int + $6::int
         join stream s on s.tenant = f.tenant and s.stream_id = f.stream_id
         where f.lane = $1 and f.tenant = $2 and f.stream_id = $3 and f.version = $4::int + 1`,
        [
          append.lane,
          append.stream.tenant,
          append.stream.streamId,
          append.expected,
          first.id,
          append.events.length,
        ],
      );
      const found = rows[0];
      if (!found?.own) continue;
      results[index] = {
        status: 'ok',
        version: append.expected + append.events.length,
        position: found.position,
        time: found.time,
        createdAt: found.created_at,
        lastActivityAt: found.last_activity_at,
      };
    }
  }

  /** The server refused the statement as a whole: one append at a time, so that only its cause fails. */
  private async isolate(batch: Pending[], error: unknown, sent: boolean): Promise<void> {
    const [only] = batch;
    if (only && batch.length === 1) only.reject(error);
    else for (const pending of batch) await this.commit([pending], sent);
  }

  private drop(): void {
    const { client } = this;
    this.client = undefined;
    this.memory.lost();
    // Not awaited: a server that does not answer would hold up the reconnect.
    client?.end().catch(() => undefined);
  }
}

interface StreamTimes {
  created_at: string;
  last_activity_at: string;
}

/** A rough size; only its order of magnitude matters to the bounds. */
const weigh = (append: Append): number =>
  append.events.reduce(
    (sum, { payload }) => sum + (payload.json?.length ?? 0) + (payload.sealed?.length ?? 0),
    512,
  );

async function send(client: Client, batch: Pending[], memory: Memory): Promise<AppendResult[]> {
  const [only] = batch;
  if (only && batch.length === 1 && isPlain(only.append)) {
    return [await sendOne(client, only.append, memory.endOf(only.append.lane))];
  }
  return sendBatch(
    client,
    batch.map((pending) => pending.append),
  );
}

const isPlain = ({ events, guard, counters, key }: Append): boolean =>
  events.length > 0 &&
  !guard &&
  !counters?.length &&
  !key &&
  events.slice(1).every(({ payload }) => !payload.sealed);

async function sendOne(client: Client, append: Append, laneEnd: number | undefined): Promise<AppendResult> {
  const { lease } = append;
  const [event, ...more] = append.events;
  if (!event) throw new Error('append_event needs an event');
  const { rows } = await client.query<{ stored: string[] }>({
    name: 'append_event',
    text: `select append_event($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,$24) as stored`,
    values: [
      append.lane,
      laneEnd ?? null,
      append.stream.tenant,
      append.stream.streamId,
      append.expected,
      append.activity,
      append.state.json,
      append.stateVersion,
      append.state.sealed,
      append.state.keyId,
      event.id,
      event.type,
      event.schemaVersion,
      append.incarnation,
      append.actor,
      append.correlationId,
      append.causationId,
      event.payload.json,
      event.payload.sealed,
      event.payload.keyId,
      more.length > 0 ? `[${more.map(eventJson).join()}]` : null,
      lease?.name,
      lease?.owner,
      lease?.ms,
    ],
  });
  const [status, version, position, ...times] = rows[0]?.stored ?? [];
  if (status !== 'ok') return { status: 'conflict', version: Number(version) };
  const [time = '', createdAt = '', lastActivityAt = ''] = times.map(rfc3339);
  return { status, version: Number(version), position: Number(position), time, createdAt, lastActivityAt };
}

const eventJson = ({ id, type, schemaVersion, payload }: AppendEvent): string =>
  `{"id":"${id}","type":${JSON.stringify(type)},"schemaVersion":${schemaVersion},"data":${payload.json ?? 'null'}}`;

async function sendBatch(client: Client, appends: readonly Append[]): Promise<AppendResult[]> {
  const lanes = [...new Set(appends.map((append) => append.lane))].sort((a, b) => a - b);
  const laneNumber = new Map(lanes.map((lane, index) => [lane, index + 1]));
  const events = appends.flatMap((append, index) =>
    append.events.map((event, ordinal) => ({ ...event, append: index + 1, ordinal: ordinal + 1 })),
  );
  const counters = appends.flatMap((append, index) =>
    (append.counters ?? []).map((counter) => ({ ...counter, append: index + 1 })),
  );
  const of = (pick: (append: Append) => Element): string => arrayLiteral(appends.map(pick));
  const ofEvents = (pick: (event: (typeof events)[number]) => Element): string =>
    arrayLiteral(events.map(pick));
  const ofCounters = (pick: (counter: (typeof counters)[number]) => Element): string =>
    arrayLiteral(counters.map(pick));
  const values = [
    arrayLiteral(lanes),
    of((append) => laneNumber.get(append.lane)),
    of((append) => append.stream.tenant),
    of((append) => append.stream.streamId),
    of((append) => append.expected),
    of((append) => append.incarnation),
    of((append) => append.activity),
    of((append) => append.actor),
    of((append) => append.correlationId),
    sparse(appends, (append) => append.causationId),
    of((append) => append.events.length),
    jsonArray(appends.map((append) => append.state.json)),
    of((append) => append.stateVersion),
    sparse(appends, (append) => append.state.sealed),
    sparse(appends, (append) => append.state.keyId),
    sparse(appends, (append) => (append.guard && 'idleFor' in append.guard ? append.guard.idleFor : null)),
    sparse(appends, (append) => (append.guard && 'before' in append.guard ? append.guard.before : null)),
    sparse(appends, (append) =>
      append.guard && 'leaseOver' in append.guard ? append.guard.leaseOver : null,
    ),
    sparse(appends, (append) => append.key?.scope),
    sparse(appends, (append) => append.key?.key),
    sparse(appends, (append) => append.key?.fingerprint),
    jsonArray(appends.map((append) => append.key && JSON.stringify(append.key.reference))),
    sparse(appends, (append) => append.lease?.name),
    sparse(appends, (append) => append.lease?.owner),
    sparse(appends, (append) => append.lease?.ms),
    ofEvents((event) => event.append),
    ofEvents((event) => event.ordinal),
    ofEvents((event) => event.id),
    ofEvents((event) => event.type),
    ofEvents((event) => event.schemaVersion),
    jsonArray(events.map((event) => event.payload.json)),
    sparse(events, (event) => event.payload.sealed),
    sparse(events, (event) => event.payload.keyId),
    ofCounters((counter) => counter.append),
    ofCounters((counter) => counter.key),
    ofCounters((counter) => counter.delta),
    ofCounters((counter) => counter.max),
  ];
  const { rows } = await client.query<Row>({
    name: 'append_batch',
    text: `select * from append_batch(${values.map((_, index) => `$${index + 1}`).join()})`,
    values,
  });
  return rows.map(toResult);
}

/** Texts of JSON as one; null when there is nothing in it. */
export const jsonArray = (texts: readonly (string | null | undefined)[]): string | null =>
  texts.some((text) => text != null) ? `[${texts.map((text) => text ?? 'null').join()}]` : null;

/** A column that is null all through is sent as null: unnest fills it up, and nobody makes and parses an array. */
function sparse<T>(rows: readonly T[], pick: (row: T) => Element): string | null {
  const column = rows.map(pick);
  return column.some((value) => value != null) ? arrayLiteral(column) : null;
}

function toResult(row: Row): AppendResult {
  switch (row.status) {
    case 'ok':
      return {
        status: 'ok',
        version: row.r_version,
        position: row.r_position,
        time: row.r_time,
        createdAt: row.r_created_at,
        lastActivityAt: row.r_last_activity_at,
      };
    case 'duplicate':
      return { status: 'duplicate', version: row.r_version, reference: row.r_reference };
    case 'conflict':
      return { status: 'conflict', version: row.r_version };
    default:
      return { status: row.status as 'reused' | 'guard' | 'counter' | 'retry' };
  }
}
