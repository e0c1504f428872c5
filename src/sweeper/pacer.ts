/** Bounds of the number of pieces of work that run at the same time. */
const MIN_CONCURRENCY = 8;
const MAX_CONCURRENCY = 512;
/** Milliseconds between two adjustments of the limit. */
const ADJUST_INTERVAL_MS = 25;
/** The limit falls when clients append more than this share of what the background work appends. */
const CLIENT_SHARE = 1 / 8;

/**
 * Limits how much background work runs at the same time, so that clients do not wait for it. The limit halves with each
 * adjustment while clients append, and doubles while they do not. It never falls below a minimum: otherwise background
 * work would make no progress beside clients that never pause.
 */
export class Pacer {
  private limit = MIN_CONCURRENCY;
  /** Pieces of work that were begun so far. Each asks for one append. */
  private begun = 0;
  private lastAdjustment = { at: 0, appends: 0, begun: 0 };

  /**
   * @param appends returns how many appends clients and background work together have asked for since the start of the
   * process
   */
  constructor(private readonly appends: () => number) {}

  /**
   * Runs `work` for each item, for as many items at the same time as the limit allows.
   *
   * @param prepare called with the next few items while the ones before them are worked on
   * @throws the first error of `work` or `prepare`, once all running work has ended; no further work is begun
   */
  async each<T>(
    items: readonly T[],
    prepare: (some: readonly T[]) => Promise<void>,
    work: (item: T) => Promise<void>,
  ): Promise<void> {
    this.lastAdjustment = { at: performance.now(), appends: this.appends(), begun: this.begun };
    const errors: unknown[] = [];
    const hasFailed = (): boolean => errors.length > 0;
    const state = { running: 0, onEnd: (): void => undefined };
    const run = async (item: T): Promise<void> => {
      this.begun += 1;
      state.running += 1;
      try {
        await work(item);
      } catch (error) {
        errors.push(error);
      }
      state.running -= 1;
      this.adjust();
      state.onEnd();
    };
    // One callback, because the cost of `Promise.race` over all running work would grow with the amount of work.
    const waitUntil = async (isEnough: () => boolean): Promise<void> => {
      while (!isEnough()) await new Promise<void>((resolve) => (state.onEnd = resolve));
    };
    const prepareNext = (from: number): { some: readonly T[]; ready: Promise<unknown> } => {
      const some = items.slice(from, from + 2 * this.limit);
      const ready = some.length > 0 ? prepare(some) : Promise.resolve();
      return { some, ready: ready.catch((error: unknown) => errors.push(error)) };
    };
    let next = prepareNext(0);
    for (let from = 0; next.some.length > 0 && !hasFailed();) {
      const { some, ready } = next;
      await ready;
      from += some.length;
      next = prepareNext(from);
      for (const item of some) {
        if (state.running >= this.limit) await waitUntil(() => state.running < this.limit);
        if (hasFailed()) break;
        void run(item);
      }
    }
    await next.ready;
    await waitUntil(() => state.running === 0);
    if (hasFailed()) throw errors[0];
  }

  /** Must be called when the writer has refused an append because it is overloaded. */
  slowDown(): void {
    this.limit = MIN_CONCURRENCY;
  }

  private adjust(): void {
    const now = performance.now();
    if (now - this.lastAdjustment.at < ADJUST_INTERVAL_MS) return;
    const appends = this.appends();
    const own = this.begun - this.lastAdjustment.begun;
    const byClients = appends - this.lastAdjustment.appends - own;
    this.limit =
      byClients > own * CLIENT_SHARE
        ? Math.max(MIN_CONCURRENCY, this.limit / 2)
        : Math.min(MAX_CONCURRENCY, this.limit * 2);
    this.lastAdjustment = { at: now, appends, begun: this.begun };
  }
}
