import { type Waiting } from './committer.js';

/** An append that waits for its batch. */
export interface Pending extends Waiting {
  /** Key of the append's stream. */
  readonly key: string;
  readonly bytes: number;
  /** When the append began to wait, by `performance.now()`. */
  readonly since: number;
  /** When its batch began to commit, by `performance.now()`; 0 before that. */
  begun: number;
}

/** Measured: a larger batch costs more per append than it saves. */
const BATCH_APPENDS = 256;
const BATCH_BYTES = 8 * 1024 * 1024;

/** A batch under construction. It holds at most one append per stream; further ones wait for the next batch. */
export class Batch {
  readonly pending: Pending[] = [];
  private readonly streams = new Set<string>();
  private bytes = 0;

  get isFull(): boolean {
    return this.pending.length >= BATCH_APPENDS;
  }

  /** Adds an append if there is room and no other append of its stream is in the batch or waits before it. */
  take(pending: Pending): boolean {
    const isFirst = !this.streams.has(pending.key);
    // The stream is noted even when the append does not fit: later appends of the stream must not overtake it.
    this.streams.add(pending.key);
    const fits = !this.isFull && (this.pending.length === 0 || this.bytes + pending.bytes <= BATCH_BYTES);
    if (!isFirst || !fits) return false;
    this.pending.push(pending);
    this.bytes += pending.bytes;
    return true;
  }
}

/**
 * Waiting appends, in order of arrival per tenant. Batches take from the tenants in turns, so that the appends of one
 * tenant never wait behind a flood of another.
 */
export class WaitingAppends {
  private readonly tenants = new Map<string, Pending[]>();
  private count = 0;

  get length(): number {
    return this.count;
  }

  add(pending: Pending): void {
    const { tenant } = pending.append.stream;
    const own = this.tenants.get(tenant);
    if (own) own.push(pending);
    else this.tenants.set(tenant, [pending]);
    this.count += 1;
  }

  /** Removes and returns all waiting appends. */
  takeAll(): Pending[] {
    const all = [...this.tenants.values()].flat();
    this.tenants.clear();
    this.count = 0;
    return all;
  }

  /** Moves appends into the batch until nothing more fits. */
  fill(batch: Batch): void {
    const before = batch.pending.length;
    const queues = [...this.tenants].map(([tenant, waiting]) => ({
      tenant,
      waiting,
      next: 0,
      left: [] as Pending[],
    }));
    for (let active = queues; active.length > 0 && !batch.isFull;) {
      for (const queue of active) {
        const pending = queue.waiting[queue.next];
        queue.next += 1;
        if (pending && !batch.take(pending)) queue.left.push(pending);
      }
      active = active.filter(({ waiting, next }) => next < waiting.length);
    }
    for (const { tenant, waiting, next, left } of queues) {
      const rest = next < waiting.length ? [...left, ...waiting.slice(next)] : left;
      // The tenant goes to the end: whoever came first in this batch comes last in the next one.
      this.tenants.delete(tenant);
      if (rest.length > 0) this.tenants.set(tenant, rest);
    }
    this.count -= batch.pending.length - before;
  }
}
