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
import { type DataKey, type DataKeys } from './data-keys.js';

/** The first byte of sealed payloads: AES-256-GCM; nonce, tag, and the sealed JSON follow. */
const FORMAT = 1;
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

  async openText(payloads: readonly SealedPayload[]): Promise<readonly PromiseSettledResult<Buffer>[]> {
    const ids = payloads.flatMap(({ keyId }) => keyId ?? []);
    const keys = await this.keys.get(ids);
    return payloads.map((payload) => {
      try {
        const value = this.openOne(payload, keys);
        return { status: 'fulfilled', value };
      } catch (reason) {
        return { status: 'rejected', reason };
      }
    });
  }

  private openOne(payload: SealedPayload, keys: ReadonlyMap<string, Buffer | null>): Buffer {
    const { keyId, incarnation } = payload;
    const key = keyId === null ? undefined : keys.get(keyId);
    if (keyId === null || key === undefined) throw new KeyMissing(payload, keyId);
    if (key === null) throw new KeyDestroyed(payload, keyId);
    const value = unseal(payload, key);
    if (incarnation !== undefined) this.keys.learn({ ...payload, incarnation }, keyId);
    return value;
  }
}

function seal(payload: Payload, { id, key }: DataKey): EncodedPayload {
  const nonce = nextNonce();
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(identityOf(payload));
  const text = cipher.update(JSON.stringify(payload.data ?? null), 'utf8');
  // GCM holds nothing back, so this adds nothing to the text.
  cipher.final();
  const sealed = Buffer.allocUnsafe(HEAD + text.length);
  sealed[0] = FORMAT;
  nonce.copy(sealed, 1);
  cipher.getAuthTag().copy(sealed, 1 + NONCE);
  text.copy(sealed, HEAD);
  return { json: null, sealed, keyId: id };
}

/** @returns JSON text in UTF-8 */
function unseal(payload: SealedPayload, key: Buffer): Buffer {
  const { sealed } = payload;
  if (sealed[0] !== FORMAT)
    throw new NotAuthentic(`${nameOf(payload)} has a form that this version does not know`);
  const cipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(1, 1 + NONCE))
    .setAAD(identityOf(payload))
    .setAuthTag(sealed.subarray(1 + NONCE, HEAD));
  try {
    const text = cipher.update(sealed.subarray(HEAD));
    // GCM holds nothing back, so this only authenticates.
    cipher.final();
    return text;
  } catch {
    throw new NotAuthentic(`${nameOf(payload)} does not authenticate: it was changed, or is that of another`);
  }
}

const identityOf = ({ tenant, streamId, version, type }: PayloadIdentity): Buffer =>
  Buffer.from(JSON.stringify([tenant, streamId, version, type]));

/** Random bytes are drawn for many nonces at once, because a system call for each would be a large part of its cost. */
const randomness = Buffer.alloc(NONCE * 256);
let drawn = randomness.length;

function nextNonce(): Buffer {
  if (drawn === randomness.length) {
    randomFillSync(randomness);
    drawn = 0;
  }
  drawn += NONCE;
  // It is copied into what is sealed before the bytes are drawn anew.
  return randomness.subarray(drawn - NONCE, drawn);
}
