/** Aborts its signal when `heard` was not called for `ms` milliseconds, counted from `begin` on. */
export class SilenceTimer {
  private readonly controller = new AbortController();
  private timer: NodeJS.Timeout | undefined;

  constructor(private readonly ms: number) {}

  begin(): void {
    this.timer = setTimeout(() => {
      this.controller.abort();
    }, this.ms);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Must be called when data has arrived: the time begins again. */
  heard(): void {
    this.timer?.refresh();
  }

  end(): void {
    clearTimeout(this.timer);
  }
}
