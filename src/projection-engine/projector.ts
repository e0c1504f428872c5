import { type Client, type Pool } from 'pg';
import { available } from '../database/connection.js';
import { rowsOf } from '../database/query.js';
import { type EventLog } from '../event-store/log.js';
import { type Leases } from '../event-store/leases.js';
import { Parking, type ParkedSession, type SessionName } from './parking.js';
import { type Poison, reasonOf } from './poison.js';
import { type Projection, tableOf } from './projection.js';
import { type RebuildProgress, Rebuilds, rebuildsOf } from './rebuild.js';
import { Beat, Runner } from './runner.js';
import { createTables, pruneTables } from './tables.js';
import { type Verification, verify } from './verify.js';

/** A read model that is further behind than this many events counts as being built: strong reads would time out. */
export const BEHIND_AT_MOST = 10_000;

export interface ProjectionLag {
  /** The table's name. */
  readonly projection: string;
  /** Events of the log that the read model has not applied yet. */
  readonly behind: number;
}

export interface ProjectionStatus {
  readonly name: string;
  readonly table: string;
  readonly version: number;
  /**
   * `building`: the table is being filled for the first time, or lags so far behind that nodes should not answer from
   * it.
   */
  readonly status: 'live' | 'building';
  readonly behind: number;
  /** Number of parked sessions. */
  readonly parked: number;
  readonly rebuild: RebuildProgress | null;
}

export interface ProjectorParts {
  readonly store: EventLog;
  /** Commits of this pool need not wait for the disk: a crash takes rows and checkpoint back together. */
  readonly pool: Pool;
  readonly leases: Leases;
  readonly projections: readonly Projection[];
  /** Opens a connection for statements that take minutes. */
  readonly connect: () => Promise<Client>;
  readonly onProgress: () => void;
  /** Receives what an operator should know, as a sentence. */
  readonly onNotice: (message: string) => void;
  /** Receives errors after which the work is tried again. */
  readonly onError: (error: unknown, projection: string) => void;
}

interface Checkpoint {
  readonly projection: string;
  readonly lane: number;
  readonly position: number;
}

const readCheckpoints = (pool: Pool, projections: readonly Projection[]): Promise<Checkpoint[]> =>
  rowsOf(pool, {
    text: 'select projection, lane, position from projection_checkpoint where projection = any ($1)',
    values: [projections.map(tableOf)],
  });

/** How many events the tables of these projections have still to take in. */
export async function lagOf({
  pool,
  store,
  projections,
}: Pick<ProjectorParts, 'pool' | 'store' | 'projections'>): Promise<ProjectionLag[]> {
  const ends = await store.lanes.ends();
  const rows = await readCheckpoints(pool, projections);
  return projections.map((projection) => ({
    projection: tableOf(projection),
    behind: rows
      .filter((row) => row.projection === tableOf(projection))
      .reduce((sum, row) => sum + Math.max(0, (ends[row.lane] ?? 0) - row.position), 0),
  }));
}

/**
 * Keeps the read models up to date with the log: one runner per projection; each lane is worked on by one of the nodes.
 */
export class Projector {
  private readonly runners: readonly Runner[];
  private readonly beat: Beat;
  private readonly rebuilds: Rebuilds;
  private readonly parking: Parking;
  private verifying: Promise<unknown> = Promise.resolve();

  constructor(private readonly parts: ProjectorParts) {
    const { store, pool, leases, projections, onProgress, onNotice, onError } = parts;
    const onParked = (projection: Projection, { tenant, sessionId, version, error }: Poison): void => {
      store.telemetry.emit('parked', { projection: tableOf(projection) });
      const what = `${tableOf(projection)} parked session ${sessionId} of ${tenant} at version ${version}`;
      onNotice(`${what}: ${reasonOf(error, store.isSealed)}`);
    };
    const beat = (this.beat = new Beat());
    this.runners = projections.map(
      (projection) =>
        new Runner(
          store,
          pool,
          leases,
          projection,
          beat,
          onProgress,
          (error) => {
            onError(error, tableOf(projection));
          },
          (poison) => {
            onParked(projection, poison);
          },
        ),
    );
    this.rebuilds = new Rebuilds({
      ...{ store, pool, leases, projections, onParked, onNotice },
      onSwapped: onProgress,
      onError: (error, projection) => {
        onError(error, `the rebuild of ${tableOf(projection)}`);
      },
    });
    this.parking = new Parking(store, pool, projections);
  }

