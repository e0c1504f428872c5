import { type EventOf } from './session.events.js';

/** The types of the events that make a history: messages that come and messages that leave. */
export const HISTORY_EVENTS = ['MessageAppended', 'MessageRemoved', 'HistoryRewound'] as const;
/** Those with which messages leave. */
export const DEPARTURE_EVENTS = ['MessageRemoved', 'HistoryRewound'] as const;
export type HistoryEvent = EventOf<(typeof HISTORY_EVENTS)[number]>;
/** An event with which messages leave the history. They stay in the log. */
export type DepartureEvent = EventOf<(typeof DEPARTURE_EVENTS)[number]>;

/**
 * The versions of the messages that leave with an event, as ranges with both ends inclusive. Some of the messages in them
 * may have left before.
 */
export function versionsLeft(event: DepartureEvent & { readonly version: number }): [number, number][] {
  return event.type === 'MessageRemoved'
    ? event.data.versions.map((version) => [version, version])
    : [[event.data.toVersion + 1, event.version - 1]];
}

/** Whether the message of a version leaves the history with one of these events. */
export function leavesWith(
  events: readonly (DepartureEvent & { readonly version: number })[],
): (version: number) => boolean {
  const ranges = events.flatMap(versionsLeft);
  return (version) => ranges.some(([first, last]) => first <= version && version <= last);
}

type Appended<Event> = Event & { readonly type: 'MessageAppended' };

/**
 * Carries a history on by its next event: adds the message, or takes out those that leave.
 * @param left the messages of the history so far, which is changed
 */
export function carryOn<Event extends HistoryEvent & { readonly version: number }>(
  left: Appended<Event>[],
  event: Event,
): void {
  if (event.type === 'MessageAppended') {
    left.push(event as Appended<Event>);
    return;
  }
  const leaves = leavesWith([event]);
  const earliest = Math.min(...versionsLeft(event).map(([first]) => first));
  // What leaves is mostly at the end.
  const from = left.findIndex(({ version }) => version >= earliest);
  if (from >= 0) left.push(...left.splice(from).filter(({ version }) => !leaves(version)));
}
