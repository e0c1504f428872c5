import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto';
import {
  type Payload,
  type PayloadCodec,
  type PayloadIdentity,
} from '../../src/event-store/payload-codec.js';

/** Any UUID will do, because there is only one key. */
const KEY_ID = '00000000-0000-4000-8000-000000000001';

/**
 * A codec that seals payloads with AES-256-GCM and authenticates their identity with them.
 * @param options.isSealing which payloads are sealed; the others are stored as plain JSON
 * @param options.wait awaited before each batch, as a codec does that fetches keys; default: a turn of the event loop
 */
export function sealingCodec({
  isSealing = () => true,
  wait = () => new Promise<void>(setImmediate),
}: {
  readonly isSealing?: (payload: Payload) => boolean;
  readonly wait?: () => Promise<void>;
} = {}): PayloadCodec {
  const key = randomBytes(32);
  return {
    async encode(payloads) {
      await wait();
      return payloads.map((payload) => {
        const json = JSON.stringify(payload.data);
        if (!isSealing(payload)) return { json, sealed: null, keyId: null };
        // The nonce is derived from the content, so that two logs with the same appends hold the same bytes.
        const identity = identityOf(payload);
        const nonce = createHash('sha256').update(identity).update(json).digest().subarray(0, 12);
        const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(identity);
        const text = Buffer.concat([cipher.update(json), cipher.final()]);
        return { json: null, sealed: Buffer.concat([nonce, cipher.getAuthTag(), text]), keyId: KEY_ID };
      });
    },
    committed: () => Promise.reject(new Error('this codec seals without commitments')),
    async openText(payloads) {
      await wait();
      return Promise.allSettled(
        // eslint-disable-next-line @typescript-eslint/require-await -- what is thrown becomes the result of one
        payloads.map(async (payload) => {
          const { sealed } = payload;
          const cipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(0, 12))
            .setAAD(identityOf(payload))
            .setAuthTag(sealed.subarray(12, 28));
          return Buffer.concat([cipher.update(sealed.subarray(28)), cipher.final()]);
        }),
      );
    },
  };
}

const identityOf = ({ tenant, streamId, version, type }: PayloadIdentity): Buffer =>
  Buffer.from(JSON.stringify([tenant, streamId, version, type]));
