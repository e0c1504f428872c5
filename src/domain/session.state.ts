import { type NewMessage } from './session.commands.js';
import { type EventData, type Json, type SessionEvent, type Usage } from './session.events.js';

/** Raise this number when `SessionState` or `evolve` changes: states stored under another number are folded again. */
export const STATE_VERSION = 3;

/**
 * The state of a session: what the rules need to know of it, and what answers show. Times come from the event store.
 */
export interface SessionState {
  readonly version: number;
  readonly incarnation: number;
  readonly status: 'none' | 'active' | 'expired' | 'deleted';
  /** Whose session it is. The id keeps its owner when the session is deleted, so that its trail stays that of one owner. */
  readonly owner: string | null;
  readonly title: string | null;
  readonly metadata: Readonly<Record<string, Json>>;
  readonly legalHold: boolean;
  readonly forkedFrom: { readonly sessionId: string; readonly version: number } | null;
  /** Version of the event with which the present history begins: `SessionCreated` or the last `ConversationReset`. */
  readonly historyStart: number;
  readonly messageCount: number;
  /** Tool calls in the history that have no result yet, in the order of the calls. */
  readonly openToolCalls: readonly { readonly id: string; readonly name: string }[];
  readonly approvals: readonly EventData<'ToolApprovalGranted'>[];
  /** Totals of the incarnation, which a reset keeps. */
  readonly usage: UsageTotals;
  readonly generation: { readonly id: string; readonly model: string } | null;
  /** Version of the last erasure, if there was one: nobody can tell what the session was before. */
  readonly erasedUpTo?: number;
  /** Absent where nothing was scheduled or called off. */
  readonly planned?: PlannedErasures;
}

/** The erasures of a session that are to come. Each is carried out at its time, whichever comes first. */
export interface PlannedErasures {
  /** Somebody asked for it while the session was in this incarnation. Use of the session does not end it. */
  readonly requested?: { readonly at: string; readonly incarnation: number; readonly reason?: string };
  /** The policy of the tenant has scheduled it since the session ended. Use of the session ends it. */
  readonly byPolicy?: { readonly at: string; readonly eraseAfter: number };
  /** An erasure was called off: the policy schedules none until the session was used and has ended again. */
  readonly isCalledOff?: true;
}

export interface UsageTotals {
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly cachedTokens: number;
  readonly reasoningTokens: number;
}
const NO_USAGE: UsageTotals = { inputTokens: 0, outputTokens: 0, cachedTokens: 0, reasoningTokens: 0 };

