/** Fewest and most pieces of work at the same time. */
const LEAST = 8;
const MOST = 512;
/** Time between two adjustments of the limit. */
const WINDOW_MS = 25;
/** Appends of clients lower the limit when they are more than this part of the appends of the background work. */
const OTHERS = 1 / 8;

/**
 * Limits how much background work runs at the same time, so that clients do not wait for it. While clients append, the
 * limit halves with every look; while they do not, it doubles. It never falls below a minimum, because background work
 * must make progress beside clients that never pause.
 */
export class Pacer {
  private limit = LEAST;
  private began = 0;
  private window = { at: 0, all: 0, began: 0 };

  /** @param appends number of appends that the writer was asked for so far, by clients and by background work */
  constructor(private readonly appends: () => number) {}

  /**
   * Runs `work` for each item, at most as many at the same time as the limit says.
   *
   * @param prepare called with the next few items while those before are worked on
   * @throws the first error of `work` or `prepare`, once all running work has ended; no further work is begun
   */
  async each<T>(
    items: readonly T[],
    prepare: (some: readonly T[]) => Promise<void>,
    work: (item: T) => Promise<void>,
  ): Promise<void> {
    this.window = { at: performance.now(), all: this.appends(), began: this.began };
    const errors: unknown[] = [];
    const hasFailed = (): boolean => errors.length > 0;
    const now = { running: 0, ended: (): void => undefined };
    const run = async (item: T): Promise<void> => {
      this.began += 1;
      now.running += 1;
      try {
        await work(item);
      } catch (error) {
        errors.push(error);
      }
      now.running -= 1;
      this.adjust();
      now.ended();
    };
    // A single callback instead of a race over all running promises, whose cost would grow with their number.
    const until = async (isEnough: () => boolean): Promise<void> => {
      while (!isEnough()) await new Promise<void>((resolve) => (now.ended = resolve));
    };
    const take = (from: number): { some: readonly T[]; ready: Promise<unknown> } => {
      const some = items.slice(from, from + 2 * this.limit);
      const ready = some.length > 0 ? prepare(some) : Promise.resolve();
      return { some, ready: ready.catch((error: unknown) => errors.push(error)) };
    };
    let next = take(0);
    for (let from = 0; next.some.length > 0 && !hasFailed();) {
      const { some, ready } = next;
      await ready;
      from += some.length;
      next = take(from);
      for (const item of some) {
        if (now.running >= this.limit) await until(() => now.running < this.limit);
        if (hasFailed()) break;
        void run(item);
      }
    }
    await next.ready;
    await until(() => now.running === 0);
    if (hasFailed()) throw errors[0];
  }

  /** To be called when the writer refused an append, because it has too much to do. */
  slowDown(): void {
    this.limit = LEAST;
  }

  private adjust(): void {
    const now = performance.now();
    if (now - this.window.at < WINDOW_MS) return;
    const all = this.appends();
    const own = this.began - this.window.began;
    const others = all - this.window.all - own;
    this.limit = others > own * OTHERS ? Math.max(LEAST, this.limit / 2) : Math.min(MOST, this.limit * 2);
    this.window = { at: now, all, began: this.began };
  }
}
