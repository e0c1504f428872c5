import { tracePlaceOf } from '../event-store/traceparent.js';
import { type EventOf, type EventType, sessionEvents, upcast } from '../domain/session.events.js';
import { type LogGeneration } from '../event-store/log-generations.js';
import { type SealedPayload } from '../event-store/payload-codec.js';
import { cipherOf } from '../event-store/sealing/sealed-bytes.js';
import { type RecordedEvent, type SealedData, type StoredEvent } from '../event-store/recorded-event.js';
import { type IncomingMessage } from './group-member.js';
import { type OutgoingMessage } from './publisher.js';

/*
 * What an event looks like on the topic: CloudEvents 1.0, Kafka binding, binary mode. Programs that we do not know
 * depend on this form; docs/events.md says what may change and how.
 */

/** An event as consumers get it. `data` is of the schema version that this package knows, whatever was published. */
export type ConsumedEvent = {
  [T in EventType]: EventOf<T> & {
    readonly id: string;
    readonly schemaVersion: number;
    readonly tenant: string;
    /** `~tenant` for events that concern the whole tenant. */
    readonly sessionId: string;
    readonly incarnation: number;
    /** 1, 2, 3 … without gaps within a session, through all its incarnations. */
    readonly version: number;
    /** RFC 3339, UTC. */
    readonly time: string;
    readonly correlationId: string;
  };
}[EventType];

/**
 * An event of which this package cannot say what happened. Its type is newer than this package, and its data is passed on
 * as it was published; or its data was erased, and is null; or its data is sealed, and null to whoever has no key. All
 * count as versions of their session, and nothing more.
 */
export interface UnknownEvent extends Omit<ConsumedEvent, 'type' | 'data'> {
  readonly type: 'unknown';
  /** `colloquy.<EventName>.v<n>` */
  readonly ceType: string;
  readonly data: unknown;
  /** Set when the data was erased. */
  readonly erased?: true;
  /**
   * Set when the data is sealed and nobody was asked for its key, or the log has the event no longer, because it was set
   * back: `LogTruncated` follows then. docs/events.md says how to open it.
   */
  readonly sealed?: SealedData;
}

const TYPE = /^colloquy\.([A-Za-z]+)\.v([0-9]+)$/;

const ceType = (type: string, version: number): string => `colloquy.${type}.v${version}`;

/** Names the JSON Schema of an event's data; the service serves it under `/schemas/<EventName>.v<n>.json`. */
export const schemaUrn = (type: string, version: number): string => `urn:colloquy:event:${type}:v${version}`;

/** The schema of a value that refers to data which is too large for the topic. */
export const REFERENCE = { type: 'EventReference', version: 1 } as const;

/** More bytes than a record needs in addition to its key, value and headers. */
const RECORD_OVERHEAD = 256;
/** More characters than the key and the headers of a record ever have. */
const ENVELOPE_LENGTH = 4_096;
/** The most bytes in UTF-8 for each unit of the length of a JavaScript string. */
const MAX_BYTES_PER_UNIT = 3;

const knownVersion = (type: string): number =>
  Object.hasOwn(sessionEvents, type) ? sessionEvents[type as EventType].version : 0;

/**
 * The schema version in which an event is published. During a rolling upgrade newer nodes append events of types and
 * versions that this code does not know. Such events are published as they are stored, which is what the newer nodes
 * would publish. Waiting for the newer nodes instead would delay every session of the lane.
 */
const publishedVersion = (type: string, schemaVersion: number): number =>
  Math.max(knownVersion(type), schemaVersion);

/** The data of an event in the schema version in which it is published, unless it is sealed. */
export function currentJson({ type, schemaVersion, json, erased, sealed }: StoredEvent): string {
  if (erased || sealed || publishedVersion(type, schemaVersion) === schemaVersion) return json;
  return JSON.stringify(upcast(type, schemaVersion, JSON.parse(json) as Record<string, unknown>));
}

/** How a value is sealed; the number is its first byte, which tells what is where in it. */
const sealedAs = ({ bytes }: SealedData): string => `${cipherOf(bytes) ?? 'unknown'};v=${bytes[0] ?? 0}`;

/**
 * @param json the data of the event, as `currentJson` returns it; of no meaning where it is sealed
 * @param maxBytes an event whose record might be larger is published with a reference in place of its data
 * @param generation of the log, in which the event was appended
 * @param cell the cell whose log it is, unless it is the first
 */
