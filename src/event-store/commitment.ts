import { hash } from 'node:crypto';
import { canonicalJson } from './canonical-json.js';

/** Bytes of a commitment. */
export const COMMITMENT = 32;
/** Random bytes of the salt of a commitment to sealed data. */
export const SALT_BYTES = 16;
/** Characters of such a salt, in base64url: it is text, so that it can be read and hashed together with the data. */
export const SALT = 22;

/**
 * A commitment to the data of an event, by which it can be proven later that it was this data and no other.
 *
 * For sealed data it is over a random salt too, which lies inside what is sealed: otherwise whoever guesses what was said
 * could try guesses against it, also when the key was destroyed. With the key the salt is gone, and the commitment tells
 * nothing. Plain data is there to be read, so its commitment needs no salt and is not stored.
 *
 * @param committed the salt, if there is one, and the data as RFC 8785 writes it
 * @returns 64 hex digits
 */
export const commitmentTo = (committed: string): string => hash('sha256', committed, 'hex');

/** The commitment to data that is stored in plain. */
export const plainCommitment = (data: unknown): string => commitmentTo(canonicalJson(data));
