import { type ClientBase } from 'pg';
import { arrayLiteral, type Element } from '../database/array-literal.js';
import { type EventData, type EventType } from '../domain/session.events.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';

/** A recorded session event whose `data` follows from its `type`. */
export type SessionRecord = {
  [T in EventType]: RecordedEvent<T, EventData<T>>;
}[EventType];

export interface Statement {
  readonly text: string;
  readonly values: readonly unknown[];
}

export type Read = <Row>(text: string, values: readonly unknown[]) => Promise<Row[]>;

/**
 * A read model: one table that follows the log.
 *
 * `apply` looks and computes, but writes nothing itself: it returns the statements, and the projector runs them in
 * one short transaction with the checkpoint. Each event is applied exactly once, in the order of its session.
 *
 * Every row belongs to one session, named by the columns `tenant` and `session_id`, and follows from that session's
 * events alone: so a session can be parked, folded anew and compared by itself. Names of indexes begin with the
 * table's: a rebuilt table is renamed together with them.
 */
export interface Projection {
  readonly name: string;
  /** Raise it when `createTable` or `apply` changes: a new table is then built beside the old one. */
  readonly version: number;
  readonly createTable: (table: string) => string;
  /** What it throws, and what its statements meet in the data, parks the session of the event at fault. */
  readonly apply: (
    events: readonly SessionRecord[],
    table: string,
    read: Read,
  ) => Promise<readonly Statement[]>;
  /**
   * If there is one, the same as `apply` in one statement that stays inside the database, for the events of lane $1
   * with a position above $2 and up to $3: rebuilds are several times faster with it. It is used where every event of
   * the stretch is stored in plain and in its present schema version. `verify` and all other folds go by `apply`.
   */
  readonly applyInside?: (table: string) => string;
}

/** The table's name, which is also the projection's name in checkpoints and leases. */
export const tableOf = (projection: Pick<Projection, 'name' | 'version'>): string =>
  `${projection.name}_v${projection.version}`;

/** What is said on a connection: that of a transaction, or any of a pool. */
export type Connection = Pick<ClientBase, 'query'>;

/** Applies events on a connection; the caller begins and ends the transaction. */
export async function applyOn(
  connection: Connection,
  projection: Projection,
  table: string,
  events: readonly SessionRecord[],
): Promise<void> {
  await run(connection, await compute(connection, projection, table, events));
}

/** What there is to write for events. */
export const compute = (
  connection: Connection,
  projection: Projection,
  table: string,
  events: readonly SessionRecord[],
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
