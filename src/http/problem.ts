import { Catch, HttpException, Logger, type ArgumentsHost, type ExceptionFilter } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';

/** Every error code of the API, with the status it is always sent with. Part of the API: codes are never renamed. */
export const PROBLEMS = {
  'invalid-request': { status: 400, title: 'The request is not valid' },
  'invalid-json': { status: 400, title: 'The body is not valid JSON' },
  'invalid-cursor': { status: 400, title: 'The cursor is not valid here' },
  unauthenticated: { status: 401, title: 'A valid API key is needed' },
  forbidden: { status: 403, title: 'The API key does not allow this' },
  'session-not-found': { status: 404, title: 'There is no such session' },
  'not-found': { status: 404, title: 'There is nothing here' },
  'method-not-allowed': { status: 405, title: 'The method is not allowed here' },
  'session-busy': { status: 409, title: 'The session is generating' },
  'idempotency-key-reused': { status: 409, title: 'The idempotency key was used for another request' },
  'legal-hold': { status: 409, title: 'The session is under legal hold' },
  'cursor-expired': { status: 410, title: 'The cursor points into history that is gone' },
  'version-mismatch': { status: 412, title: 'The session has another version' },
  'body-too-large': { status: 413, title: 'The body is too large' },
  'unsupported-media-type': { status: 415, title: 'The body must be JSON' },
  'session-limit-reached': { status: 429, title: 'The tenant has as many active sessions as it may' },
  'rate-limited': { status: 429, title: 'Too many requests' },
  'internal-error': { status: 500, title: 'Something went wrong here' },
  'model-failed': { status: 502, title: 'The model failed' },
  'model-timeout': { status: 504, title: 'The model took too long' },
  overloaded: { status: 503, title: 'Too much is waiting to be written' },
  'projection-lagging': { status: 503, title: 'The read model has not caught up' },
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
 * Errors of other layers need not be of this class: whatever is thrown with a `code` of the table, a message
 * and optional `details` is answered the same way.
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

/** The JSON pointer (RFC 6901) of a path: `['messages', 0, 'a/b']` is `/messages/0/a~1b`. */
export function jsonPointer(path: readonly PropertyKey[]): string {
  return path.map((part) => `/${String(part).replaceAll('~', '~0').replaceAll('/', '~1')}`).join('');
}

/** The ApiError of a request with these faults. */
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
  'database-unavailable': '1',
};

/** The errors of Fastify that a client causes. Its messages are written for the programmer of the server. */
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

/** Nest's and other libraries' HTTP errors, should any get here, by their status. */
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

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The fault of a rule, which names a field in the words of the command: the body has the same names. */
function faultOf(error: Error): { readonly errors: readonly InputError[] } | undefined {
  const { field, detail } = error as { field?: unknown; detail?: unknown };
  if (!Array.isArray(field) || typeof detail !== 'string') return undefined;
  return { errors: [{ pointer: jsonPointer(field as PropertyKey[]), in: 'body', detail }] };
}

function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) {
    return { code: error.code, detail: error.message, details: error.details, headers: error.headers };
  }
  if (!(error instanceof Error)) {
    return UNKNOWN;
  }
  const { code, details, errno, severity, syscall } = error as Error & Record<string, unknown>;
  if (typeof code === 'string') {
    // Errors of Node carry `errno` or `syscall`, errors of PostgreSQL `severity`: whatever their code is called,
    // their messages (paths, hosts, SQL) are not for clients.
    const isSystemError = errno !== undefined || syscall !== undefined || severity !== undefined;
    if (Object.hasOwn(PROBLEMS, code) && code !== 'internal-error' && !isSystemError) {
      const members = isRecord(details) ? details : faultOf(error);
      return { code: code as ProblemCode, detail: error.message, details: members };
    }
    const known = FASTIFY_ERRORS[code];
    if (known !== undefined) {
      return known;
    }
  }
  const status = error instanceof HttpException ? error.getStatus() : undefined;
  const codeOfStatus = status === undefined ? undefined : CODE_OF_STATUS[status];
  return codeOfStatus === undefined ? UNKNOWN : { code: codeOfStatus, detail: error.message };
}

