import { DomainError } from '../domain/decider.js';
import { SESSION_ID } from '../domain/session.events.js';
import { type Reach, refTo, type SessionRef } from '../sessions/command-context.js';

/** Where the paths of OpenAI's API begin. */
export const OPENAI_PREFIX = 'openai/v1';

/** A time of OpenAI's API: whole seconds since 1970. */
export const seconds = (time: string): number => Math.floor(Date.parse(time) / 1000);

/** @throws DomainError `session-not-found` for what can be the id of no session */
export function sessionOf(reach: Reach, id: string): SessionRef {
  if (SESSION_ID.test(id)) return refTo(reach, id);
  throw new DomainError('session-not-found', 'there is no such conversation');
}
