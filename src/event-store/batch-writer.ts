import { type Client } from 'pg';
import { type DatabaseUnavailable } from '../database/connection.js';
import { type Append, type AppendResult, Overloaded, weigh } from './append.js';
import { type AppendMemory, Committer } from './committer.js';
import { endOfTurn } from './end-of-turn.js';
import { FairShare } from './fair-share.js';
import { streamKey } from './lane.js';
import { type AppendOutcome, type Telemetry } from './telemetry.js';
import { Batch, type Pending, WaitingAppends } from './waiting-appends.js';

export interface WriterOptions {
  /** Most appends that may wait, over all tenants. A tenant that exceeds its share of them gets `Overloaded`. */
  readonly queueLimit?: number;
  /** Most bytes of payload that may wait, over all tenants. The share of a tenant is limited as above. */
  readonly queueBytes?: number;
}

/**
 * The lanes are split into two halves, even and odd, that can commit side by side. A half starts a commit of its own
 * beside a running one only when this many of its appends wait: with fewer, one larger batch for both halves was
 * measured to be cheaper than two commits.
 */
const HALF_APPENDS = 32;

/**
 * When the appends of a tenant have waited longer than this for their batch, more arrives than can be written, and new
 * commands are turned away: appends that wait for many seconds are those that clients have given up, or have sent again.
 * An answer of the database that takes long is no sign of it. Those that wait meanwhile are written together afterwards.
 */
const BEHIND_MS = 500;

/**
 * Coalesces appends: those that arrive while a commit is in flight form the next batch. No timer is involved: an idle
 * writer commits at the end of the event loop's turn, or at once when the previous append also came alone.
 *
 * Under load two commits are in flight, one per half of the lanes, so that one batch is prepared while the other is
 * flushed to disk. Their lane locks never overlap. Every commit is one autocommit statement, so a process that is
 * suspended at any point holds no lock.
 */
export class BatchWriter {
  /** Number of appends requested since the process started. */
  appends = 0;
  private readonly halves: readonly Half[];
  private readonly room: FairShare;
  private readonly commits = new Set<Promise<void>>();
  private starting = false;
  private isLone = true;
  /** Tenants whose appends had waited for too long when they were last taken into a batch. */
  private readonly late = new Set<string>();

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
   * Whether the appends of the tenant wait for too long. The writer takes further ones nevertheless: whoever begins work
   * that will lead to an append asks before, for a refusal after that would come late.
   */
  isBehind(tenant: string): boolean {
    return this.late.has(tenant) && this.room.has(tenant);
  }

  /**
   * @throws Overloaded when too many appends of this tenant wait already; then nothing was written
   * @throws DatabaseUnavailable when the database stays unreachable; then it is unknown whether the append was
   *   committed
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

  /** Resolves when every accepted append has been answered. */
  async close(): Promise<void> {
    while (this.starting || this.commits.size > 0) {
      await Promise.all(this.commits);
      await endOfTurn();
    }
    await Promise.all(this.halves.map((half) => half.committer.close()));
  }

  /**
   * Delays the commit so that requests which arrive together are committed together: by the rest of the running
   * callback, and under load by the whole turn of the event loop. A lone append must not wait for the end of the turn,
   * because its database connection goes idle meanwhile and answers more slowly.
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
      this.begin(one, begun);
      events += one.append.events.length;
    }
    this.isLone = pending.length === 1 && this.commits.size === 0;
    for (const half of halves) half.busy = true;
    const commit = first.committer
      .commit(pending)
      .then((unavailable) => {
        if (unavailable) for (const half of halves) this.fail(half, unavailable);
      })
      .finally(() => {
        this.telemetry.emit('batch', {
          appends: pending.length,
          events,
          commitMs: performance.now() - begun,
        });
        this.commits.delete(commit);
        for (const half of halves) half.busy = false;
        this.startCommits();
      });
    this.commits.add(commit);
  }

  /**
   * Answers the appends that waited behind a commit which the database did not answer with the error of that commit. A
   * try of their own would double their wait; those that come later try again.
   */
  private fail(half: Half, error: DatabaseUnavailable): void {
    for (const pending of half.waiting.takeAll()) {
      this.begin(pending, performance.now());
      pending.reject(error);
    }
  }

  /** The append no longer waits, and its place is free. */
  private begin(pending: Pending, now: number): void {
    const { tenant } = pending.append.stream;
    pending.begun = now;
    this.room.leave(tenant, pending.bytes);
    if (now - pending.since > BEHIND_MS) this.late.add(tenant);
    else this.late.delete(tenant);
  }

  private tell({ append, since, begun }: Pending, outcome: AppendOutcome): void {
    const commitMs = performance.now() - begun;
    this.telemetry.emit('appended', {
      outcome,
      correlationId: append.correlationId,
      waitMs: begun - since,
      commitMs,
    });
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

/** The appends that wait for one half of the lanes, and the commit of that half. */
class Half {
  readonly waiting = new WaitingAppends();
  busy = false;

  constructor(readonly committer: Committer) {}
}
