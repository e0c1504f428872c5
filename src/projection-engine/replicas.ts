import { type Pool, type QueryConfig, type QueryResultRow } from 'pg';
import { DatabaseUnavailable } from '../database/connection.js';
import { rowsOf } from '../database/query.js';
import { type EventLog } from '../event-store/log.js';
import { type WakeUp } from '../event-store/wake-up.js';

/** A replica that is this far behind the server is not asked, whatever freshness a read wants. */
const STALE_MS = 10_000;

/**
 * SQL for whether the server that runs it is no replica, or one that keeps up. Every node writes to the database every
 * few seconds (the renewal of its leases), so a replica that hears of nothing new does not hear from the server. In a
 * quiet log that takes up to a period of it more. One that was started anew has heard of nothing.
 */
export const keepsUp = ({ isQuiet, quietMs }: Pick<WakeUp, 'isQuiet' | 'quietMs'>): string =>
  `(not pg_is_in_recovery() or coalesce(clock_timestamp() - pg_last_xact_replay_timestamp()
      < interval '${STALE_MS + (isQuiet ? quietMs : 0)} milliseconds', false))`;

/** How long a statement may take before the server itself is asked. */
const STATEMENT_MS = 2_000;
/** How long a replica is not asked after it failed. */
const REST_MS = 5_000;
/** How long a read waits until a replica is as new as it has to be, before it turns to the server. */
const PATIENCE_MS = 50;
/** How long no other read waits for a replica after one has waited in vain. */
const IMPATIENT_MS = 500;

class OtherLog extends Error {
  constructor() {
    super('a URL of storage.database.replicas leads to another database than storage.database.url');
  }
}

/** One streaming replica of the database. */
export class Replica {
  private restsUntil = 0;
  private wasLateAt = 0;
  private checked: Promise<void> | undefined;

  constructor(
    private readonly pool: Pool,
    private readonly store: EventLog,
  ) {}

  get isResting(): boolean {
    return Date.now() < this.restsUntil;
  }

  /** @returns undefined when the replica cannot answer; the caller then asks the server itself */
  async rows<Row extends QueryResultRow>(statement: QueryConfig): Promise<Row[] | undefined> {
    try {
      await (this.checked ??= this.check());
      return await rowsOf<Row>(this.pool, statement, STATEMENT_MS);
    } catch (error) {
      // The server refuses some statements for what they ask, and a replica also those that are in the way of what it
      // has to replay. Both say nothing about the next one.
      if (error instanceof DatabaseUnavailable || error instanceof OtherLog) {
        this.restsUntil = Date.now() + REST_MS;
        // It may be another server that comes back.
        this.checked = undefined;
      }
      this.store.telemetry.emit('replicaRead', { outcome: 'failed' });
      this.store.telemetry.emit('failed', { what: 'a read from a replica', error });
      return undefined;
    }
  }

  answered(): void {
    this.store.telemetry.emit('replicaRead', { outcome: 'answered' });
  }

  /** How long to wait until the replica is as new as a read wants. */
  get patienceMs(): number {
    return Date.now() - this.wasLateAt < IMPATIENT_MS ? 0 : PATIENCE_MS;
  }

  /** The replica was not as new as a read wanted, though it waited. Others would probably wait in vain as well. */
  isLate(): void {
    this.wasLateAt = Date.now();
    this.store.telemetry.emit('replicaRead', { outcome: 'late' });
  }

  close(): Promise<void> {
    return this.pool.end();
  }

  private async check(): Promise<void> {
    const isSame = await this.store.isIn(this.pool, STATEMENT_MS).catch((error: unknown) => {
      if (error instanceof DatabaseUnavailable) throw error;
      // It has no log at all.
      return false;
    });
    if (!isSame) throw new OtherLog();
  }
}

/** The streaming replicas that reads are spread over, each in its turn. */
export class Replicas {
  private readonly replicas: readonly Replica[];
  private turn = 0;

  constructor(store: EventLog, pools: readonly Pool[]) {
    this.replicas = pools.map((pool) => new Replica(pool, store));
  }

  /** Whether `next` would return one. */
  get canAnswer(): boolean {
    return this.replicas.some((replica) => !replica.isResting);
  }

  /** @returns undefined when there is none that can be asked now */
  next(): Replica | undefined {
    const awake = this.replicas.filter((replica) => !replica.isResting);
    this.turn += 1;
    return awake[this.turn % awake.length];
  }

  async close(): Promise<void> {
    await Promise.all(this.replicas.map((replica) => replica.close()));
  }
}