export const initialState: SessionState = {
  version: 0,
  incarnation: 0,
  status: 'none',
  owner: null,
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

/** Whether there is a session now: one that has expired is there, one that was deleted is not. */
export const exists = ({ status }: Pick<SessionState, 'status'>): boolean =>
  status === 'active' || status === 'expired';

/** Whether the session has ended, as far as the policies of its tenant go; one that has expired may be used again. */
export const hasEnded = ({ status }: Pick<SessionState, 'status'>): boolean =>
  status === 'expired' || status === 'deleted';

/** What the service or an operator does about a session, without using it. */
const NO_ACTIVITY: readonly string[] = [
  'SessionExpired',
  'ErasureScheduled',
  'ErasureCancelled',
] satisfies SessionEvent['type'][];

/** Whether an event counts as use of the session. Reads never do. */
export const isActivity = (event: { readonly type: string }): boolean => !NO_ACTIVITY.includes(event.type);

/** The state after an event; every event raises the version by one. */
export function evolve(state: SessionState, event: SessionEvent): SessionState {
  const next = { ...state, version: state.version + 1 };
  switch (event.type) {
    case 'SessionCreated':
      return {
        ...initialState,
        version: next.version,
        incarnation: state.incarnation + 1,
        status: 'active',
        owner: event.data.owner ?? null,
        title: event.data.title ?? null,
        metadata: event.data.metadata ?? {},
        forkedFrom: event.data.forkedFrom ?? null,
        historyStart: next.version,
        ...erasureOf(state),
        ...plannedOnUse(state),
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
    case 'MessageRemoved':
      return {
        ...next,
        messageCount: state.messageCount - event.data.versions.length,
        openToolCalls: event.data.openToolCalls ?? [],
      };
    case 'HistoryRewound':
      return {
        ...next,
        messageCount: event.data.messageCount,
        openToolCalls: event.data.openToolCalls ?? [],
      };
    case 'ConversationReset':
      return { ...next, historyStart: next.version, messageCount: 0, openToolCalls: [], approvals: [] };
    case 'SessionExpired':
      return { ...next, status: 'expired' };
    case 'SessionResumed': {
      const { planned: _planned, ...rest } = next;
      return { ...rest, status: 'active', ...plannedOnUse(state) };
    }
    case 'SessionDeleted':
      return {
        ...initialState,
        version: next.version,
        incarnation: state.incarnation,
        owner: state.owner,
        status: 'deleted',
        ...erasureOf(state),
        ...(state.planned && { planned: state.planned }),
      };
    case 'SessionErased':
      return {
        ...initialState,
        version: next.version,
        incarnation: state.incarnation,
        status: 'deleted',
        erasedUpTo: next.version,
      };
    case 'ErasureScheduled':
      return { ...next, planned: { ...state.planned, ...planOf(event.data, state) } };
    case 'ErasureCancelled': {
      const { planned, ...rest } = next;
      if (event.data.cause === 'policy') {
        const { byPolicy: _byPolicy, ...left } = planned ?? {};
        return Object.keys(left).length === 0 ? rest : { ...rest, planned: left };
      }
      return hasEnded(state) ? { ...rest, planned: { isCalledOff: true } } : rest;
    }
  }
}

const planOf = (
  { at, policy, reason }: EventData<'ErasureScheduled'>,
  { incarnation }: SessionState,
): PlannedErasures =>
  policy
    ? { byPolicy: { at, ...policy } }
    : { requested: { at, incarnation, ...(reason !== undefined && { reason }) } };

/** What was asked for stands when the session is used. What follows from its end begins anew with its next end. */
const plannedOnUse = ({ planned }: SessionState): Pick<SessionState, 'planned'> =>
  planned?.requested ? { planned: { requested: planned.requested } } : {};

/** The status after events of these types; the others change none. */
const STATUS_AFTER: Partial<Record<string, SessionState['status']>> = {
  SessionCreated: 'active',
  SessionExpired: 'expired',
  SessionResumed: 'active',
  SessionDeleted: 'deleted',
} satisfies Partial<Record<SessionEvent['type'], SessionState['status']>>;

/** The state after an event whose data was erased, as far as its type tells. The erasure itself always comes behind it. */
export const evolveErased = (state: SessionState, type: string): SessionState => ({
  ...initialState,
  version: state.version + 1,
  incarnation: state.incarnation + (type === 'SessionCreated' ? 1 : 0),
  status: STATUS_AFTER[type] ?? state.status,
  ...erasureOf(state),
});

const erasureOf = ({ erasedUpTo }: SessionState): Pick<SessionState, 'erasedUpTo'> =>
  erasedUpTo === undefined ? {} : { erasedUpTo };

/** Whether the session was erased, and its id was not used again since: it is free for everybody. */
export const isErased = ({ version, erasedUpTo }: Pick<SessionState, 'version' | 'erasedUpTo'>): boolean =>
  version === erasedUpTo;

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
    // An incomplete result was made up after the tool had not run, so it does not use up an approval.
    if (message.status === 'complete' && answered) {
      approvals = approvals.filter((one) => !(one.tool === answered.name && one.scope === 'once'));
    }
  }
  return { openToolCalls, approvals };
}

const without = (approvals: SessionState['approvals'], tool: string): SessionState['approvals'] =>
  approvals.filter((one) => one.tool !== tool);

const addUsage = (total: UsageTotals, more: Usage | undefined): UsageTotals => ({
  inputTokens: total.inputTokens + (more?.inputTokens ?? 0),
  outputTokens: total.outputTokens + (more?.outputTokens ?? 0),
  cachedTokens: total.cachedTokens + (more?.cachedTokens ?? 0),
  reasoningTokens: total.reasoningTokens + (more?.reasoningTokens ?? 0),
});
