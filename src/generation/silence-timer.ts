/** How many times as long as without any sign a provider may keep a call alive by comments alone. */
const PATIENCE = 5;

/** Aborts its signal when nothing was heard for `ms` milliseconds, counted from `begin` on. */
export class SilenceTimer {
  private readonly controller = new AbortController();
  private timer: NodeJS.Timeout | undefined;
  /** When data has come last, or the time began, by `performance.now()`. */
  private since = 0;

  constructor(private readonly ms: number) {}

  begin(): void {
    this.since = performance.now();
    this.timer = setTimeout(() => {
      this.controller.abort();
    }, this.ms);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Must be called when data has arrived: the time begins again. */
  heard(): void {
    this.since = performance.now();
    this.timer?.refresh();
  }

  /**
   * Must be called when the provider has sent a comment. It is at work, but one that only ever says so has to end as well.
   */
  commented(): void {
    if (performance.now() - this.since < (PATIENCE - 1) * this.ms) this.timer?.refresh();
  }

  end(): void {
    clearTimeout(this.timer);
  }
}
