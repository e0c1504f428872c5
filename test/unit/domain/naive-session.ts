import { type GuardCondition } from '../../../src/domain/decider.js';
import { type EventData, type EventOf, type SessionEvent } from '../../../src/domain/session.events.js';
import {
  type ContextWindow,
  type NewMessage,
  type PartialReply,
  type Removed,
  type Rewound,
  type SessionCommand,
  type SessionDetails,
} from '../../../src/domain/session.commands.js';
import { type SessionState } from '../../../src/domain/session.state.js';
import { deleted, event, leaseExpired, notRun, type Refusal, resumed, said } from './given-when-then.js';

/**
 * A second implementation of the rules of a session, written so that a reader can check it: it keeps no state from
 * event to event and computes every answer from the whole log. It is slow, and shares no line with the code that it is
 * compared with.
 */

/** Everything in the state of a session except for where its history begins. */
export type Recount = Omit<SessionState, 'historyStart'>;

interface Call {
  readonly id: string;
  readonly name: string;
  /** Version of the message that calls. */
  readonly version: number;
  /** Version of its result. */
  answered?: { readonly version: number; readonly ran: boolean };
}

/** Version of the event that began the present history, or ended the last one. */
const begin = (log: readonly SessionEvent[]): number =>
  1 +
  log.findLastIndex(({ type }) =>
    ['SessionCreated', 'ConversationReset', 'SessionDeleted', 'SessionErased'].includes(type),
  );

/** The message that each version of the present history holds. */
export function messagesIn(log: readonly SessionEvent[]): { version: number; message: NewMessage }[] {
  const from = begin(log);
  return log.flatMap((one, index) =>
    one.type === 'MessageAppended' && index >= from && !hasLeft(log, index + 1)
      ? [{ version: index + 1, message: one.data }]
      : [],
  );
}

const hasLeft = (log: readonly SessionEvent[], version: number): boolean =>
  log
    .slice(version)
    .some(
      (later) =>
        (later.type === 'MessageRemoved' && later.data.versions.includes(version)) ||
        (later.type === 'HistoryRewound' && later.data.toVersion < version),
    );

const openAs = (calls: readonly Call[]) => {
  const openToolCalls = calls.filter((call) => !call.answered).map(({ id, name }) => ({ id, name }));
  return openToolCalls.length > 0 ? { openToolCalls } : {};
};

/** What leaves with the last message of this id: a call and its results go together. */
export function removalIn(log: readonly SessionEvent[], messageId: string): Removed | undefined {
  const target = messagesIn(log).findLast(({ message }) => message.messageId === messageId);
  if (!target) return undefined;
  const calls = callsIn(log);
  const { version } = calls.find(({ answered }) => answered?.version === target.version) ?? target;
  const results = calls.flatMap((call) =>
    call.version === version && call.answered ? [call.answered.version] : [],
  );
  return {
    versions: [version, ...results].sort((one, other) => one - other),
    ...openAs(calls.filter((call) => call.version !== version)),
  };
}

/** What is left after a rewinding; undefined when the version is not of the present history. */
export function rewoundIn(log: readonly SessionEvent[], toVersion: number): Rewound | undefined {
  if (toVersion < begin(log) || toVersion > log.length) return undefined;
  const left = [...log, event('HistoryRewound', { toVersion, messageCount: 0 })];
  return { toVersion, messageCount: messagesIn(left).length, ...openAs(callsIn(left)) };
}

/** The version before the last reply, unless a message of the user came after it. */
export function beforeLastReplyIn(log: readonly SessionEvent[]): number | undefined {
  const last = messagesIn(log).findLast(({ message }) => ['user', 'assistant'].includes(message.role));
  return last?.message.role === 'assistant' ? last.version - 1 : undefined;
}

/** The messages that a model is to see: those that a window of the present history selects, and all newer ones. */
export function seenThrough(window: ContextWindow | undefined, log: readonly SessionEvent[]): number[] {
  const versions = messagesIn(log).map(({ version }) => version);
  if (!window || window.upTo <= begin(log)) return versions;
  return versions.filter(
    (version) =>
      version > window.upTo || window.ranges.some(([from, to]) => from <= version && version <= to),
  );
}

