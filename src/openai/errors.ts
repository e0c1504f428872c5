import { z } from 'zod';
import { type ErrorAnswer, PROBLEMS, type ProblemCode, problemOf } from '../http/problem.js';

const OpenAiError = z.object({
  message: z.string(),
  type: z.string(),
  param: z.string().nullable().meta({ description: 'the member of the request that is wrong' }),
  code: z.string().nullable(),
});
/** An error as OpenAI's API answers it. */
export const OpenAiErrorBody = z.object({ error: OpenAiError }).meta({ id: 'OpenAiError' });

/** The codes by which clients of OpenAI's API know what is wrong here; others keep their own names, with underscores. */
const CODES: Partial<Record<ProblemCode, { readonly status?: number; readonly code: string | null }>> = {
  'invalid-request': { code: null },
  'invalid-json': { code: null },
  'invalid-cursor': { code: null },
  unauthenticated: { code: 'invalid_api_key' },
  'session-not-found': { code: 'not_found' },
  // The client would try again by itself upon a 409, and be refused again as long as the reply is generated.
  'session-busy': { status: 400, code: 'conversation_locked' },
  'body-too-large': { code: 'request_too_large' },
  'session-limit-reached': { code: 'insufficient_quota' },
  'rate-limited': { code: 'rate_limit_exceeded' },
  'internal-error': { code: 'server_error' },
  'model-failed': { code: 'server_error' },
};

/** Errors after which the official clients would try again by themselves, though it would not help or would be harmful. */
const NOT_TO_BE_TRIED_AGAIN: ReadonlySet<ProblemCode> = new Set([
  'idempotency-key-reused',
  'legal-hold',
  'session-limit-reached',
  // What the client sent is in the history. Sent again, it would be there twice.
  'model-failed',
  'model-timeout',
]);

const typeOf = (status: number): string =>
  status === 401
    ? 'authentication_error'
    : status === 403
      ? 'permission_error'
      : status === 429
        ? 'rate_limit_error'
        : status >= 500
          ? 'server_error'
          : 'invalid_request_error';

/** What a fault of a request is called: `/tools/0/type` is `tools[0].type`. */
const paramOf = (pointer: string): string | null =>
  pointer
    .split('/')
    .slice(1)
    .map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'))
    .map((part, index) => (/^\d+$/.test(part) ? `[${part}]` : index === 0 ? part : `.${part}`))
    .join('') || null;

/** An error in the form of OpenAI's API, with its status. */
export function openAiErrorOf(error: unknown): z.infer<typeof OpenAiError> & { readonly status: number } {
  const { code, detail, details } = problemOf(error);
  const known = CODES[code];
  const status = known?.status ?? PROBLEMS[code].status;
  const [fault] = (details?.['errors'] ?? []) as { pointer: string; detail: string }[];
  const wire = details?.['code'];
  return {
    status,
    message:
      code === 'session-not-found'
        ? 'There is no such conversation.'
        : fault
          ? `${paramOf(fault.pointer) ?? 'the body'}: ${fault.detail}`
          : detail,
    type: typeOf(status),
    param: fault ? paramOf(fault.pointer) : null,
    code:
      typeof wire === 'string'
        ? wire
        : fault?.detail === 'is not a known field'
          ? 'unknown_parameter'
          : known
            ? known.code
            : code.replaceAll('-', '_'),
  };
}

/** The answer to a request that failed. */
export function renderOpenAiError(error: unknown): ErrorAnswer {
  const { status, ...body } = openAiErrorOf(error);
  const { code, headers } = problemOf(error);
  return {
    status,
    headers: {
      'content-type': 'application/json; charset=utf-8',
      ...headers,
      ...(NOT_TO_BE_TRIED_AGAIN.has(code) && { 'x-should-retry': 'false' }),
    },
    body: JSON.stringify({ error: body }),
  };
}
