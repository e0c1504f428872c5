import { DomainError } from '../domain/decider.js';
import { ApiError } from '../http/problem.js';
import { type SessionRef } from '../sessions/command-context.js';
import { ModelError } from './chat-model.js';

/**
 * The reason with which a model call is aborted when something else has ended its generation: a cancel, a reset, a
 * delete, or a node that found the lease expired. The log already holds that end, so nothing is recorded for the
 * aborted call.
 */
export class Superseded extends Error {
  override readonly name = 'Superseded';
}

/** The reason with which a model call is aborted while the service is being stopped. */
export const serviceStopped = (): ModelError =>
  new ModelError('model-failed', 'the service was stopped before the model had answered');

export const sessionNotFound = (): DomainError =>
  new DomainError('session-not-found', 'there is no such session');

export const generationNotFound = (): ApiError =>
  new ApiError('not-found', 'there is no such generation in this session');

/** The error that a client gets for a model that gave no reply. */
export const modelProblem = (
  code: ModelError['code'],
  message: string,
  { sessionId }: SessionRef,
  generationId: string,
): ApiError => new ApiError(code, message, { details: { sessionId, generationId } });

export const codeOf = (error: unknown): unknown => (error as { code?: unknown } | undefined)?.code;

/** Whether the same request may succeed in a moment, because the database is away or has too much to do. */
export const isTemporaryOutage = (error: unknown): boolean =>
  codeOf(error) === 'database-unavailable' || codeOf(error) === 'overloaded';
