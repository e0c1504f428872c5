import { type Waiting } from './committer.js';

/** An append that waits for its batch. */
export interface Pending extends Waiting {
  /** Names its stream. */
  readonly key: string;
  readonly bytes: number;
  /** When it began to wait, by `performance.now()`. */
  readonly since: number;
  /** When its batch began to commit, likewise; 0 before that. */
  begun: number;
}

/** From here on a bigger batch costs more per append than it saves (measured). */
const BATCH_APPENDS = 256;
const BATCH_BYTES = 8 * 1024 * 1024;

/** A batch that is being put together. A stream stands in it once: further appends to it wait for the next one. */
export class Batch {
  readonly pending: Pending[] = [];
  private readonly streams = new Set<string>();
  private bytes = 0;

  get isFull(): boolean {
    return this.pending.length >= BATCH_APPENDS;
  }

  /** Takes an append in, if there is room and no other of its stream stands or waits before it. */
  take(pending: Pending): boolean {
    const isFirst = !this.streams.has(pending.key);
    // Also when it does not fit: what comes behind it in its stream must not pass it.
    this.streams.add(pending.key);
    const fits = !this.isFull && (this.pending.length === 0 || this.bytes + pending.bytes <= BATCH_BYTES);
    if (!isFirst || !fits) return false;
    this.pending.push(pending);
    this.bytes += pending.bytes;
    return true;
  }
}

/**
 * Appends that wait, in the order in which they came for each tenant. Batches take from the tenants in turns, so that an
 * append of one waits behind no flood of another.
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

  /** Moves into the batch what fits into it. */
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
      // Behind all others: whoever had the first place of this batch has the last one of the next.
      this.tenants.delete(tenant);
      if (rest.length > 0) this.tenants.set(tenant, rest);
    }
    this.count -= batch.pending.length - before;
  }
}
