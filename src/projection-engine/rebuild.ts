import { type Pool, type PoolClient } from 'pg';
import { available } from '../database/connection.js';
import { transaction } from '../database/transaction.js';
import { type EventLog } from '../event-store/log.js';
import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
import { LaneFold } from './lane-fold.js';
import { Fenced, type Poison } from './poison.js';
import { applyOn, type Projection, tableOf } from './projection.js';
import { workOn } from './runner.js';

/** Events read per lane and turn: more of them at a time made the garbage collector the largest cost (measured). */
const BATCH = 500;
/** Events applied by one statement inside the database. */
const INSIDE_BATCH = 20_000;
/** Lanes that a node works on at once: while one is written, another one is read. */
const WORKERS = 3;
/** As many events at most are applied while the live table stands still. */
const LAST_EVENTS = 2_000;
/** A look at the rest of the lanes, and the pause after a swap that did not get its locks, which grows. */
const PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
/** Readers queue behind a swap that waits for its lock: whatever holds the table must not hold them up with it. */
const SWAP_LOCK_MS = 250;
const TELL_MS = 10_000;

export interface RebuildProgress {
  /** Events that the new table has seen, and that there are by now. */
  readonly processed: number;
  readonly total: number;
  readonly startedAt: string;
}

interface Started {
  readonly projection: Projection;
  readonly shadow: string;
}

export interface RebuildsParts {
  readonly store: EventLog;
  readonly pool: Pool;
  readonly leases: Leases;
  readonly projections: readonly Projection[];
  /** Another table stands behind the name of a read model. */
  readonly onSwapped: () => void;
  readonly onParked: (projection: Projection, poison: Poison) => void;
  readonly onNotice: (message: string) => void;
  readonly onError: (error: unknown, projection: Projection) => void;
}

/**
 * Builds tables anew beside the live ones, which go on serving, and puts them in their places.
 *
 * That a rebuild is under way stands in the database, as do its checkpoints: every node whose code has the projection
 * takes a share of the lanes, and when one is killed the others, or the next one to start, go on from there.
 */
export class Rebuilds {
  private working: Promise<void> | undefined;
  private current: Rebuild | undefined;
  private asked = false;
  private stopped = false;
  private readonly unsubscribe: () => void;

  constructor(private readonly parts: RebuildsParts) {
    this.unsubscribe = parts.leases.onBeat(() => {
      this.look();
      return Promise.resolve();
    });
  }

  /** Begins one, unless one is under way. */
  async begin(projection: Projection): Promise<void> {
    const table = tableOf(projection);
    await available(() =>
      transaction(this.parts.pool, async (client) => {
        // The row is the lock: whoever comes second waits for it and finds it.
        const { rows } = await client.query<{ shadow: string }>(
          `insert into projection_rebuild (projection, shadow, started_at)
           select $1, $1 || '_r' || coalesce(max(revision), 0) + 1, colloquy_now()
           from projection_checkpoint where projection = $1
           on conflict (projection) do nothing returning shadow`,
          [table],
        );
        const [begun] = rows;
        if (!begun) return;
        await client.query(projection.createTable(begun.shadow));
        await client.query(
          `insert into projection_checkpoint (projection, lane, position, epoch)
           select $1, lane, 0, 0 from generate_series(0, $2 - 1) as l (lane)`,
          [begun.shadow, this.parts.store.laneCount],
        );
      }),
    );
    this.look();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    this.unsubscribe();
    this.current?.stop();
    await this.working;
  }

  /** Looks whether there is something to do, and does it in the background: one after the other. */
  look(): void {
    this.asked = true;
    if (this.stopped) return;
    this.working ??= this.work().finally(() => {
      this.working = undefined;
    });
  }

  private async work(): Promise<void> {
    while (this.asked && !this.stopped) {
      this.asked = false;
      const started = await this.next().catch(this.parts.store.telemetry.failed('the look for rebuilds'));
      if (!started) continue;
      this.current = new Rebuild(this.parts, started);
      try {
        await this.current.run();
        this.asked = true;
      } catch (error) {
        // The next beat looks again.
        this.parts.onError(error, started.projection);
      }
    }
  }

  private async next(): Promise<Started | undefined> {
    const { pool, projections } = this.parts;
    const { rows } = await available(() =>
      pool.query<{ projection: string; shadow: string }>({
        name: 'next_rebuild',
        text: `select projection, shadow from projection_rebuild where projection = any ($1)
               order by started_at, projection limit 1`,
        values: [projections.map(tableOf)],
      }),
    );
    const [row] = rows;
    const projection = projections.find((one) => tableOf(one) === row?.projection);
    return row && projection && { projection, shadow: row.shadow };
  }
}