export function toMessage(
  event: Omit<RecordedEvent, 'data'> & Pick<StoredEvent, 'sealed'>,
  json: string,
  partitions: number,
  maxBytes: number,
  generation = 1,
  cell?: string,
): OutgoingMessage {
  const { sealed } = event;
  // What is sealed cannot be lifted by whoever cannot open it, so it is published as it was written.
  const version = sealed ? event.schemaVersion : publishedVersion(event.type, event.schemaVersion);
  const key = `${event.tenant}/${event.streamId}`;
  const envelope: Record<string, string> = {
    ce_specversion: '1.0',
    ce_id: event.id,
    ce_type: ceType(event.type, version),
    ce_source: `/colloquy/${event.tenant}`,
    ce_subject: event.streamId,
    ce_time: event.time,
    ce_partitionkey: key,
    ce_tenant: event.tenant,
    ce_sessionversion: String(event.version),
    ce_incarnation: String(event.incarnation),
    ce_lane: String(event.lane),
    ce_position: String(event.position),
    ce_loggeneration: String(generation),
    ...(cell !== undefined && { ce_cell: cell }),
    ...(event.erased && { ce_erased: 'true' }),
    ce_correlationid: event.correlationId,
    // While requests are traced, the correlation id is the place in the trace.
    ...(tracePlaceOf(event.correlationId) && { traceparent: event.correlationId }),
  };
  const partition = event.lane % partitions;
  const value = sealed?.bytes ?? json;
  const headers = {
    ...envelope,
    ce_dataschema: schemaUrn(event.type, version),
    'content-type': sealed ? 'application/octet-stream' : 'application/json',
    ...(sealed && { ce_sealed: sealedAs(sealed), ce_keyid: sealed.keyId }),
  };
  const size = () => Buffer.byteLength(value) + RECORD_OVERHEAD + 2 * key.length + headerBytes(headers);
  // Counting bytes takes time, so they are not counted where the length alone shows that the record fits.
  if (MAX_BYTES_PER_UNIT * (value.length + ENVELOPE_LENGTH) <= maxBytes || size() <= maxBytes)
    return { key, value, partition, headers };
  const after = event.version - 1;
  const reference = `/v1/sessions/${encodeURIComponent(event.streamId)}/events?after=${after}&limit=1`;
  return {
    ...{ key, partition },
    value: JSON.stringify({ reference, bytes: Buffer.byteLength(value) }),
    headers: {
      ...envelope,
      ce_dataschema: schemaUrn(REFERENCE.type, REFERENCE.version),
      'content-type': 'application/json',
      ce_dataref: reference,
    },
  };
}

/** Says where a lane was cut when a generation of the log began. */
export const TRUNCATION = { type: 'LogTruncated', version: 1 } as const;

/** Its key: no session has it. */
export const LOG_KEY = '~log';

/** From a position on, what a lane had of earlier generations of the log is gone, and others come in its place. */
export interface Truncation {
  readonly generation: number;
  readonly lane: number;
  /** The first position that is gone. */
  readonly from: number;
}

/** Is published to each lane before anything of a new generation of the log, whether or not something of it is gone. */
export function toTruncation(
  { generation, since, ends }: LogGeneration,
  lane: number,
  partitions: number,
  cell?: string,
): OutgoingMessage {
  const truncation: Truncation = { generation, lane, from: (ends[lane] ?? 0) + 1 };
  return {
    key: LOG_KEY,
    value: JSON.stringify(truncation),
    partition: lane % partitions,
    headers: {
      ce_specversion: '1.0',
      ce_id: `log/${cell === undefined ? '' : `${cell}/`}${generation}/${lane}`,
      ce_type: ceType(TRUNCATION.type, TRUNCATION.version),
      ce_source: '/colloquy',
      ce_time: since,
      ce_dataschema: schemaUrn(TRUNCATION.type, TRUNCATION.version),
      ce_partitionkey: LOG_KEY,
      'content-type': 'application/json',
      ce_lane: String(lane),
      ce_loggeneration: String(generation),
      ...(cell !== undefined && { ce_cell: cell }),
    },
  };
}

/** @returns undefined for a record that is something else */
export function truncationOf({ headers, value }: IncomingMessage): Truncation | undefined {
  if (headers['ce_type'] !== ceType(TRUNCATION.type, TRUNCATION.version)) return undefined;
  return JSON.parse(value?.toString() ?? '') as Truncation;
}

/** Whether a record is of the log of this cell; undefined: of the first. */
export const isOfCell = ({ headers }: IncomingMessage, cell: string | undefined): boolean =>
  headers['ce_cell'] === cell;

function headerBytes(headers: Record<string, string>): number {
  let bytes = 0;
  for (const name in headers) bytes += name.length + (headers[name]?.length ?? 0) + 4;
  return bytes;
}

/** Where an event stands in its session, known from the headers before the data is parsed. */
export interface Placed {
  readonly tenant: string;
  readonly sessionId: string;
  readonly version: number;
  /** Where it stands in the log. */
  readonly lane: number;
  readonly position: number;
  /** The generation of the log in which it was appended. */
  readonly generation: number;
}

