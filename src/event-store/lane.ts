import { hash } from 'node:crypto';
import { LRUCache } from 'lru-cache';

export interface StreamId {
  readonly tenant: string;
  readonly streamId: string;
}

/** One text per stream: neither part may contain the slash of the other's end, since tenants have none. */
export const streamKey = ({ tenant, streamId }: StreamId): string => `${tenant}/${streamId}`;

/**
 * The lane of a stream: SHA-256 of `tenant/streamId`, first 8 bytes as an unsigned integer, modulo the lane count.
 * It never changes, and consumers may compute it too: test/unit/event-store keeps vectors.
 */
export function laneOf(stream: StreamId, lanes: number): number {
  const digest = hash('sha256', streamKey(stream), 'buffer');
  return Number(digest.readBigUInt64BE(0) % BigInt(lanes));
}

/** Lanes of the streams in use that are remembered: a hash for each append would be dearer. */
const REMEMBERED_LANES = 20_000;

/** What `laneOf` gives, remembered for the streams in use. */
export function rememberedLaneOf(lanes: number): (stream: StreamId) => number {
  const known = new LRUCache<string, number>({ max: REMEMBERED_LANES });
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
