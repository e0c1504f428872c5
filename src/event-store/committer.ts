import { type Client } from 'pg';
import {
  DatabaseUnavailable,
  endConnection,
  isConnectionError,
  isDiskFull,
  keepsProcessAlive,
} from '../database/connection.js';
import { REFUSED_ABSENT, TenantAbsent } from './absences.js';
import { type Append, type AppendResult, endOf, type StreamEnd } from './append.js';
import { type Telemetry } from './telemetry.js';
import { commitAppends } from './append-statements.js';
import { type KnownEnds } from './known-ends.js';
import { type LogGenerations } from './log-generations.js';
import { RANGE_END } from './log-ranges.js';

/** What this process remembers of its own appends, so that readers and lone appends need not query the database. */
export interface AppendMemory {
  /**
   * Records appends that were committed, each with at least one event, in the order of their positions per lane.
   *
   * @param run start time of the server. Within one run, what was committed stays committed.
   */
  committed(appends: readonly (readonly [Append, StreamEnd])[], run: string): void;
  /** Forgets everything: the connection was lost, and the next one may lead to another database. */
  lost(): void;
  readonly ends: KnownEnds;
  readonly generations: LogGenerations;
}

/** An append together with the caller that waits for its outcome. */
export interface Waiting {
  readonly append: Append;
  readonly resolve: (result: AppendResult) => void;
  readonly reject: (error: Error) => void;
}

/** How long a batch waits for an unreachable database before its callers get an error. */
const PATIENCE_MS = 4_000;

interface Connection {
  readonly client: Client;
  /** When the server at the other end of the connection was started. */
  readonly run: string;
  /** The generation of the log that it was checked for. */
  readonly generation: number;
}

/**
 * Commits batches of appends, one at a time, and answers their callers. It uses one connection, which it opens anew
 * when it is lost.
 */
export class Committer {
  private connection: Connection | undefined;
  private outageSince: number | undefined;

  constructor(
    private readonly connect: () => Promise<Client>,
    private readonly memory: AppendMemory,
    private readonly telemetry: Telemetry,
  ) {}

  async close(): Promise<void> {
    if (!this.connection) return;
    const { client } = this.connection;
    this.connection = undefined;
    await endConnection(client).catch(this.telemetry.failed('closing a connection of the writer'));
  }

  /**
   * Commits a batch and answers its callers.
   *
   * @param sent whether the batch was sent before, and may therefore be committed already
   * @returns the error that the callers got when the database stayed unreachable, otherwise undefined
   */
  async commit(all: readonly Waiting[], sent = false): Promise<DatabaseUnavailable | undefined> {
    const started = Date.now();
    let batch = all;
    for (let attempt = 0; ; attempt += 1) {
      try {
        const connection = await this.connected();
        const { client, run } = connection;
        keepsProcessAlive(client, true);
        batch = await this.withoutOutdated(connection, batch, sent || attempt > 0);
        const results = await commitAppends(
          client,
          batch.map(({ append }) => append),
          run,
          this.memory.ends,
        );
        this.outageSince = undefined;
        await this.settle(connection, batch, results, sent || attempt > 0);
        return undefined;
      } catch (error) {
        if (!isConnectionError(error)) {
          const isRepeated = sent || attempt > 0;
          // One that was sent before may be committed, which is found out when it is committed alone.
          if (isRepeated || !isRefused(error)) return await this.isolate(batch, error, isRepeated);
          batch = this.withoutAbsent(batch, error);
          if (batch.length === 0) return undefined;
          continue;
        }
        this.drop(error);
        this.outageSince ??= Date.now();
        // In a long outage each batch is tried only once; otherwise the waiting callers would time out one after
        // another. A disk stays full for longer than callers wait.
        const isHopeless = started - this.outageSince > PATIENCE_MS || isDiskFull(error);
        const patience = isHopeless ? 0 : PATIENCE_MS;
        if (Date.now() - started >= patience) {
          const unavailable = new DatabaseUnavailable(error);
          for (const waiting of batch) waiting.reject(unavailable);
          return unavailable;
        }
        await new Promise((resolve) => setTimeout(resolve, Math.min(50 * 2 ** attempt, 500)));
      } finally {
        if (this.connection) keepsProcessAlive(this.connection.client, false);
      }
    }
  }

  /** A connection to the server on which the present generation of the log is. */
  private async connected(): Promise<Connection> {
    const { connection } = this;
    if (connection && connection.generation !== this.memory.generations.current) {
      // To a server that is no longer the primary, and may not know it yet.
      this.connection = undefined;
      connection.client.end().catch(this.telemetry.failed('closing a connection to a former server'));
    }
    return (this.connection ??= await this.open());
  }

