import { type EventLog } from '../../src/event-store/log.js';
import { type StreamId } from '../../src/event-store/lane.js';

export type AppendOf = Parameters<EventLog['append']>[0];
/** Times that the writer knows; with `createdAt: null` the incarnation begins. */
type Known = Partial<Omit<AppendOf['chain'], 'version'>>;

/** An append with defaults for all fields that the test does not care about. `more` overrides them. */
export function appendOf(
  stream: StreamId,
  expected: number,
  events: readonly { readonly type: string; readonly data: unknown }[],
  { createdAt = null, lastActivityAt = null, ...more }: Partial<AppendOf> & Known = {},
): AppendOf {
  return {
    stream,
    expected,
    incarnation: 1,
    begins: createdAt === null,
    chain: { version: more.expected ?? expected, createdAt, lastActivityAt },
    activity: true,
    state: { version: expected + events.length },
    stateVersion: 1,
    actor: 'tester',
    correlationId: 'test',
    causationId: null,
    events: events.map((event) => ({ ...event, schemaVersion: 1 })),
    ...more,
  };
}
