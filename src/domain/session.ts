import { type Decider, type Decision, DomainError, given, type Guard } from './decider.js';
import {
  type AppendMessages,
  type ContextWindow,
  type ForkSession,
  type NewMessage,
  type PartialReply,
  type SessionCommand,
  type SessionDetails,
  type StartGeneration,
} from './session.commands.js';
import { type EventData, type EventOf, type SessionEvent } from './session.events.js';
import { decideErasure } from './session.erasure.js';
import { evolve, exists, initialState, isErased, type SessionState } from './session.state.js';

/** The name of the lease that a node holds while it works on a generation. */
export const generationLease = (generationId: string): string => `generation:${generationId}`;

/** Most approvals of a session. They are part of its state, which appends store. */
const MAX_APPROVALS = 100;
/** Most tool calls that may wait for a result, for the same reason. */
const MAX_OPEN_TOOL_CALLS = 512;

const NOTHING: Decision<SessionEvent> = { events: [] };

function decide(command: SessionCommand, state: SessionState): Decision<SessionEvent> {
  switch (command.type) {
    case 'CreateSession':
      if (!exists(state)) {
        checkMessages(command.messages, initialState);
        return opened([
          { type: 'SessionCreated', data: created(command.details, state) },
          ...command.messages.map(appended),
        ]);
      }
      ownerOf(command.details, state);
      return state.status === 'expired' ? resumed([]) : NOTHING;

    case 'ForkSession':
      if (exists(state)) return refuseOrRepeatFork(command, state);
      return opened([
        { type: 'SessionCreated', data: { ...created(command.details, state), forkedFrom: command.from } },
        ...command.messages.map(appended),
      ]);

    case 'StartGeneration': {
      if (exists(state) || !command.create) break;
      const begin: SessionEvent = { type: 'SessionCreated', data: created(command.create, state) };
      const { events } = startGeneration(command, evolve(state, begin));
      return opened([begin, ...events]);
    }

    case 'EraseSession':
    case 'ScheduleErasure':
    case 'CancelErasure':
      return decideErasure(command, state);
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
      if (command.replaceLast > 0) return replaceLast(command, state);
      checkMessages(command.messages, state);
      return inActiveSession(state, command.messages.map(appended));

    case 'StartGeneration':
      return startGeneration(command, state);

    case 'CompleteGeneration': {
      // A reset, a deletion or a take-over came first, so the reply belongs to a history that has ended.
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

    case 'RemoveMessage': {
      if (!command.removed)
        throw new DomainError('not-found', 'the history of the session has no such message');
      const { messageId, removed } = command;
      return rewritten(state, command.partial, {
        type: 'MessageRemoved',
        data: given({ messageId, ...removed }),
      });
    }

    case 'RewindHistory': {
      const { toVersion, reason, rewound } = command;
      if (toVersion < state.historyStart || toVersion > state.version) {
        throw new DomainError('invalid-request', 'the version is not one of the present history', {
          field: ['toVersion'],
          detail: `must be from ${state.historyStart} to ${state.version}`,
        });
      }
      if (!rewound) throw new Error('what is left of the history was not read');
      if (rewound.messageCount === state.messageCount) return NOTHING;
      return rewritten(state, command.partial, {
        type: 'HistoryRewound',
        data: given({ ...rewound, reason }),
      });
    }

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

const created = (details: SessionDetails, state: SessionState): EventData<'SessionCreated'> =>
  given({ ...details, owner: ownerOf(details, state) });

/**
 * The owner of a session that is created. An id that was used before keeps its owner, also if it had none: somebody else
 * would get what was there before, and the audit trail with it. Of one that was erased nobody knows whose it was.
 */
function ownerOf({ owner }: SessionDetails, state: SessionState): string | undefined {
  const { version, owner: known } = state;
  if (version === 0 || isErased(state) || (owner ?? known) === known) return owner ?? known ?? undefined;
  throw new DomainError('invalid-request', 'the id of the session belongs to another owner', {
    field: ['owner'],
    detail: 'is not the owner of this id',
  });
}

function startGeneration(command: StartGeneration, state: SessionState): Decision<SessionEvent> {
  const { generation, messages, partial } = command;
  const rewound = command.regenerate ? command.rewound : null;
  if (rewound === undefined) throw new Error('what is left of the history was not read');
  checkMessages(messages, state);
  if (messages.at(-1)?.toolCalls) {
    throw new DomainError('invalid-request', 'a message with tool calls needs their results first', {
      field: ['messages', messages.length - 1, 'toolCalls'],
      detail: 'have no results yet',
    });
  }
  if (messages.length === 0 && (rewound ?? state).messageCount === 0) {
    throw new DomainError('invalid-request', 'there is no message to answer: give `message`', {
      field: ['messages'],
      detail: 'is needed while the history is empty',
    });
  }
  const before: SessionEvent[] = state.generation ? leaseExpired(state.generation, partial) : [];
  if (rewound) before.push({ type: 'HistoryRewound', data: given({ ...rewound, reason: 'regenerate' }) });
  const openToolCalls = rewound ? (rewound.openToolCalls ?? []) : state.openToolCalls;
  // Models refuse a history with a tool call that has no result. Without these results every later turn would fail.
  const open = unanswered(openToolCalls, messages);
  const notRun = [...open.before, ...open.among].map((call, index) =>
    appended({
      messageId: `${generation.generationId}.${index + 1}`,
      role: 'tool',
      toolCallId: call.id,
      name: call.name,
      content: 'cancelled',
      status: 'incomplete',
    }),
  );
  const results = notRun.splice(0, open.before.length);
  const events = [...before, ...results, ...messages.map(appended), ...notRun];
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

type OpenToolCalls = SessionState['openToolCalls'];

/**
 * The tool calls that have no result when messages have joined a history: those that were open `before`, and those
 * `among` the messages. A result is that of the last call of its id, of a model that uses ids again.
 */
function unanswered(
  openBefore: OpenToolCalls,
  messages: readonly NewMessage[],
): { readonly before: OpenToolCalls; readonly among: OpenToolCalls } {
  const before = [...openBefore];
  const among: { id: string; name: string }[] = [];
  for (const { role, toolCallId, toolCalls } of messages) {
    if (role === 'tool') {
      const calls = among.some(({ id }) => id === toolCallId) ? among : before;
      calls.splice(
        calls.findLastIndex(({ id }) => id === toolCallId),
        1,
      );
    }
    for (const { id, name } of toolCalls ?? []) among.push({ id, name });
  }
  return { before, among };
}

/**
 * The versions that the model sees, up to `seen`. A window from before a reset is ignored: it is of another history.
 */
function contextOf(state: SessionState, window: ContextWindow | undefined, seen: number): [number, number][] {
  if (!window || window.upTo <= state.historyStart) return [[state.historyStart + 1, seen]];
  const ranges = window.ranges.map(([from, to]): [number, number] => [from, to]);
  const last = ranges.at(-1);
  if (window.upTo >= seen) return ranges;
  if (last?.[1] === window.upTo) last[1] = seen;
  else ranges.push([window.upTo + 1, seen]);
  return ranges;
}

/** A change of the history. It waits for no generation, but the lease of one that its node has left must be over. */
function rewritten(
  state: SessionState,
  partial: PartialReply | undefined,
  event: SessionEvent,
): Decision<SessionEvent> {
  if (!state.generation) return { events: [event] };
  return {
    events: [...leaseExpired(state.generation, partial), event],
    guard: whenAbandoned(state.generation, busy()),
  };
}

/** @throws DomainError `invalid-request` when a tool result answers no open call or an id is used twice. */
function checkMessages(messages: readonly NewMessage[], state: Pick<SessionState, 'openToolCalls'>): void {
  // Counts calls, not ids: a model may give two calls of a reply the same id, and each of them needs a result.
  const open = new Map<string, number>();
  const count = (id: string, by: 1 | -1) => open.set(id, (open.get(id) ?? 0) + by);
  for (const call of state.openToolCalls) count(call.id, 1);
  let total = state.openToolCalls.length;
  messages.forEach((message, index) => {
    const at = ['messages', index];
    if (message.role === 'tool') {
      if (message.toolCallId === undefined || !open.get(message.toolCallId)) {
        throw new DomainError(
          'invalid-request',
          'a tool message must answer a tool call that has no result yet',
          {
            field: [...at, 'toolCallId'],
            detail: 'answers no open tool call of this session',
          },
        );
      }
      count(message.toolCallId, -1);
      total -= 1;
    }
    message.toolCalls?.forEach((call, position) => {
      if (open.get(call.id)) {
        throw new DomainError('invalid-request', 'a tool call has the id of another that has no result yet', {
          field: [...at, 'toolCalls', position, 'id'],
          detail: 'is in use',
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
          field: [...at, 'toolCalls'],
          detail: 'are too many beside those without a result',
        },
      );
    }
  });
}

/** Takes messages out at the end of a history and puts others in their place, in one piece. */
function replaceLast(
  { messages, partial, rewound }: AppendMessages,
  state: SessionState,
): Decision<SessionEvent> {
  if (!rewound) {
    throw new DomainError('invalid-request', 'the history has not so many messages', {
      field: ['replaceLast'],
      detail: `must be at most ${state.messageCount}, the number of messages of the history`,
    });
  }
  checkMessages(messages, { openToolCalls: rewound.openToolCalls ?? [] });
  const events: SessionEvent[] = [
    { type: 'HistoryRewound', data: given({ ...rewound, reason: 'replaced' }) },
    ...messages.map(appended),
  ];
  if (!state.generation) return inActiveSession(state, events);
  const abandoned = leaseExpired(state.generation, partial);
  return { events: [...abandoned, ...events], guard: whenAbandoned(state.generation, busy()) };
}

function refuseOrRepeatFork(command: ForkSession, state: SessionState): Decision<SessionEvent> {
  const from = state.forkedFrom;
  if (from?.sessionId === command.from.sessionId && from.version === command.from.version) return NOTHING;
  throw new DomainError('invalid-request', 'a session with this id exists already', {
    field: ['id'],
    detail: 'is the id of an existing session',
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

/** Refuses an approval that has run out when it is recorded, because that is a mistake of the client. */
function granted(approval: EventData<'ToolApprovalGranted'>): Decision<SessionEvent> {
  const events: SessionEvent[] = [{ type: 'ToolApprovalGranted', data: approval }];
  if (approval.expiresAt === undefined) return { events };
  const otherwise = new DomainError('invalid-request', 'the approval would have run out already', {
    field: ['expiresAt'],
    detail: 'is in the past',
  });
  return { events, guard: { holds: { before: approval.expiresAt }, otherwise } };
}

/** The rules of a session. docs/events.md describes its events. */
export const sessionDecider: Decider<SessionState, SessionCommand, SessionEvent> = {
  initialState,
  decide,
  evolve,
};
