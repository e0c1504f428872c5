import { type Decision, DomainError, given } from './decider.js';
import { type CancelErasure, type EraseSession, type ScheduleErasure } from './session.commands.js';
import { type SessionEvent } from './session.events.js';
import { hasEnded, isErased, type SessionState } from './session.state.js';

const NOTHING: Decision<SessionEvent> = { events: [] };

/**
 * What keeps a scheduled erasure from being carried out when its time has come: a legal hold, or that its id was used
 * for a later incarnation, which nobody wanted to be erased. It then waits until the hold is lifted, or that incarnation
 * was deleted.
 */
export function erasureWaitsFor(
  { legalHold, status, incarnation, planned }: SessionState,
  which: 'requested' | 'byPolicy',
): 'legal-hold' | 'deletion' | undefined {
  if (legalHold) return 'legal-hold';
  const since = which === 'requested' ? planned?.requested?.incarnation : undefined;
  return since !== undefined && since < incarnation && status !== 'deleted' ? 'deletion' : undefined;
}

/** The rules of erasures: at once, scheduled, called off. They hold for deleted sessions as well. */
export function decideErasure(
  command: EraseSession | ScheduleErasure | CancelErasure,
  state: SessionState,
): Decision<SessionEvent> {
  switch (command.type) {
    case 'EraseSession':
      return erase(command, state);
    case 'ScheduleErasure':
      return command.policy ? scheduleByPolicy(command, state) : scheduleErasure(command, state);
    case 'CancelErasure':
      return cancelErasure(command, state);
  }
}

function erase(command: EraseSession, state: SessionState): Decision<SessionEvent> {
  const { erasure, planned } = command;
  if (planned && (!state.planned?.[planned] || erasureWaitsFor(state, planned))) return NOTHING;
  checkErasable(state);
  if (isErased(state)) return NOTHING;
  if (!erasure) throw new Error('what is to be erased was not read');
  const { incarnations, keys, isPlain } = erasure;
  if (isPlain) {
    if (!planned) throw notSealed();
    // Recorded, because it would fail at each further try.
    return { events: [{ type: 'ErasureCancelled', data: { cause: 'not-sealed' } }] };
  }
  const reason = planned ? reasonOf(planned, state) : command.reason;
  return {
    events: [
      { type: 'SessionErased', data: given({ incarnations: [...incarnations], keys: [...keys], reason }) },
    ],
    destroys: keys,
    ...(state.status === 'active' && { counters: { active: -1 } }),
  };
}

/** Why a scheduled erasure is carried out; the event that scheduled it is erased along. */
function reasonOf(which: 'requested' | 'byPolicy', { planned }: SessionState): string | undefined {
  if (which === 'requested' || !planned?.byPolicy) return planned?.requested?.reason;
  return `retention: eraseAfter ${planned.byPolicy.eraseAfter} ms`;
}

/** @throws DomainError `session-not-found`, `legal-hold` */
function checkErasable({ version, legalHold }: SessionState): void {
  if (version === 0) throw new DomainError('session-not-found', 'there is no such session');
  if (legalHold) throw new DomainError('legal-hold', 'the session is under legal hold');
}

const notSealed = (): DomainError =>
  new DomainError(
    'not-sealed',
    'the session, or a part of it, was written without a master key and is stored in plain, so no key can be ' +
      'destroyed: nothing was erased. Give the service a master key, so that sessions are sealed from then on; to have ' +
      'this one sealed, export it, and import it into a database whose service has a master key.',
  );

function scheduleErasure(
  { at, reason, erasure }: ScheduleErasure,
  state: SessionState,
): Decision<SessionEvent> {
  checkErasable(state);
  if (isErased(state)) return NOTHING;
  if (!erasure) throw new Error('what is to be erased was not read');
  if (erasure.isPlain) throw notSealed();
  const known = state.planned?.requested;
  if (known?.at === at && known.reason === reason && known.incarnation === state.incarnation) return NOTHING;
  const otherwise = new DomainError('invalid-request', 'an erasure is scheduled for a time to come', {
    field: ['at'],
    detail: 'is in the past',
  });
  return {
    events: [{ type: 'ErasureScheduled', data: given({ at, reason }) }],
    guard: { holds: { before: at }, otherwise },
  };
}

function scheduleByPolicy({ at, policy }: ScheduleErasure, state: SessionState): Decision<SessionEvent> {
  if (!policy || !hasEnded(state) || isErased(state) || state.legalHold || state.planned?.isCalledOff)
    return NOTHING;
  if (state.planned?.byPolicy?.eraseAfter === policy.eraseAfter) return NOTHING;
  return { events: [{ type: 'ErasureScheduled', data: { at, policy } }] };
}

function cancelErasure({ reason, cause }: CancelErasure, state: SessionState): Decision<SessionEvent> {
  if (state.version === 0) throw new DomainError('session-not-found', 'there is no such session');
  const { requested, byPolicy } = state.planned ?? {};
  if (cause === 'policy' ? byPolicy : (requested ?? byPolicy))
    return { events: [{ type: 'ErasureCancelled', data: given({ cause, reason }) }] };
  if (cause === 'policy') return NOTHING;
  throw new DomainError('not-found', 'no erasure of the session is scheduled');
}
