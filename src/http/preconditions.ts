import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { callerOf, type Caller } from '../access/caller.js';
import { documentHeader } from './openapi.js';
import { invalidRequest } from './problem.js';

/** `*` holds for any existing version; otherwise one of the versions must be the current one. */
export type IfMatchCondition = '*' | readonly number[];

const IDEMPOTENCY_KEY = /^[ -~]{1,255}$/;

/** What `parseIfMatch` takes, for the OpenAPI document: `*`, or a list with a tag, whose elements may be empty. */
const TAG = '(W/)?"[!#-~\\u0080-\\u00ff]*"';
const IF_MATCH = `^([*]|[ \\t]*(,[ \\t]*)*${TAG}[ \\t]*(,[ \\t]*(${TAG}[ \\t]*)?)*)$`;

/** The entity tag of a version of a session. */
export function etag(version: number): string {
  return `"${version}"`;
}

/**
 * Reads `If-Match` (RFC 9110). The comparison is strong: weak tags and tags that are no version match nothing, so
 * the result may be an empty list, which no version fulfils.
 *
 * @throws ApiError `invalid-request` for a malformed header
 */
export function parseIfMatch(header: string | undefined): IfMatchCondition | undefined {
  if (header === undefined || header === '*') {
    return header;
  }
  // One tag at a time, with a sticky expression: a single expression for the whole list would backtrack on hostile
  // headers.
  const element = /[ \t]*(?:(W\/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*)?(,|$)/y;
  const versions: number[] = [];
  let tags = 0;
  for (;;) {
    const match = element.exec(header);
    if (match === null) {
      throw malformedIfMatch();
    }
    const [, weak, tag, separator] = match;
    if (tag !== undefined) {
      tags++;
      if (weak === undefined && /^[1-9]\d{0,14}$/.test(tag)) {
        versions.push(Number(tag));
      }
    }
    if (separator !== ',') {
      break;
    }
  }
  if (tags === 0) {
    throw malformedIfMatch();
  }
  return versions;
}

function malformedIfMatch(): Error {
  return invalidRequest([
    { pointer: '/If-Match', in: 'header', detail: 'must be * or a list of entity tags such as "12"' },
  ]);
}

/**
 * Reads `Idempotency-Key`: 1 to 255 printable ASCII characters.
 *
 * @throws ApiError `invalid-request` for anything else
 */
export function parseIdempotencyKey(header: string | undefined): string | undefined {
  if (header === undefined || IDEMPOTENCY_KEY.test(header)) {
    return header;
  }
  throw invalidRequest([
    { pointer: '/Idempotency-Key', in: 'header', detail: 'must be 1 to 255 printable ASCII characters' },
  ]);
}

/** What the handler of a write needs of its request besides path and body. */
export interface WriteContext {
  readonly caller: Caller;
  readonly correlationId: string;
  readonly ifMatch: IfMatchCondition | undefined;
  readonly idempotencyKey: string | undefined;
}

/**
 * The WriteContext of a request, as a parameter of a handler; it documents the two headers on the route.
 * A single parameter, because Nest runs its asynchronous pipes over each one: four parameters cost 5 µs a request.
 */
export const Write = createParamDecorator(
  (_: unknown, context: ExecutionContext): WriteContext => {
    const request = context.switchToHttp().getRequest<FastifyRequest>();
    const key = request.headers['idempotency-key'];
    return {
      caller: callerOf(request),
      correlationId: request.id,
      ifMatch: parseIfMatch(request.headers['if-match']),
      idempotencyKey: parseIdempotencyKey(Array.isArray(key) ? key.join(', ') : key),
    };
  },
  [
    documentHeader({
      name: 'If-Match',
      description:
        'Change the session only if its version is one of these entity tags; else 412 `version-mismatch`.',
      schema: { type: 'string', pattern: IF_MATCH, examples: ['"12"'] },
    }),
    documentHeader({
      name: 'Idempotency-Key',
      description: 'The same request with the same key takes effect once; kept for 24 hours.',
      schema: { type: 'string', pattern: IDEMPOTENCY_KEY.source },
    }),
  ],
);
