import { laneOf } from '../../../src/event-store/lane.js';

/**
 * Lanes that were computed once by another program (`printf 'default/sess_1' | sha256sum`, first 16 digits, modulo).
 * They must never change: consumers compute lanes in other languages, and the events of a stream whose lane changed
 * would be in two lanes.
 */
const VECTORS: readonly [tenant: string, streamId: string, lanes: Readonly<Record<number, number>>][] = [
  ['default', 'sess_1', { 1: 0, 2: 0, 16: 14, 1000: 934 }],
  ['default', '~tenant', { 1: 0, 2: 1, 16: 5, 1000: 989 }],
  ['acme', 'user-alice-support', { 1: 0, 2: 1, 16: 3, 1000: 91 }],
  ['acme', 'a', { 1: 0, 2: 1, 16: 9, 1000: 441 }],
  ['a', 'cme', { 1: 0, 2: 1, 16: 3, 1000: 467 }],
  ['beta', 'Z:@~-._9', { 1: 0, 2: 0, 16: 0, 1000: 576 }],
  ['t_1', 'x'.repeat(128), { 1: 0, 2: 0, 16: 4, 1000: 356 }],
];

describe('laneOf', () => {
  it.each(VECTORS)(
    'given %s/%s, when its lane is computed, then it is the expected one',
    (tenant, streamId, lanes) => {
      for (const [count, lane] of Object.entries(lanes)) {
        expect([count, laneOf({ tenant, streamId }, Number(count))]).toEqual([count, lane]);
      }
    },
  );

  it('given many streams, when they are spread over 16 lanes, then no lane has twice its share', () => {
    const counts = new Array<number>(16).fill(0);
    for (let index = 0; index < 16_000; index += 1) {
      const lane = laneOf({ tenant: 'acme', streamId: `sess_${index}` }, 16);
      counts[lane] = (counts[lane] ?? 0) + 1;
    }
    expect(Math.min(...counts)).toBeGreaterThan(800);
    expect(Math.max(...counts)).toBeLessThan(1_200);
  });
});