const logger = new Logger('Http');

/** The body and headers of an error, for an answer that is written by hand. */
export function renderProblem(
  error: unknown,
  instance: string | undefined,
): { status: number; headers: Record<string, string>; body: string } {
  const { code, detail, details, headers } = problemOf(error);
  const { status, title } = PROBLEMS[code];
  const retryAfter = RETRY_AFTER[code];
  return {
    status,
    headers: {
      'content-type': 'application/problem+json',
      ...(retryAfter === undefined ? {} : { 'retry-after': retryAfter }),
      ...headers,
    },
    // Details come first, so that none of them replaces a member of the standard.
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

/** Answers `error` as a problem. What no client should see is logged with its stack and answered as `internal-error`. */
export function sendProblem(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const path = pathOf(request);
  const answer = renderProblem(error, path);
  // A client that went away while it sent its body is its own affair.
  const isGone = request.raw.destroyed && !request.raw.complete;
  if (answer.status === PROBLEMS['internal-error'].status && !isGone) {
    logger.error(`${request.method} ${path} failed, correlation id ${request.id}`, stackOf(error));
  }
  if (reply.sent || reply.raw.headersSent) {
    // A stream that has begun has no status left to change. Cut, it at least does not look complete.
    if (!reply.raw.writableEnded) {
      reply.raw.destroy();
    }
    return;
  }
  void reply
    .code(answer.status)
    .headers(answer.headers)
    .header('x-correlation-id', request.id)
    .send(answer.body);
}

/** Without the query, whose search texts and cursors do not belong into logs and error bodies. */
function pathOf(request: FastifyRequest): string {
  const url = request.raw.url ?? '/';
  const end = url.indexOf('?');
  return end === -1 ? url : url.slice(0, end);
}

/** Stacks only: other properties of an error may hold message texts and keys. */
function stackOf(error: unknown): string {
  if (!(error instanceof Error)) {
    return 'thrown without a stack';
  }
  const stack = error.stack ?? error.message;
  return error.cause instanceof Error ? `${stack}\nCaused by: ${stackOf(error.cause)}` : stack;
}

/** What Nest's handlers, pipes and guards throw. Errors of Fastify itself come to `sendProblem` by its own hooks. */
@Catch()
export class ProblemFilter implements ExceptionFilter {
  catch(error: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    sendProblem(error, http.getRequest<FastifyRequest>(), http.getResponse<FastifyReply>());
  }
}

/** The routes that exist, to tell a wrong method from a wrong path. */
export class RouteTable {
  readonly #methods = new Map<string, Set<string>>();

  /** @param url the path of a route as Fastify knows it: `:name` is a parameter, `*` anything */
  add(method: string | readonly string[], url: string): void {
    const methods = this.#methods.get(url) ?? new Set();
    for (const each of typeof method === 'string' ? [method] : method) {
      methods.add(each);
    }
    this.#methods.set(url, methods);
  }

  /** The error for a request that no route takes. */
  unmatched(request: FastifyRequest): ApiError {
    const path = pathOf(request);
    const segments = path.split('/');
    const allowed = new Set<string>();
    for (const [url, methods] of this.#methods) {
      if (matches(url.split('/'), segments)) {
        methods.forEach((method) => allowed.add(method));
      }
    }
    // A method that exists is no wrong method: the route itself turned the request away.
    if (allowed.size === 0 || allowed.has(request.method)) {
      return new ApiError('not-found', `There is no ${request.method} ${path}.`);
    }
    const allow = [...allowed].sort().join(', ');
    return new ApiError('method-not-allowed', `${path} takes ${allow}.`, { headers: { allow } });
  }
}

function matches(pattern: readonly string[], segments: readonly string[]): boolean {
  return (
    pattern.length === segments.length &&
    pattern.every((part, i) => {
      const segment = segments[i] ?? '';
      return part.startsWith(':') ? segment !== '' : part === decoded(segment);
    })
  );
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}
