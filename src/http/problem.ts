import { HttpException } from '@nestjs/common';

/** All error codes of the API, each with its status. They are part of the API: codes are never renamed. */
export const PROBLEMS = {
  'invalid-request': { status: 400, title: 'The request is not valid' },
  'invalid-json': { status: 400, title: 'The body is not valid JSON' },
  'invalid-cursor': { status: 400, title: 'The cursor is not valid here' },
  unauthenticated: { status: 401, title: 'A valid API key or token is needed' },
  forbidden: { status: 403, title: 'The API key or token does not allow this' },
  'session-not-found': { status: 404, title: 'There is no such session' },
  'not-found': { status: 404, title: 'There is nothing here' },
  'key-not-found': { status: 404, title: 'There is no such event that is sealed with this key' },
  'method-not-allowed': { status: 405, title: 'The method is not allowed here' },
  'session-busy': { status: 409, title: 'The session is generating' },
  'idempotency-key-reused': { status: 409, title: 'The idempotency key was used for another request' },
  'name-taken': { status: 409, title: 'Another key has this name' },
  'legal-hold': { status: 409, title: 'The session is under legal hold' },
  'not-sealed': { status: 409, title: 'The session is stored in plain' },
  'cursor-expired': { status: 410, title: 'The cursor points into history that is gone' },
  'session-erased': { status: 410, title: 'What the session was then was erased' },
  'key-destroyed': { status: 410, title: 'The key was destroyed by an erasure' },
  'position-gone': {
    status: 410,
    title: 'The log is shorter than it was, and the cursor points behind its end',
  },
  'version-mismatch': { status: 412, title: 'The session has another version' },
  'body-too-large': { status: 413, title: 'The body is too large' },
  'unsupported-media-type': { status: 415, title: 'The body must be JSON' },
  'session-limit-reached': { status: 429, title: 'The tenant has as many active sessions as it may' },
  'rate-limited': { status: 429, title: 'Too many requests' },
  'internal-error': { status: 500, title: 'Something went wrong here' },
  'model-failed': { status: 502, title: 'The model failed' },
  'model-timeout': { status: 504, title: 'The model took too long' },
  'issuer-unavailable': { status: 503, title: 'The keys of the issuer of tokens cannot be fetched' },
  overloaded: { status: 503, title: 'Too much is waiting to be written' },
  'projection-lagging': { status: 503, title: 'The read model has not caught up' },
  moving: { status: 503, title: 'The tenant is being moved to another cell' },
  'upgrade-in-progress': { status: 503, title: 'A newer version of the service is needed' },
  'database-unavailable': { status: 503, title: 'The database cannot be reached' },
} as const satisfies Record<string, { status: number; title: string }>;

export type ProblemCode = keyof typeof PROBLEMS;

/** What is wrong with one part of a request. */
export interface InputError {
  /** JSON pointer (RFC 6901) to the field inside of `in`; `""` is the whole of it. */
  readonly pointer: string;
  readonly in: 'body' | 'query' | 'path' | 'header';
  readonly detail: string;
}

/**
 * An error that is answered as the problem `code`, with its message as the detail.
 *
 * Errors of other layers need not be of this class: an error with a `code` of the table, a message and optional
 * `details` is
 * answered the same way.
 */
export class ApiError extends Error {
  override readonly name = 'ApiError';
  /** Further members of the problem, such as `errors` or `activeSessions`. */
  readonly details: Readonly<Record<string, unknown>> | undefined;
  /** Headers of the answer, such as `Retry-After`. */
  readonly headers: Readonly<Record<string, string>> | undefined;

  constructor(
    readonly code: ProblemCode,
    message: string,
    extra: {
      details?: Readonly<Record<string, unknown>>;
      headers?: Readonly<Record<string, string>>;
      cause?: unknown;
    } = {},
  ) {
    super(message, extra.cause === undefined ? undefined : { cause: extra.cause });
    this.details = extra.details;
    this.headers = extra.headers;
  }
}

export const unauthenticated = (detail: string): ApiError =>
  new ApiError('unauthenticated', detail, { headers: { 'www-authenticate': 'Bearer' } });

/** The JSON pointer (RFC 6901) of a path: `['messages', 0, 'a/b']` is `/messages/0/a~1b`. */
export function jsonPointer(path: readonly PropertyKey[]): string {
  return path.map((part) => `/${String(part).replaceAll('~', '~0').replaceAll('/', '~1')}`).join('');
}

/** An ApiError `invalid-request` for a request with these faults. */
export function invalidRequest(errors: readonly InputError[], message?: string): ApiError {
  const [first] = errors;
  const summary =
    first === undefined ? 'The request is not valid' : `${first.in} ${first.pointer}: ${first.detail}`;
  return new ApiError('invalid-request', message ?? summary, { details: { errors } });
}

const RETRY_AFTER: Partial<Record<ProblemCode, string>> = {
  'session-busy': '1',
  overloaded: '1',
  'projection-lagging': '1',
  moving: '1',
  'upgrade-in-progress': '5',
  'database-unavailable': '1',
  'issuer-unavailable': '5',
};

