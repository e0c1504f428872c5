const LEAST = 8;
const MOST = 256;
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
    const running = new Set<Promise<void>>();
    const take = (from: number): { some: readonly T[]; ready: Promise<unknown> } => {
      const some = items.slice(from, from + 2 * this.limit);
      return {
        some,
        ready:
          some.length > 0 ? prepare(some).catch((error: unknown) => errors.push(error)) : Promise.resolve(),
      };
    };
    let next = take(0);
    for (let from = 0; next.some.length > 0;) {
      const { some, ready } = next;
      await ready;
      from += some.length;
      next = take(from);
      for (const item of some) {
        while (running.size >= this.limit) await Promise.race(running);
        if (errors.length > 0) break;
        this.began += 1;
        const done = work(item)
          .catch((error: unknown) => {
            errors.push(error);
          })
          .finally(() => {
            running.delete(done);
            this.think();
          });
        running.add(done);
      }
      if (errors.length > 0) break;
    }
    await next.ready;
    await Promise.all(running);
    if (errors.length > 0) throw errors[0];
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
