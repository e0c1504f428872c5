import { type Append, follows } from './append.js';
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
/** Most bytes of appends that follow one another: large ones would make all others of the batch wait for them. */
const CHAIN_BYTES = 256 * 1024;

/**
 * A batch under construction. Of the appends to one stream it holds the first, and those that follow it; others wait for
 * the next batch. It holds each idempotency key once.
 */
export class Batch {
  private readonly streams = new Map<string, { readonly pending: Pending[]; bytes: number }>();
  /** Streams of which an append has to wait for the next batch: no later one may overtake it. */
  private readonly closed = new Set<string>();
  private readonly keys = new Set<string>();
  private bytes = 0;
  /** Number of appends. */
  size = 0;

  get isFull(): boolean {
    return this.size >= BATCH_APPENDS;
  }

  /** The appends, those of a stream one behind the other. */
  get pending(): readonly Pending[] {
    return [...this.streams.values()].flatMap(({ pending }) => pending);
  }

  /** Adds an append if there is room for it, and if it neither overtakes nor contradicts another one of its stream. */
  take(pending: Pending): boolean {
    const { append, key } = pending;
    const before = this.streams.get(key);
    const keyOfResult =
      append.key && JSON.stringify([append.stream.tenant, append.key.scope, append.key.key]);
    const fits =
      !this.closed.has(key) &&
      !this.isFull &&
      (this.size === 0 || this.bytes + pending.bytes <= BATCH_BYTES) &&
      (before === undefined ||
        (before.bytes + pending.bytes <= CHAIN_BYTES && canFollow(append, before.pending.at(-1)?.append))) &&
      (keyOfResult === undefined || !this.keys.has(keyOfResult));
    if (!fits) {
      this.closed.add(key);
      return false;
    }
    if (keyOfResult !== undefined) this.keys.add(keyOfResult);
    if (before) {
      before.pending.push(pending);
      before.bytes += pending.bytes;
    } else this.streams.set(key, { pending: [pending], bytes: pending.bytes });
    this.size += 1;
    this.bytes += pending.bytes;
    return true;
  }
}

/** Guards are checked against the times of the stream, and counters against each other: both need what is committed. */
const canFollow = (append: Append, before: Append | undefined): boolean =>
  before !== undefined && follows(append, before) && !append.guard && !append.counters?.length;

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
    const before = batch.size;
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
    this.count -= batch.size - before;
  }
}
