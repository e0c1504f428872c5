import { createCipheriv, createDecipheriv, randomFillSync } from 'node:crypto';
import {
  type EncodedPayload,
  KeyDestroyed,
  KeyMissing,
  nameOf,
  NotAuthentic,
  type Payload,
  type PayloadCodec,
  type PayloadIdentity,
  plainCodec,
  type SealedPayload,
} from '../payload-codec.js';
import { canonicalJson } from '../canonical-json.js';
import { COMMITMENT, commitmentTo, SALT, SALT_BYTES } from '../commitment.js';
import { type DataKey, type DataKeys } from './data-keys.js';

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

/**
 * Seals payloads with the data key of their incarnation. The identity of a payload is authenticated along, so that sealed
 * bytes which are moved to another event, or to another stream, are refused.
 */
export class SealingCodec implements PayloadCodec {
  /** @param seals whether new payloads are sealed, and not only those opened that are */
  constructor(
    private readonly keys: DataKeys,
    private readonly seals: boolean,
  ) {}

  encode(payloads: readonly Payload[]): readonly EncodedPayload[] | Promise<readonly EncodedPayload[]> {
    if (!this.seals) return plainCodec.encode(payloads);
    const encoded: EncodedPayload[] = [];
    for (const payload of payloads) {
      const key = this.keys.keyOf(payload.keyOf ?? payload);
      // Most keys are at hand, and nobody has to wait.
      if (!key) return this.encodeRest(encoded, payloads);
      encoded.push(seal(payload, key));
    }
    return encoded;
  }

  private async encodeRest(
    encoded: readonly EncodedPayload[],
    payloads: readonly Payload[],
  ): Promise<readonly EncodedPayload[]> {
    // All at once, so that one statement finds them.
    const rest = payloads.slice(encoded.length);
    const sealed = rest.map(async (payload) => {
      const owner = payload.keyOf ?? payload;
      return seal(payload, this.keys.keyOf(owner) ?? (await this.keys.findKey(owner)));
    });
    return [...encoded, ...(await Promise.all(sealed))];
  }

  openText(payloads: readonly SealedPayload[]): Promise<readonly PromiseSettledResult<Buffer>[]> {
    return this.opened(payloads, (payload, key) => {
      const text = unsealed(payload, key);
      return hasCommitment(payload) ? text.subarray(SALT) : text;
    });
  }

  committed(payloads: readonly SealedPayload[]): Promise<readonly PromiseSettledResult<string | null>[]> {
    return this.opened(payloads, (payload, key) => {
      const text = unsealed(payload, key);
      return hasCommitment(payload) ? text.toString() : null;
    });
  }

  private async opened<T>(
    payloads: readonly SealedPayload[],
    opening: (payload: SealedPayload, key: Buffer) => T,
  ): Promise<readonly PromiseSettledResult<T>[]> {
    const ids = payloads.flatMap(({ keyId }) => keyId ?? []);
    const keys = await this.keys.get(ids);
    return payloads.map((payload) => {
      try {
        const { keyId, incarnation } = payload;
        const key = keyId === null ? undefined : keys.get(keyId);
        if (keyId === null || key === undefined) throw new KeyMissing(payload, keyId);
        if (key === null) throw new KeyDestroyed(payload, keyId);
        const value = opening(payload, key);
        if (incarnation !== undefined) this.keys.learn({ ...payload, incarnation }, keyId);
        return { status: 'fulfilled', value };
      } catch (reason) {
        return { status: 'rejected', reason };
      }
    });
  }
}

function seal(payload: Payload, { id, key }: DataKey): EncodedPayload {
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
  return { json: null, sealed, keyId: id };
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
