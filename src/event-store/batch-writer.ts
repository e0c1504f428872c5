import { type Client, type QueryResultRow } from 'pg';
import { type GuardCondition } from '../domain/decider.js';
import { DatabaseUnavailable, isConnectionError } from '../database/connection.js';
import { type StreamId, streamKey } from './lane.js';
import { type StoredPayload } from './payload-codec.js';

export interface Append {
  readonly stream: StreamId;
  readonly lane: number;
  /** The version that the stream must be at; 0 when it must not exist. */
  readonly expected: number;
  readonly incarnation: number;
  /** Whether this counts as use of the stream for `idleFor`. */
  readonly activity: boolean;
  readonly state: StoredPayload;
  readonly stateVersion: number;
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId: string | null;
  /** None is allowed for a keyed append: then only the result is kept. */
  readonly events: readonly AppendEvent[];
  readonly guard?: GuardCondition | undefined;
  readonly counters?: readonly CounterChange[] | undefined;
  readonly key?: AppendKey | undefined;
}

export interface AppendEvent {
  readonly id: string;
  readonly type: string;
  readonly schemaVersion: number;
  readonly payload: StoredPayload;
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
 * Coalesces appends: what arrives while a commit is in flight forms the next batch. Nothing waits for a timer: an
 * idle writer commits at the end of the event loop's turn.
 *
 * Lanes are split over two connections, even and odd, so that one batch is prepared while another is flushed to
 * disk; their locks never meet. Every append is one autocommit statement, so that a process stopped at any point
 * holds no lock.
 */
export class BatchWriter {
  /** Appends that were asked for so far. */
  appends = 0;
  private readonly shards: readonly Shard[];
  private readonly queueLimit: number;
  private readonly queueBytes: number;

  constructor(
    connect: () => Promise<Client>,
    onCommit: (lanes: Iterable<number>) => void,
    options: WriterOptions = {},
  ) {
    this.shards = [new Shard(connect, onCommit), new Shard(connect, onCommit)];
    this.queueLimit = options.queueLimit ?? 10_000;
    this.queueBytes = options.queueBytes ?? 64 * 1024 * 1024;
  }

  /**
   * @throws Overloaded when too much waits already; nothing was done.
   * @throws DatabaseUnavailable when the database stays away; whether this append was committed is then unknown.
   */
  append(append: Append): Promise<AppendResult> {
    this.appends += 1;
    const shard = this.shards[append.lane % this.shards.length];
    if (!shard) throw new Error('no shard');
    const waiting = this.shards.reduce((sum, one) => sum + one.waiting, 0);
    const bytes = this.shards.reduce((sum, one) => sum + one.waitingBytes, 0);
    if (waiting >= this.queueLimit || bytes >= this.queueBytes) {
      return Promise.reject(new Overloaded('more arrives than the database takes at the moment; try again'));
    }
    return shard.append(append);
  }

  /** Ends when all that was accepted is answered. */
  async close(): Promise<void> {
    await Promise.all(this.shards.map((shard) => shard.close()));
  }
}

class Shard {
  waitingBytes = 0;
  private queue: Pending[] = [];
  private client: Client | undefined;
  private running: Promise<void> | undefined;
  private outageSince: number | undefined;

  constructor(
    private readonly connect: () => Promise<Client>,
    private readonly onCommit: (lanes: Iterable<number>) => void,
  ) {}

  get waiting(): number {
    return this.queue.length;
  }

  append(append: Append): Promise<AppendResult> {
    return new Promise((resolve, reject) => {
      const pending = { append, key: streamKey(append.stream), bytes: weigh(append), resolve, reject };
      this.queue.push(pending);
      this.waitingBytes += pending.bytes;
      this.running ??= this.run();
    });
  }

  async close(): Promise<void> {
    await this.running;
    await this.client?.end().catch(() => undefined);
    this.client = undefined;
  }

  private async run(): Promise<void> {
    // One turn of the event loop, so that requests which arrived together are committed together.
    await new Promise((resolve) => setImmediate(resolve));
    while (this.queue.length > 0) await this.commit(this.take());
    this.running = undefined;
  }

  /** The next batch: a stream stands in it once, further appends to it wait, in order, for the next one. */
  private take(): Pending[] {
    const batch: Pending[] = [];
    const rest: Pending[] = [];
    const streams = new Set<string>();
    let bytes = 0;
    for (const pending of this.queue) {
      const fits =
        batch.length < BATCH_APPENDS && (batch.length === 0 || bytes + pending.bytes <= BATCH_BYTES);
      if (fits && !streams.has(pending.key)) {
        batch.push(pending);
        bytes += pending.bytes;
      } else rest.push(pending);
      streams.add(pending.key);
    }
    this.queue = rest;
    this.waitingBytes -= bytes;
    return batch;
  }

