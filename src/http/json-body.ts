import { isUtf8 } from 'node:buffer';
import { ApiError, invalidRequest, jsonPointer } from './problem.js';

/** How deep arrays and objects of a body may nest. What walks a body later may then recurse without a limit. */
const MAX_DEPTH = 64;

// Raw control characters are no JSON and raw surrogates no UTF-8, so both can only come as escapes. An escaped
// backslash before `u0000` matches too, and costs that body a needless look at its strings.
const SUSPECT_ESCAPE = /\\u(?:0000|[dD][89a-fA-F])/;
const LONE_SURROGATE = /\p{Surrogate}/u;

/** What `isStorable` refuses, for error messages. */
export const NOT_STORABLE = 'U+0000 or half of a surrogate pair';

/**
 * Whether PostgreSQL can keep this text: `text` and `jsonb` take neither U+0000 nor half a surrogate pair, and
 * would fail the append of everybody in the same batch.
 */
export function isStorable(text: string): boolean {
  return !text.includes('\0') && !LONE_SURROGATE.test(text);
}

/**
 * The body of a request from its bytes; undefined when it is empty, so that a client that always sends the
 * content type may leave out a body that is optional.
 *
 * @throws ApiError `invalid-json` for what is no JSON text in UTF-8 or would reach into prototypes;
 * `invalid-request` for text that cannot be stored and for nesting deeper than 64
 */
export function parseJsonBody(bytes: Buffer): unknown {
  if (bytes.length === 0) {
    return undefined;
  }
  if (!isUtf8(bytes)) {
    throw new ApiError('invalid-json', 'The body is not valid UTF-8.');
  }
  const text = bytes.toString();
  let value: unknown;
  try {
    // Some editors put a byte order mark before the text.
    value = JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  } catch (error) {
    // The parser's own message quotes the body.
    const position = error instanceof Error ? /at position (\d+)/.exec(error.message)?.[1] : undefined;
    throw new ApiError(
      'invalid-json',
      position === undefined
        ? 'The body is not valid JSON.'
        : `The body is not valid JSON at character ${position}.`,
    );
  }
  const fault = faultIn(value, 1, SUSPECT_ESCAPE.test(text));
  if (fault !== undefined) {
    const pointer = jsonPointer(fault.path.reverse());
    throw invalidRequest([{ pointer, in: 'body', detail: fault.detail }]);
  }
  return value;
}

interface Fault {
  /** From the inside out: put together only on the way back, so that sound bodies pay nothing for it. */
  readonly path: (string | number)[];
  readonly detail: string;
}

/** Recursive, which is safe because it stops at MAX_DEPTH (JSON.parse itself does not recurse). */
function faultIn(value: unknown, depth: number, checkText: boolean): Fault | undefined {
  if (typeof value === 'string') {
    return checkText && !isStorable(value)
      ? { path: [], detail: `must not contain ${NOT_STORABLE}` }
      : undefined;
  }
  if (typeof value !== 'object' || value === null) {
    return undefined;
  }
  if (depth > MAX_DEPTH) {
    return { path: [], detail: `must not nest deeper than ${MAX_DEPTH} levels` };
  }
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) {
      const fault = faultIn(value[i], depth + 1, checkText);
      if (fault !== undefined) {
        fault.path.push(i);
        return fault;
      }
    }
    return undefined;
  }
  const members = value as Record<string, unknown>;
  for (const key in members) {
    const member = members[key];
    // Copied onto another object later, such members would replace its prototype or reach its class.
    if (key === '__proto__' || (key === 'constructor' && hasPrototype(member))) {
      throw new ApiError('invalid-json', `The body must not have a member ${key} here.`);
    }
    if (checkText && !isStorable(key)) {
      return { path: [], detail: `must not have a key with ${NOT_STORABLE}` };
    }
    const fault = faultIn(member, depth + 1, checkText);
    if (fault !== undefined) {
      fault.path.push(key);
      return fault;
    }
  }
  return undefined;
}

function hasPrototype(value: unknown): boolean {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, 'prototype');
}
