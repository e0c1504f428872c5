export const quantile = (values, q) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))];
};
export const median = (values) => quantile(values, 0.5);

/** The interquartile range of the values as a fraction of their median, which shows the noise of this machine. */
export const spread = (values) => (quantile(values, 0.75) - quantile(values, 0.25)) / median(values);

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Milliseconds that `work` takes. */
export async function timed(work) {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

/**
 * Runs `work(worker)` in `workers` loops at the same time for `seconds`, and resolves to the number of calls per
 * second. All calls have ended when it resolves.
 */
export async function rate(workers, seconds, work) {
  let done = 0;
  const end = performance.now() + seconds * 1000;
  await Promise.all(
    Array.from({ length: workers }, async (_, worker) => {
      for (;;) {
        await work(worker);
        if (performance.now() > end) return;
        done += 1;
      }
    }),
  );
  return done / seconds;
}

/**
 * Measures several things in comparison: each gets a turn per round, in alternating order, so that other work on the
 * machine affects all of them. The first round warms up and is not counted.
 * @param turns name → function that resolves to a number
 * @returns name → the numbers of all rounds
 */
export async function sideBySide(rounds, turns) {
  const names = Object.keys(turns);
  const measured = Object.fromEntries(names.map((name) => [name, []]));
  for (let round = 0; round <= rounds; round += 1) {
    for (const name of round % 2 ? names : [...names].reverse()) {
      const value = await turns[name]();
      if (round > 0) measured[name].push(value);
    }
  }
  return measured;
}

/** Median of the ratios of each round. */
export const ratio = (ours, theirs) => median(ours.map((one, round) => one / theirs[round]));