  /** @param sent whether it was sent before and may be committed already. */
  private async commit(batch: Pending[], sent = false): Promise<void> {
    const started = Date.now();
    for (let attempt = 0; ; attempt += 1) {
      try {
        const client = (this.client ??= await this.connect());
        const results = await send(client, batch);
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

  private async settle(client: Client, batch: Pending[], rows: Row[], repeated: boolean): Promise<void> {
    const results = rows.map(toResult);
    if (repeated) await this.recognise(client, batch, results);
    const lanes = new Set<number>();
    results.forEach((result, index) => {
      const append = batch[index]?.append;
      if (append && result.status === 'ok' && append.events.length > 0) lanes.add(append.lane);
    });
    if (lanes.size > 0) this.onCommit(lanes);
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
    // Not awaited: a server that does not answer would hold up the reconnect.
    client?.end().catch(() => undefined);
  }
}

interface StreamTimes {
  created_at: string;
  last_activity_at: string;
}

/** A rough size; only its order of magnitude matters to the bounds. */
const weigh = (append: Append): number => {
  let bytes = 512;
  for (const { payload } of append.events) {
    bytes += payload.sealed ? payload.sealed.length : JSON.stringify(payload.data).length;
  }
  return bytes;
};

async function send(client: Client, batch: Pending[]): Promise<Row[]> {
  const [only] = batch;
  if (only && batch.length === 1 && isPlain(only.append)) return sendOne(client, only.append);
  return sendBatch(
    client,
    batch.map((pending) => pending.append),
  );
}

const isPlain = (append: Append): boolean =>
  append.events.length === 1 && !append.guard && !append.counters?.length && !append.key;

async function sendOne(client: Client, append: Append): Promise<Row[]> {
  const [event] = append.events;
  if (!event) throw new Error('append_one needs an event');
  const { rows } = await client.query<Row>({
    name: 'append_one',
    text: `select * from append_one($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19)`,
    values: [
      append.lane,
      append.stream.tenant,
      append.stream.streamId,
      append.expected,
      append.activity,
      json(append.state.data),
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
      json(event.payload.data),
      event.payload.sealed,
      event.payload.keyId,
    ],
  });
  return rows;
}

async function sendBatch(client: Client, appends: readonly Append[]): Promise<Row[]> {
  const lanes = [...new Set(appends.map((append) => append.lane))].sort((a, b) => a - b);
  const laneNumber = new Map(lanes.map((lane, index) => [lane, index + 1]));
  const events = appends.flatMap((append, index) =>
    append.events.map((event, ordinal) => ({ ...event, append: index + 1, ordinal: ordinal + 1 })),
  );
  const counters = appends.flatMap((append, index) =>
    (append.counters ?? []).map((counter) => ({ ...counter, append: index + 1 })),
  );
  const of = <T>(pick: (append: Append) => T): T[] => appends.map(pick);
  const values = [
    lanes,
    of((append) => laneNumber.get(append.lane)),
    of((append) => append.stream.tenant),
    of((append) => append.stream.streamId),
    of((append) => append.expected),
    of((append) => append.incarnation),
    of((append) => append.activity),
    of((append) => append.actor),
    of((append) => append.correlationId),
    of((append) => append.causationId),
    of((append) => append.events.length),
    jsonArray(of((append) => append.state.data)),
    of((append) => append.stateVersion),
    of((append) => append.state.sealed),
    of((append) => append.state.keyId),
    of((append) => (append.guard && 'idleFor' in append.guard ? append.guard.idleFor : null)),
    of((append) => (append.guard && 'before' in append.guard ? append.guard.before : null)),
    of((append) => (append.guard && 'leaseOver' in append.guard ? append.guard.leaseOver : null)),
    of((append) => append.key?.scope ?? null),
    of((append) => append.key?.key ?? null),
    of((append) => append.key?.fingerprint ?? null),
    jsonArray(of((append) => append.key?.reference ?? null)),
    events.map((event) => event.append),
    events.map((event) => event.ordinal),
    events.map((event) => event.id),
    events.map((event) => event.type),
    events.map((event) => event.schemaVersion),
    jsonArray(events.map((event) => event.payload.data)),
    events.map((event) => event.payload.sealed),
    events.map((event) => event.payload.keyId),
    counters.map((counter) => counter.append),
    counters.map((counter) => counter.key),
    counters.map((counter) => counter.delta),
    counters.map((counter) => counter.max),
  ];
  const { rows } = await client.query<Row>({
    name: 'append_batch',
    text: `select * from append_batch(${values.map((_, index) => `$${index + 1}`).join()})`,
    values,
  });
  return rows;
}

const json = (data: unknown): string | null => (data === null ? null : JSON.stringify(data));
const jsonArray = (items: readonly unknown[]): string => JSON.stringify(items);

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
