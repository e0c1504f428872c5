/**
 * Does work every `ms` milliseconds, like `setInterval`, and at the same moments for all in this process that have the same
 * period: what a sleeping process needs to wake up is most of what an idle part of it costs, and there may be a hundred of
 * each (cells). The first time comes after at most one and a half periods. It does not keep the process alive.
 *
 * @returns a function that ends it
 */
export function alignedInterval(ms: number, work: () => void): () => void {
  let timer: NodeJS.Timeout;
  const schedule = (): void => {
    const left = ms - (performance.now() % ms);
    // A timer may come a little too early, and must not come again at the moment that it was meant for.
    timer = setTimeout(turn, left < ms / 2 ? left + ms : left).unref();
  };
  const turn = (): void => {
    schedule();
    work();
  };
  schedule();
  return () => {
    clearTimeout(timer);
  };
}
