import { createPrivateKey, createPublicKey, hash, type KeyObject, sign } from 'node:crypto';

/*
 * Signed notes (C2SP signed-note) with Ed25519: a text, an empty line, and a line for each signature. A checkpoint (C2SP
 * tlog-checkpoint) is a note of three lines: the origin, the size of the tree, and its hash.
 */

/** Type of signature in the id of a key: Ed25519. */
const ED25519 = 1;
/** What PKCS #8 and SPKI write before the 32 bytes of an Ed25519 key (RFC 8410). */
const PKCS8 = Buffer.from('302e020100300506032b657004220420', 'hex');
const SPKI_LENGTH = 12;

/** Signs notes under the name of a key. */
export class NoteSigner {
  private readonly key: KeyObject;
  /** 32 bytes. */
  readonly publicKey: Buffer;
  /** The first four bytes of a digest of name and key, as 8 hex digits: signatures begin with it. */
  readonly id: string;

  /**
   * @param name without blanks and `+`
   * @param seed the private key of RFC 8032, 32 bytes
   */
  constructor(
    readonly name: string,
    seed: Buffer,
  ) {
    this.key = createPrivateKey({ key: Buffer.concat([PKCS8, seed]), format: 'der', type: 'pkcs8' });
    this.publicKey = createPublicKey(this.key).export({ format: 'der', type: 'spki' }).subarray(SPKI_LENGTH);
    this.id = keyId(name, this.publicKey);
  }

  /** @param text ends with a line feed */
  sign(text: string): string {
    const signature = Buffer.concat([Buffer.from(this.id, 'hex'), sign(null, Buffer.from(text), this.key)]);
    return `${text}\n— ${this.name} ${signature.toString('base64')}\n`;
  }

  /** A note that says something in JSON: its first line tells what kind of statement it is. */
  state(kind: string, statement: object): string {
    return this.sign(`colloquy/${kind}/v1\n${JSON.stringify(statement)}\n`);
  }
}

const keyId = (name: string, publicKey: Buffer): string =>
  hash('sha256', Buffer.concat([Buffer.from(`${name}\n`), typed(publicKey)])).slice(0, 8);

const typed = (publicKey: Buffer): Buffer => Buffer.concat([Buffer.of(ED25519), publicKey]);

/** The public key as verifiers of signed notes take it: `name+id+base64`. */
export const verifierKey = (name: string, publicKey: Buffer): string =>
  `${name}+${keyId(name, publicKey)}+${typed(publicKey).toString('base64')}`;

/** The text of a checkpoint. */
export const checkpointText = (origin: string, size: number, root: Buffer): string =>
  `${origin}\n${size}\n${root.toString('base64')}\n`;

/** The notes of a text that has several, one behind the other. */
export const notesIn = (text: string): string[] => text.match(/(?:[^\n]+\n)+\n(?:— [^\n]+(?:\n|$))+/g) ?? [];
