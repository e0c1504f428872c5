import { type Client } from 'pg';
import { type Append, type AppendResult, Overloaded, weigh } from './append.js';
import { type AppendMemory, Committer, type Waiting } from './committer.js';
import { endOfTurn } from './end-of-turn.js';
import { streamKey } from './lane.js';

interface Pending extends Waiting {
  /** Names its stream. */
  readonly key: string;
  readonly bytes: number;
}

export interface WriterOptions {
  /** Appends waiting at most, over all writers; past it an append is `overloaded`. */
  readonly queueLimit?: number;
  /** Bytes of payload waiting at most, over all writers. */
  readonly queueBytes?: number;
}

/** From here on a bigger batch costs more per append than it saves (measured). */
const BATCH_APPENDS = 256;
const BATCH_BYTES = 8 * 1024 * 1024;

/**
 * Lanes are split in two halves, even and odd. A half gets a commit of its own beside the other's only if so many
 * of its appends wait: with fewer, one bigger batch for both is cheaper than two commits side by side (measured).
 */
const HALF_APPENDS = 32;

/**
 * Coalesces appends: what arrives while a commit is in flight forms the next batch. Nothing waits for a timer: an
 * idle writer commits at the end of the event loop's turn, or at once if the last append came alone, too.
 *
 * Under load there are two commits in flight, one per half of the lanes, so that one batch is prepared while another
 * is flushed to disk; their locks never meet. Every append is one autocommit statement, so that a process stopped at
 * any point holds no lock.
 */
export class BatchWriter {
  /** Appends that were asked for so far. */
  appends = 0;
  private readonly halves: readonly Half[];
  private readonly queueLimit: number;
  private readonly queueBytes: number;
  private readonly commits = new Set<Promise<void>>();
  private starting = false;
  private isLone = true;

  constructor(connect: () => Promise<Client>, memory: AppendMemory, options: WriterOptions = {}) {
    this.halves = [0, 1].map(() => new Half(new Committer(connect, memory)));
    this.queueLimit = options.queueLimit ?? 10_000;
    this.queueBytes = options.queueBytes ?? 64 * 1024 * 1024;
  }

  /**
   * @throws Overloaded when too much waits already; nothing was done.
   * @throws DatabaseUnavailable when the database stays away; whether this append was committed is then unknown.
   */
  append(append: Append): Promise<AppendResult> {
    this.appends += 1;
    const half = this.halves[append.lane % this.halves.length];
    if (!half) throw new Error('no half');
    const waiting = this.halves.reduce((sum, one) => sum + one.queue.length, 0);
    const bytes = this.halves.reduce((sum, one) => sum + one.bytes, 0);
    if (waiting >= this.queueLimit || bytes >= this.queueBytes) {
      return Promise.reject(new Overloaded('more arrives than the database takes at the moment; try again'));
    }
    return new Promise((resolve, reject) => {
      const pending = { append, key: streamKey(append.stream), bytes: weigh(append), resolve, reject };
      half.queue.push(pending);
      half.bytes += pending.bytes;
      this.start();
    });
  }

  /** Ends when all that was accepted is answered. */
  async close(): Promise<void> {
    while (this.starting || this.commits.size > 0) {
      await Promise.all(this.commits);
      await endOfTurn();
    }
    await Promise.all(this.halves.map((half) => half.committer.close()));
  }

  /**
   * Begins to commit late enough that requests which arrive together are committed together: those of the running
   * callback, and under load all of the event loop's turn. A lone append would only lose time by waiting for the turn's
   * end: its database connection falls asleep in between.
   */
  private start(): void {
    if (this.starting) return;
    this.starting = true;
    const begin = (): void => {
      this.starting = false;
      this.startCommits();
    };
    if (this.isLone) process.nextTick(begin);
    else setImmediate(begin);
  }

  private startCommits(): void {
    const full = this.halves.filter((half) => !half.busy && half.queue.length >= HALF_APPENDS);
    const idle = this.halves.every((half) => !half.busy);
    if (idle && full.length < this.halves.length) this.commit(this.halves);
    else for (const half of full) this.commit([half]);
  }

  private commit(halves: readonly Half[]): void {
    const batch = take(halves);
    const [first] = halves;
    if (!first || batch.length === 0) return;
    this.isLone = batch.length === 1 && this.commits.size === 0;
    for (const half of halves) half.busy = true;
    const commit = first.committer.commit(batch).finally(() => {
      this.commits.delete(commit);
      for (const half of halves) half.busy = false;
      this.startCommits();
    });
    this.commits.add(commit);
  }
}

/** What waits for one half of the lanes. */
class Half {
  queue: Pending[] = [];
  bytes = 0;
  busy = false;

  constructor(readonly committer: Committer) {}
}

/** The next batch: a stream stands in it once, further appends to it wait, in order, for the next one. */
function take(halves: readonly Half[]): Pending[] {
  const batch: Pending[] = [];
  const streams = new Set<string>();
  let bytes = 0;
  for (const half of halves) {
    const rest: Pending[] = [];
    for (const pending of half.queue) {
      const fits =
        batch.length < BATCH_APPENDS && (batch.length === 0 || bytes + pending.bytes <= BATCH_BYTES);
      if (fits && !streams.has(pending.key)) {
        batch.push(pending);
        bytes += pending.bytes;
        half.bytes -= pending.bytes;
      } else rest.push(pending);
      streams.add(pending.key);
    }
    half.queue = rest;
  }
  return batch;
}
