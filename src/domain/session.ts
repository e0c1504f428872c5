import { type Decider, type Decision, DomainError, type Guard } from './decider.js';
import {
  type EventData,
  type EventOf,
  type Json,
  type SessionEvent,
  type ToolDefinition,
  type Usage,
} from './session.events.js';

/** Raise it when `SessionState` or `evolve` changes: states stored under another number are folded anew. */
export const STATE_VERSION = 1;

/** What the rules need to know of a session, and what an answer about it shows; times are the store's. */
export interface SessionState {
  readonly version: number;
  readonly incarnation: number;
  readonly status: 'none' | 'active' | 'expired' | 'deleted';
  readonly title: string | null;
  readonly metadata: Readonly<Record<string, Json>>;
  readonly legalHold: boolean;
  readonly forkedFrom: { readonly sessionId: string; readonly version: number } | null;
  /** Version of the event that began the present history: `SessionCreated` or the last `ConversationReset`. */
  readonly historyStart: number;
  readonly messageCount: number;
  /** Tool calls in history that have no result yet, in their order. */
  readonly openToolCalls: readonly { readonly id: string; readonly name: string }[];
  readonly approvals: readonly EventData<'ToolApprovalGranted'>[];
  /** Totals of the incarnation; a reset keeps them. */
  readonly usage: UsageTotals;
  readonly generation: { readonly id: string; readonly model: string } | null;
}

export interface UsageTotals {
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly cachedTokens: number;
  readonly reasoningTokens: number;
}
const NO_USAGE: UsageTotals = { inputTokens: 0, outputTokens: 0, cachedTokens: 0, reasoningTokens: 0 };

const initialState: SessionState = {
  version: 0,
  incarnation: 0,
  status: 'none',
  title: null,
  metadata: {},
  legalHold: false,
  forkedFrom: null,
  historyStart: 0,
  messageCount: 0,
  openToolCalls: [],
  approvals: [],
  usage: NO_USAGE,
  generation: null,
};

/** A message on its way into a session; ids come from outside, since the rules know no random. */
export type NewMessage = EventData<'MessageAppended'>;
/** What had arrived of a reply when its generation ended early. */
export type PartialReply = Pick<NewMessage, 'messageId' | 'content'> & {
  /** Whose reply it is; one of another generation than the current is left out. */
  readonly generationId?: string;
};

/** Who asks, for which session, and under which conditions; the rules themselves do not look at it. */
export interface CommandTarget {
  readonly tenant: string;
  readonly sessionId: string;
  /** Name of the API key, or of the part of the service that acts by itself (`system:…`). */
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId?: string | undefined;
  /** The versions that `If-Match` allows; `*` means any existing session. */
  readonly ifMatch?: '*' | readonly number[] | undefined;
  readonly idempotency?: IdempotencyKey | undefined;
}

/** `key` is the client's own within `scope`; `fingerprint` tells whether a retry asks for the same thing. */
export interface IdempotencyKey {
  readonly scope: string;
  readonly key: string;
  readonly fingerprint: string;
}

