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
  /** RFC 3339, as of `expected`; null: the incarnation begins with this append. */
  readonly createdAt: string | null;
  /** RFC 3339, as of `expected`: `idleFor` counts from here; null: there was none, and it counts from the last event. */
  readonly lastActivityAt: string | null;
  /** Whether this counts as use of the stream. */
  readonly activity: boolean;
  /** The state that the append leaves, if it is to be stored. A new stream's must be. */
  readonly state?: StoredState | undefined;
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

export interface StoredState {
  readonly payload: EncodedPayload;
  /** Number of the code's way to fold. */
  readonly version: number;
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
  r_reference?: unknown;
}

/** Who remembers what this process appended. */
export interface Memory {
  /**
   * These were committed, with at least one event each; those of a lane in the order of their positions.
   * @param run of the server, from start to stop: within one, what was committed stays
   */
  committed(appends: readonly (readonly [Append, StreamEnd])[], run: string): void;
  /** The connection is gone, and who knows what database the next one leads to. */
  lost(): void;
  /** The last event that was seen in a lane, in this run of the server; others may have appended since. */
  lastOf(lane: number, run: string): LastEvent | undefined;
}

export interface LastEvent extends StreamId {
  readonly version: number;
  readonly position: number;
  readonly time: string;
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

interface Connection {
  readonly client: Client;
  readonly run: string;
}

/** One connection that commits one batch at a time. */
class Committer {
  private connection: Connection | undefined;
  private outageSince: number | undefined;

  constructor(
    private readonly connect: () => Promise<Client>,
    private readonly memory: Memory,
  ) {}

  async close(): Promise<void> {
    await this.connection?.client.end().catch(() => undefined);
    this.connection = undefined;
  }