/** @throws Error for a record that is not of this contract. */
export function placeOf({ headers, offset }: IncomingMessage): Placed {
  const { ce_tenant: tenant, ce_subject: sessionId, ce_sessionversion } = headers;
  const version = Number(ce_sessionversion);
  if (tenant === undefined || sessionId === undefined || !Number.isSafeInteger(version) || version < 1)
    throw new Error(
      `the record at offset ${offset} is no session event: its CloudEvents headers are missing`,
    );
  return {
    tenant,
    sessionId,
    version,
    lane: Number(headers['ce_lane'] ?? 0),
    position: Number(headers['ce_position'] ?? 0),
    generation: Number(headers['ce_loggeneration'] ?? 1),
  };
}

const sessionOf = ({ tenant, sessionId, version }: Placed) => ({ tenant, sessionId, version });

function typeOf({ headers }: IncomingMessage): { readonly name: string; readonly schemaVersion: number } {
  const [, name = '', number = '0'] = TYPE.exec(headers['ce_type'] ?? '') ?? [];
  return { name, schemaVersion: Number(number) };
}

const KEY_ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/**
 * What is sealed in a record, and as what it opens.
 * @returns undefined for a record whose value is plain
 * @throws Error for a record that is not of this contract
 */
export function sealedIn(message: IncomingMessage): (SealedPayload & { readonly keyId: string }) | undefined {
  if (message.headers['ce_sealed'] === undefined) return undefined;
  const { tenant, sessionId: streamId, version } = placeOf(message);
  const keyId = message.headers['ce_keyid'] ?? '';
  if (!KEY_ID.test(keyId) || !message.value)
    throw new Error(`the record at offset ${message.offset} is sealed, and does not say with which key`);
  return { tenant, streamId, version, type: typeOf(message).name, keyId, sealed: message.value };
}

/**
 * @param opened what is sealed in the record; null: it was erased; undefined: it could not be opened
 * @returns undefined when the record holds a reference in place of its data.
 * @throws Error for a schema version newer than this package, because this code would misread its data
 */
export function toEvent(
  message: IncomingMessage,
  opened?: Record<string, unknown> | null,
): ConsumedEvent | UnknownEvent | undefined {
  const { headers } = message;
  if (headers['ce_dataref'] !== undefined) return undefined;
  const { name, schemaVersion } = typeOf(message);
  const envelope = {
    ...sessionOf(placeOf(message)),
    id: headers['ce_id'] ?? '',
    incarnation: Number(headers['ce_incarnation']),
    time: headers['ce_time'] ?? '',
    correlationId: headers['ce_correlationid'] ?? '',
  };
  const sealed = sealedIn(message);
  if (sealed && opened === undefined) {
    return {
      ...envelope,
      ...{ schemaVersion, type: 'unknown', ceType: headers['ce_type'] ?? '', data: null },
      sealed: { keyId: sealed.keyId, bytes: sealed.sealed },
    };
  }
  const data = opened ?? (sealed ? null : parsed(message));
  return toKnownOrUnknown(
    envelope,
    name,
    schemaVersion,
    data,
    headers['ce_erased'] === 'true',
    headers['ce_type'],
  );
}

const parsed = ({ value }: IncomingMessage): Record<string, unknown> | null =>
  JSON.parse(value?.toString() ?? 'null') as Record<string, unknown> | null;

/**
 * An event as `GET /v1/sessions/:id/events` returns it. The service has lifted `data` to the newest schema version that
 * it knows.
 */
export interface AnsweredEvent extends Omit<ConsumedEvent, 'type' | 'data'> {
  readonly type: string;
  readonly data: Record<string, unknown> | null;
  readonly erased?: true;
  readonly logGeneration: number;
}

/** @throws Error on a schema version newer than this package */
export function fromAnswer(event: AnsweredEvent): ConsumedEvent | UnknownEvent {
  const { id, tenant, sessionId, incarnation, version, time, correlationId, type, data } = event;
  const envelope = { id, tenant, sessionId, incarnation, version, time, correlationId };
  return toKnownOrUnknown(envelope, type, publishedVersion(type, event.schemaVersion), data, event.erased);
}

function toKnownOrUnknown(
  envelope: Omit<ConsumedEvent, 'type' | 'data' | 'schemaVersion'>,
  type: string,
  schemaVersion: number,
  data: Record<string, unknown> | null,
  erased = false,
  published = ceType(type, schemaVersion),
): ConsumedEvent | UnknownEvent {
  if (erased || data === null)
    return { ...envelope, schemaVersion, type: 'unknown', ceType: published, data: null, erased: true };
  if (!Object.hasOwn(sessionEvents, type))
    return { ...envelope, schemaVersion, type: 'unknown', ceType: published, data };
  const current = sessionEvents[type as EventType].version;
  const lifted = upcast(type, schemaVersion, data);
  return { ...envelope, type, schemaVersion: current, data: lifted } as ConsumedEvent;
}