export class CreateSession {
  readonly type = 'CreateSession';
  constructor(
    readonly to: CommandTarget,
    readonly details: Pick<EventData<'SessionCreated'>, 'title' | 'metadata'> = {},
  ) {}
}
/** Makes a session whose history begins as a copy of another's; the target must not exist. */
export class ForkSession {
  readonly type = 'ForkSession';
  constructor(
    readonly to: CommandTarget,
    readonly from: { readonly sessionId: string; readonly version: number },
    readonly messages: readonly NewMessage[],
    readonly details: Pick<EventData<'SessionCreated'>, 'title' | 'metadata'> = {},
  ) {}
}
/** A field that is given replaces the old value; `title: null` takes the title away. */
export class ChangeSessionDetails {
  readonly type = 'ChangeSessionDetails';
  constructor(
    readonly to: CommandTarget,
    readonly details: EventData<'SessionDetailsChanged'>,
  ) {}
}
export class AppendMessages {
  readonly type = 'AppendMessages';
  constructor(
    readonly to: CommandTarget,
    readonly messages: readonly NewMessage[],
  ) {}
}
/** Ranges of versions up to `upTo`; what is appended later is always seen. */
export interface ContextWindow {
  readonly ranges: readonly (readonly [number, number])[];
  readonly upTo: number;
}
export class StartGeneration {
  readonly type = 'StartGeneration';
  constructor(
    readonly to: CommandTarget,
    readonly generation: {
      readonly generationId: string;
      readonly model: string;
      readonly instructions?: string | undefined;
      readonly parameters?: Record<string, Json> | undefined;
      readonly tools?: ToolDefinition[] | undefined;
    },
    readonly message?: NewMessage,
    /** What had arrived of the generation before, should that one turn out to be dead. */
    readonly partial?: PartialReply,
    /** What of the history up to a version the model is to see; all of it unless given. */
    readonly window?: ContextWindow,
    /** By which others see that somebody works on it; without one it counts as abandoned. */
    readonly lease?: { readonly name: string; readonly owner: string; readonly ms: number },
    /** Told what is about to be appended, and the state before it; again if that came too late. */
    readonly decided?: (events: readonly SessionEvent[], before: SessionState) => void,
  ) {}
}
export class CompleteGeneration {
  readonly type = 'CompleteGeneration';
  constructor(
    readonly to: CommandTarget,
    readonly result: Omit<EventData<'GenerationCompleted'>, 'model'>,
    readonly reply: Pick<NewMessage, 'messageId' | 'content' | 'toolCalls'>,
  ) {}
}
export class FailGeneration {
  readonly type = 'FailGeneration';
  constructor(
    readonly to: CommandTarget,
    readonly failure: Omit<EventData<'GenerationFailed'>, 'model'>,
    readonly partial?: PartialReply,
  ) {}
}
/** With a `generationId` it ends that one only: a node that stops late must not end the successor of its own. */
export class CancelGeneration {
  readonly type = 'CancelGeneration';
  constructor(
    readonly to: CommandTarget,
    readonly partial?: PartialReply,
    readonly end: Pick<EventData<'GenerationCancelled'>, 'usage' | 'durationMs'> = {},
    readonly generationId?: string,
  ) {}
}
/** Ends a generation whose node is gone; refused with `session-busy` while its lease stands. */
export class AbandonGeneration {
  readonly type = 'AbandonGeneration';
  constructor(
    readonly to: CommandTarget,
    readonly generationId: string,
    readonly partial?: PartialReply,
  ) {}
}
export class GrantToolApproval {
  readonly type = 'GrantToolApproval';
  constructor(
    readonly to: CommandTarget,
    readonly approval: EventData<'ToolApprovalGranted'>,
  ) {}
}
export class RevokeToolApproval {
  readonly type = 'RevokeToolApproval';
  constructor(
    readonly to: CommandTarget,
    readonly tool: string,
  ) {}
}
export class ResetConversation {
  readonly type = 'ResetConversation';
  constructor(
    readonly to: CommandTarget,
    readonly reason?: string,
    readonly partial?: PartialReply,
  ) {}
}
/** Takes a session out of the active set. `idleFor` (ms) is checked again when the event is stamped. */
export class ExpireSession {
  readonly type = 'ExpireSession';
  constructor(
    readonly to: CommandTarget,
    readonly reason: EventData<'SessionExpired'>['reason'],
    readonly lastActivityAt: string,
    readonly idleFor?: number,
  ) {}
}
export class DeleteSession {
  readonly type = 'DeleteSession';
  constructor(
    readonly to: CommandTarget,
    readonly reason?: string,
  ) {}
}

export type SessionCommand =
  | CreateSession
  | ForkSession
  | ChangeSessionDetails
  | AppendMessages
  | StartGeneration
  | CompleteGeneration
  | FailGeneration
  | CancelGeneration
  | AbandonGeneration
  | GrantToolApproval
  | RevokeToolApproval
  | ResetConversation
  | ExpireSession
  | DeleteSession;

