import { type EventData, type EventType, sessionEvents } from '../domain/session.events.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';

/** A recorded session event whose `data` follows from its `type`. */
export type SessionRecord = {
  [T in EventType]: RecordedEvent<T, EventData<T>>;
}[EventType];

/** Event type → its present schema version. */
export const SCHEMA_VERSIONS: Readonly<Record<string, number>> = Object.fromEntries(
  Object.entries(sessionEvents).map(([type, { version }]) => [type, version]),
);
