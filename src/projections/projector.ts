import { type Pool } from 'pg';
import { available } from '../database/connection.js';
import { type EventStore } from '../event-store/event-store.js';
import { LaneShare, type Leases } from '../event-store/leases.js';
import { type Projection, type SessionRecord, tableOf } from './projection.js';

/** Events read per lane and turn. */
const BATCH = 500;
/** Any number that nothing else locks: it serialises the making of tables. */
const TABLES_LOCK = 7302;
const RETRY_MS = 500;
/**
 * After a turn events gather for so long, unless a reader waits: under load a turn per commit cost more processor
 * time than the appends themselves (measured).
 */
const GATHER_MS = 50;

export interface ProjectionLag {
  readonly projection: string;
  /** Events of the log that the read model has not seen yet. */
  readonly behind: number;
}

/** Keeps the read models in step with the log: one runner per projection, one owner per lane among all nodes. */
export class Projector {
  private readonly runners: readonly Runner[];

  constructor(
    private readonly store: EventStore,
    private readonly pool: Pool,
    leases: Leases,
    private readonly projections: readonly Projection[],
    onProgress: () => void,
    onError: (error: unknown, projection: string) => void,
  ) {
    this.runners = projections.map(
      (projection) =>
        new Runner(store, pool, leases, projection, onProgress, (error) => {
          onError(error, tableOf(projection));
        }),
    );
  }

  /** Makes missing tables, then follows the log until `stop`. */
  async start(): Promise<void> {
    await this.createTables();
    await Promise.all(this.runners.map((runner) => runner.start()));
  }

  async stop(): Promise<void> {
    await Promise.all(this.runners.map((runner) => runner.stop()));
  }

  async lag(): Promise<ProjectionLag[]> {
    const ends = await this.store.laneEnds();
    const { rows } = await available(() =>
      this.pool.query<{ projection: string; lane: number; position: number }>(
        'select projection, lane, position from projection_checkpoint where projection = any ($1)',
        [this.projections.map(tableOf)],
      ),
    );
    return this.projections.map((projection) => ({
      projection: tableOf(projection),
      behind: rows
        .filter((row) => row.projection === tableOf(projection))
        .reduce((sum, row) => sum + Math.max(0, (ends[row.lane] ?? 0) - row.position), 0),
    }));
  }

  private async createTables(): Promise<void> {
    const client = await this.pool.connect();
    try {
      await client.query('begin');
      await client.query('select pg_advisory_xact_lock($1)', [TABLES_LOCK]);
      for (const projection of this.projections) {
        const table = tableOf(projection);
        const { rowCount } = await client.query('select from projection_checkpoint where projection = $1', [
          table,
        ]);
        if (rowCount) continue;
        await client.query(projection.createTable(table));
        await client.query(
          `insert into projection_checkpoint (projection, lane, position, epoch)
           select $1, lane, 0, 0 from generate_series(0, $2 - 1) as l (lane)`,
          [table, this.store.lanes],
        );
      }
      await client.query('commit');
    } catch (error) {
      await client.query('rollback').catch(() => undefined);
      throw error;
    } finally {
      client.release();
    }
  }
}

/** Somebody else moved the checkpoint: this node's lease was over without its knowing. */
class Fenced extends Error {}

class Runner {
  private readonly table: string;
  private readonly share: LaneShare;
  /** Checkpoints of the lanes that this node works on, as it believes. */
  private readonly positions = new Map<number, number>();
  private readonly dirty = new Set<number>();
  private running: Promise<void> | undefined;
  private unsubscribe: (() => void) | undefined;
  private hurried = false;
  private endGathering: (() => void) | undefined;
  private stopped = false;

  constructor(
    private readonly store: EventStore,
    private readonly pool: Pool,
    leases: Leases,
    private readonly projection: Projection,
    private readonly onProgress: () => void,
    private readonly onError: (error: unknown) => void,
  ) {
    this.table = tableOf(projection);
    this.share = new LaneShare(leases, `projection/${this.table}`, store.lanes, (lanes) => {
      this.wake(lanes);
    });
  }

  async start(): Promise<void> {
    const { wakeUp } = this.store;
    const unsubscribe = wakeUp.subscribe((lanes) => {
      this.wake(lanes);
    });
    const unhurry = wakeUp.onHurry(() => {
      this.hurry();
    });
    this.unsubscribe = () => {
      unsubscribe();
      unhurry();
    };
    await this.share.balance();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    this.unsubscribe?.();
    this.hurry();
    await this.running;
  }