/** This node's part in one rebuild. */
class Rebuild {
  private readonly share: LaneShare;
  private readonly fold: LaneFold;
  private readonly table: string;
  private stopped = false;
  private endPause: (() => void) | undefined;
  private told = performance.now();

  constructor(
    private readonly parts: RebuildsParts,
    private readonly started: Started,
  ) {
    const { store, pool, leases, onParked } = parts;
    const { projection, shadow } = started;
    this.table = tableOf(projection);
    this.share = new LaneShare(leases, workOn(shadow), store.laneCount, () => undefined);
    this.fold = new LaneFold(store, pool, projection, shadow, (poison) => {
      onParked(projection, poison);
    });
  }

  stop(): void {
    this.stopped = true;
    this.endPause?.();
  }

  private isStopped(): boolean {
    return this.stopped;
  }

  /** Until the new table is in its place, by whomever, or `stop`. */
  async run(): Promise<void> {
    try {
      await this.share.balance();
      let pause = PAUSE_MS;
      while (!this.stopped) {
        await this.advance();
        const behind = await this.behind();
        if (behind === undefined) return;
        if (behind > LAST_EVENTS) pause = PAUSE_MS;
        else if (await this.swap()) return;
        else pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
        await this.wait(pause);
      }
    } catch (error) {
      // When another node has put the table in its place already, what fails here is no failure.
      if ((await this.behind()) !== undefined) throw error;
    } finally {
      await this.share.leave();
    }
  }

  /** All of this node's lanes, each until there is less than a batch. */
  private async advance(): Promise<void> {
    const owned = this.share.owned;
    this.fold.keep(owned);
    const waiting = [...owned];
    const worker = async (): Promise<void> => {
      for (let next = waiting.pop(); next && !this.isStopped(); next = waiting.pop()) {
        const [lane, epoch] = next;
        let isAtEnd = false;
        do {
          if ((await this.fold.advanceInside(lane, epoch, INSIDE_BATCH)) === 0) {
            const counts = await this.fold.advance(new Map([next]), BATCH);
            isAtEnd = (counts.get(lane) ?? 0) < BATCH;
          }
          await this.tell();
        } while (!isAtEnd && !this.isStopped());
      }
    };
    const ended = await Promise.allSettled(Array.from({ length: WORKERS }, worker));
    const failed = ended.flatMap((end) => (end.status === 'rejected' ? [end.reason as unknown] : []));
    for (const error of failed) {
      if (!(error instanceof Fenced)) throw error;
      await this.share.confirm();
    }
  }

  private async tell(): Promise<void> {
    if (performance.now() - this.told < TELL_MS) return;
    this.told = performance.now();
    const progress = (await rebuildsOf(this.parts.pool, [this.table])).get(this.table);
    if (!progress) return;
    const { processed, total } = progress;
    const percent = Math.floor((100 * processed) / Math.max(1, total));
    this.parts.onNotice(`${this.table} is being rebuilt: ${processed} of ${total} events, ${percent} %`);
  }

  /** How many events the live table is ahead; undefined when this rebuild is over. */
  private async behind(): Promise<number | undefined> {
    const { rows } = await available(() =>
      this.parts.pool.query<{ behind: number }>(
        `select coalesce(sum(greatest(live.position - new.position, 0)), 0)::bigint as behind
         from projection_rebuild r
         join projection_checkpoint new on new.projection = r.shadow
         left join projection_checkpoint live on live.projection = r.projection and live.lane = new.lane
         where r.projection = $1 and r.shadow = $2 group by r.projection`,
        [this.table, this.started.shadow],
      ),
    );
    return rows[0]?.behind;
  }

  /**
   * Puts the new table in the place of the old one.
   *
   * Who writes the live table is stopped first, by the locks on its checkpoints; the few events that the new one lacks
   * are applied; only then readers are kept out, for as long as it takes to rename. A read that was waiting finds the
   * new table and the checkpoints that belong to it, since both are looked up after the wait.
   *
   * @returns false when a lock was not to be had in time
   */
  private async swap(): Promise<boolean> {
    const { pool, onSwapped, onNotice } = this.parts;
    const { shadow } = this.started;
    // Without statistics the first readers of the new table would get bad plans.
    await available(() => pool.query(`analyze ${shadow}`));
    try {
      const done = await transaction(pool, (client) => this.swapWithin(client));
      if (!done) return false;
    } catch (error) {
      if ((error as { code?: unknown }).code === LOCK_NOT_AVAILABLE) return false;
      throw error;
    }
    onNotice(`${this.table} was rebuilt`);
    onSwapped();
    return true;
  }

