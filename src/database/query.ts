import { type Pool, type QueryConfig, type QueryResultRow } from 'pg';
import { available } from './connection.js';

/**
 * Longest wait for a read that a command needs. Whoever sent the command must get an answer within five seconds, also
 * from a database that hangs.
 */
export const COMMAND_READ_MS = 4_500;

/**
 * The rows that a statement returns.
 * @param timeoutMs how long to wait for them; as the pool is set unless given
 * @throws DatabaseUnavailable when the connection is lost; every other error stays what it is.
 */
export const rowsOf = async <Row extends QueryResultRow>(
  pool: Pool,
  statement: QueryConfig,
  timeoutMs?: number,
): Promise<Row[]> => {
  // The driver knows this member of a query, its types do not.
  const limited = timeoutMs === undefined ? statement : { ...statement, query_timeout: timeoutMs };
  return (await available(() => pool.query<Row>(limited))).rows;
};
