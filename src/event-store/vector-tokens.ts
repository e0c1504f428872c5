import { createCipheriv, createDecipheriv, createHmac, timingSafeEqual } from 'node:crypto';

const TAG_BYTES = 16;
/** 2^40 positions a lane: more than a thousand years of a thousand appends a second, in every lane. */
const POSITION_BYTES = 5;

/**
 * Where a reader of all lanes stands, as opaque text: one position per lane, sealed for a scope.
 *
 * Positions tell how much others write, so they are encrypted; the tag makes one that was made up, changed or given
 * out for another scope unreadable. It is computed from what it seals (SIV), so the same place is always the same
 * text: a client may tell by it what it has seen already.
 */
export class VectorTokens {
  private readonly tagKey: Buffer;
  private readonly cipherKey: Buffer;

  /** @param key the log's secret; keys of this use are derived from it. */
  constructor(
    key: Buffer,
    private readonly lanes: number,
  ) {
    const derived = (use: string) => createHmac('sha256', key).update(`vector ${use}`).digest();
    this.tagKey = derived('tag');
    this.cipherKey = derived('cipher').subarray(0, 16);
  }

  /** @param positions by lane; one that is missing counts as 0. */
  encode(scope: string, positions: readonly number[]): string {
    const plain = Buffer.alloc(this.lanes * POSITION_BYTES);
    for (let lane = 0; lane < this.lanes; lane += 1) {
      plain.writeUIntBE(positions[lane] ?? 0, lane * POSITION_BYTES, POSITION_BYTES);
    }
    const tag = this.tagOf(scope, plain);
    const sealed = createCipheriv('aes-128-ctr', this.cipherKey, tag).update(plain);
    return Buffer.concat([tag, sealed]).toString('base64url');
  }

  /** @returns positions by lane; undefined for a text that was not given out for this scope. */
  decode(scope: string, token: string): number[] | undefined {
    const bytes = Buffer.from(token, 'base64url');
    // Decoding is lenient: only the one spelling that was given out is taken.
    if (bytes.length !== TAG_BYTES + this.lanes * POSITION_BYTES || bytes.toString('base64url') !== token)
      return undefined;
    const tag = bytes.subarray(0, TAG_BYTES);
    const plain = createDecipheriv('aes-128-ctr', this.cipherKey, tag).update(bytes.subarray(TAG_BYTES));
    if (!timingSafeEqual(tag, this.tagOf(scope, plain))) return undefined;
    return Array.from({ length: this.lanes }, (_, lane) =>
      plain.readUIntBE(lane * POSITION_BYTES, POSITION_BYTES),
    );
  }

  private tagOf(scope: string, plain: Buffer): Buffer {
    // The positions have a fixed length, so scope and positions cannot be cut apart in another place.
    return createHmac('sha256', this.tagKey).update(plain).update(scope).digest().subarray(0, TAG_BYTES);
  }
}
