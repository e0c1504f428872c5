import { createCipheriv, createDecipheriv, randomFillSync } from 'node:crypto';
import { NONCE, NONCE_AT, TAG, TAG_AT, TEXT_AT } from './sealed-layout.js';
import { ShortTexts } from './short-texts.js';

/** Names as OpenSSL, and so `node:crypto`, has them. Both have keys of 32 bytes. */
export const CIPHERS = ['chacha20-poly1305', 'aes-256-gcm'] as const;
export type Cipher = (typeof CIPHERS)[number];

const [CHACHA] = CIPHERS;

let shortTexts: ShortTexts | undefined;
let loading: Promise<ShortTexts> | undefined;

/** Makes ChaCha20-Poly1305 of short texts fast. Before, and where there is no WebAssembly, `node:crypto` does all. */
export async function loadShortTexts(): Promise<void> {
  if ('WebAssembly' in globalThis) shortTexts = await (loading ??= ShortTexts.load());
}

/**
 * @param identity is authenticated along, and not part of what is returned
 * @param room free bytes at the end of what is returned
 * @returns as `sealed-layout.ts` says, with the first byte free
 */
export function encrypt(cipher: Cipher, text: string, key: Buffer, identity: string, room: number): Buffer {
  const nonce = nonces.draw();
  if (cipher === CHACHA && shortTexts?.canEncrypt(text, identity))
    return shortTexts.encrypt(text, nonce, key, identity, room);
  // The types want the length of the text for the other one as well, which neither needs.
  const encryption = createCipheriv(cipher as 'aes-256-gcm', key, nonce, { authTagLength: TAG });
  encryption.setAAD(Buffer.from(identity));
  const ciphertext = encryption.update(text, 'utf8');
  // Both ciphers are streams and hold nothing back, so this adds nothing to the text.
  encryption.final();
  const sealed = Buffer.allocUnsafe(TEXT_AT + ciphertext.length + room);
  nonce.copy(sealed, NONCE_AT);
  encryption.getAuthTag().copy(sealed, TAG_AT);
  ciphertext.copy(sealed, TEXT_AT);
  return sealed;
}

/**
 * @param end where the ciphertext ends in the sealed bytes
 * @returns the text in UTF-8; undefined when it does not authenticate
 */
export function decrypt(
  cipher: Cipher,
  sealed: Buffer,
  end: number,
  key: Buffer,
  identity: string,
): Buffer | undefined {
  if (end < TEXT_AT) return undefined;
  if (cipher === CHACHA && shortTexts?.canDecrypt(end, identity))
    return shortTexts.decrypt(sealed, end, key, identity);
  const decryption = createDecipheriv(cipher as 'aes-256-gcm', key, sealed.subarray(NONCE_AT, TAG_AT), {
    authTagLength: TAG,
  });
  decryption.setAAD(Buffer.from(identity)).setAuthTag(sealed.subarray(TAG_AT, TEXT_AT));
  const text = decryption.update(sealed.subarray(TEXT_AT, end));
  try {
    decryption.final();
  } catch {
    return undefined;
  }
  return text;
}

/** Random bytes are drawn for many payloads at once, because a system call for each would be a large part of its cost. */
export class Randomness {
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
