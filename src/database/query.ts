import { type Pool, type QueryConfig, type QueryResultRow } from 'pg';
import { available } from './connection.js';

/**
 * The rows that a statement returns.
 * @throws DatabaseUnavailable when the connection is lost; every other error stays what it is.
 */
export const rowsOf = async <Row extends QueryResultRow>(
  pool: Pool,
  statement: QueryConfig,
): Promise<Row[]> => (await available(() => pool.query<Row>(statement))).rows;
