import { type Pool, type PoolClient } from 'pg';
import { available, isLockTimeout } from '../database/connection.js';
import { transaction } from '../database/transaction.js';
import { type EventLog } from '../event-store/log.js';
import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
import { type LaneEvent } from '../event-store/recorded-event.js';
import { freeStatement, LaneFold } from './lane-fold.js';
import { Fenced, type Poison } from './poison.js';
import { applyOn, ERASURE, type Projection, tableOf } from './projection.js';
import { workOn } from './runner.js';

/** Events read per lane and turn. With more, garbage collection became the largest cost (measured). */
const BATCH = 500;
/** Plain events applied by one statement inside the database. */
const INSIDE_BATCH = 20_000;
/** Lanes that a node works on at the same time, so that one lane is read while another one is written. */
const WORKERS = 3;
/** Most events that are applied during the swap, while the live table takes no new events. */
const LAST_EVENTS = 2_000;
/** Pause before the next look at the lanes, which doubles with every swap that did not get its locks. */
const PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
/** Longest wait of a swap for its lock: readers queue behind it while a long query holds the table. */
const SWAP_LOCK_MS = 250;
/** Time between two notices of the progress. */
const TELL_MS = 10_000;

export interface RebuildProgress {
  /** Events that the new table has applied, and all events of the log at present. */
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
  /** Called when a rebuilt table has taken the place of a read model's table. */
  readonly onSwapped: () => void;
  readonly onParked: (projection: Projection, poison: Poison) => void;
  readonly onNotice: (message: string) => void;
  readonly onError: (error: unknown, projection: Projection) => void;
}

/** A node looks for rebuilds that others began with a beat of its leases, when it has not looked for so long. */
const LOOK_MS = 6_000;

/**
 * Builds new tables beside the live ones, which go on serving, and swaps them in.
 *
 * Rebuilds and their checkpoints are recorded in the database. Every node whose code has the projection works on a
 * share of the lanes; when a node is killed, the other nodes or the next one to start continue its part.
 */
export class Rebuilds {
  private working: Promise<void> | undefined;
  private current: Rebuild | undefined;
  private asked = false;
  private stopped = false;
  private readonly unsubscribe: () => void;

  constructor(private readonly parts: RebuildsParts) {
    let lookedAt = performance.now();
    this.unsubscribe = parts.leases.onBeat(() => {
      // The node that was asked has begun already, and its share of the lanes has roused the others. They may come a little
      // later, and spare an idle log the query.
      if (performance.now() - lookedAt < LOOK_MS) return Promise.resolve();
      lookedAt = performance.now();
      this.look();
      return Promise.resolve();
    });
  }

  /** Begins a rebuild of the projection, unless one is under way. */
  async begin(projection: Projection): Promise<void> {
    const table = tableOf(projection);
    await available(() =>
      transaction(this.parts.pool, async (client) => {
        // The row serves as a lock: a second node that begins the same rebuild waits for the first and finds its row.
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

  /** Looks for rebuilds that are under way, and works on them in the background, one after the other. */
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
        // The rebuild is tried again when leases are renewed the next time.
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

/** The part of this node in one rebuild. */
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

  /** Works until this node or another one has swapped the new table in, or until `stop`. */
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
      // After another node has swapped the table in, errors here only show that the shadow table is gone.
      if ((await this.behind()) !== undefined) throw error;
    } finally {
      await this.share.leave();
    }
  }

  /** Applies the events of all lanes of this node, of each lane until less than a batch is left. */
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
            const { unfinished } = await this.fold.advance(new Map([next]), BATCH);
            isAtEnd = !unfinished.has(lane);
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

  /** Number of events that the live table has applied and the new one has not; undefined when the rebuild is over. */
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
   * Swaps the new table in.
   *
   * First the writer of the live table is stopped by locks on its checkpoints. Then the few events that the new table
   * lacks are applied. Only then readers are kept out, for as long as renaming takes. A read that waited for that finds
   * the new table together with its checkpoints, because it looks both up after the wait.
   *
   * @returns false when a lock was not granted in time, or another node is swapping
   */
  private async swap(): Promise<boolean> {
    const { pool, onSwapped, onNotice } = this.parts;
    const { shadow } = this.started;
    // Without statistics, the first queries on the new table would get bad plans.
    await available(() => pool.query(`analyze ${shadow}`));
    try {
      const done = await transaction(pool, (client) => this.swapWithin(client));
      if (!done) return false;
    } catch (error) {
      if (isLockTimeout(error)) return false;
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
    // Another node is swapping, or has swapped.
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

    // The epoch stays, because the owners of the lanes stay the same. The new revision tells them that the rows
    // changed.
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

  /** Applies the events that the live table has applied and the new one has not. */
  private async applyLast(
    client: PoolClient,
    live: ReadonlyMap<number, number>,
    built: ReadonlyMap<number, number>,
  ): Promise<void> {
    const { projection, shadow } = this.started;
    const behind = new Map([...built].filter(([lane, position]) => position < (live.get(lane) ?? 0)));
    if (behind.size === 0) return;
    const most = Math.max(...[...behind].map(([lane, position]) => (live.get(lane) ?? 0) - position));
    const { rows: parked } = await client.query<{ tenant: string; session_id: string }>(
      'select tenant, session_id from projection_parked where projection = $1',
      [shadow],
    );
    const leftOut = new Set(parked.map((row) => `${row.tenant}/${row.session_id}`));
    // A page of large events ends early.
    for (let from: ReadonlyMap<number, number> = behind; from.size > 0;) {
      const page = await this.parts.store.lanes.read(from, most);
      const events: LaneEvent[] = [];
      for (const event of page) {
        if (event.position > (live.get(event.lane) ?? 0)) continue;
        const key = `${event.tenant}/${event.streamId}`;
        if (event.type === ERASURE && leftOut.delete(key))
          await client.query(freeStatement(shadow, event.tenant, event.streamId));
        if (!leftOut.has(key)) events.push(event);
      }
      const unreadable = events.find((event) => event.unreadable)?.unreadable;
      // The next turn of the rebuild parks the session, and the next swap skips its events.
      if (unreadable) throw unreadable;
      if (events.length > 0) await applyOn(client, projection, shadow, events);
      const unfinished = page.filter(
        (event) => event.hasMore && event.position < (live.get(event.lane) ?? 0),
      );
      from = new Map(unfinished.map(({ lane, position }) => [lane, position]));
    }
    await client.query(
      `update projection_checkpoint c set position = m.position
       from unnest($2::smallint[], $3::bigint[]) as m (lane, position)
       where c.projection = $1 and c.lane = m.lane`,
      [shadow, [...behind.keys()], [...behind.keys()].map((lane) => live.get(lane))],
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

/**
 * Locks all checkpoints of a table until the end of the transaction, so that nobody writes its rows, and returns them:
 * lane → position.
 */
export async function lockCheckpoints(client: PoolClient, table: string): Promise<Map<number, number>> {
  const { rows } = await client.query<{ lane: number; position: number }>(
    'select lane, position from projection_checkpoint where projection = $1 order by lane for update',
    [table],
  );
  return new Map(rows.map(({ lane, position }) => [lane, position]));
}

/** The progress of those of the tables that are being rebuilt, by table. */
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
