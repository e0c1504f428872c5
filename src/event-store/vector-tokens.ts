import { createCipheriv, createDecipheriv, createHmac, timingSafeEqual } from 'node:crypto';

const TAG_BYTES = 16;
/** 2^40 positions per lane last more than a thousand years at thirty appends a second in every lane. */
const POSITION_BYTES = 5;
const GENERATION_BYTES = 2;

/** Where a reader of all lanes stands. */
export interface Vector {
  /** Indexed by lane. */
  readonly positions: number[];
  /** The generation of the log in which they were given out. */
  readonly generation: number;
}

/**
 * The positions of a reader of all lanes, as opaque text that is valid for one scope only.
 *
 * Positions reveal how much other tenants write, so they are encrypted. The authentication tag rejects text that was
 * made up, changed or issued for another scope. The tag is computed from the plain text (SIV), so the same positions
 * always give the same text: a client can tell by it what it has seen already.
 */
export class VectorTokens {
  private readonly tagKey: Buffer;
  private readonly cipherKey: Buffer;

  /** @param key secret of the log; the keys for these tokens are derived from it */
  constructor(
    key: Buffer,
    private readonly lanes: number,
  ) {
    const derived = (use: string) => createHmac('sha256', key).update(`vector ${use}`).digest();
    this.tagKey = derived('tag');
    this.cipherKey = derived('cipher').subarray(0, 16);
  }

  /** @param positions indexed by lane; a missing one counts as 0 */
  encode(scope: string, positions: readonly number[], generation = 1): string {
    // The first generation is left out, so that its tokens are what they were before there were generations.
    const plain = Buffer.alloc(this.lanes * POSITION_BYTES + (generation > 1 ? GENERATION_BYTES : 0));
    if (generation > 1) plain.writeUInt16BE(generation, this.lanes * POSITION_BYTES);
    for (let lane = 0; lane < this.lanes; lane += 1) {
      plain.writeUIntBE(positions[lane] ?? 0, lane * POSITION_BYTES, POSITION_BYTES);
    }
    const tag = this.tagOf(scope, plain);
    const sealed = createCipheriv('aes-128-ctr', this.cipherKey, tag).update(plain);
    return Buffer.concat([tag, sealed]).toString('base64url');
  }

  /** @returns undefined for a text that was not issued for this scope */
  decode(scope: string, token: string): Vector | undefined {
    const bytes = Buffer.from(token, 'base64url');
    // Base64url decoding accepts several spellings; only the one that was issued is valid.
    const shortest = TAG_BYTES + this.lanes * POSITION_BYTES;
    const isFirst = bytes.length === shortest;
    if (!isFirst && bytes.length !== shortest + GENERATION_BYTES) return undefined;
    if (bytes.toString('base64url') !== token) return undefined;
    const tag = bytes.subarray(0, TAG_BYTES);
    const plain = createDecipheriv('aes-128-ctr', this.cipherKey, tag).update(bytes.subarray(TAG_BYTES));
    if (!timingSafeEqual(tag, this.tagOf(scope, plain))) return undefined;
    return {
      positions: Array.from({ length: this.lanes }, (_, lane) =>
        plain.readUIntBE(lane * POSITION_BYTES, POSITION_BYTES),
      ),
      generation: isFirst ? 1 : plain.readUInt16BE(this.lanes * POSITION_BYTES),
    };
  }

  private tagOf(scope: string, plain: Buffer): Buffer {
    // The positions have a fixed length, and a scope begins with a letter or digit, never with the small number that a
    // generation begins with: so no other scope and positions give the same bytes.
    return createHmac('sha256', this.tagKey).update(plain).update(scope).digest().subarray(0, TAG_BYTES);
  }
}
