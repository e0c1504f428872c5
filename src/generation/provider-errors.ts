import { APIConnectionError, APIError } from 'openai';
import { ModelError } from './chat-model.js';

/** An error that a provider reports in an answer that has begun, or in place of one. */
export class ProviderError extends Error {}

/**
 * The reason that a provider gives in the body of an error, or in a piece of an answer. Servers say it in different
 * members, and some have a code but no text.
 */
export function reasonOf(error: unknown): string {
  if (typeof error === 'string') return pageReason(error) ?? error;
  if (typeof error !== 'object' || error === null) return 'an error without a reason';
  const { message, error: inner, detail, code, type, status } = error as Readonly<Record<string, unknown>>;
  for (const one of [message, detail]) if (typeof one === 'string' && one !== '') return one;
  if (inner !== undefined && inner !== null) return reasonOf(inner);
  const names = [code, type, status].filter((one) => typeof one === 'string' || typeof one === 'number');
  return names.length > 0 ? names.join(', ') : JSON.stringify(error);
}

/** What a page of HTML says, such as that of a proxy that cannot reach the provider; undefined for any other text. */
function pageReason(text: string): string | undefined {
  if (!/^\s*<(?:!doctype|html)/i.test(text)) return undefined;
  const title = /<title[^>]*>([^<]*)/i.exec(text)?.[1]?.trim();
  return title ? `a page of HTML: ${title}` : 'a page of HTML';
}

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