  /** @param sent whether it was sent before and may be committed already. */
  async commit(batch: Pending[], sent = false): Promise<void> {
    const started = Date.now();
    for (let attempt = 0; ; attempt += 1) {
      try {
        const connection = (this.connection ??= await this.open());
        const results = await send(connection, batch, this.memory);
        this.outageSince = undefined;
        await this.settle(connection, batch, results, sent || attempt > 0);
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

  private async open(): Promise<Connection> {
    const client = await this.connect();
    try {
      const { rows } = await client.query<{ run: string }>('select pg_postmaster_start_time()::text as run');
      return { client, run: rows[0]?.run ?? '' };
    } catch (error) {
      client.end().catch(() => undefined);
      throw error;
    }
  }

  private async settle(
    { client, run }: Connection,
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
    if (committed.length > 0) this.memory.committed(committed, run);
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
      const { rows } = await client.query<{ own: boolean; position: number; time: string }>(
        `select f.id = $5::uuid as own, l.position, l.time
         from event f
         join event l on l.lane = f.lane and l.tenant = f.tenant and l.stream_id = f.stream_id
                     and l.version = $4::int + $6::int
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
      const [found] = rows;
      if (!found?.own) continue;
      results[index] = endOf(append, append.expected + append.events.length, found.position, found.time);
    }
  }

  /** The server refused the statement as a whole: one append at a time, so that only its cause fails. */
  private async isolate(batch: Pending[], error: unknown, sent: boolean): Promise<void> {
    const [only] = batch;
    if (only && batch.length === 1) only.reject(error);
    else for (const pending of batch) await this.commit([pending], sent);
  }

  private drop(): void {
    const { connection } = this;
    this.connection = undefined;
    this.memory.lost();
    // Not awaited: a server that does not answer would hold up the reconnect.
    connection?.client.end().catch(() => undefined);
  }
}

/** A rough size; only its order of magnitude matters to the bounds. */
const weigh = (append: Append): number =>
  append.events.reduce(
    (sum, { payload }) => sum + (payload.json?.length ?? 0) + (payload.sealed?.length ?? 0),
    512,
  );

async function send(
  { client, run }: Connection,
  batch: readonly Pending[],
  memory: Memory,
): Promise<AppendResult[]> {
  const [only] = batch;
  if (!only || batch.length > 1 || !isPlain(only.append)) {
    return sendBatch(
      client,
      batch.map((pending) => pending.append),
    );
  }
  const { append } = only;
  const last = memory.lastOf(append.lane, run);
  const next = last && isNext(append, last) ? await sendNext(client, append, last, run) : undefined;
  return [next ?? (await sendOne(client, append, last?.position, run))];
}

const isNext = ({ stream, expected, events, state, lease }: Append, last: LastEvent): boolean =>
  expected === last.version &&
  stream.streamId === last.streamId &&
  stream.tenant === last.tenant &&
  events.length === 1 &&
  !state &&
  !lease;

/**
 * Appends one event right behind its stream's last one, which is its lane's last, too, as far as this process knows:
 * most lone appends are like that. If the place is free, then that was the end of the lane and so of the stream, and
 * nothing else has to be looked at: it costs hardly more than a bare INSERT.
 * @returns undefined when the place is taken, or when this is not the run of the server that it was seen in
 */
async function sendNext(
  client: Client,
  append: Append,
  last: LastEvent,
  run: string,
): Promise<AppendResult | undefined> {
  const [event] = append.events;
  if (!event) throw new Error('append_next needs an event');
  const { rows } = await client.query<{ time: string }>({
    name: 'append_next',
    // The lock is taken by the inner query, before the clock is asked.
    text: `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                              actor, correlation_id, causation_id, data, sealed, key_id)
           select $1::smallint, $2::bigint, $3::text, $4::text, $5::int, $6::int, $7::uuid, $8::text, $9::smallint,
                  greatest($10::timestamptz, colloquy_now()), $11::text, $12::text, $13::text, $14::jsonb, $15::bytea,
                  $16::uuid
           from (select pg_advisory_xact_lock(7301, $1::smallint)) as lane_lock
           where pg_postmaster_start_time() = $17::timestamptz
           on conflict do nothing returning time`,
    values: [
      append.lane,
      last.position + 1,
      append.stream.tenant,
      append.stream.streamId,
      append.expected + 1,
      append.incarnation,
      event.id,
      event.type,
      event.schemaVersion,
      last.time,
      append.actor,
      append.correlationId,
      append.causationId,
      event.payload.json,
      event.payload.sealed,
      event.payload.keyId,
      run,
    ],
  });
  return rows[0] && endOf(append, append.expected + 1, last.position + 1, rows[0].time);
}

const isPlain = ({ events, guard, counters, key }: Append): boolean =>
  events.length > 0 &&
  !guard &&
  !counters?.length &&
  !key &&
  events.slice(1).every(({ payload }) => !payload.sealed);

async function sendOne(
  client: Client,
  append: Append,
  laneEnd: number | undefined,
  run: string,
): Promise<AppendResult> {
  const { lease, state } = append;
  const [event, ...more] = append.events;
  if (!event) throw new Error('append_event needs an event');
  const { rows } = await client.query<{ stored: string[] }>({
    name: 'append_event',
    text: `select append_event($1,case when pg_postmaster_start_time() = $26 then $2::bigint end,$3,$4,$5,$6,$7,$8,$9,$10,$11,
                               $12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,$24,$25) as stored`,
    values: [
      append.lane,
      laneEnd ?? null,
      append.stream.tenant,
      append.stream.streamId,
      append.expected,
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
      state?.version,
      state?.payload.json,
      state?.payload.sealed,
      state?.payload.keyId,
      state && append.createdAt,
      state && (append.activity ? null : append.lastActivityAt),
      run,
    ],
  });
  const [status, version, position, time = ''] = rows[0]?.stored ?? [];
  if (status !== 'ok') return { status: 'conflict', version: Number(version) };
  return endOf(append, Number(version), Number(position), rfc3339(time));
}

/** Where a stream ends after an append whose events are of this time. */
const endOf = (append: Append, version: number, position: number, time: string): AppendResult => ({
  status: 'ok',
  version,
  position,
  time,
  createdAt: append.createdAt ?? time,
  lastActivityAt: append.activity ? time : (append.lastActivityAt ?? time),
});

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
    sparse(appends, (append) => append.createdAt),
    sparse(appends, (append) => append.lastActivityAt),
    of((append) => append.activity),
    of((append) => append.actor),
    of((append) => append.correlationId),
    sparse(appends, (append) => append.causationId),
    of((append) => append.events.length),
    jsonArray(appends.map((append) => append.state?.payload.json)),
    sparse(appends, (append) => append.state?.version),
    sparse(appends, (append) => append.state?.payload.sealed),
    sparse(appends, (append) => append.state?.payload.keyId),
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
  return rows.map((row, index) => {
    const append = appends[index];
    if (!append) throw new Error('append_batch returned more than it was asked for');
    return toResult(append, row);
  });
}

/** Texts of JSON as one; null when there is nothing in it. */
export const jsonArray = (texts: readonly (string | null | undefined)[]): string | null =>
  texts.some((text) => text != null) ? `[${texts.map((text) => text ?? 'null').join()}]` : null;

/** A column that is null all through is sent as null: unnest fills it up, and nobody makes and parses an array. */
function sparse<T>(rows: readonly T[], pick: (row: T) => Element): string | null {
  const column = rows.map(pick);
  return column.some((value) => value != null) ? arrayLiteral(column) : null;
}

function toResult(append: Append, row: Row): AppendResult {
  switch (row.status) {
    case 'ok':
      return endOf(append, row.r_version, row.r_position, row.r_time);
    case 'duplicate':
      return { status: 'duplicate', version: row.r_version, reference: row.r_reference };
    case 'conflict':
      return { status: 'conflict', version: row.r_version };
    default:
      return { status: row.status as 'reused' | 'guard' | 'counter' | 'retry' };
  }
}
