import { hash } from 'node:crypto';
import type { z } from 'zod';
import { ApiError } from './problem.js';

/** Characters of the checksum in base64url: 12 bytes. */
const CHECKSUM_LENGTH = 16;
const MAX_LENGTH = 2_048;

/**
 * An opaque text with which a list is continued.
 *
 * The checksum binds it to its scope, so that a cursor of one list is refused by another instead of silently
 * skipping rows there. It is not a MAC: forging a cursor gains nothing, because every query is bound to the caller's
 * tenant.
 *
 * @param scope what the cursor is valid for: tenant, route and every filter that shapes the list
 */
export function encodeCursor(scope: string, payload: object): string {
  return encodeJson(scope, JSON.stringify(payload));
}

/** @throws ApiError `invalid-cursor` for a text that `encodeCursor` did not make for this scope and schema */
export function decodeCursor<T extends z.ZodType>(scope: string, text: string, schema: T): z.output<T> {
  const json =
    text.length > MAX_LENGTH ? '' : Buffer.from(text.slice(CHECKSUM_LENGTH), 'base64url').toString();
  // The comparison with the encoded text refuses other spellings, which Buffer decodes leniently.
  if (json !== '' && text === encodeJson(scope, json)) {
    const parsed = schema.safeParse(JSON.parse(json));
    if (parsed.success) {
      return parsed.data;
    }
  }
  throw new ApiError('invalid-cursor', 'The cursor was not given out for this list with these filters.');
}

function encodeJson(scope: string, json: string): string {
  // JSON never contains a raw U+0000, so it separates scope and payload without ambiguity.
  const checksum = hash('sha256', `${scope}\0${json}`, 'base64url').slice(0, CHECKSUM_LENGTH);
  return checksum + Buffer.from(json).toString('base64url');
}