/** The name of the lease that a node holds while it works on a generation. */
export const generationLease = (generationId: string): string => `generation:${generationId}`;

/** Whether an event counts as use of the session: all but the expiry itself. Reads never count. */
export const isActivity = (event: { readonly type: string }): boolean => event.type !== 'SessionExpired';

/** The most approvals a session holds; they are part of the state that every append stores. */
const MAX_APPROVALS = 100;
/** The most tool calls that may wait for a result; for the same reason. */
const MAX_OPEN_TOOL_CALLS = 512;

const NOTHING: Decision<SessionEvent> = { events: [] };

function decide(command: SessionCommand, state: SessionState): Decision<SessionEvent> {
  switch (command.type) {
    case 'CreateSession':
      if (!exists(state)) return opened([{ type: 'SessionCreated', data: given(command.details) }]);
      return state.status === 'expired' ? resumed([]) : NOTHING;

    case 'ForkSession':
      if (exists(state)) return refuseOrRepeatFork(command, state);
      return opened([
        { type: 'SessionCreated', data: { ...given(command.details), forkedFrom: command.from } },
        ...command.messages.map(appended),
      ]);
  }

  if (!exists(state)) throw new DomainError('session-not-found', 'there is no such session');

  switch (command.type) {
    case 'ChangeSessionDetails': {
      const changed = changedDetails(command.details, state);
      return Object.keys(changed).length === 0
        ? NOTHING
        : { events: [{ type: 'SessionDetailsChanged', data: changed }] };
    }

    case 'AppendMessages':
      checkMessages(command.messages, state);
      return inActiveSession(state, command.messages.map(appended));

    case 'StartGeneration':
      return startGeneration(command, state);

    case 'CompleteGeneration': {
      // Reset, delete or a take-over came first: the reply belongs to a conversation that is no more.
      if (state.generation?.id !== command.result.generationId) return NOTHING;
      const { generationId } = command.result;
      return {
        events: [
          appended({ ...given(command.reply), role: 'assistant', generationId, status: 'complete' }),
          { type: 'GenerationCompleted', data: { ...command.result, model: state.generation.model } },
        ],
      };
    }

    case 'FailGeneration':
      if (state.generation?.id !== command.failure.generationId) return NOTHING;
      return {
        events: [
          ...kept(command.partial, state.generation.id),
          { type: 'GenerationFailed', data: { ...command.failure, model: state.generation.model } },
        ],
      };

    case 'CancelGeneration':
      if (command.generationId !== undefined && state.generation?.id !== command.generationId) return NOTHING;
      return { events: [...kept(command.partial, state.generation?.id), ...cancelled(state, command.end)] };

    case 'AbandonGeneration':
      if (state.generation?.id !== command.generationId) return NOTHING;
      return {
        events: leaseExpired(state.generation, command.partial),
        guard: whenAbandoned(state.generation, busy()),
      };

    case 'GrantToolApproval':
      if (state.approvals.length >= MAX_APPROVALS && !approvalOf(state, command.approval.tool)) {
        throw new DomainError('invalid-request', `a session holds at most ${MAX_APPROVALS} tool approvals`);
      }
      return granted(command.approval);

    case 'RevokeToolApproval':
      return approvalOf(state, command.tool)
        ? { events: [{ type: 'ToolApprovalRevoked', data: { tool: command.tool } }] }
        : NOTHING;

    case 'ResetConversation': {
      const reset: SessionEvent = { type: 'ConversationReset', data: given({ reason: command.reason }) };
      if (!state.generation) return { events: [reset] };
      return {
        events: [...leaseExpired(state.generation, command.partial), reset],
        guard: whenAbandoned(state.generation, {
          events: [...kept(command.partial, state.generation.id), ...cancelled(state), reset],
        }),
      };
    }

    case 'ExpireSession': {
      if (state.status === 'expired' || state.generation) return NOTHING;
      const expired: Decision<SessionEvent> = {
        events: [
          {
            type: 'SessionExpired',
            data: { reason: command.reason, lastActivityAt: command.lastActivityAt },
          },
        ],
        counters: { active: -1 },
      };
      if (command.idleFor === undefined) return expired;
      return { ...expired, guard: { holds: { idleFor: command.idleFor }, otherwise: NOTHING } };
    }

    case 'DeleteSession':
      if (state.legalHold) throw new DomainError('legal-hold', 'the session is under legal hold');
      return {
        events: [...cancelled(state), { type: 'SessionDeleted', data: given({ reason: command.reason }) }],
        ...(state.status === 'active' && { counters: { active: -1 } }),
      };
  }
}