/** The tool calls of the present history; a result belongs to the first call of its id that has none. */
export function callsIn(log: readonly SessionEvent[]): Call[] {
  const calls: Call[] = [];
  for (const { version, message } of messagesIn(log)) {
    for (const { id, name } of message.toolCalls ?? []) calls.push({ id, name, version });
    if (message.role !== 'tool') continue;
    const call = calls.find((one) => one.id === message.toolCallId && !one.answered);
    if (call) call.answered = { version, ran: message.status === 'complete' };
  }
  return calls;
}

const openCalls = (log: readonly SessionEvent[]) =>
  callsIn(log)
    .filter((call) => !call.answered)
    .map(({ id, name }) => ({ id, name }));

export function recount(log: readonly SessionEvent[]): Recount {
  const created = log.findLastIndex((one) => one.type === 'SessionCreated');
  const incarnation = log.filter((one) => one.type === 'SessionCreated').length;
  const erased = log.findLastIndex((one) => one.type === 'SessionErased');
  const gone =
    Math.max(
      erased,
      log.findLastIndex((one) => one.type === 'SessionDeleted'),
    ) > created;
  const present = created < 0 || gone ? [] : log.slice(created);

  const pick = <T extends SessionEvent['type']>(...types: T[]) =>
    present.filter((one): one is EventOf<T> => (types as string[]).includes(one.type));
  const details = pick('SessionCreated', 'SessionDetailsChanged').map(({ data }) => data);
  const holds = pick('SessionDetailsChanged').map(({ data }) => data.legalHold);
  const moves = pick('SessionCreated', 'SessionExpired', 'SessionResumed');
  const ends = pick('GenerationCompleted', 'GenerationFailed', 'GenerationCancelled');
  const last = pick('GenerationStarted', 'GenerationCompleted', 'GenerationFailed', 'GenerationCancelled').at(
    -1,
  );
  const sum = (kind: 'inputTokens' | 'outputTokens' | 'cachedTokens' | 'reasoningTokens') =>
    ends.reduce((total, { data }) => total + (data.usage?.[kind] ?? 0), 0);

  return {
    version: log.length,
    incarnation,
    status:
      log.length === 0
        ? 'none'
        : gone
          ? 'deleted'
          : moves.at(-1)?.type === 'SessionExpired'
            ? 'expired'
            : 'active',
    owner: log.slice(erased + 1).findLast((one) => one.type === 'SessionCreated')?.data.owner ?? null,
    title: details.findLast((data) => data.title !== undefined)?.title ?? null,
    metadata: details.findLast((data) => data.metadata !== undefined)?.metadata ?? {},
    legalHold: holds.findLast((hold) => hold !== undefined) ?? false,
    forkedFrom: pick('SessionCreated').at(0)?.data.forkedFrom ?? null,
    messageCount: messagesIn(log).length,
    openToolCalls: openCalls(log),
    approvals: approvalsIn(log),
    usage: {
      inputTokens: sum('inputTokens'),
      outputTokens: sum('outputTokens'),
      cachedTokens: sum('cachedTokens'),
      reasoningTokens: sum('reasoningTokens'),
    },
    generation:
      last?.type === 'GenerationStarted' ? { id: last.data.generationId, model: last.data.model } : null,
    ...(erased >= 0 && { erasedUpTo: erased + 1 }),
    ...plannedIn(log),
  };
}