  private async swapWithin(client: PoolClient): Promise<boolean> {
    const { table } = this;
    const { shadow } = this.started;
    await client.query(`set local lock_timeout = ${SWAP_LOCK_MS}`);
    const { rowCount } = await client.query(
      'select from projection_rebuild where projection = $1 and shadow = $2 for update skip locked',
      [table, shadow],
    );
    // Another node is at it.
    if (rowCount !== 1) return false;
    const live = await lockCheckpoints(client, table);
    await this.applyLast(client, live, await lockCheckpoints(client, shadow));

    await client.query(`drop table if exists ${table}`);
    const { rows: indexes } = await client.query<{ name: string }>(
      `select relname as name from pg_index join pg_class on oid = indexrelid where indrelid = $1::regclass`,
      [shadow],
    );
    await client.query(`alter table ${shadow} rename to ${table}`);
    for (const { name } of indexes)
      await client.query(`alter index ${name} rename to ${table + name.slice(shadow.length)}`);

    // The epoch stays: the lanes' owners are the same. The revision tells them that their rows are not.
    await client.query(
      `insert into projection_checkpoint as live (projection, lane, position, epoch, revision)
       select $1, lane, position, 0, 1 from projection_checkpoint where projection = $2
       on conflict (projection, lane) do update set position = excluded.position, revision = live.revision + 1`,
      [table, shadow],
    );
    await client.query('delete from projection_checkpoint where projection = $1', [shadow]);
    await client.query('delete from projection_parked where projection = $1', [table]);
    await client.query('update projection_parked set projection = $1 where projection = $2', [table, shadow]);
    await client.query('delete from projection_rebuild where projection = $1', [table]);
    return true;
  }

  /** What the new table lacks of what the live one has seen. */
  private async applyLast(
    client: PoolClient,
    live: ReadonlyMap<number, number>,
    built: ReadonlyMap<number, number>,
  ): Promise<void> {
    const { projection, shadow } = this.started;
    const from = new Map([...built].filter(([lane, position]) => position < (live.get(lane) ?? 0)));
    if (from.size === 0) return;
    const most = Math.max(...[...from].map(([lane, position]) => (live.get(lane) ?? 0) - position));
    const { rows: parked } = await client.query<{ tenant: string; session_id: string }>(
      'select tenant, session_id from projection_parked where projection = $1',
      [shadow],
    );
    const leftOut = new Set(parked.map((row) => `${row.tenant}/${row.session_id}`));
    const events = (await this.parts.store.lanes.read(from, most)).filter(
      (event) =>
        event.position <= (live.get(event.lane) ?? 0) && !leftOut.has(`${event.tenant}/${event.streamId}`),
    );
    const unreadable = events.find((event) => event.unreadable)?.unreadable;
    // The next turn parks the session, and then this goes on without it.
    if (unreadable) throw unreadable;
    if (events.length > 0) await applyOn(client, projection, shadow, events);
    await client.query(
      `update projection_checkpoint c set position = m.position
       from unnest($2::smallint[], $3::bigint[]) as m (lane, position)
       where c.projection = $1 and c.lane = m.lane`,
      [shadow, [...from.keys()], [...from.keys()].map((lane) => live.get(lane))],
    );
  }

  private async wait(ms: number): Promise<void> {
    if (this.stopped) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms).unref();
      this.endPause = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.endPause = undefined;
  }
}

const LOCK_NOT_AVAILABLE = '55P03';

/** Lane → position, locked until the end of the transaction: nobody moves them or writes the rows that go with them. */
export async function lockCheckpoints(client: PoolClient, table: string): Promise<Map<number, number>> {
  const { rows } = await client.query<{ lane: number; position: number }>(
    'select lane, position from projection_checkpoint where projection = $1 order by lane for update',
    [table],
  );
  return new Map(rows.map(({ lane, position }) => [lane, position]));
}

/** Table → how far its rebuild is, for those that are being rebuilt. */
export async function rebuildsOf(
  pool: Pool,
  tables: readonly string[],
): Promise<Map<string, RebuildProgress>> {
  const { rows } = await available(() =>
    pool.query<{ projection: string; processed: number; total: number; started_at: string }>(
      `select r.projection, sum(c.position)::bigint as processed, sum(e.position)::bigint as total, r.started_at
       from projection_rebuild r
       join projection_checkpoint c on c.projection = r.shadow join lane_ends() e on e.lane = c.lane
       where r.projection = any ($1) group by r.projection`,
      [tables],
    ),
  );
  return new Map(
    rows.map((row) => [
      row.projection,
      { processed: row.processed, total: row.total, startedAt: row.started_at },
    ]),
  );
}