/**
 * Errors of Fastify that clients cause, with details for clients: Fastify's own messages address the server's
 * programmer.
 */
const FASTIFY_ERRORS: Partial<Record<string, { code: ProblemCode; detail: string }>> = {
  FST_ERR_CTP_BODY_TOO_LARGE: {
    code: 'body-too-large',
    detail: 'The body is larger than this server accepts.',
  },
  FST_ERR_CTP_INVALID_MEDIA_TYPE: {
    code: 'unsupported-media-type',
    detail: 'Send the body as application/json.',
  },
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: {
    code: 'invalid-request',
    detail: 'The body has not the length that Content-Length says.',
  },
  FST_ERR_BAD_URL: { code: 'invalid-request', detail: 'The path is not validly percent-encoded.' },
  FST_ERR_MAX_PARAM_LENGTH: { code: 'invalid-request', detail: 'A part of the path is too long.' },
};

/** The codes for HTTP errors of Nest and other libraries, by status. */
const CODE_OF_STATUS: Partial<Record<number, ProblemCode>> = {
  400: 'invalid-request',
  401: 'unauthenticated',
  403: 'forbidden',
  404: 'not-found',
  405: 'method-not-allowed',
  413: 'body-too-large',
  415: 'unsupported-media-type',
  429: 'rate-limited',
};

interface Problem {
  readonly code: ProblemCode;
  readonly detail: string;
  readonly details?: Readonly<Record<string, unknown>> | undefined;
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

const UNKNOWN: Problem = {
  code: 'internal-error',
  detail:
    'The request could not be answered. The error is in the log of the server, under the correlation id.',
};

const withRetryAfter = (
  code: ProblemCode,
  headers: Readonly<Record<string, string>> = {},
): Readonly<Record<string, string>> => {
  const retryAfter = RETRY_AFTER[code];
  return retryAfter === undefined ? headers : { 'retry-after': retryAfter, ...headers };
};

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The fault that a rule found. It names the field as the command does, and the body has the same names. */
function faultOf(error: Error): { readonly errors: readonly InputError[] } | undefined {
  const { field, detail } = error as { field?: unknown; detail?: unknown };
  if (!Array.isArray(field) || typeof detail !== 'string') return undefined;
  return { errors: [{ pointer: jsonPointer(field as PropertyKey[]), in: 'body', detail }] };
}

/** What is told to a client of an error, for the form of its surface. */
export function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) {
    const { code, message: detail, details, headers } = error;
    return { code, detail, details, headers: withRetryAfter(code, headers) };
  }
  if (!(error instanceof Error)) {
    return UNKNOWN;
  }
  const { code, details, errno, severity, syscall } = error as Error & Record<string, unknown>;
  if (typeof code === 'string') {
    // Errors of Node carry `errno` or `syscall`, errors of PostgreSQL `severity`. Their messages (paths, hosts, SQL)
    // are not for clients, even if their code is one of the table.
    const isSystemError = errno !== undefined || syscall !== undefined || severity !== undefined;
    if (Object.hasOwn(PROBLEMS, code) && code !== 'internal-error' && !isSystemError) {
      const members = isRecord(details) ? details : faultOf(error);
      const known = code as ProblemCode;
      return { code: known, detail: error.message, details: members, headers: withRetryAfter(known) };
    }
    const known = FASTIFY_ERRORS[code];
    if (known !== undefined) {
      return known;
    }
  }
  if (error instanceof HttpException) {
    const ofStatus = CODE_OF_STATUS[error.getStatus()];
    if (ofStatus !== undefined) return { code: ofStatus, detail: error.message };
  }
  // Other errors of Fastify with a 4xx status are caused by clients as well, but their messages are not written for
  // them.
  const { statusCode } = error as { statusCode?: unknown };
  const ofFastify =
    typeof code === 'string' && code.startsWith('FST_') && typeof statusCode === 'number'
      ? CODE_OF_STATUS[statusCode]
      : undefined;
  return ofFastify === undefined ? UNKNOWN : { code: ofFastify, detail: `${PROBLEMS[ofFastify].title}.` };
}

/** Whether an error is answered as `internal-error`: no client caused it, and it belongs into the log. */
export const isUnexpected = (error: unknown): boolean => problemOf(error).code === 'internal-error';

/** An error as a client gets it. */
export interface ErrorAnswer {
  readonly status: number;
  readonly headers: Record<string, string>;
  readonly body: string;
}

/** An error as a problem document. */
export function renderProblem(error: unknown, instance: string | undefined): ErrorAnswer {
  const { code, detail, details, headers } = problemOf(error);
  const { status, title } = PROBLEMS[code];
  return {
    status,
    headers: { 'content-type': 'application/problem+json', ...headers },
    // Details come first, so that none of them replaces a standard member of the problem.
    body: JSON.stringify({
      ...details,
      type: `urn:colloquy:problem:${code}`,
      title,
      status,
      detail,
      code,
      ...(instance === undefined ? {} : { instance }),
    }),
  };
}