/** What is scheduled or called off, by the events since the last erasure that tell of it. */
function plannedIn(log: readonly SessionEvent[]): Pick<SessionState, 'planned'> {
  const from = 1 + log.findLastIndex(({ type }) => type === 'SessionErased');
  const hasEndedAt = (index: number): boolean =>
    /SessionExpired|SessionDeleted/.test(
      log.slice(from, index).findLast(({ type }) => /^Session(Created|Expired|Resumed|Deleted)$/.test(type))
        ?.type ?? 'SessionDeleted',
    );
  const lastOf = (is: (one: SessionEvent, index: number) => boolean): number =>
    log.findLastIndex((one, index) => index >= from && is(one, index));
  const lastUse = lastOf(({ type }) => type === 'SessionCreated' || type === 'SessionResumed');
  const lastEnd = lastOf((one) => one.type === 'ErasureCancelled' && one.data.cause !== 'policy');
  const lastTakenBack = lastOf((one) => one.type === 'ErasureCancelled');

  const requestedAt = lastOf((one) => one.type === 'ErasureScheduled' && !one.data.policy);
  const request = requestedAt > lastEnd ? log[requestedAt] : undefined;
  const policyAt = lastOf((one) => one.type === 'ErasureScheduled' && one.data.policy !== undefined);
  const scheduled = policyAt > Math.max(lastTakenBack, lastUse) ? log[policyAt] : undefined;
  const isCalledOff = lastEnd >= 0 && lastEnd > lastUse && hasEndedAt(lastEnd);
  const planned = {
    ...(request?.type === 'ErasureScheduled' && {
      requested: {
        at: request.data.at,
        incarnation: log.slice(0, requestedAt).filter(({ type }) => type === 'SessionCreated').length,
        ...(request.data.reason !== undefined && { reason: request.data.reason }),
      },
    }),
    ...(scheduled?.type === 'ErasureScheduled' &&
      scheduled.data.policy && {
        byPolicy: { at: scheduled.data.at, eraseAfter: scheduled.data.policy.eraseAfter },
      }),
    ...(isCalledOff && { isCalledOff: true as const }),
  };
  return Object.keys(planned).length > 0 ? { planned } : {};
}

/** The last grant of each tool, unless something has ended it since. */
function approvalsIn(log: readonly SessionEvent[]): EventData<'ToolApprovalGranted'>[] {
  return log.flatMap((grant, index) => {
    if (grant.type !== 'ToolApprovalGranted') return [];
    const { tool, scope } = grant.data;
    const ended = log
      .slice(index + 1)
      .some(
        (one) =>
          ['SessionCreated', 'SessionDeleted', 'SessionErased', 'ConversationReset'].includes(one.type) ||
          ((one.type === 'ToolApprovalRevoked' || one.type === 'ToolApprovalGranted') &&
            one.data.tool === tool),
      );
    // Whether the call and its result are still in the history does not matter.
    const used = log.some((one, at) => {
      if (at <= index || one.type !== 'MessageAppended' || one.data.role !== 'tool') return false;
      const call = openCalls(log.slice(0, at)).find(({ id }) => id === one.data.toolCallId);
      return call?.name === tool && one.data.status === 'complete';
    });
    return ended || (scope === 'once' && used) ? [] : [grant.data];
  });
}

/** The decision that a command must lead to. The context of a `GenerationStarted` is left empty. */
export type Foretold =
  | { readonly refused: Refusal['refused']; readonly asked?: GuardCondition }
  | {
      readonly events: readonly SessionEvent[];
      /** Change of the count of active sessions. */
      readonly active: number;
      /** What the decision depends on at the append. */
      readonly asked?: GuardCondition;
    };

