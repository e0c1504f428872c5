import { type Cipher, createCipheriv, createDecipheriv, type Decipher } from 'node:crypto';

export interface LanePosition {
  readonly lane: number;
  readonly position: number;
}

/**
 * Positions as opaque text. One AES block: the numbers of a lane tell how much others write, so a client must not be
 * able to read them, and one that it made up must be recognised.
 */
export class PositionTokens {
  // Without padding each block stands alone and comes out at once, so one of each serves for ever.
  private readonly cipher: Cipher;
  private readonly decipher: Decipher;

  constructor(key: Buffer) {
    this.cipher = createCipheriv('aes-128-ecb', key, null).setAutoPadding(false);
    this.decipher = createDecipheriv('aes-128-ecb', key, null).setAutoPadding(false);
  }

  encode({ lane, position }: LanePosition): string {
    const block = Buffer.alloc(16);
    block.writeUInt16BE(lane, 6);
    block.writeBigUInt64BE(BigInt(position), 8);
    return this.cipher.update(block).toString('base64url');
  }

  /** @returns undefined for a text that is no position of this log. */
  decode(token: string): LanePosition | undefined {
    const bytes = Buffer.from(token, 'base64url');
    if (bytes.length !== 16) return undefined;
    const block = this.decipher.update(bytes);
    // Six bytes are zero in every real position; a made-up token has them by chance once in 2^48.
    if (block.readUIntBE(0, 6) !== 0) return undefined;
    return { lane: block.readUInt16BE(6), position: Number(block.readBigUInt64BE(8)) };
  }
}