  /**
   * Answers those that were decided in an earlier generation of the log: the versions which they expect may be other
   * events now, so they have to be decided anew, unless they were committed before and are still there.
   * @returns the others
   */
  private async withoutOutdated(
    connection: Connection,
    batch: readonly Waiting[],
    repeated: boolean,
  ): Promise<readonly Waiting[]> {
    const isOutdated = ({ append: { generation } }: Waiting): boolean =>
      generation !== undefined && generation !== connection.generation;
    const outdated = batch.filter(isOutdated);
    if (outdated.length === 0) return batch;
    const conflicts = outdated.map(({ append }): AppendResult => ({
      status: 'conflict',
      version: append.expected,
    }));
    await this.settle(connection, outdated, conflicts, repeated);
    return batch.filter((waiting) => !isOutdated(waiting));
  }

  /**
   * Refuses what is of a tenant that the log takes no events of, for which the server has refused the whole batch.
   * @returns the others
   */
  private withoutAbsent(batch: readonly Waiting[], error: unknown): readonly Waiting[] {
    const { detail } = error as { detail?: string };
    const absent = batch.filter(({ append }) => append.stream.tenant === detail);
    for (const waiting of absent) waiting.reject(new TenantAbsent(error));
    return batch.filter((waiting) => !absent.includes(waiting));
  }

  private async open(): Promise<Connection> {
    const client = await this.connect();
    try {
      const { rows } = await client.query<{ run: string }>('select pg_postmaster_start_time()::text as run');
      const { generations } = this.memory;
      await generations.check(client);
      return { client, run: rows[0]?.run ?? '', generation: generations.current };
    } catch (error) {
      client.end().catch(this.telemetry.failed('closing a connection that could not write'));
      throw error;
    }
  }

  private async settle(
    { client, run, generation }: Connection,
    batch: readonly Waiting[],
    results: AppendResult[],
    repeated: boolean,
  ): Promise<void> {
    if (repeated) await this.recognise(client, batch, results);
    const committed: [Append, StreamEnd][] = [];
    results.forEach((result, index) => {
      const append = batch[index]?.append;
      if (append && result.status === 'ok' && append.events.length > 0) committed.push([append, result]);
    });
    committed.sort(([, one], [, other]) => one.position - other.position);
    // What a former server has committed may be gone, and is not to be remembered.
    const isPresent = generation === this.memory.generations.current;
    if (committed.length > 0 && isPresent) this.memory.committed(committed, run);
    results.forEach((result, index) => batch[index]?.resolve(result));
  }

  /**
   * Finds out which appends were committed although the connection was lost before the answer came. An append was
   * committed if the event behind its expected version is its own: the second try then conflicted with the first.
   */
  private async recognise(client: Client, batch: readonly Waiting[], results: AppendResult[]): Promise<void> {
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

  /**
   * Commits the appends one by one after the server refused the whole statement, so that only the one at fault fails.
   */
  private async isolate(
    batch: readonly Waiting[],
    error: unknown,
    sent: boolean,
  ): Promise<DatabaseUnavailable | undefined> {
    const [only] = batch;
    if (only && batch.length === 1) {
      if (isRefused(error)) only.reject(new TenantAbsent(error));
      else if (isAtRangeEnd(error)) only.reject(new DatabaseUnavailable(error));
      else only.reject(error instanceof Error ? error : new Error(String(error)));
      return undefined;
    }
    let unavailable: DatabaseUnavailable | undefined;
    for (const waiting of batch) {
      // Each further try would take seconds.
      if (unavailable) waiting.reject(unavailable);
      else unavailable = await this.commit([waiting], sent);
    }
    return unavailable;
  }

  private drop(reason: unknown): void {
    this.telemetry.emit('failed', { what: 'a commit of the writer', error: reason });
    const { connection } = this;
    this.connection = undefined;
    this.memory.lost();
    // This is not awaited, because a server that does not answer would delay the reconnect.
    connection?.client.end().catch(this.telemetry.failed('closing a lost connection of the writer'));
  }
}

/** Whether the database refuses events of a tenant. */
const isRefused = (error: unknown): boolean => (error as { code?: unknown }).code === REFUSED_ABSENT;

/** Whether the lane waits for its next range. */
const isAtRangeEnd = (error: unknown): boolean =>
  (error as { constraint?: unknown }).constraint === RANGE_END;
