import { type Cipher, createCipheriv, createDecipheriv, type Decipher } from 'node:crypto';

export interface LanePosition {
  readonly lane: number;
  readonly position: number;
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

  encode({ lane, position }: LanePosition): string {
    const block = Buffer.alloc(16);
    block.writeUInt16BE(lane, 6);
    block.writeBigUInt64BE(BigInt(position), 8);
    return this.cipher.update(block).toString('base64url');
  }

  /** @returns undefined for a text that is no position of this log */
  decode(token: string): LanePosition | undefined {
    const bytes = Buffer.from(token, 'base64url');
    if (bytes.length !== 16) return undefined;
    const block = this.decipher.update(bytes);
    // In every real position these six bytes are zero; a made-up token has them by chance once in 2^48.
    if (block.readUIntBE(0, 6) !== 0) return undefined;
    return { lane: block.readUInt16BE(6), position: Number(block.readBigUInt64BE(8)) };
  }
}
