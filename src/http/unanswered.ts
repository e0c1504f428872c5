import type { ServerResponse } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { isHandedOver } from './front-door.js';
import { sendError } from './errors.js';

interface Waiting {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
  /** By `performance.now()`. */
  readonly since: number;
}

/** The requests that an application has not begun to answer, so that somebody else can when it is not going to. */
export class Unanswered {
  /** In the order in which they came. */
  private readonly waiting = new Map<ServerResponse, Waiting>();
  private isOn = false;

  /** To be called before any other hook that may wait. Nothing is kept until `begin`. */
  install(fastify: FastifyInstance): void {
    fastify.addHook('onRequest', (request, reply, done) => {
      // Operators and machines that look after the service ask about all of it, and may have to wait.
      const { url = '', config } = request.routeOptions;
      if (this.isOn && config.access !== 'public' && !url.startsWith('/v1/admin/')) {
        const { raw } = reply;
        this.waiting.set(raw, { request, reply, since: performance.now() });
        raw.once('close', () => this.waiting.delete(raw));
      }
      done();
    });
  }

  begin(): void {
    this.isOn = true;
  }

  /** For how long the one that has waited longest has, in milliseconds; 0 when none waits. */
  get longestMs(): number {
    for (const [raw, { request, since }] of this.waiting) {
      if (!raw.headersSent && !isHandedOver(request)) return performance.now() - since;
      this.waiting.delete(raw);
    }
    return 0;
  }

  /** Answers all that have waited for so long with an error. What the application answers later goes nowhere. */
  refuse(error: Error, ms: number): void {
    for (const [raw, { request, reply, since }] of [...this.waiting]) {
      if (performance.now() - since < ms) return;
      this.waiting.delete(raw);
      if (!raw.headersSent && !isHandedOver(request)) sendError(error, request, reply);
    }
  }
}