function startGeneration(command: StartGeneration, state: SessionState): Decision<SessionEvent> {
  const { generation, message, partial } = command;
  if (message) checkMessages([message], state, '/message');
  if (message?.toolCalls) {
    throw new DomainError('invalid-request', 'a message with tool calls needs their results first', {
      errors: [{ pointer: '/message/toolCalls', in: 'body', detail: 'have no results yet' }],
    });
  }
  if (!message && state.messageCount === 0) {
    throw new DomainError('invalid-request', 'there is no message to answer: give `message`', {
      errors: [{ pointer: '/message', in: 'body', detail: 'is needed while the history is empty' }],
    });
  }
  const before: SessionEvent[] = state.generation ? leaseExpired(state.generation, partial) : [];
  const answered =
    message?.role === 'tool'
      ? state.openToolCalls.findLast((call) => call.id === message.toolCallId)
      : undefined;
  // A model refuses a history in which a tool call stands without a result, for good: the session would be wedged.
  const results = state.openToolCalls
    .filter((call) => call !== answered)
    .map((call, index) =>
      appended({
        messageId: `${generation.generationId}.${index + 1}`,
        role: 'tool',
        toolCallId: call.id,
        name: call.name,
        content: 'cancelled',
        status: 'incomplete',
      }),
    );
  const events = [...before, ...results, ...(message ? [appended(message)] : [])];
  const resumes = state.status === 'expired' ? 1 : 0;
  const seen = state.version + resumes + events.length;
  events.push({
    type: 'GenerationStarted',
    data: {
      ...given(generation),
      context: contextOf(state, command.window, seen),
    },
  });
  const started = inActiveSession(state, events);
  return state.generation ? { ...started, guard: whenAbandoned(state.generation, busy()) } : started;
}

/** The versions that the model sees, the last being `seen`. A window of before a reset is of another history. */
function contextOf(state: SessionState, window: ContextWindow | undefined, seen: number): [number, number][] {
  if (!window || window.upTo <= state.historyStart) return [[state.historyStart + 1, seen]];
  const ranges = window.ranges.map(([from, to]): [number, number] => [from, to]);
  const last = ranges.at(-1);
  if (window.upTo >= seen) return ranges;
  if (last?.[1] === window.upTo) last[1] = seen;
  else ranges.push([window.upTo + 1, seen]);
  return ranges;
}

/** @throws DomainError `invalid-request` when a tool result answers no open call or an id is used twice. */
function checkMessages(messages: readonly NewMessage[], state: SessionState, base?: string): void {
  // Calls, not ids: a model may give two calls of a reply the same id, and each of them needs its own result.
  const open = new Map<string, number>();
  const count = (id: string, by: 1 | -1) => open.set(id, (open.get(id) ?? 0) + by);
  for (const call of state.openToolCalls) count(call.id, 1);
  let total = state.openToolCalls.length;
  messages.forEach((message, index) => {
    const at = base ?? `/messages/${index}`;
    if (message.role === 'tool') {
      if (message.toolCallId === undefined || !open.get(message.toolCallId)) {
        throw new DomainError(
          'invalid-request',
          'a tool message must answer a tool call that has no result yet',
          {
            errors: [
              {
                pointer: `${at}/toolCallId`,
                in: 'body',
                detail: 'answers no open tool call of this session',
              },
            ],
          },
        );
      }
      count(message.toolCallId, -1);
      total -= 1;
    }
    message.toolCalls?.forEach((call, position) => {
      if (open.get(call.id)) {
        throw new DomainError('invalid-request', 'a tool call has the id of another that has no result yet', {
          errors: [{ pointer: `${at}/toolCalls/${position}/id`, in: 'body', detail: 'is in use' }],
        });
      }
      count(call.id, 1);
      total += 1;
    });
    if (total > MAX_OPEN_TOOL_CALLS) {
      throw new DomainError(
        'invalid-request',
        `more than ${MAX_OPEN_TOOL_CALLS} tool calls would wait for a result`,
        {
          errors: [
            { pointer: `${at}/toolCalls`, in: 'body', detail: 'are too many beside those without a result' },
          ],
        },
      );
    }
  });
}

