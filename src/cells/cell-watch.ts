import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { type Unanswered } from '../http/unanswered.js';

/** Between two looks at what waits. */
const LOOK_MS = 200;
/** A cell whose requests wait for longer is asked whether its database answers at all. */
const LONG_MS = 500;
/** So often it is asked, and so long an answer may take, until it is taken to be away: 1.7 s after a request in all. */
const ASKED = 2;
const ANSWER_MS = 500;
/** A cell that has answered is not asked again for so long, whatever waits in it: a model, for example. */
const TRUSTED_MS = 2_000;

export interface WatchedCell {
  readonly name: string;
  readonly unanswered: Unanswered;
  /** Asks its database for a sign of life. Rejects when there is none. */
  readonly ask: (ms: number) => Promise<void>;
}

/**
 * Notices cells that hang: their database neither answers nor refuses. Their requests would wait until the time limit of
 * each statement; a client of one cell among several is answered within two seconds. A cell in which nothing waits is not
 * asked.
 */
export class CellWatch {
  private readonly away = new Set<string>();
  private readonly asking = new Set<string>();
  /** When cells have answered, by `performance.now()`. */
  private readonly answeredAt = new Map<string, number>();
  private timer: NodeJS.Timeout | undefined;

  constructor(
    private readonly cells: () => Iterable<WatchedCell>,
    /** What the requests of a cell are answered with. */
    private readonly errorOf: (cell: string) => Error,
  ) {}

  begin(): void {
    this.timer ??= setInterval(() => {
      for (const cell of this.cells()) this.look(cell);
    }, LOOK_MS).unref();
  }

  close(): void {
    clearInterval(this.timer);
  }

  isAway(name: string): boolean {
    return this.away.has(name);
  }

  private look(cell: WatchedCell): void {
    const { name, unanswered } = cell;
    unanswered.begin();
    if (this.asking.has(name) || (!this.away.has(name) && !this.isSuspect(cell))) return;
    this.asking.add(name);
    void this.answers(cell).then((answers) => {
      this.asking.delete(name);
      if (answers) {
        this.away.delete(name);
        this.answeredAt.set(name, performance.now());
      } else {
        this.away.add(name);
        unanswered.refuse(this.errorOf(name), LONG_MS);
      }
    });
  }

  private isSuspect({ name, unanswered }: WatchedCell): boolean {
    const since = performance.now() - (this.answeredAt.get(name) ?? -Infinity);
    return since > TRUSTED_MS && unanswered.longestMs > LONG_MS;
  }

  private async answers({ ask }: WatchedCell): Promise<boolean> {
    for (let asked = 0; asked < ASKED; asked += 1) {
      const answered = ask(ANSWER_MS).then(
        () => true,
        () => false,
      );
      const limit = sleep(ANSWER_MS, undefined, { ref: false });
      await Promise.race([answered, limit]);
      // After a turn of the event loop that took long, the limit is over before an answer is read that was there in time.
      if (await Promise.race([answered, nextTurn(false)])) return true;
      await limit;
    }
    return false;
  }
}
