import { hash } from 'node:crypto';
import { boundedCache } from '../bounded-cache.js';

export interface StreamId {
  readonly tenant: string;
  readonly streamId: string;
}

/** One text per stream. It is unambiguous, because tenant ids contain no slash. */
export const streamKey = ({ tenant, streamId }: StreamId): string => `${tenant}/${streamId}`;

/**
 * The lane of a stream: the first 8 bytes of the SHA-256 of `tenant/streamId` as an unsigned big-endian integer, modulo
 * the lane count. It never changes, and consumers may compute it too; test/unit/event-store holds test vectors.
 */
export function laneOf(stream: StreamId, lanes: number): number {
  const digest = hash('sha256', streamKey(stream), 'buffer');
  return Number(digest.readBigUInt64BE(0) % BigInt(lanes));
}

/** Number of streams whose lanes are cached, because computing a hash for each append would cost more. */
const REMEMBERED_LANES = 20_000;

/** Like `laneOf`, with a cache for the streams in use. */
export function rememberedLaneOf(lanes: number): (stream: StreamId) => number {
  const known = boundedCache<string, number>(REMEMBERED_LANES);
  return (stream) => {
    const key = streamKey(stream);
    let lane = known.get(key);
    if (lane === undefined) {
      lane = laneOf(stream, lanes);
      known.set(key, lane);
    }
    return lane;
  };
}
