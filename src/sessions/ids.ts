import { createHash, randomFillSync } from 'node:crypto';

const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz';

/** The year 10 000: later years have a sign in ISO times. */
const MAX_TIME_MS = Date.UTC(10_000, 0);

/** Random bytes are drawn for many ids at once, because a system call per id would be the largest part of its cost. */
const randomness = Buffer.alloc(4096);
let drawn = randomness.length;

function randomBytes(count: number): Buffer {
  if (drawn + count > randomness.length) {
    randomFillSync(randomness);
    drawn = 0;
  }
  drawn += count;
  return randomness.subarray(drawn - count, drawn);
}

/** A new id: the prefix and 26 characters for 48 bits of time, so that ids sort by age, and 80 random bits. */
export function newId(prefix: 'sess' | 'conv' | 'msg' | 'gen' | 'call'): string {
  let time = Date.now();
  let text = '';
  for (let index = 0; index < 10; index += 1) {
    text = (ALPHABET[time % 32] ?? '') + text;
    time = Math.floor(time / 32);
  }
  for (const byte of randomBytes(16)) text += ALPHABET[byte % 32] ?? '';
  return `${prefix}_${text}`;
}

/** The id of the reply of a generation, so that it is known before there is a reply. */
export const replyIdOf = (generationId: string): string => `msg_${generationId.replace(/^gen_/, '')}`;

/** The name by which what the model thinks is shared, beside what it says, which has the id of the generation. */
export const thoughtsOf = (generationId: string): string => `${generationId}/reasoning`;

/** When an id was made by `newId`, as an ISO time; undefined for other ids, e.g. imported ones. */
export function timeOf(id: string): string | undefined {
  const [, text] = /^[a-z]+_([0-9a-hjkmnp-tv-z]{10})[0-9a-hjkmnp-tv-z]{16}$/.exec(id) ?? [];
  if (text === undefined) return undefined;
  let time = 0;
  for (const character of text) time = time * 32 + ALPHABET.indexOf(character);
  // Derived ids have the same form, and their digits can stand for any time up to the year 37 000.
  return time < MAX_TIME_MS ? new Date(time).toISOString() : undefined;
}

/** An id that follows from the parts alone, so that a retry finds what the first request made. */
export function derivedId(
  prefix: 'sess' | 'conv' | 'msg' | 'gen' | 'call',
  ...parts: readonly string[]
): string {
  const digest = createHash('sha256').update(JSON.stringify(parts)).digest();
  let text = '';
  for (const byte of digest.subarray(0, 26)) text += ALPHABET[byte % 32] ?? '';
  return `${prefix}_${text}`;
}