function refuseOrRepeatFork(command: ForkSession, state: SessionState): Decision<SessionEvent> {
  const from = state.forkedFrom;
  if (from?.sessionId === command.from.sessionId && from.version === command.from.version) return NOTHING;
  throw new DomainError('invalid-request', 'a session with this id exists already', {
    errors: [{ pointer: '/id', in: 'body', detail: 'is the id of an existing session' }],
  });
}

function changedDetails(
  details: EventData<'SessionDetailsChanged'>,
  state: SessionState,
): EventData<'SessionDetailsChanged'> {
  const changed: EventData<'SessionDetailsChanged'> = {};
  if (details.title !== undefined && details.title !== state.title) changed.title = details.title;
  if (details.metadata && JSON.stringify(details.metadata) !== JSON.stringify(state.metadata)) {
    changed.metadata = details.metadata;
  }
  if (details.legalHold !== undefined && details.legalHold !== state.legalHold)
    changed.legalHold = details.legalHold;
  return changed;
}

const exists = (state: SessionState): boolean => state.status === 'active' || state.status === 'expired';
const approvalOf = (state: SessionState, tool: string) => state.approvals.find((one) => one.tool === tool);

const busy = (): DomainError => new DomainError('session-busy', 'the session is generating a reply');

const appended = (data: NewMessage): EventOf<'MessageAppended'> => ({ type: 'MessageAppended', data });

const opened = (events: SessionEvent[]): Decision<SessionEvent> => ({ events, counters: { active: 1 } });
const resumed = (events: SessionEvent[]): Decision<SessionEvent> =>
  opened([{ type: 'SessionResumed', data: {} }, ...events]);
const inActiveSession = (state: SessionState, events: SessionEvent[]): Decision<SessionEvent> =>
  state.status === 'expired' ? resumed(events) : { events };

function kept(partial: PartialReply | undefined, generationId: string | undefined): SessionEvent[] {
  if (!partial || generationId === undefined || (partial.generationId ?? generationId) !== generationId)
    return [];
  return [appended({ ...partial, role: 'assistant', generationId, status: 'incomplete' })];
}

const cancelled = (
  { generation }: SessionState,
  end: Pick<EventData<'GenerationCancelled'>, 'usage' | 'durationMs'> = {},
): SessionEvent[] =>
  generation
    ? [
        {
          type: 'GenerationCancelled',
          data: { ...end, generationId: generation.id, model: generation.model },
        },
      ]
    : [];

const leaseExpired = (
  generation: NonNullable<SessionState['generation']>,
  partial?: PartialReply,
): SessionEvent[] => [
  ...kept(partial, generation.id),
  {
    type: 'GenerationFailed',
    data: {
      generationId: generation.id,
      model: generation.model,
      code: 'lease-expired',
      message: 'the node that made the model call went away before it ended',
    },
  },
];

const whenAbandoned = (
  generation: NonNullable<SessionState['generation']>,
  otherwise: Guard<SessionEvent>['otherwise'],
): Guard<SessionEvent> => ({ holds: { leaseOver: generationLease(generation.id) }, otherwise });

/** Drops the keys whose value is undefined: an event says nothing of what was not given. */
function given<T extends object>(data: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(data).filter(([, value]) => value !== undefined)) as never;
}

