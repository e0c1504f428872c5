import type { IncomingMessage } from 'node:http';
import type { FastifyInstance } from 'fastify';

/** How many bodies go on to be read at a time, and the milliseconds between two such times: 400 a second. */
const BODIES_AT_A_TIME = 8;
const PAUSE_MS = 20;
/** Bodies of up to so many bytes need not wait: they mostly came with their headers, in one packet or two. */
const SMALL_BYTES = 64 * 1024;

/**
 * Throws away what is still on its way of bodies whose requests are answered already (refused, unauthenticated, for
 * unknown routes), a few bodies at a time. Node would read all of them at once, and a few thousand large ones would keep
 * every other request waiting for seconds: libuv does not leave its poll while more than a thousand sockets have
 * something to read. A client whose body waits has its answer, and most stop sending when they see it.
 */
export class UnreadBodies {
  private readonly waiting: { request: IncomingMessage; letGo: () => void }[] = [];
  private timer: NodeJS.Timeout | undefined;
  private isClosing = false;

  install(fastify: FastifyInstance): void {
    fastify.addHook('onSend', ({ raw: request }, reply, payload, done) => {
      // Fastify would close the connection of a body that is too large, and a client that still sends would get the error
      // of its socket instead of the answer.
      if (reply.statusCode === 413 && !this.isClosing) reply.removeHeader('connection');
      if (!request.complete && !this.isClosing && !isSmall(request)) this.hold(request);
      done(null, payload);
    });
    fastify.addHook('preClose', (done) => {
      this.isClosing = true;
      for (const { request } of this.waiting.splice(0)) request.destroy();
      clearInterval(this.timer);
      done();
    });
  }

  /** Reads no more of a body than is in memory, until it is its turn. */
  private hold(request: IncomingMessage): void {
    let isHeld = true;
    const discard = (): void => {
      if (!isHeld) while (request.read() !== null);
    };
    // With a listener of this kind Node neither reads the body by itself nor throws it away when the answer is sent.
    request.on('readable', discard);
    this.waiting.push({
      request,
      letGo: () => {
        isHeld = false;
        discard();
      },
    });
    this.timer ??= setInterval(() => {
      for (const { letGo } of this.waiting.splice(0, BODIES_AT_A_TIME)) letGo();
      if (this.waiting.length > 0) return;
      clearInterval(this.timer);
      this.timer = undefined;
    }, PAUSE_MS);
  }
}

/** Held back, the bodies of a flood of refused requests would take up to seconds, and each keeps its connection waiting. */
const isSmall = ({ headers }: IncomingMessage): boolean => Number(headers['content-length']) <= SMALL_BYTES;
