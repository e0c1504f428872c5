import { hash } from 'node:crypto';

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
