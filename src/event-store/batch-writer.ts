import { type Client } from 'pg';
import { type Append, type AppendResult, Overloaded, weigh } from './append.js';
import { type AppendMemory, Committer } from './committer.js';
import { endOfTurn } from './end-of-turn.js';
import { FairShare } from './fair-share.js';
import { streamKey } from './lane.js';
import { type AppendOutcome, type Telemetry } from './telemetry.js';
import { Batch, type Pending, WaitingAppends } from './waiting-appends.js';

export interface WriterOptions {
  /** Appends that may wait, over all tenants; past its share of it a tenant's append is `overloaded`. */
  readonly queueLimit?: number;
  /** Bytes of payload that may wait, likewise. */
  readonly queueBytes?: number;
}

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
  private readonly room: FairShare;
  private readonly commits = new Set<Promise<void>>();
  private starting = false;
  private isLone = true;

  constructor(
    connect: () => Promise<Client>,
    memory: AppendMemory,
    private readonly telemetry: Telemetry,
    { queueLimit = 10_000, queueBytes = 64 * 1024 * 1024 }: WriterOptions = {},
  ) {
    this.halves = [0, 1].map(() => new Half(new Committer(connect, memory, telemetry)));
    this.room = new FairShare({ count: queueLimit, bytes: queueBytes });
  }

  /**
   * @throws Overloaded when too much of this tenant waits already; nothing was done.
   * @throws DatabaseUnavailable when the database stays away; whether this append was committed is then unknown.
   */
  append(append: Append): Promise<AppendResult> {
    this.appends += 1;
    const half = this.halves[append.lane % this.halves.length];
    if (!half) throw new Error('no half');
    const { tenant } = append.stream;
    const bytes = weigh(append);
    if (!this.room.enter(tenant, bytes)) {
      this.telemetry.emit('overloaded', { what: 'append', tenant });
      return Promise.reject(new Overloaded('more arrives than the database takes at the moment; try again'));
    }
    return new Promise((resolve, reject) => {
      const pending: Pending = {
        append,
        key: streamKey(append.stream),
        bytes,
        since: performance.now(),
        begun: 0,
        resolve: (result) => {
          this.tell(pending, OUTCOMES[result.status]);
          resolve(result);
        },
        reject: (error) => {
          this.tell(pending, 'failed');
          reject(error);
        },
      };
      half.waiting.add(pending);
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
    const full = this.halves.filter((half) => !half.busy && half.waiting.length >= HALF_APPENDS);
    const idle = this.halves.every((half) => !half.busy);
    if (idle && full.length < this.halves.length) this.commit(this.halves);
    else for (const half of full) this.commit([half]);
  }

  private commit(halves: readonly Half[]): void {
    const [first] = halves;
    const batch = new Batch();
    for (const half of halves) half.waiting.fill(batch);
    const { pending } = batch;
    if (!first || pending.length === 0) return;
    const begun = performance.now();
    let events = 0;
    for (const one of pending) {
      one.begun = begun;
      events += one.append.events.length;
      this.room.leave(one.append.stream.tenant, one.bytes);
    }
    this.isLone = pending.length === 1 && this.commits.size === 0;
    for (const half of halves) half.busy = true;
    const commit = first.committer.commit(pending).finally(() => {
      this.telemetry.emit('batch', { appends: pending.length, events, commitMs: performance.now() - begun });
      this.commits.delete(commit);
      for (const half of halves) half.busy = false;
      this.startCommits();
    });
    this.commits.add(commit);
  }

  private tell({ since, begun }: Pending, outcome: AppendOutcome): void {
    const commitMs = performance.now() - begun;
    this.telemetry.emit('appended', { outcome, waitMs: begun - since, commitMs });
  }
}

const OUTCOMES: Readonly<Record<AppendResult['status'], AppendOutcome>> = {
  ok: 'ok',
  duplicate: 'duplicate',
  conflict: 'conflict',
  retry: 'conflict',
  reused: 'refused',
  guard: 'refused',
  counter: 'refused',
};

/** What waits for one half of the lanes. */
class Half {
  readonly waiting = new WaitingAppends();
  busy = false;

  constructor(readonly committer: Committer) {}
}
