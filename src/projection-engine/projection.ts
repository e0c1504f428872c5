import { type ClientBase } from 'pg';
import { arrayLiteral, type Element } from '../database/array-literal.js';
import { streamKey } from '../event-store/lane.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';

export interface Statement {
  readonly text: string;
  readonly values: readonly unknown[];
}

/**
 * Reads rows of the table, with their columns `tenant` and `session_id` among others: those of sessions that the events
 * erase are left out.
 */
export type Read = <Row>(text: string, values: readonly unknown[]) => Promise<Row[]>;

/** A projection's `apply` in one statement that stays inside the database. */
export interface ApplyInside {
  /** Event type → the schema versions that the statement understands; a type that is missing here is not understood. */
  readonly schemaVersions: Readonly<Record<string, readonly number[]>>;
  /** @param events SQL for the events to apply, for a `from`: see `Stretch`; its parameters are all there are */
  readonly statement: (table: string, events: string) => string;
}

/**
 * A read model: one table that follows the log.
 *
 * Every row belongs to one session, named by the columns `tenant` and `session_id`, and follows from the events of that
 * session's stream alone. Therefore a session can be parked, folded anew, compared and erased by itself. The names of
 * indexes begin with the table's name, because a rebuilt table is renamed together with them.
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
   * Optional; has the same effect as `apply` and makes rebuilds several times faster. It is used for stretches of
   * events in schema versions that it understands. `verify` and all other folds use `apply`.
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

/**
 * The event that erases its session: nothing is left of what came before it, in any read model, and the session begins
 * anew behind it. Projections get neither this event nor those whose data was erased.
 */
export const ERASURE = 'SessionErased';

/** The events without those that an erasure among them makes void, and without those whose data was erased. */
export function notErased<Event extends RecordedEvent>(events: readonly Event[]): readonly Event[] {
  if (!events.some(({ type, erased }) => erased || type === ERASURE)) return events;
  const last = new Map<string, number>();
  for (const event of events) if (event.type === ERASURE) last.set(streamKey(event), event.version);
  return events.filter((event) => !event.erased && event.version >= (last.get(streamKey(event)) ?? 0));
}

/** Computes the statements that apply events. */
export async function compute(
  connection: Connection,
  projection: Projection,
  table: string,
  events: readonly RecordedEvent[],
): Promise<readonly Statement[]> {
  const erasures = new Map<string, Readonly<Record<'tenant' | 'session_id', string>>>();
  const left: RecordedEvent[] = [];
  for (const event of notErased(events)) {
    if (event.type !== ERASURE) left.push(event);
    else erasures.set(streamKey(event), { tenant: event.tenant, session_id: event.streamId });
  }
  const read: Read = async (text, values) => {
    const { rows } = await connection.query<{ tenant: string; session_id: string }>(text, [...values]);
    const others = rows.filter(
      ({ tenant, session_id: streamId }) => !erasures.has(streamKey({ tenant, streamId })),
    );
    return others as never[];
  };
  const applied = left.length > 0 ? await projection.apply(left, table, read) : [];
  if (erasures.size === 0) return applied;
  const deletion = {
    text: `delete from ${table} t using unnest($1::text[], $2::text[]) as e (tenant, session_id)
           where t.tenant = e.tenant collate "C" and t.session_id = e.session_id collate "C"`,
    values: columns([...erasures.values()], ['tenant', 'session_id']),
  };
  return [deletion, ...applied];
}

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
