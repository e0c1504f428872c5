import { type EventOf } from './session.events.js';

/** The types of the events that make a history: messages that come and messages that leave. */
export const HISTORY_EVENTS = ['MessageAppended', 'MessageRemoved', 'HistoryRewound'] as const;
export type HistoryEvent = EventOf<(typeof HISTORY_EVENTS)[number]>;
/** An event with which messages leave the history. They stay in the log. */
export type DepartureEvent = EventOf<'MessageRemoved' | 'HistoryRewound'>;

/**
 * The versions of the messages that leave with an event, as ranges with both ends inclusive. Some of the messages in them
 * may have left before.
 */
export function versionsLeft(event: DepartureEvent & { readonly version: number }): [number, number][] {
  return event.type === 'MessageRemoved'
    ? event.data.versions.map((version) => [version, version])
    : [[event.data.toVersion + 1, event.version - 1]];
}

/** The messages that are left of a history after its events, which have to come in order, from its beginning. */
export function messagesLeft<Event extends HistoryEvent & { readonly version: number }>(
  events: readonly Event[],
): (Event & { type: 'MessageAppended' })[] {
  const left: (Event & { type: 'MessageAppended' })[] = [];
  for (const event of events) {
    if (event.type === 'MessageAppended') {
      left.push(event as Event & { type: 'MessageAppended' });
      continue;
    }
    const ranges = versionsLeft(event);
    const leaves = ({ version }: Event): boolean =>
      ranges.some(([first, last]) => first <= version && version <= last);
    // What leaves is mostly at the end.
    const from = left.findIndex(({ version }) => version >= Math.min(...ranges.map(([first]) => first)));
    if (from >= 0) left.push(...left.splice(from).filter((one) => !leaves(one)));
  }
  return left;
}
