import { setTimeout as sleep } from 'node:timers/promises';
import { escapeIdentifier, type Pool, type PoolClient } from 'pg';
import { isLockTimeout } from '../database/connection.js';
import { rowsOf } from '../database/query.js';
import { transaction } from '../database/transaction.js';

/** Longest wait for a lock of the log's tables: whatever comes meanwhile waits behind it. */
const LOCK_MS = 200;
/** So often the lock is asked for, with as much time in between for all others. */
const ATTEMPTS = 60;
/** Constraint of a table whose range is going to end, until it has ended. */
export const RANGE_END = 'range_end';

/** A stretch of a lane's positions that has a table of its own. */
export interface LogRange {
  readonly lane: number;
  /** Its first position. */
  readonly from: number;
  /** The first position of the next range; null for the last range of a lane, which has no end. */
  readonly to: number | null;
  /** Whether the lane has not grown to its first position. */
  readonly isEmpty: boolean;
  /** Whether the lane has grown past it: nothing is ever added to it any more. */
  readonly isFull: boolean;
  readonly table: string;
  readonly bytes: number;
  readonly tablespace: string;
}

/** What was asked for cannot be done now; nothing was changed. */
export class RangeRefused extends Error {
  override readonly name = 'RangeRefused';
}

/**
 * Splits the lanes of a log into ranges of positions, and moves full ranges to other tablespaces, while the log is
 * written and read. Events do not change, and nobody who reads the log has to know: ranges are partitions of a lane's
 * table. All of it needs the owner of the tables. What is broken off is taken up by doing it again.
 */
export class LogRanges {
  /** @param pool of the owner of the tables, two connections */
  constructor(
    private readonly pool: Pool,
    private readonly options: { readonly attempts?: number } = {},
  ) {}

  /** All ranges, by lane and position. */
  async list(): Promise<LogRange[]> {
    const rows = await rowsOf<{
      lane: number;
      bound: string;
      end: string;
      table: string;
      bytes: string;
      tablespace: string;
    }>(this.pool, {
      text: `select l.lane, pg_get_expr(leaf.relpartbound, leaf.oid) as bound, leaf.relname as table,
                    pg_total_relation_size(leaf.oid) as bytes,
                    (select coalesce(max(e.position), 0) from event e where e.lane = l.lane) as end,
                    (select s.spcname from pg_tablespace s, pg_database d
                     where d.datname = current_database()
                       and s.oid = coalesce(nullif(leaf.reltablespace, 0), d.dattablespace)) as tablespace
             from pg_partition_tree('event') t
             join pg_class leaf on leaf.oid = t.relid and t.isleaf
             -- The table of a lane is this one, or the one above.
             join pg_class lane on lane.oid = case t.level when 1 then t.relid else t.parentrelid end
             cross join lateral (
               select substring(pg_get_expr(lane.relpartbound, lane.oid) from '\\d+')::smallint as lane) l`,
    });
    return rows
      .map(({ lane, bound, end, table, bytes, tablespace }) => {
        const [, from, to] = /FROM \('?(\w+)'?\) TO \('?(\w+)'?\)/.exec(bound) ?? [];
        const first = from === undefined || from === 'MINVALUE' ? 1 : Number(from);
        const next = to === undefined || to === 'MAXVALUE' ? null : Number(to);
        return {
          lane,
          from: first,
          to: next,
          isEmpty: Number(end) < first,
          isFull: next !== null && Number(end) >= next - 1,
          table,
          bytes: Number(bytes),
          tablespace,
        };
      })
      .sort((a, b) => a.lane - b.lane || a.from - b.from);
  }

  /**
   * Lets a new range of a lane begin some positions behind its present end, unless one is there that has no events yet.
   *
   * The old range has to be known to end there before it is bounded, or else PostgreSQL would read all of it under a
   * lock that keeps everybody out. So its end is written down first, as a constraint, and checked beside the work of
   * others. A lane that grows to that end before this is done takes no events until it is
   * (`DatabaseUnavailable`).
   *
   * @param ahead positions: more than the lane grows by while its last range is read once
   * @returns the first position of that range
   * @throws RangeRefused when transactions that last keep the lock from being had
   */
  async begin(lane: number, ahead: number): Promise<number> {
    const open = (await this.list()).find((range) => range.lane === lane && range.to === null);
    if (!open) throw new RangeRefused(`the log has no lane ${lane}`);
    if (open.isEmpty && open.from > 1) return open.from;
    const table = escapeIdentifier(open.table);
    const end = (await this.endWrittenDown(open.table)) ?? (await this.writeEnd(open, ahead));
    await this.pool.query(`alter table ${table} validate constraint ${RANGE_END}`);
    await this.locked(async (client) => {
      const laneTable = escapeIdentifier(`event_lane_${lane}`);
      const first = escapeIdentifier(`event_lane_${lane}_from_1`);
      const next = escapeIdentifier(`event_lane_${lane}_from_${end}`);
      const isUndivided = table === laneTable;
      const bounded = isUndivided ? first : table;
      const from = open.from === 1 ? 'minvalue' : String(open.from);
      await client.query(
        isUndivided
          ? `alter table event detach partition ${laneTable};
             alter table ${laneTable} rename to ${first};
             create table ${laneTable} partition of event for values in (${lane}) partition by range (position);
             ${protect(laneTable)}`
          : `alter table ${laneTable} detach partition ${table}`,
      );
      await client.query(
        `alter table ${laneTable} attach partition ${bounded} for values from (${from}) to (${end});
         alter table ${bounded} drop constraint ${RANGE_END};
         create table ${next} partition of ${laneTable} for values from (${end}) to (maxvalue);
         ${protect(next)}`,
      );
    });
    return end;
  }

