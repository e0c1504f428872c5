import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';

/** Counters that appends change while they hold a lock. */
export class Counters {
  constructor(private readonly pool: Pool) {}

  /** Returns 0 for a counter that no append has changed yet. */
  async value(key: string): Promise<number> {
    const [row] = await rowsOf<{ value: number }>(this.pool, {
      text: 'select value from counter where key = $1',
      values: [key],
    });
    return row?.value ?? 0;
  }

  /**
   * Returns the counters whose key begins with `prefix` and whose value is above its limit.
   *
   * @param limits limits of individual counters by key; `limit` applies to all others
   */
  above(
    prefix: string,
    limit: number,
    limits: ReadonlyMap<string, number>,
  ): Promise<{ key: string; value: number; limit: number }[]> {
    return rowsOf<{ key: string; value: number; limit: number }>(this.pool, {
      name: 'counters_above',
      text: `select c.key, c.value, coalesce(o.max, $2)::bigint as limit
               from counter c left join unnest($3::text[], $4::bigint[]) as o (key, max) on o.key = c.key collate "C"
               where c.value > coalesce(o.max, $2) and starts_with(c.key, $1)`,
      values: [prefix, limit, [...limits.keys()], [...limits.values()]],
    });
  }
}
