import { type Readable, Transform } from 'node:stream';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { FairShare } from '../event-store/fair-share.js';
import { ApiError } from './problem.js';

/**
 * Bytes of request bodies that a process holds at the same time, whether they are being read or their commands wait. A
 * body takes several times its size while it is parsed, checked and written.
 */
const BUDGET_BYTES = 64 * 1024 * 1024;
/**
 * A tenant that arrives when others have filled the budget still gets its share, so with many tenants the shares add up
 * to more than the budget. Nobody gets more than this: an operator's key can name any number of tenants.
 */
const MOST_BYTES = 4 * BUDGET_BYTES;

/**
 * Refuses requests when the bodies that are held already fill the budget: without a limit, a few thousand large bodies
 * that arrive together would fill the memory before the first of them reaches a queue. It also refuses bodies of a tenant
 * whose appends wait for too long, for nearly all of them lead to an append: to read and check what will be turned away
 * would take the time that is missing. A body that announces its length is refused before it is read, a chunked one as soon as there is no more room for it. Each tenant has a share of the
 * budget, so a flood of one tenant harms no other.
 */
export class BodyBudget {
  private readonly room = new FairShare({ count: Infinity, bytes: BUDGET_BYTES });
  private held = 0;

  /** @param isBehind whether more appends of a tenant arrive than can be written */
  constructor(private readonly isBehind: (tenant: string) => boolean) {}

  /** Holds the bytes of a request's body until the request is over, however it ends. The caller must be known. */
  install(fastify: FastifyInstance): void {
    fastify.addHook('preParsing', (request, reply, payload, done) => {
      const { raw: response } = reply;
      const isChunked = request.headers['transfer-encoding'] !== undefined;
      const announced = isChunked ? 0 : announcedBytes(request);
      // A client that has left already is never reported as gone again, and its bytes would be held for ever.
      if ((announced === 0 && !isChunked) || response.destroyed) {
        done(null, payload);
        return;
      }
      const tenant = request.caller?.tenant ?? '';
      const isBehind = request.backend?.isBehind(tenant) ?? this.isBehind(tenant);
      const body = isBehind ? undefined : this.hold(tenant, announced);
      if (!body) {
        done(overloaded());
        return;
      }
      response.once('close', () => {
        body.release();
      });
      const refuse = (): void => {
        if (!reply.sent) void reply.send(overloaded());
      };
      done(null, isChunked ? counted(payload as Readable, body, refuse) : payload);
    });
  }

  /** @returns undefined when there is no room */
  private hold(tenant: string, announced: number): HeldBody | undefined {
    if (!this.fits(announced) || !this.room.enter(tenant, announced)) return undefined;
    this.held += announced;
    let bytes = announced;
    let isReleased = false;
    return {
      grow: (more) => {
        if (isReleased) return true;
        if (!this.fits(more) || !this.room.grow(tenant, more)) return false;
        this.held += more;
        bytes += more;
        return true;
      },
      release: () => {
        isReleased = true;
        this.held -= bytes;
        this.room.leave(tenant, bytes);
      },
    };
  }

  /** A body alone always fits, however large the settings allow it to be. */
  private fits(bytes: number): boolean {
    return this.held === 0 || this.held + bytes <= MOST_BYTES;
  }
}

interface HeldBody {
  /** @returns false when there is no room for so many bytes more */
  grow(bytes: number): boolean;
  release(): void;
}

const overloaded = (): ApiError =>
  new ApiError('overloaded', 'more arrives than this server takes at the moment; try again');

/** The length of a body in bytes; 0 when there is none, or one that is refused for its size. */
function announcedBytes({ headers, routeOptions: { bodyLimit } }: FastifyRequest): number {
  const bytes = Number(headers['content-length'] ?? 0);
  return bytes <= bodyLimit ? bytes : 0;
}

/**
 * The chunks of a body, until there is no room for one of them. Then the request is refused, and what else comes of the
 * body is thrown away: Fastify would close the connection after an error of the stream, and a client that still sends
 * would lose the answer.
 */
function counted(payload: Readable, body: HeldBody, refuse: () => void): Readable {
  const counter = new Transform({
    transform: (chunk: Buffer, _encoding, done) => {
      if (body.grow(chunk.length)) {
        done(null, chunk);
        return;
      }
      // The counter never ends from now on, so nobody takes the beginning of the body for the whole.
      payload.off('error', fail).unpipe(counter).resume();
      refuse();
      done();
    },
  });
  const fail = (error: Error): void => void counter.destroy(error);
  // Fastify stops listening when a body has become too large, and an error that nobody hears ends the process.
  counter.on('error', () => undefined);
  payload.on('error', fail);
  return payload.pipe(counter);
}
