import {
  type EncodedPayload,
  KeyDestroyed,
  KeyMissing,
  type Payload,
  type PayloadCodec,
  plainCodec,
  type SealedPayload,
  UnknownForm,
} from '../payload-codec.js';
import { type Cipher } from './ciphers.js';
import { type DataKey, type DataKeys } from './data-keys.js';
import { committedIn, seal, unseal } from './sealed-bytes.js';

/**
 * Seals payloads with the data key of their incarnation. The identity of a payload is authenticated along, so that sealed
 * bytes which are moved to another event, or to another stream, are refused.
 */
export class SealingCodec implements PayloadCodec {
  /** @param cipher seals new payloads; without it they stay plain, and those are opened that are sealed */
  constructor(
    private readonly keys: DataKeys,
    private readonly cipher: Cipher | undefined,
  ) {}

  encode(payloads: readonly Payload[]): readonly EncodedPayload[] | Promise<readonly EncodedPayload[]> {
    const { cipher } = this;
    if (!cipher) return plainCodec.encode(payloads);
    const encoded: EncodedPayload[] = [];
    for (const payload of payloads) {
      const key = this.keys.keyOf(payload.keyOf ?? payload);
      // Most keys are at hand, and nobody has to wait.
      if (!key) return this.encodeRest(encoded, payloads, cipher);
      encoded.push(sealedWith(payload, key, cipher));
    }
    return encoded;
  }

  private async encodeRest(
    encoded: readonly EncodedPayload[],
    payloads: readonly Payload[],
    cipher: Cipher,
  ): Promise<readonly EncodedPayload[]> {
    // All at once, so that one statement finds them.
    const rest = payloads.slice(encoded.length);
    const sealed = rest.map(async (payload) => {
      const owner = payload.keyOf ?? payload;
      return sealedWith(payload, this.keys.keyOf(owner) ?? (await this.keys.findKey(owner)), cipher);
    });
    return [...encoded, ...(await Promise.all(sealed))];
  }

  openText(payloads: readonly SealedPayload[]): Promise<readonly PromiseSettledResult<Buffer>[]> {
    return this.opened(payloads, unseal);
  }

  committed(payloads: readonly SealedPayload[]): Promise<readonly PromiseSettledResult<string | null>[]> {
    return this.opened(payloads, committedIn);
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
        if (reason instanceof UnknownForm) throw reason;
        return { status: 'rejected', reason };
      }
    });
  }
}

const sealedWith = (payload: Payload, { id, key }: DataKey, cipher: Cipher): EncodedPayload => ({
  json: null,
  sealed: seal(payload, key, cipher),
  keyId: id,
});
