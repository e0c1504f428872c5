import type { FastifyInstance, FastifyRequest } from 'fastify';
import { FairShare } from '../event-store/fair-share.js';
import { ApiError } from './problem.js';

/**
 * Bytes of request bodies that a process holds at the same time, whether they are being read or their commands wait. A
 * body takes several times its size while it is parsed, checked and written.
 */
const BUDGET_BYTES = 64 * 1024 * 1024;

/**
 * Refuses a request before its body is read when the bodies that are held already fill the budget: without a limit, a
 * few thousand large bodies that arrive together would fill the memory before the first of them reaches a queue. Each
 * tenant has a share of the budget, so a flood of one tenant harms no other.
 */
export class BodyBudget {
  private readonly room = new FairShare({ count: Infinity, bytes: BUDGET_BYTES });

  /** Holds the bytes of a request's body until the request is over, however it ends. The caller must be known. */
  install(fastify: FastifyInstance): void {
    fastify.addHook('onRequest', (request, reply, done) => {
      const bytes = bodyBytes(request);
      if (bytes === 0) {
        done();
        return;
      }
      const tenant = request.caller?.tenant ?? '';
      if (!this.room.enter(tenant, bytes)) {
        done(
          new ApiError(
            'overloaded',
            'more bodies of requests are held than this server has room for at the moment; try again',
          ),
        );
        return;
      }
      reply.raw.once('close', () => {
        this.room.leave(tenant, bytes);
      });
      done();
    });
  }
}

/** The bytes that a request's body takes at most; 0 when it has none, or one that is refused for its size. */
function bodyBytes({ headers, routeOptions }: FastifyRequest): number {
  const { bodyLimit } = routeOptions;
  // A body that comes in chunks may become as large as is allowed.
  if (headers['transfer-encoding'] !== undefined) return bodyLimit;
  const bytes = Number(headers['content-length'] ?? 0);
  return bytes <= bodyLimit ? bytes : 0;
}