function evolve(state: SessionState, event: SessionEvent): SessionState {
  const next = { ...state, version: state.version + 1 };
  switch (event.type) {
    case 'SessionCreated':
      return {
        ...initialState,
        version: next.version,
        incarnation: state.incarnation + 1,
        status: 'active',
        title: event.data.title ?? null,
        metadata: event.data.metadata ?? {},
        forkedFrom: event.data.forkedFrom ?? null,
        historyStart: next.version,
      };
    case 'SessionDetailsChanged':
      return {
        ...next,
        title: event.data.title === undefined ? state.title : event.data.title,
        metadata: event.data.metadata ?? state.metadata,
        legalHold: event.data.legalHold ?? state.legalHold,
      };
    case 'MessageAppended':
      return { ...next, ...withMessage(state, event.data), messageCount: state.messageCount + 1 };
    case 'GenerationStarted':
      return { ...next, generation: { id: event.data.generationId, model: event.data.model } };
    case 'GenerationCompleted':
    case 'GenerationFailed':
    case 'GenerationCancelled':
      return { ...next, generation: null, usage: addUsage(state.usage, event.data.usage) };
    case 'ToolApprovalGranted':
      return { ...next, approvals: [...without(state.approvals, event.data.tool), event.data] };
    case 'ToolApprovalRevoked':
      return { ...next, approvals: without(state.approvals, event.data.tool) };
    case 'ConversationReset':
      return { ...next, historyStart: next.version, messageCount: 0, openToolCalls: [], approvals: [] };
    case 'SessionExpired':
      return { ...next, status: 'expired' };
    case 'SessionResumed':
      return { ...next, status: 'active' };
    case 'SessionDeleted':
      return { ...initialState, version: next.version, incarnation: state.incarnation, status: 'deleted' };
  }
}

function withMessage(
  state: SessionState,
  message: NewMessage,
): Pick<SessionState, 'openToolCalls' | 'approvals'> {
  let { openToolCalls, approvals } = state;
  if (message.toolCalls) {
    openToolCalls = [...openToolCalls, ...message.toolCalls.map(({ id, name }) => ({ id, name }))];
  }
  if (message.role === 'tool') {
    const answered = openToolCalls.find((call) => call.id === message.toolCallId);
    openToolCalls = openToolCalls.filter((call) => call !== answered);
    // A synthetic result (incomplete) means that the tool never ran, so it uses nothing up.
    if (message.status === 'complete' && answered) {
      approvals = approvals.filter((one) => !(one.tool === answered.name && one.scope === 'once'));
    }
  }
  return { openToolCalls, approvals };
}

/** One that has run out already when it is recorded is a mistake of the client's. */
function granted(approval: EventData<'ToolApprovalGranted'>): Decision<SessionEvent> {
  const events: SessionEvent[] = [{ type: 'ToolApprovalGranted', data: approval }];
  if (approval.expiresAt === undefined) return { events };
  const otherwise = new DomainError('invalid-request', 'the approval would have run out already', {
    errors: [{ pointer: '/expiresAt', in: 'body', detail: 'is in the past' }],
  });
  return { events, guard: { holds: { before: approval.expiresAt }, otherwise } };
}

const without = (approvals: SessionState['approvals'], tool: string): SessionState['approvals'] =>
  approvals.filter((one) => one.tool !== tool);

const addUsage = (total: UsageTotals, more: Usage | undefined): UsageTotals => ({
  inputTokens: total.inputTokens + (more?.inputTokens ?? 0),
  outputTokens: total.outputTokens + (more?.outputTokens ?? 0),
  cachedTokens: total.cachedTokens + (more?.cachedTokens ?? 0),
  reasoningTokens: total.reasoningTokens + (more?.reasoningTokens ?? 0),
});

/** The rules of a session: section by section in docs/architecture.md. */
export const sessionDecider: Decider<SessionState, SessionCommand, SessionEvent> = {
  initialState,
  decide,
  evolve,
};
