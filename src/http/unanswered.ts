import type { ServerResponse } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { sendError } from './errors.js';

/** A request in the list of those that wait; the list's own entry stands before the first and behind the last. */
interface Entry {
  before: Entry;
  after: Entry;
}
interface Waiting extends Entry {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
  /** By `performance.now()`. */
  readonly since: number;
}

const WAITING = Symbol('waits for an answer');
type Raw = ServerResponse & { [WAITING]?: Waiting };

/**
 * The requests that an application has not begun to answer, so that somebody else can when it is not going to.
 *
 * They are linked to each other in the order in which they came. In a Map, what had left it outlived many collections of
 * young garbage, which cost a fifth of all reads (ADR 53).
 */
export class Unanswered {
  private readonly list: Entry;
  private isOn = false;

  constructor() {
    const list = {} as Entry;
    this.list = Object.assign(list, { before: list, after: list });
  }

  /** To be called before any other hook that may wait. Nothing is kept until `begin`. */
  install(fastify: FastifyInstance): void {
    fastify.addHook('onRequest', (request, reply, done) => {
      this.enter(request, reply);
      done();
    });
  }

  /** Counts a request as one of those that wait for this application, and for no other one any more. */
  enter(request: FastifyRequest, reply: FastifyReply): void {
    // Operators and machines that look after the service ask about all of it, and may have to wait.
    const { url = '', config } = request.routeOptions;
    const raw: Raw = reply.raw;
    if (raw[WAITING]) leave(raw[WAITING]);
    if (this.isOn && config.access !== 'public' && !url.startsWith('/v1/admin/')) this.add(request, reply);
  }

  begin(): void {
    this.isOn = true;
  }

  /** For how long the one that has waited longest has, in milliseconds; 0 when none waits. */
  get longestMs(): number {
    for (const waiting of this.all()) {
      if (isOpen(waiting)) return performance.now() - waiting.since;
      leave(waiting);
    }
    return 0;
  }

  /** Answers all that have waited for so long with an error. What the application answers later goes nowhere. */
  refuse(error: Error, ms: number): void {
    for (const waiting of this.all()) {
      if (performance.now() - waiting.since < ms) return;
      leave(waiting);
      if (isOpen(waiting)) sendError(error, waiting.request, waiting.reply);
    }
  }

  private add(request: FastifyRequest, reply: FastifyReply): void {
    const raw: Raw = reply.raw;
    if (!raw[WAITING]) raw.on('close', leaveAtEnd);
    const { list } = this;
    const waiting = { request, reply, since: performance.now(), before: list.before, after: list };
    list.before.after = waiting;
    list.before = waiting;
    raw[WAITING] = waiting;
  }

  private *all(): Generator<Waiting> {
    for (let entry = this.list.after, next: Entry; entry !== this.list; entry = next) {
      next = entry.after;
      yield entry as Waiting;
    }
  }
}

/** Whether the application has still to answer. */
const isOpen = ({ reply }: Waiting): boolean => !reply.raw.headersSent;

function leave(waiting: Waiting): void {
  waiting.before.after = waiting.after;
  waiting.after.before = waiting.before;
  // One that was left may live for a while, and would keep alive all that came behind it.
  waiting.before = waiting.after = waiting;
}

function leaveAtEnd(this: Raw): void {
  if (this[WAITING]) leave(this[WAITING]);
}
