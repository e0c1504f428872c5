let suspendedMs = 0;
let last = { monotonic: performance.now(), wall: Date.now() };

/**
 * Milliseconds since some moment in the past, including the time during which the machine was suspended. A lease runs
 * out meanwhile, but the monotonic clock stands still; the wall clock moves on, but may also be set back.
 */
export function suspendClock(): number {
  const monotonic = performance.now();
  const wall = Date.now();
  suspendedMs += Math.max(0, wall - last.wall - (monotonic - last.monotonic));
  last = { monotonic, wall };
  return monotonic + suspendedMs;
}