  private async endWrittenDown(table: string): Promise<number | undefined> {
    const [row] = await rowsOf<{ end: string }>(this.pool, {
      text: `select substring(pg_get_constraintdef(oid) from 'position" < ''?(\\d+)') as end
             from pg_constraint where conrelid = $1::text::regclass and conname = $2`,
      values: [escapeIdentifier(table), RANGE_END],
    });
    return row && Number(row.end);
  }

  private async writeEnd({ lane, from, table }: LogRange, ahead: number): Promise<number> {
    return this.locked(async (client) => {
      const { rows } = await client.query<{ end: string }>(
        `select coalesce(max(position), 0) + $2 + 1 as end from event where lane = $1`,
        [lane, ahead],
      );
      const end = Number(rows[0]?.end);
      // All that PostgreSQL would look at: the lane is that of the table above.
      await client.query(
        `alter table ${escapeIdentifier(table)} add constraint ${RANGE_END}
         check (lane = ${lane} and "position" >= ${from} and "position" < ${end}) not valid`,
      );
      return end;
    });
  }

  /**
   * Copies a full range to another tablespace, and lets the copy take its place.
   * @returns how many events it has
   * @throws RangeRefused when the range is not full, or when transactions that last keep the lock from being had
   */
  async move(range: LogRange, tablespace: string): Promise<number> {
    if (!range.isFull || range.to === null)
      throw new RangeRefused(
        `events are still added to the range of lane ${range.lane} from ${range.from} on`,
      );
    const [table, copy] = [escapeIdentifier(range.table), escapeIdentifier(`${range.table}_copy`)];
    const from = range.from === 1 ? 'minvalue' : String(range.from);
    const events = await this.copy(range, copy, tablespace);
    await this.endOfTransactions();
    await this.locked(async (client) => {
      const { rows } = await client.query<{ parent: string }>(
        `select inhparent::regclass::text as parent from pg_inherits where inhrelid = $1::text::regclass`,
        [table],
      );
      const parent = rows[0]?.parent;
      if (parent === undefined) throw new RangeRefused(`${range.table} is no range of the log any more`);
      await client.query(
        `alter table ${parent} detach partition ${table};
         alter table ${parent} attach partition ${copy} for values from (${from}) to (${range.to});
         alter table ${copy} drop constraint ${RANGE_END};
         drop table ${table};
         alter table ${copy} rename to ${table}`,
      );
    });
    return events;
  }

  /** Nobody adds to a full range, so that what is read once is all of it. */
  private copy({ lane, from, to, table }: LogRange, copy: string, tablespace: string): Promise<number> {
    return transaction(this.pool, async (client) => {
      const original = escapeIdentifier(table);
      await client.query(`set local default_tablespace = ${escapeIdentifier(tablespace)}`);
      // Left over from a move that was broken off.
      await client.query(`drop table if exists ${copy}`);
      await client.query(
        `create table ${copy} (
           like ${original} including defaults including storage including compression,
           constraint ${RANGE_END} check (lane = ${lane} and "position" >= ${from} and "position" < ${to})
         );
         ${protect(copy)}`,
      );
      const { rowCount } = await client.query(
        `insert into ${copy} select * from ${original} order by position`,
      );
      const { rows: indexes } = await client.query<{ isPrimary: boolean; definition: string }>(
        `select indisprimary as "isPrimary",
                case when indisprimary
                  then (select pg_get_constraintdef(oid) from pg_constraint where conindid = indexrelid)
                  else substring(pg_get_indexdef(indexrelid) from ' USING .*') end as definition
         from pg_index where indrelid = $1::text::regclass`,
        [original],
      );
      for (const { isPrimary, definition } of indexes)
        await client.query(
          isPrimary ? `alter table ${copy} add ${definition}` : `create index on ${copy} ${definition}`,
        );
      await client.query(`analyze ${copy}`);
      return rowCount ?? 0;
    });
  }

  /**
   * Waits for all transactions that are under way. One that saw the log before the copy was committed does not see the
   * copy, and would find nothing there.
   */
  private async endOfTransactions(): Promise<void> {
    const running = `select virtualtransaction as id from pg_locks
                     where locktype = 'virtualxid' and granted and pid <> pg_backend_pid()`;
    let left = (await rowsOf<{ id: string }>(this.pool, { text: running })).map(({ id }) => id);
    while (left.length > 0) {
      await sleep(LOCK_MS);
      const now = await rowsOf<{ id: string }>(this.pool, {
        text: `${running} and virtualtransaction = any ($1)`,
        values: [left],
      });
      left = now.map(({ id }) => id);
    }
  }

  /** Changes tables of the log while nobody else uses any of them. Readers and writers wait for as long as that takes. */
  private async locked<T>(change: (client: PoolClient) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await transaction(this.pool, async (client) => {
          await client.query(`set local lock_timeout = ${LOCK_MS}`);
          await client.query('lock table event in access exclusive mode');
          return change(client);
        });
      } catch (error) {
        if (!isLockTimeout(error)) throw error;
        if (attempt === (this.options.attempts ?? ATTEMPTS))
          throw new RangeRefused(
            'the tables of the log were never free: a backup or an export is being made; try again when it is done',
          );
      }
      await sleep(LOCK_MS);
    }
  }
}

/** SQL that refuses changes of events in a table of the log. Triggers of statements do not come from the table above. */
const protect = (table: string): string =>
  `create trigger refuse_change before update or delete or truncate on ${table}
     for each statement execute function refuse_change();
   alter table ${table} enable always trigger refuse_change;
   revoke update, delete, truncate on ${table} from public;`;