  private wake(lanes: Iterable<number>): void {
    for (const lane of lanes) this.dirty.add(lane);
    if (this.stopped || this.dirty.size === 0) return;
    this.running ??= this.run();
  }

  private async run(): Promise<void> {
    while (this.dirty.size > 0 && !this.stopped) {
      this.hurried = false;
      try {
        await this.turn();
        await this.gather();
      } catch (error) {
        this.onError(error);
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
    // In the same step as the last look at `dirty`: a wake-up in between would be lost.
    this.running = undefined;
  }

  private hurry(): void {
    this.hurried = true;
    this.endGathering?.();
  }

  private async gather(): Promise<void> {
    if (this.hurried || this.stopped) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, GATHER_MS);
      this.endGathering = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.endGathering = undefined;
  }

  private async turn(): Promise<void> {
    const owned = this.share.owned;
    for (const lane of this.positions.keys()) if (!owned.has(lane)) this.positions.delete(lane);
    const lanes = [...this.dirty].filter((lane) => owned.has(lane));
    this.dirty.clear();
    if (lanes.length === 0) return;
    try {
      await this.advance(lanes, owned);
    } catch (error) {
      for (const lane of lanes) this.dirty.add(lane);
      this.positions.clear();
      if (!(error instanceof Fenced)) throw error;
      // Asked at once: until it knows, this node would read and be refused again and again.
      await this.share.confirm();
    }
  }

  private async advance(lanes: readonly number[], owned: ReadonlyMap<number, number>): Promise<void> {
    await this.loadPositions(lanes);

    const from = new Map(lanes.map((lane) => [lane, this.positions.get(lane) ?? 0]));
    const events = (await this.store.readLanes(from, BATCH)) as SessionRecord[];
    if (events.length === 0) return;
    const to = new Map<number, number>();
    const counts = new Map<number, number>();
    for (const event of events) {
      to.set(event.lane, event.position);
      counts.set(event.lane, (counts.get(event.lane) ?? 0) + 1);
    }
    await this.apply(events, from, to, owned);
    for (const [lane, position] of to) this.positions.set(lane, position);
    for (const [lane, count] of counts) {
      if (count < BATCH) continue;
      this.dirty.add(lane);
      // More than a batch waits already: there is nothing to let gather.
      this.hurried = true;
    }
    this.onProgress();
  }

  private async loadPositions(lanes: readonly number[]): Promise<void> {
    const unknown = lanes.filter((lane) => !this.positions.has(lane));
    if (unknown.length === 0) return;
    const { rows } = await this.pool.query<{ lane: number; position: number }>(
      'select lane, position from projection_checkpoint where projection = $1 and lane = any ($2)',
      [this.table, unknown],
    );
    for (const { lane, position } of rows) this.positions.set(lane, position);
  }

  /**
   * Rows and checkpoint in one transaction, short because all reading was done before it. Moving the checkpoint is a
   * compare-and-set that also looks at the epoch: whatever this node believed, a batch is applied once.
   */
  private async apply(
    events: readonly SessionRecord[],
    from: ReadonlyMap<number, number>,
    to: ReadonlyMap<number, number>,
    epochs: ReadonlyMap<number, number>,
  ): Promise<void> {
    const statements = await this.projection.apply(events, this.table, async (text, values) => {
      const { rows } = await this.pool.query(text, [...values]);
      return rows as never[];
    });
    const lanes = [...to.keys()].sort((a, b) => a - b);
    const client = await this.pool.connect();
    let broken: Error | undefined;
    try {
      await client.query('begin');
      const { rowCount } = await client.query({
        name: 'move_checkpoint',
        text: `update projection_checkpoint c set position = m.new, epoch = m.epoch
               from unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[]) as m (lane, old, new, epoch)
               where c.projection = $1 and c.lane = m.lane and c.position = m.old and c.epoch <= m.epoch`,
        values: [
          this.table,
          lanes,
          lanes.map((lane) => from.get(lane)),
          lanes.map((lane) => to.get(lane)),
          lanes.map((lane) => epochs.get(lane)),
        ],
      });
      if (rowCount !== lanes.length) throw new Fenced();
      for (const { text, values } of statements) await client.query({ text, values: [...values] });
      await client.query('commit');
    } catch (error) {
      await client.query('rollback').catch((reason: unknown) => {
        broken = reason as Error;
      });
      throw error;
    } finally {
      client.release(broken);
    }
  }
}
