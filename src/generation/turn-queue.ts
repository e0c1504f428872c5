import { DomainError } from '../domain/decider.js';
import { type EventLog } from '../event-store/log.js';
import { type SessionRef } from '../sessions/command-context.js';
import { codeOf } from './generation.errors.js';
import { laneGrowth } from './lane-growth.js';

/** How many requests of this process may wait for one session, and how long each of them may wait in milliseconds. */
const MAX_WAITING = 16;
const MAX_WAIT_MS = 60_000;
/**
 * Milliseconds after which a waiting request tries again without a notification. A generation of another node frees its
 * session by an append, whose notification may be lost.
 */
const RETRY_MS = 500;

interface Queue {
  /** Resolves when the last request in the queue has had its turn. */
  tail: Promise<void>;
  length: number;
}

/**
 * Requests that wait until their session is free instead of being answered `session-busy`. Within this process they get
 * their turns in the order in which they came; among the nodes whoever appends first wins.
 */
export class TurnQueue {
  private readonly queues = new Map<string, Queue>();

  constructor(private readonly log: EventLog) {}

  /**
   * @param start begins the turn; called again as long as it throws `session-busy`
   * @throws DomainError `session-busy` when too many wait already or the wait was too long; what `start` throws
   */
  async take<T>(session: SessionRef, start: () => Promise<T>): Promise<T> {
    const key = `${session.tenant}/${session.sessionId}`;
    const queue = this.queues.get(key) ?? { tail: Promise.resolve(), length: 0 };
    if (queue.length >= MAX_WAITING)
      throw new DomainError('session-busy', `${MAX_WAITING} requests wait already`);
    this.queues.set(key, queue);
    queue.length += 1;
    const previous = queue.tail;
    let letNextGo = (): void => undefined;
    queue.tail = new Promise((resolve) => (letNextGo = resolve));
    const deadline = Date.now() + MAX_WAIT_MS;
    try {
      await previous;
      return await this.whenFree(session, start, deadline);
    } finally {
      letNextGo();
      queue.length -= 1;
      if (queue.length === 0) this.queues.delete(key);
    }
  }

  private async whenFree<T>(session: SessionRef, start: () => Promise<T>, deadline: number): Promise<T> {
    for (;;) {
      const growth = laneGrowth(this.log, session, RETRY_MS);
      try {
        return await start();
      } catch (error) {
        if (codeOf(error) !== 'session-busy' || Date.now() > deadline) throw error;
        await growth.soon;
      } finally {
        growth.end();
      }
    }
  }
}
