import { APIConnectionError, APIError } from 'openai';
import { ModelError } from './chat-model.js';

/** An error that a provider reports after the answer has begun. */
export class ProviderError extends Error {}

export const unreadable = (cause: unknown): ModelError =>
  new ModelError('model-failed', 'the model provider sent an answer that cannot be read', { cause });
export const brokenOff = (cause: unknown): ModelError =>
  new ModelError('model-failed', 'the model provider broke off its answer', { cause });
export const tooLong = (bytes: number): ModelError =>
  new ModelError('model-failed', `the answer is longer than ${bytes} bytes`);

/** Whether the connection to the provider broke while the answer was being received. */
export const isConnectionLost = (error: unknown): boolean =>
  ['ECONNRESET', 'EPIPE', 'ETIMEDOUT'].includes((error as NodeJS.ErrnoException).code ?? '');

/** Whether another attempt may succeed in a moment. */
export function isRetryable(error: unknown): boolean {
  if (!(error instanceof APIError)) return false;
  const { status, headers } = error as APIError;
  if (status === undefined) return error instanceof APIConnectionError;
  const advice = headers?.get('x-should-retry');
  if (advice === 'true' || advice === 'false') return advice === 'true';
  return status === 408 || status === 409 || status === 429 || status >= 500;
}

/** Milliseconds that the provider asks callers to wait; undefined when its answer does not say. */
export function retryAfterMs(error: unknown): number | undefined {
  if (!(error instanceof APIError)) return undefined;
  const headers = error.headers as Headers | undefined;
  const ms = Number.parseFloat(headers?.get('retry-after-ms') ?? '');
  if (ms >= 0) return ms;
  const after = headers?.get('retry-after') ?? '';
  const seconds = /^\s*[\d.]+\s*$/.test(after)
    ? Number.parseFloat(after)
    : (Date.parse(after) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? undefined : Math.max(0, seconds * 1000);
}
