import {
  type Decider,
  type Decision,
  DomainError,
  type GuardCondition,
} from '../../../src/domain/decider.js';
import {
  type EventData,
  type EventOf,
  type SessionEvent,
  sessionEvents,
} from '../../../src/domain/session.events.js';
import { type NewMessage, type SessionCommand } from '../../../src/domain/session.commands.js';
import { type SessionState } from '../../../src/domain/session.state.js';
import { sessionDecider } from '../../../src/domain/session.js';

/** A command was refused. The fields are those of the error on which callers act. */
export interface Refusal {
  readonly refused: DomainError['code'];
  /** The field at fault, in the words of the command: names and indexes, joined by dots. */
  readonly at?: string;
}

/** What accompanies the events of a decision. The `otherwise` of a guard is a whole decision again. */
export interface Conditions<Event> {
  readonly guard?: { readonly holds: GuardCondition; readonly otherwise: Refusal | Outcome<Event> };
  readonly counters?: Readonly<Record<string, number>>;
  readonly destroys?: readonly string[];
}
export type Outcome<Event> = { readonly events: readonly Event[] } & Conditions<Event>;

type AnyEvent = SessionEvent | EventOf<'TenantSettingsChanged'>;

/**
 * `given(…events).when(command).then(events | refusal, { guard?, counters? })` for the rules of a session. The whole
 * decision is compared, so a guard or counter that is not named must be absent.
 */
export const given = specs(sessionDecider);

export function specs<State, Command, Event extends AnyEvent>(decider: Decider<State, Command, Event>) {
  return (...past: readonly Event[]) => ({
    when: (command: Command) => ({
      then(expected: readonly Event[] | Refusal, conditions: Conditions<Event> = {}): void {
        const state = deepFreeze(
          past.reduce((before, event) => decider.evolve(before, event), decider.initialState),
        );
        const outcome = attempt(() => decider.decide(deepFreeze(command), state));
        expect(outcome).toEqual('refused' in expected ? expected : { events: expected, ...conditions });
        for (const event of decidedEvents(outcome)) expectToFitItsSchema(event);
      },
    }),
  });
}

/** Runs `decide` and puts its answer, errors included, into a form that is easy to compare. */
export function attempt<Event>(decide: () => Decision<Event>): Refusal | Outcome<Event> {
  try {
    return plain(decide());
  } catch (error) {
    if (error instanceof DomainError) return refusal(error);
    throw error;
  }
}

function plain<Event>({ guard, ...decision }: Decision<Event>): Outcome<Event> {
  if (!guard) return decision;
  const { holds, otherwise } = guard;
  return {
    ...decision,
    guard: { holds, otherwise: otherwise instanceof DomainError ? refusal(otherwise) : plain(otherwise) },
  };
}

function refusal({ code, field }: DomainError): Refusal {
  return { refused: code, ...(field && { at: field.join('.') }) };
}

function decidedEvents<Event>(outcome: Refusal | Outcome<Event>): readonly Event[] {
  if ('refused' in outcome) return [];
  return [...outcome.events, ...(outcome.guard ? decidedEvents(outcome.guard.otherwise) : [])];
}

/** A schema drops unknown fields, so its result differs when the event has a field that it must not have. */
export function expectToFitItsSchema({ type, data }: AnyEvent): void {
  expect(sessionEvents[type].data.parse(data)).toEqual(data);
}

export function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}

/** The state after these events. */
export const stateAfter = (...events: readonly SessionEvent[]): SessionState =>
  events.reduce((state, one) => sessionDecider.evolve(state, one), sessionDecider.initialState);

/** The given events and those that a command leads to when its guard holds. */
export const after = (past: readonly SessionEvent[], command: SessionCommand): SessionEvent[] => [
  ...past,
  ...sessionDecider.decide(command, stateAfter(...past)).events,
];

export const event = <T extends SessionEvent['type']>(type: T, data: EventData<T>) =>
  ({ type, data }) as EventOf<T>;

export const created = event('SessionCreated', {});
export const expired = event('SessionExpired', { reason: 'ttl', lastActivityAt: '2026-01-01T00:00:00.000Z' });
export const resumed = event('SessionResumed', {});
export const deleted = event('SessionDeleted', {});
export const reset = event('ConversationReset', {});

export const user = (messageId: string, more: Partial<NewMessage> = {}): NewMessage => ({
  messageId,
  role: 'user',
  content: `words of ${messageId}`,
  status: 'complete',
  ...more,
});
/** An assistant's message that calls tools: `{ callId: tool }`. */
export const calling = (messageId: string, calls: Record<string, string>): NewMessage =>
  user(messageId, {
    role: 'assistant',
    toolCalls: Object.entries(calls).map(([id, name]) => ({ id, name, arguments: '{}' })),
  });
export const result = (messageId: string, toolCallId: string, more: Partial<NewMessage> = {}): NewMessage =>
  user(messageId, { role: 'tool', toolCallId, ...more });
/** The synthetic result of a tool call that never got one. */
export const notRun = (messageId: string, toolCallId: string, name: string): NewMessage =>
  result(messageId, toolCallId, { name, content: 'cancelled', status: 'incomplete' });
export const said = (message: NewMessage) => event('MessageAppended', message);

export const started = (generationId: string, context: [number, number], model = 'echo') =>
  event('GenerationStarted', { generationId, model, context: [context] });
export const leaseExpired = (generationId: string, model = 'echo') =>
  event('GenerationFailed', {
    generationId,
    model,
    code: 'lease-expired',
    message: 'the node that made the model call went away before it ended',
  });
export const granted = (
  tool: string,
  scope: 'once' | 'session' = 'once',
  more: Partial<EventData<'ToolApprovalGranted'>> = {},
) => event('ToolApprovalGranted', { tool, scope, ...more });
