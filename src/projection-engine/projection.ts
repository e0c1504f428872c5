import { type ClientBase } from 'pg';
import { arrayLiteral, type Element } from '../database/array-literal.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';

export interface Statement {
  readonly text: string;
  readonly values: readonly unknown[];
}

export type Read = <Row>(text: string, values: readonly unknown[]) => Promise<Row[]>;

/** A projection's `apply` in one statement that stays inside the database. */
export interface ApplyInside {
  /** Event type → the schema versions that the statement understands; a type that is missing here is not understood. */
  readonly schemaVersions: Readonly<Record<string, readonly number[]>>;
  /** @param events SQL for the events to apply, for a `from`: see `STRETCH`; its parameters are all there are */
  readonly statement: (table: string, events: string) => string;
}

/**
 * A read model: one table that follows the log.
 *
 * Every row belongs to one session, named by the columns `tenant` and `session_id`, and follows from the events of that
 * session's stream alone. Therefore a session can be parked, folded anew and compared by itself. The names of indexes
 * begin with the table's name, because a rebuilt table is renamed together with them.
 */
export interface Projection<Event extends RecordedEvent = RecordedEvent> {
  readonly name: string;
  /** Raise the version when `createTable` or `apply` changes: a new table is then built beside the old one. */
  readonly version: number;
  readonly createTable: (table: string) => string;
  /**
   * Computes the statements that apply events, and may read for that, but writes nothing itself: the projector runs the
   * statements in one short transaction with the checkpoint. Each event is applied exactly once, in the order of its
   * session. An error that `apply` throws, or that its statements raise because of the data, parks the session of the
   * event at fault.
   */
  apply(events: readonly Event[], table: string, read: Read): Promise<readonly Statement[]>;
  /**
   * Optional; has the same effect as `apply` and makes rebuilds several times faster. It is used where every event is
   * stored in plain, in a schema version that it understands. `verify` and all other folds use `apply`.
   */
  readonly applyInside?: ApplyInside;
}

/** The table's name, which is also the projection's name in checkpoints and leases. */
export const tableOf = (projection: Pick<Projection, 'name' | 'version'>): string =>
  `${projection.name}_v${projection.version}`;

/** A connection in a transaction, or a pool, which takes any of its connections for each query. */
export type Connection = Pick<ClientBase, 'query'>;

/** Applies events on a connection; the caller begins and ends the transaction. */
export async function applyOn(
  connection: Connection,
  projection: Projection,
  table: string,
  events: readonly RecordedEvent[],
): Promise<void> {
  await run(connection, await compute(connection, projection, table, events));
}

/** Computes the statements that apply events. */
export const compute = (
  connection: Connection,
  projection: Projection,
  table: string,
  events: readonly RecordedEvent[],
): Promise<readonly Statement[]> =>
  projection.apply(events, table, async (text, values) => {
    const { rows } = await connection.query(text, [...values]);
    return rows as never[];
  });

export async function run(connection: Connection, statements: readonly Statement[]): Promise<void> {
  for (const { text, values } of statements) await connection.query(text, [...values]);
}

/** Column values for `unnest`: one array per column. */
export function columns<Name extends string>(
  rows: readonly Readonly<Record<Name, Element>>[],
  names: readonly Name[],
): string[] {
  return names.map((name) => arrayLiteral(rows.map((row) => row[name])));
}