  /** Creates missing tables, then follows the log until `stop`. Rebuilds that were begun are continued. */
  async start(): Promise<void> {
    // The node announces what it uses before it looks for the tables: nobody may drop one that it has found already.
    await Promise.all(this.runners.map((runner) => runner.join()));
    await createTables(this.parts.pool, this.parts.projections, this.parts.store.laneCount);
    await Promise.all(this.runners.map((runner) => runner.start()));
    this.rebuilds.look();
  }

  async stop(): Promise<void> {
    try {
      await this.rebuilds.stop();
      await Promise.all(this.runners.map((runner) => runner.stop()));
    } finally {
      this.beat.end();
    }
  }

  /** The projection of that name, in the version of this code. */
  find(name: string): Projection | undefined {
    return this.parts.projections.find((projection) => projection.name === name);
  }

  /** Age in seconds of the oldest event that each read model has not applied yet; 0 when there is none. */
  async lagSeconds(): Promise<{ readonly projection: string; readonly seconds: number }[]> {
    const { store, projections } = this.parts;
    const rows = await this.checkpoints();
    return Promise.all(
      projections.map(async (projection) => {
        const table = tableOf(projection);
        const own = rows.filter((row) => row.projection === table);
        const after = new Map(own.map(({ lane, position }) => [lane, position]));
        return { projection: table, seconds: await store.lanes.lagSeconds(after) };
      }),
    );
  }

  private checkpoints(): Promise<Checkpoint[]> {
    const { pool, projections } = this.parts;
    return readCheckpoints(pool, projections);
  }

  lag(): Promise<ProjectionLag[]> {
    return lagOf(this.parts);
  }

  async status(): Promise<ProjectionStatus[]> {
    const { pool, projections } = this.parts;
    const lag = new Map((await this.lag()).map((one) => [one.projection, one.behind]));
    const rebuilds = await rebuildsOf(pool, projections.map(tableOf));
    const parked = await this.parking.list();
    return projections.map((projection) => {
      const { name, version } = projection;
      const table = tableOf(projection);
      const behind = lag.get(table) ?? 0;
      return {
        name,
        table,
        version,
        status: behind <= BEHIND_AT_MOST ? 'live' : 'building',
        behind,
        parked: parked.filter((one) => one.projection === name).length,
        rebuild: rebuilds.get(table) ?? null,
      };
    });
  }

  /** Begins to rebuild the table, unless a rebuild is under way. Reads and writes go on. */
  rebuild(projection: Projection): Promise<void> {
    return this.rebuilds.begin(projection);
  }

  /**
   * Compares the read model with a fresh fold of the log, which takes as long as a rebuild. Reads and writes go on. One
   * verification runs at a time, because each takes a connection of its own.
   */
  async verify(projection: Projection): Promise<Verification> {
    const verified = this.verifying.then(() => this.verifyNow(projection));
    this.verifying = verified.catch(() => undefined); // told to whoever asked for it
    return verified;
  }

  private verifyNow(projection: Projection): Promise<Verification> {
    return available(async () => {
      const client = await this.parts.connect();
      try {
        return await verify(this.parts.store, client, projection);
      } finally {
        await client.end();
      }
    });
  }

  /**
   * Drops tables that neither this code nor any node uses, and returns their names. The tables of a node that fell
   * silent are kept for a minute: it may only be suspended.
   */
  prune(): Promise<string[]> {
    return pruneTables(this.parts.pool, this.parts.leases, this.parts.projections);
  }

  parked(): Promise<ParkedSession[]> {
    return this.parking.list();
  }

  /**
   * Applies the events of a parked session again, from the event at which it was parked or from the one after it.
   * @returns undefined when the session was not parked; else its new parking, or null when it is no longer parked
   */
  async resume(
    projection: Projection,
    session: SessionName,
    from: 'parked' | 'next',
  ): Promise<{ readonly parked: ParkedSession | null } | undefined> {
    if (!(await this.parking.resume(projection, session, from))) return undefined;
    const { name } = projection;
    const { tenant, sessionId } = session;
    const parked = (await this.parking.list()).find(
      (one) => one.projection === name && one.tenant === tenant && one.sessionId === sessionId,
    );
    return { parked: parked ?? null };
  }
}
