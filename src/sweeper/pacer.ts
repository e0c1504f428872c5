const LEAST = 8;
const MOST = 512;
/** How often the pace is thought over. */
const WINDOW_MS = 25;
/** From this part of our own appends on, those of others count as work that we hold up. */
const OTHERS = 1 / 8;

/**
 * Does many things at once, but not so many that others have to wait for them: as soon as the writer is asked for
 * appends by anybody else, the number halves; as long as it is not, it doubles.
 *
 * There is a least number: work in the background must get on beside a foreground that never rests.
 */
export class Pacer {
  private limit = LEAST;
  private began = 0;
  private window = { at: 0, all: 0, began: 0 };

  /** @param appends how many appends the writer was asked for so far, by anybody. */
  constructor(private readonly appends: () => number) {}

  /**
   * @param prepare is called with the next few, while the ones before are worked on
   * @throws the first error of `work` or `prepare`, once what had begun has ended; nothing more is begun then
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
      this.think();
      now.ended();
    };
    // One callback, not a race between all that run: that would cost each of them as much as there are.
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

  /** The writer has refused us: it has more than enough to do. */
  slowDown(): void {
    this.limit = LEAST;
  }

  private think(): void {
    const now = performance.now();
    if (now - this.window.at < WINDOW_MS) return;
    const all = this.appends();
    const own = this.began - this.window.began;
    const others = all - this.window.all - own;
    this.limit = others > own * OTHERS ? Math.max(LEAST, this.limit / 2) : Math.min(MOST, this.limit * 2);
    this.window = { at: now, all, began: this.began };
  }
}
