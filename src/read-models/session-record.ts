import { type HISTORY_EVENTS } from '../domain/history.js';
import { type EventData, type EventType, sessionEvents } from '../domain/session.events.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';

/** A recorded session event whose `data` follows from its `type`. */
export type SessionRecord = {
  [T in EventType]: RecordedEvent<T, EventData<T>>;
}[EventType];

/** A recorded event by which messages join or leave a history. */
export type HistoryRecord = SessionRecord & { type: (typeof HISTORY_EVENTS)[number] };
export type MessageRecord = HistoryRecord & { type: 'MessageAppended' };

/** Event type → the schema versions of which the data is that of the present one, without being lifted. */
export const SCHEMA_VERSIONS: Readonly<Record<string, readonly number[]>> = {
  ...Object.fromEntries(Object.entries(sessionEvents).map(([type, { version }]) => [type, [version]])),
  MessageAppended: [1, 2],
};
