import { createCipheriv, createDecipheriv, randomFillSync } from 'node:crypto';
import { canonicalJson } from '../canonical-json.js';
import { COMMITMENT, commitmentTo, SALT, SALT_BYTES } from '../commitment.js';
import {
  nameOf,
  NotAuthentic,
  type Payload,
  type PayloadIdentity,
  type SealedPayload,
} from '../payload-codec.js';

/**
 * The first byte of sealed payloads. Nonce, tag and AES-256-GCM of the JSON follow. Those of events have a salt before
 * the JSON, and at the end, for all to see, the commitment to both (`commitment.ts`). It lies here and not in a column of
 * its own because it goes wherever the sealed bytes go: into copies of tenants, exports and Kafka.
 */
const WITHOUT_COMMITMENT = 1;
const WITH_COMMITMENT = 2;
const NONCE = 12;
const TAG = 16;
const HEAD = 1 + NONCE + TAG;

/** The identity of the payload is authenticated along, so that it opens as no other one. */
export function seal(payload: Payload, key: Buffer): Buffer {
  const isEvent = !isInternal(payload);
  const nonce = nonces.draw();
  const text = isEvent
    ? salts.draw().toString('base64url') + canonicalJson(payload.data)
    : JSON.stringify(payload.data ?? null);
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(identityOf(payload));
  const encrypted = cipher.update(text, 'utf8');
  // GCM holds nothing back, so this adds nothing to the text.
  cipher.final();
  const sealed = Buffer.allocUnsafe(HEAD + encrypted.length + (isEvent ? COMMITMENT : 0));
  sealed[0] = isEvent ? WITH_COMMITMENT : WITHOUT_COMMITMENT;
  nonce.copy(sealed, 1);
  cipher.getAuthTag().copy(sealed, 1 + NONCE);
  encrypted.copy(sealed, HEAD);
  if (isEvent) sealed.write(commitmentTo(text), HEAD + encrypted.length, 'hex');
  return sealed;
}

/** The JSON text of what is sealed, in UTF-8. @throws NotAuthentic */
export function unseal(payload: SealedPayload, key: Buffer): Buffer {
  const text = unsealed(payload, key);
  return hasCommitment(payload) ? text.subarray(SALT) : text;
}

/** What the commitment is to: the salt and the JSON text; null where there is none. @throws NotAuthentic */
export function committedIn(payload: SealedPayload, key: Buffer): string | null {
  const text = unsealed(payload, key);
  return hasCommitment(payload) ? text.toString() : null;
}

/** What is sealed, in UTF-8. @throws NotAuthentic */
function unsealed(payload: SealedPayload, key: Buffer): Buffer {
  const { sealed } = payload;
  if (sealed[0] !== WITHOUT_COMMITMENT && sealed[0] !== WITH_COMMITMENT)
    throw new NotAuthentic(`${nameOf(payload)} has a form that this version does not know`);
  const end = sealed.length - (hasCommitment(payload) ? COMMITMENT : 0);
  try {
    const cipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(1, 1 + NONCE))
      .setAAD(identityOf(payload))
      .setAuthTag(sealed.subarray(1 + NONCE, HEAD));
    const text = cipher.update(sealed.subarray(HEAD, end));
    // GCM holds nothing back, so this only authenticates.
    cipher.final();
    return text;
  } catch {
    throw new NotAuthentic(`${nameOf(payload)} does not authenticate: it was changed, or is that of another`);
  }
}

const hasCommitment = ({ sealed }: Pick<SealedPayload, 'sealed'>): boolean => sealed[0] === WITH_COMMITMENT;

/** SQL expression for the commitment at the end of sealed bytes, as hex digits; null where there is none. */
export const commitmentIn = (sealed: string): string =>
  `case when get_byte(${sealed}, 0) = ${WITH_COMMITMENT}
        then encode(substring(${sealed} from octet_length(${sealed}) - ${COMMITMENT - 1}), 'hex') end`;

/** Whether it is not an event: states and pieces of replies are proven to nobody, and have types that events cannot have. */
const isInternal = ({ type }: PayloadIdentity): boolean => type.startsWith('~');

const identityOf = ({ tenant, streamId, version, type }: PayloadIdentity): Buffer =>
  Buffer.from(JSON.stringify([tenant, streamId, version, type]));

/** Random bytes are drawn for many payloads at once, because a system call for each would be a large part of its cost. */
class Randomness {
  private readonly bytes: Buffer;
  private drawn: number;

  constructor(private readonly size: number) {
    this.bytes = Buffer.alloc(size * 256);
    this.drawn = this.bytes.length;
  }

  /** Good until the next call: whoever draws copies what was drawn before other bytes take its place. */
  draw(): Buffer {
    if (this.drawn === this.bytes.length) {
      randomFillSync(this.bytes);
      this.drawn = 0;
    }
    this.drawn += this.size;
    return this.bytes.subarray(this.drawn - this.size, this.drawn);
  }
}
const nonces = new Randomness(NONCE);
const salts = new Randomness(SALT_BYTES);
