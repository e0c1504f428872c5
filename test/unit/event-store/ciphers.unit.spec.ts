import crypto, { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import fc from 'fast-check';
import {
  type Cipher,
  CIPHERS,
  decrypt,
  encrypt,
  loadShortTexts,
} from '../../../src/event-store/sealing/ciphers.js';

const KEY = randomBytes(32);
const IDENTITY = JSON.stringify(['acme', 'Zoë’s 🦊', 7, 'MessageAppended']);
/** What follows the ciphertext in sealed bytes, as a commitment does. */
const ROOM = 32;
const [NONCE_AT, TAG_AT, TEXT_AT] = [1, 13, 29];

/** OpenSSL, on the layout that docs/events.md has. */
const openSsl = {
  encrypt(cipher: Cipher, text: string): Buffer {
    const nonce = randomBytes(12);
    const encryption = createCipheriv(cipher as 'aes-256-gcm', KEY, nonce, { authTagLength: 16 });
    encryption.setAAD(Buffer.from(IDENTITY));
    const ciphertext = Buffer.concat([encryption.update(text, 'utf8'), encryption.final()]);
    return Buffer.concat([Buffer.alloc(1), nonce, encryption.getAuthTag(), ciphertext, Buffer.alloc(ROOM)]);
  },
  decrypt(cipher: Cipher, sealed: Buffer): string {
    const nonce = sealed.subarray(NONCE_AT, TAG_AT);
    const decryption = createDecipheriv(cipher as 'aes-256-gcm', KEY, nonce, { authTagLength: 16 });
    decryption.setAAD(Buffer.from(IDENTITY)).setAuthTag(sealed.subarray(TAG_AT, TEXT_AT));
    const ciphertext = sealed.subarray(TEXT_AT, -ROOM);
    return Buffer.concat([decryption.update(ciphertext), decryption.final()]).toString();
  },
};

const ours = {
  encrypt: (cipher: Cipher, text: string): Buffer => encrypt(cipher, text, KEY, IDENTITY, ROOM),
  decrypt: (cipher: Cipher, sealed: Buffer): string | undefined =>
    decrypt(cipher, sealed, sealed.length - ROOM, KEY, IDENTITY)?.toString(),
};

/** Texts of all lengths about those at which another implementation takes over, and some that UTF-8 makes longer. */
const TEXTS = ((): string[] => {
  const lengths = [0, 1, 15, 16, 17, 63, 64, 65, 200, 2_729, 2_730, 2_731, 8_191, 8_192, 8_193, 100_000];
  const letter = fc.constantFrom('x', 'ß', '語', '🦊', '"', '\0', '\ud800');
  const mixed = fc.sample(fc.string({ unit: letter, maxLength: 4_000, size: 'max' }), {
    seed: 7,
    numRuns: 40,
  });
  return [...lengths.flatMap((length) => ['x'.repeat(length), '語'.repeat(length)]), ...mixed];
})();

describe.each(CIPHERS)('given texts of all lengths and %s', (cipher) => {
  // The order matters: what is loaded stays loaded.
  describe.each([
    ['before short texts are prepared', () => Promise.resolve()],
    ['after that', loadShortTexts],
  ])('%s', (_, prepare) => {
    beforeAll(prepare);

    it('when they are encrypted, then OpenSSL decrypts them, and every nonce is another one', () => {
      const sealed = TEXTS.map((text) => ours.encrypt(cipher, text));
      for (const [index, text] of TEXTS.entries())
        expect(openSsl.decrypt(cipher, sealed[index] ?? Buffer.alloc(0))).toBe(Buffer.from(text).toString());
      const nonces = sealed.map((bytes) => bytes.subarray(NONCE_AT, TAG_AT).toString('hex'));
      expect(new Set(nonces).size).toBe(TEXTS.length);
    });

    it('when OpenSSL has encrypted them, then they are decrypted', () => {
      for (const text of TEXTS)
        expect(ours.decrypt(cipher, openSsl.encrypt(cipher, text))).toBe(Buffer.from(text).toString());
    });

    it('when a bit of them, of their key or of their identity is another one, or bytes are missing, then they are not decrypted', () => {
      for (const text of ['x'.repeat(200), 'x'.repeat(9_000)]) {
        const sealed = ours.encrypt(cipher, text);
        const end = sealed.length - ROOM;
        for (const at of [NONCE_AT, TAG_AT - 1, TAG_AT, TEXT_AT - 1, TEXT_AT, end - 1]) {
          const changed = Buffer.from(sealed);
          changed[at] = (changed[at] ?? 0) ^ 1;
          expect(ours.decrypt(cipher, changed)).toBeUndefined();
        }
        expect(decrypt(cipher, sealed, end, randomBytes(32), IDENTITY)).toBeUndefined();
        expect(decrypt(cipher, sealed, end, KEY, IDENTITY.replace('7', '8'))).toBeUndefined();
        for (const shorter of [0, 1, TAG_AT, TEXT_AT - 1, TEXT_AT, end - 1])
          expect(decrypt(cipher, sealed.subarray(0, shorter), shorter, KEY, IDENTITY)).toBeUndefined();
      }
    });
  });
});

it('given short texts that are prepared, when one is encrypted and decrypted, then node:crypto has no part in it, and it has in a long one', async () => {
  await loadShortTexts();
  const spies = [jest.spyOn(crypto, 'createCipheriv'), jest.spyOn(crypto, 'createDecipheriv')];
  const calls = (text: string, identity: string): number[] => {
    for (const spy of spies) spy.mockClear();
    const sealed = encrypt('chacha20-poly1305', text, KEY, identity, 0);
    expect(decrypt('chacha20-poly1305', sealed, sealed.length, KEY, identity)?.toString()).toBe(text);
    return spies.map((spy) => spy.mock.calls.length);
  };
  expect(calls('x'.repeat(2_730), IDENTITY)).toEqual([0, 0]);
  expect(calls('x'.repeat(8_193), IDENTITY)).toEqual([1, 1]);
  // The longest identity that is taken, in characters of three bytes each.
  expect(calls('said', '語'.repeat(1_365))).toEqual([0, 0]);
  expect(calls('said', '語'.repeat(1_366))).toEqual([1, 1]);
  for (const spy of spies) spy.mockRestore();
});

it('given a text that was encrypted, decrypted and refused, when the memory of libsodium is searched, then neither its key nor the text is there, but for its last block', async () => {
  await loadShortTexts();
  const { HEAPU8 } = createRequire(__filename)('libsodium') as { HEAPU8: Uint8Array<ArrayBuffer> };
  const memory = Buffer.from(HEAPU8.buffer);
  const said = 'what nobody is to find here';
  // The last 64 bytes may stay on the stack of the library.
  const text = said + 'x'.repeat(64);
  const sealed = encrypt('chacha20-poly1305', text, KEY, IDENTITY, 0);
  const isFound = (): boolean => memory.includes(KEY) || memory.includes(said);
  expect(memory.includes(IDENTITY)).toBe(true);
  expect(isFound()).toBe(false);
  decrypt('chacha20-poly1305', sealed, sealed.length, KEY, IDENTITY);
  expect(isFound()).toBe(false);
  decrypt('chacha20-poly1305', sealed, sealed.length, KEY, '');
  expect(isFound()).toBe(false);
});

it('given an identity longer than those of sessions are, when a text is encrypted with it, then it is decrypted with it alone', async () => {
  await loadShortTexts();
  const long = JSON.stringify(['acme', '語'.repeat(5_000), 1, 'MessageAppended']);
  const sealed = encrypt('chacha20-poly1305', 'said', KEY, long, 0);
  expect(decrypt('chacha20-poly1305', sealed, sealed.length, KEY, long)?.toString()).toBe('said');
  expect(decrypt('chacha20-poly1305', sealed, sealed.length, KEY, IDENTITY)).toBeUndefined();
});
