import { keepsUp } from '../../../src/projection-engine/replicas.js';

it('given a quiet log, then a replica may have heard of nothing for a period of it more, because nodes write so seldom', () => {
  expect(keepsUp({ isQuiet: false, quietMs: 30_000 })).toContain("interval '10000 milliseconds'");
  expect(keepsUp({ isQuiet: true, quietMs: 30_000 })).toContain("interval '40000 milliseconds'");
});
