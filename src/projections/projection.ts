import { type EventData, type EventType } from '../domain/session.events.js';
import { type RecordedEvent } from '../event-store/event-store.js';

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
 * one short transaction with the checkpoint. Each event is applied exactly once, in the order of its lane.
 */
export interface Projection {
  readonly name: string;
  /** Raise it when `createTable` or `apply` changes: a new table is then built beside the old one. */
  readonly version: number;
  readonly createTable: (table: string) => string;
  readonly apply: (
    events: readonly SessionRecord[],
    table: string,
    read: Read,
  ) => Promise<readonly Statement[]>;
}

/** The table's name, which is also the projection's name in checkpoints and leases. */
export const tableOf = (projection: Pick<Projection, 'name' | 'version'>): string =>
  `${projection.name}_v${projection.version}`;

/** Column values for `unnest`: one array per column. */
export function columns<Row extends object>(
  rows: readonly Row[],
  names: readonly (keyof Row)[],
): unknown[][] {
  return names.map((name) => rows.map((row) => row[name]));
}
