import { type Cipher, createCipheriv, createDecipheriv, type Decipher } from 'node:crypto';

export interface LanePosition {
  readonly lane: number;
  readonly position: number;
}

/** A position, and the generation of the log in which it stands for an event; the first one unless given. */
export interface GivenPosition extends LanePosition {
  readonly generation?: number | undefined;
}

/**
 * Encrypts positions as opaque text of one AES block. The positions of a lane reveal how much other tenants write, so a
 * client must not be able to read them, and positions that a client made up must be recognised.
 */
export class PositionTokens {
  // Without padding each block is independent and complete, so one cipher and one decipher can be reused for ever.
  private readonly cipher: Cipher;
  private readonly decipher: Decipher;

  constructor(key: Buffer) {
    this.cipher = createCipheriv('aes-128-ecb', key, null).setAutoPadding(false);
    this.decipher = createDecipheriv('aes-128-ecb', key, null).setAutoPadding(false);
  }

  encode({ lane, position, generation = 1 }: GivenPosition): string {
    const block = Buffer.alloc(16);
    // Counted from 0, so that positions of the first generation are what they were before there were generations.
    block.writeUInt16BE(generation - 1, 4);
    block.writeUInt16BE(lane, 6);
    block.writeBigUInt64BE(BigInt(position), 8);
    return this.cipher.update(block).toString('base64url');
  }

  /** @returns undefined for a text that is no position of this log */
  decode(token: string): Required<GivenPosition> | undefined {
    const bytes = Buffer.from(token, 'base64url');
    if (bytes.length !== 16) return undefined;
    const block = this.decipher.update(bytes);
    // In every real position these four bytes are zero; a made-up token has them by chance once in 2^32.
    if (block.readUInt32BE(0) !== 0) return undefined;
    return {
      lane: block.readUInt16BE(6),
      position: Number(block.readBigUInt64BE(8)),
      generation: block.readUInt16BE(4) + 1,
    };
  }
}
