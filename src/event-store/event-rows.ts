import { type RecordedEvent } from './recorded-event.js';

/** The columns of an event's envelope. */
export const ENVELOPE_COLUMNS = `e.id, e.type, e.schema_version, e.tenant, e.stream_id, e.incarnation, e.version, e.lane, e.position,
  e.time, e.actor, e.correlation_id, e.causation_id`;

export const EVENT_COLUMNS = `${ENVELOPE_COLUMNS}, e.data, e.sealed, e.key_id`;

/** The columns of a row of `event` that say what it is, and not what it holds. */
interface EnvelopeRow {
  id: string;
  type: string;
  schema_version: number;
  tenant: string;
  stream_id: string;
  incarnation: number;
  version: number;
  lane: number;
  position: number;
  time: string;
  actor: string;
  correlation_id: string;
  causation_id: string | null;
}

/** A row of `event`, without the columns that only indexes need. */
export interface EventRow extends EnvelopeRow {
  data: unknown;
  sealed: Buffer | null;
  key_id: string | null;
}

/**
 * SQL condition: the last event of a stream is this one. It lets a query on other tables prove that what its caller
 * knows of the stream is still true.
 *
 * @param end the name of a row with the columns `lane, tenant, stream_id, version, position, time`
 */
export const streamEndsAt = (end: string): string => `coalesce((
  select e.version = ${end}.version and e.position = ${end}.position
         and date_trunc('milliseconds', e.time) = ${end}.time
  from event e where e.lane = ${end}.lane and e.tenant = ${end}.tenant and e.stream_id = ${end}.stream_id
  order by e.version desc limit 1), false)`;

/** SQL expression for the stored size of an event's payload, in bytes. */
export const PAYLOAD_SIZE = '(coalesce(pg_column_size(e.data), 0) + coalesce(pg_column_size(e.sealed), 0))';

/**
 * SQL expression for the bytes that a stored value takes in memory. An estimate: what may be compressed is taken for eight
 * times its stored size, because only expanding it would tell.
 *
 * @param stored SQL expression for its stored size
 */
export const heldSize = (stored: string): string =>
  `${stored} * case when ${stored} < 1000 then 1 else 8 end`;

/** The same of an event's payload. */
export const HELD_SIZE = heldSize(PAYLOAD_SIZE);

/** Most bytes of payload in a page, by `HELD_SIZE`; beyond that a page ends early, with at least one event. */
export const PAGE_BYTES = 16 * 1024 * 1024;

export const STATE_COLUMNS = `s.tenant, s.stream_id, s.lane, s.version, s.incarnation, s.position, s.time, s.created_at,
  s.last_activity_at, s.state, s.state_version, s.sealed, s.key_id`;

/** A row of `stream_state`. */
export interface StateRow {
  tenant: string;
  stream_id: string;
  lane: number;
  version: number;
  incarnation: number;
  position: number;
  time: string;
  created_at: string;
  last_activity_at: string;
  state: unknown;
  state_version: number;
  sealed: Buffer | null;
  key_id: string | null;
}

/** The metadata of an event, without its data. */
export const envelope = (row: EnvelopeRow): Omit<RecordedEvent, 'data'> => ({
  id: row.id,
  type: row.type,
  schemaVersion: row.schema_version,
  tenant: row.tenant,
  streamId: row.stream_id,
  incarnation: row.incarnation,
  version: row.version,
  lane: row.lane,
  position: row.position,
  time: row.time,
  actor: row.actor,
  correlationId: row.correlation_id,
  causationId: row.causation_id,
});
