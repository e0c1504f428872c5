import { sessionDecider } from '../domain/session.js';
import { sessionEvents, type SessionEvent } from '../domain/session.events.js';
import { evolveErased, isActivity, type SessionState, STATE_VERSION } from '../domain/session.state.js';

/** What a stream of a session is to the log, whoever appends to it. */
export const sessionKind = {
  stateVersion: STATE_VERSION,
  schemaVersion: (type: SessionEvent['type']): number => sessionEvents[type].version,
  isActivity,
  incarnation: (state: SessionState): number => state.incarnation,
  evolveErased,
  decider: sessionDecider,
};
