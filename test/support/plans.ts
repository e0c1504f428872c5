import { type Pool, type QueryConfig } from 'pg';
import { createPool } from '../../src/database/connection.js';
import { PLANS_BY_INDEX } from '../../src/database/server-settings.js';

/** Connections as those for reads of read models. @param seen is called for each statement, with the number of its rows */
export function openWatched(url: string, seen: (statement: QueryConfig, rows: number) => void): Pool {
  const pool = createPool(url, 'test', { settings: PLANS_BY_INDEX });
  const query = pool.query.bind(pool) as (statement: QueryConfig) => Promise<{ rowCount: number | null }>;
  return Object.assign(pool, {
    query: async (statement: QueryConfig) => {
      const result = await query(statement);
      seen(statement, result.rowCount ?? 0);
      return result;
    },
  });
}

/** What each node of a statement's plan does. Prepared statements have generic plans on the connections for reads. */
export async function planOf(pool: Pool, { text, values = [] }: QueryConfig): Promise<string> {
  const client = await pool.connect();
  try {
    await client.query(`prepare explained as ${text}`);
    const literals = (values as (string | number | readonly string[] | null)[]).map((value) =>
      value === null
        ? 'null'
        : client.escapeLiteral(Array.isArray(value) ? `{${value.join()}}` : String(value)),
    );
    const { rows } = await client.query<{ 'QUERY PLAN': string }>(
      `explain (analyze, timing off) execute explained(${literals.join()})`,
    );
    await client.query('deallocate explained');
    return rows.map((row) => row['QUERY PLAN']).join('\n');
  } finally {
    client.release();
  }
}
