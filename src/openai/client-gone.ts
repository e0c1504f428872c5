import { type FastifyReply } from 'fastify';

/** Aborts when the client of a request goes away before it has the whole answer. */
export function goneOf({ raw }: FastifyReply): AbortSignal {
  const controller = new AbortController();
  raw.once('close', () => {
    if (!raw.writableFinished) controller.abort();
  });
  return controller.signal;
}
