const isFull = process.env['FULL'] === '1';
const isHeavy = isFull || process.env['HEAVY'] === '1';

/**
 * Replaces `it` for a test that is slow by nature, because it kills and starts processes, waits for leases or outages,
 * or needs very many events. `npm run test:full` and CI run such tests (`HEAVY=1`), `npm test` does not. Files that
 * hold only such tests are called `*.heavy.*.spec.ts`.
 */
export const heavy: jest.It = isHeavy ? it : it.skip;

/** The size of a test: `npm run test:full` runs the full one, CI the reduced one, `npm test` the quick one. */
export const sized = (full: number, reduced: number, quick = reduced): number =>
  isFull ? full : isHeavy ? reduced : quick;

/** The same for a group of tests. */
export const heavyDescribe: jest.Describe = isHeavy ? describe : describe.skip;