/** @param holds whether the condition of the decision, if there is one, is true at the append */
export function foretell(command: SessionCommand, log: readonly SessionEvent[], holds: boolean): Foretold {
  const now = recount(log);
  const nothing: Foretold = { events: [], active: 0 };
  const exists = now.status === 'active' || now.status === 'expired';

  // An id that was used keeps the owner that it had, also if that was nobody.
  const named = (details: SessionDetails) => ({
    ...details,
    ...(now.owner !== null && { owner: now.owner }),
  });
  const isOfAnother = ({ owner }: SessionDetails): boolean =>
    owner !== undefined && now.version > 0 && now.version !== now.erasedUpTo && owner !== now.owner;
  if (command.type === 'ScheduleErasure') {
    const { at, reason, policy, erasure } = command;
    const isGone = log.at(-1)?.type === 'SessionErased';
    if (policy) {
      const stays =
        !['expired', 'deleted'].includes(now.status) ||
        isGone ||
        now.legalHold ||
        now.planned?.isCalledOff === true ||
        now.planned?.byPolicy?.eraseAfter === policy.eraseAfter;
      return stays ? nothing : { events: [event('ErasureScheduled', { at, policy })], active: 0 };
    }
    if (now.version === 0) return { refused: 'session-not-found' };
    if (now.legalHold) return { refused: 'legal-hold' };
    if (isGone) return nothing;
    if (!erasure || erasure.isPlain) return { refused: 'not-sealed' };
    const why = reason === undefined ? {} : { reason };
    const same = { at, incarnation: now.incarnation, ...why };
    if (JSON.stringify(now.planned?.requested) === JSON.stringify(same)) return nothing;
    const asked = { before: at };
    if (!holds) return { refused: 'invalid-request', asked };
    return { events: [event('ErasureScheduled', { at, ...why })], active: 0, asked };
  }
  if (command.type === 'CancelErasure') {
    const { reason, cause } = command;
    if (now.version === 0) return { refused: 'session-not-found' };
    const data = { cause, ...(reason !== undefined && { reason }) };
    const done: Foretold = { events: [event('ErasureCancelled', data)], active: 0 };
    if (now.planned?.byPolicy) return done;
    if (cause === 'policy') return nothing;
    return now.planned?.requested ? done : { refused: 'not-found' };
  }
  if (command.type === 'EraseSession') {
    const { erasure, planned } = command;
    const plan = planned && now.planned?.[planned];
    const isLaterLife =
      planned === 'requested' &&
      now.status !== 'deleted' &&
      now.planned?.requested?.incarnation !== now.incarnation;
    if (planned && (!plan || now.legalHold || isLaterLife)) return nothing;
    const { byPolicy } = now.planned ?? {};
    const reason = !planned
      ? command.reason
      : planned === 'requested'
        ? now.planned?.requested?.reason
        : `retention: eraseAfter ${byPolicy?.eraseAfter ?? 0} ms`;
    if (planned && erasure?.isPlain)
      return { events: [event('ErasureCancelled', { cause: 'not-sealed' })], active: 0 };
    if (now.version === 0) return { refused: 'session-not-found' };
    if (now.legalHold) return { refused: 'legal-hold' };
    if (log.at(-1)?.type === 'SessionErased') return nothing;
    if (!erasure || erasure.isPlain) return { refused: 'not-sealed' };
    const data = {
      incarnations: [...erasure.incarnations],
      keys: [...erasure.keys],
      ...(reason !== undefined && { reason }),
    };
    return { events: [{ type: 'SessionErased', data }], active: now.status === 'active' ? -1 : 0 };
  }
  if (command.type === 'CreateSession') {
    const { messages } = command;
    const details = named(command.details);
    if (isOfAnother(command.details)) return { refused: 'invalid-request' };
    if (!exists && !allowed(messages, [])) return { refused: 'invalid-request' };
    if (!exists) return { events: [event('SessionCreated', details), ...messages.map(said)], active: 1 };
    return now.status === 'expired' ? { events: [resumed], active: 1 } : nothing;
  }
  if (command.type === 'ForkSession') {
    const { from, messages } = command;
    const details = named(command.details);
    if (!exists && isOfAnother(command.details)) return { refused: 'invalid-request' };
    if (!exists) {
      const first = event('SessionCreated', { ...details, forkedFrom: from });
      return { events: [first, ...messages.map(said)], active: 1 };
    }
    const same = now.forkedFrom?.sessionId === from.sessionId && now.forkedFrom.version === from.version;
    return same ? nothing : { refused: 'invalid-request' };
  }
  if (!exists && command.type === 'StartGeneration' && command.create) {
    if (isOfAnother(command.create)) return { refused: 'invalid-request' };
    const created = event('SessionCreated', named(command.create));
    const { create: _create, ...asked } = command;
    const foretold = foretell(asked, [...log, created], holds);
    return 'events' in foretold ? { events: [created, ...foretold.events], active: 1 } : foretold;
  }
  if (!exists) return { refused: 'session-not-found' };

  const running = now.generation;
  const restoring = (events: SessionEvent[]): Foretold =>
    now.status === 'expired' ? { events: [resumed, ...events], active: 1 } : { events, active: 0 };
  const partOf = (partial: PartialReply | undefined): SessionEvent[] => {
    if (!partial || !running) return [];
    if (partial.generationId !== undefined && partial.generationId !== running.id) return [];
    const { messageId, content } = partial;
    return [said({ messageId, role: 'assistant', content, generationId: running.id, status: 'incomplete' })];
  };
  const cancelled = running
    ? [event('GenerationCancelled', { generationId: running.id, model: running.model })]
    : [];

  switch (command.type) {
    case 'ChangeSessionDetails': {
      const { title, metadata, legalHold } = command.details;
      const data = {
        ...(title !== undefined && title !== now.title && { title }),
        ...(metadata && JSON.stringify(metadata) !== JSON.stringify(now.metadata) && { metadata }),
        ...(legalHold !== undefined && legalHold !== now.legalHold && { legalHold }),
      };
      return Object.keys(data).length > 0
        ? { events: [event('SessionDetailsChanged', data)], active: 0 }
        : nothing;
    }

    case 'AppendMessages': {
      const { messages, replaceLast, rewound, partial } = command;
      const leaving =
        replaceLast > 0 && rewound ? [event('HistoryRewound', { ...rewound, reason: 'replaced' })] : [];
      if (replaceLast > messagesIn(log).length || !allowed(messages, [...log, ...leaving]))
        return { refused: 'invalid-request' };
      const asked = running && replaceLast > 0 && { leaseOver: `generation:${running.id}` };
      if (!asked) return restoring([...leaving, ...messages.map(said)]);
      if (!holds) return { refused: 'session-busy', asked };
      const abandoned = [...partOf(partial), leaseExpired(running.id, running.model)];
      return { events: [...abandoned, ...leaving, ...messages.map(said)], active: 0, asked };
    }

    case 'StartGeneration': {
      const { generation, messages, partial } = command;
      const rewound = command.regenerate ? command.rewound : null;
      const rewinding = rewound ? [event('HistoryRewound', { ...rewound, reason: 'regenerate' })] : [];
      const left = [...log, ...rewinding];
      const isEmpty = messages.length === 0 && messagesIn(left).length === 0;
      if (isEmpty || !allowed(messages, log) || messages.at(-1)?.toolCalls) {
        return { refused: 'invalid-request' };
      }
      const asked = running && { leaseOver: `generation:${running.id}` };
      if (asked && !holds) return { refused: 'session-busy', asked };
      const open = openCalls(left);
      const given = messages.map(said);
      for (const [index, { role, toolCallId }] of messages.entries()) {
        const isOfGiven = openCalls(given.slice(0, index)).some(({ id }) => id === toolCallId);
        // The messages come last, so a result answers the last of the calls that share its id.
        if (role === 'tool' && !isOfGiven) {
          const last = open.findLastIndex(({ id }) => id === toolCallId);
          open.splice(last, 1);
        }
      }
      const notRunOf = (calls: typeof open, before: number) =>
        calls.map(({ id, name }, index) =>
          said(notRun(`${generation.generationId}.${before + index + 1}`, id, name)),
        );
      return {
        ...restoring([
          ...partOf(partial),
          ...(running ? [leaseExpired(running.id, running.model)] : []),
          ...rewinding,
          ...notRunOf(open, 0),
          ...given,
          ...notRunOf(openCalls(given), open.length),
          event('GenerationStarted', { ...generation, context: [] }),
        ]),
        ...(asked && { asked }),
      };
    }

    case 'CompleteGeneration': {
      const { result, reply } = command;
      if (running?.id !== result.generationId) return nothing;
      return {
        events: [
          said({ ...reply, role: 'assistant', generationId: running.id, status: 'complete' }),
          event('GenerationCompleted', { ...result, model: running.model }),
        ],
        active: 0,
      };
    }

    case 'FailGeneration': {
      const { failure, partial } = command;
      if (running?.id !== failure.generationId) return nothing;
      return {
        events: [...partOf(partial), event('GenerationFailed', { ...failure, model: running.model })],
        active: 0,
      };
    }

    case 'CancelGeneration': {
      const { generationId, partial, end } = command;
      if (!running || (generationId !== undefined && generationId !== running.id)) return nothing;
      const ended = event('GenerationCancelled', { ...end, generationId: running.id, model: running.model });
      return { events: [...partOf(partial), ended], active: 0 };
    }

    case 'AbandonGeneration': {
      if (running?.id !== command.generationId) return nothing;
      const asked = { leaseOver: `generation:${running.id}` };
      if (!holds) return { refused: 'session-busy', asked };
      return {
        events: [...partOf(command.partial), leaseExpired(running.id, running.model)],
        active: 0,
        asked,
      };
    }

    case 'GrantToolApproval': {
      const { expiresAt } = command.approval;
      const asked = expiresAt === undefined ? {} : { asked: { before: expiresAt } };
      if (expiresAt !== undefined && !holds) return { refused: 'invalid-request', ...asked };
      return { events: [event('ToolApprovalGranted', command.approval)], active: 0, ...asked };
    }

    case 'RevokeToolApproval':
      return now.approvals.some(({ tool }) => tool === command.tool)
        ? { events: [event('ToolApprovalRevoked', { tool: command.tool })], active: 0 }
        : nothing;

    case 'RemoveMessage':
    case 'RewindHistory': {
      let change: SessionEvent;
      if (command.type === 'RemoveMessage') {
        const removed = removalIn(log, command.messageId);
        if (!removed) return { refused: 'not-found' };
        change = event('MessageRemoved', { messageId: command.messageId, ...removed });
      } else {
        const rewound = rewoundIn(log, command.toVersion);
        if (!rewound) return { refused: 'invalid-request' };
        if (rewound.messageCount === now.messageCount) return nothing;
        const why = command.reason === undefined ? {} : { reason: command.reason };
        change = event('HistoryRewound', { ...rewound, ...why });
      }
      if (!running) return { events: [change], active: 0 };
      const asked = { leaseOver: `generation:${running.id}` };
      if (!holds) return { refused: 'session-busy', asked };
      const ended = [...partOf(command.partial), leaseExpired(running.id, running.model)];
      return { events: [...ended, change], active: 0, asked };
    }

    case 'ResetConversation': {
      const { reason, partial } = command;
      const reset = event('ConversationReset', reason === undefined ? {} : { reason });
      if (!running) return { events: [reset], active: 0 };
      const ended = [...partOf(partial), ...(holds ? [leaseExpired(running.id, running.model)] : cancelled)];
      return { events: [...ended, reset], active: 0, asked: { leaseOver: `generation:${running.id}` } };
    }

    case 'ExpireSession': {
      const { reason, lastActivityAt, idleFor } = command;
      if (now.status === 'expired' || running) return nothing;
      const asked = idleFor === undefined ? {} : { asked: { idleFor } };
      if (idleFor !== undefined && !holds) return { ...nothing, ...asked };
      return { events: [event('SessionExpired', { reason, lastActivityAt })], active: -1, ...asked };
    }

    case 'DeleteSession': {
      if (now.legalHold) return { refused: 'legal-hold' };
      const end =
        command.reason === undefined ? deleted : event('SessionDeleted', { reason: command.reason });
      return { events: [...cancelled, end], active: now.status === 'active' ? -1 : 0 };
    }
  }
}

/** Whether every result answers a call that has none yet, and no call uses the id of a call without a result. */
function allowed(messages: readonly NewMessage[], log: readonly SessionEvent[]): boolean {
  return messages.every((message, index) => {
    const open = openCalls([...log, ...messages.slice(0, index).map(said)]).map(({ id }) => id);
    const own = message.toolCalls?.map(({ id }) => id) ?? [];
    if (message.role === 'tool' && !open.includes(message.toolCallId ?? '')) return false;
    return new Set(own).size === own.length && !own.some((id) => open.includes(id));
  });
}
