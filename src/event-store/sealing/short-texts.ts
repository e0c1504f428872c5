import { createRequire } from 'node:module';
import { NONCE_AT, TAG_AT, TEXT_AT } from './sealed-layout.js';

/** Bytes of a text at most. From about three thousand on `node:crypto` is faster. */
const LONGEST = 8_192;
const LONGEST_IDENTITY = 4_096;
const KEY = 32;
/** For the length of a tag, which the caller knows. */
const LENGTH = 8;
/** The most bytes in UTF-8 for each unit of the length of a JavaScript string. */
const BYTES_PER_UNIT = 3;

/** What is used of libsodium, which has no types: functions of the C library, on addresses in its memory. */
interface Sodium {
  /** There are no functions before. */
  readonly ready: Promise<void>;
  readonly HEAPU8: Uint8Array<ArrayBuffer>;
  _malloc(bytes: number): number;
  // Lengths have 64 bits, as two numbers of which the lower half comes first.
  _crypto_aead_chacha20poly1305_ietf_encrypt_detached(
    ...addresses: [
      ...[ciphertext: number, tag: number, tagLength: number],
      ...[text: number, textLength: number, textLengthHigh: number],
      ...[additional: number, additionalLength: number, additionalLengthHigh: number],
      ...[unused: number, nonce: number, key: number],
    ]
  ): number;
  /** @returns 0 when it authenticates */
  _crypto_aead_chacha20poly1305_ietf_decrypt_detached(
    ...addresses: [
      ...[text: number, unused: number],
      ...[ciphertext: number, ciphertextLength: number, ciphertextLengthHigh: number, tag: number],
      ...[additional: number, additionalLength: number, additionalLengthHigh: number],
      ...[nonce: number, key: number],
    ]
  ): number;
}

/**
 * ChaCha20-Poly1305 (RFC 8439) for short texts, by libsodium in WebAssembly: a text of 200 bytes takes a third of the
 * time that `node:crypto` needs, which makes several objects for each text that have to be collected later.
 *
 * Texts are copied into the memory of libsodium and out of it. There is one place for each thing, because a call never
 * waits. Key and text are wiped there at once, because a destroyed key must not stay in memory; libsodium itself leaves the
 * last block of a text that it has decrypted, of up to 64 bytes, on its stack until the next call. Nothing but what fits
 * may be given to it.
 */
export class ShortTexts {
  private readonly memory: Buffer;
  private readonly text: number;
  /** The place of sealed bytes (`sealed-layout.ts`). */
  private readonly sealed: number;
  private readonly identity: number;
  private readonly key: number;
  private readonly length: number;

  private constructor(private readonly library: Sodium) {
    this.text = library._malloc(LONGEST);
    this.sealed = library._malloc(TEXT_AT + LONGEST);
    this.identity = library._malloc(LONGEST_IDENTITY);
    this.key = library._malloc(KEY);
    this.length = library._malloc(LENGTH);
    // If its memory grew, it would be another one. It does not, because nothing else is ever allocated there.
    this.memory = Buffer.from(library.HEAPU8.buffer);
  }

  static async load(): Promise<ShortTexts> {
    // Its CommonJS form: the other one has other exports, and tests could load it in another way than the service does.
    const require = createRequire(__filename);
    const library = require('libsodium') as Sodium;
    await library.ready;
    return new ShortTexts(library);
  }

  canEncrypt(text: string, identity: string): boolean {
    return text.length * BYTES_PER_UNIT <= LONGEST && identity.length * BYTES_PER_UNIT <= LONGEST_IDENTITY;
  }

  /** @param room free bytes at the end of what is returned */
  encrypt(text: string, nonce: Buffer, key: Buffer, identity: string, room: number): Buffer {
    const { memory, sealed } = this;
    const length = memory.write(text, this.text);
    memory.set(nonce, sealed + NONCE_AT);
    memory.set(key, this.key);
    this.library._crypto_aead_chacha20poly1305_ietf_encrypt_detached(
      sealed + TEXT_AT,
      sealed + TAG_AT,
      this.length,
      this.text,
      length,
      0,
      this.identity,
      memory.write(identity, this.identity),
      0,
      0,
      sealed + NONCE_AT,
      this.key,
    );
    this.wipe(length);
    const bytes = Buffer.allocUnsafe(TEXT_AT + length + room);
    memory.copy(bytes, 0, sealed, sealed + TEXT_AT + length);
    return bytes;
  }

  /** @param end where the ciphertext ends */
  canDecrypt(end: number, identity: string): boolean {
    return end <= TEXT_AT + LONGEST && identity.length * BYTES_PER_UNIT <= LONGEST_IDENTITY;
  }

  /** @returns undefined when it does not authenticate */
  decrypt(bytes: Buffer, end: number, key: Buffer, identity: string): Buffer | undefined {
    const { memory, sealed } = this;
    const length = end - TEXT_AT;
    bytes.copy(memory, sealed, 0, end);
    memory.set(key, this.key);
    const isOther = this.library._crypto_aead_chacha20poly1305_ietf_decrypt_detached(
      this.text,
      0,
      sealed + TEXT_AT,
      length,
      0,
      sealed + TAG_AT,
      this.identity,
      memory.write(identity, this.identity),
      0,
      sealed + NONCE_AT,
      this.key,
    );
    const text = isOther === 0 ? Buffer.allocUnsafe(length) : undefined;
    if (text) memory.copy(text, 0, this.text, this.text + length);
    this.wipe(length);
    return text;
  }

  private wipe(length: number): void {
    this.memory.fill(0, this.key, this.key + KEY);
    this.memory.fill(0, this.text, this.text + length);
  }
}
