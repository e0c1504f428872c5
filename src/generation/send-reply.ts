import { type FastifyReply } from 'fastify';
import { EventStream } from '../http/event-stream.js';
import { type LiveReply, type ReplyEvent, type ReplyPlace } from './live-reply.js';

/**
 * Sends a reply as server-sent events, in whatever protocol. A client that disconnects ends the stream, but not the
 * generation.
 *
 * @param textFor an event of the reply as text, with the blank line behind each event; may be empty
 */
export async function sendReply(
  reply: FastifyReply,
  live: LiveReply,
  textFor: (event: ReplyEvent) => string,
  from?: ReplyPlace,
): Promise<void> {
  const stream = await EventStream.open(reply);
  const next = live.reader(from);
  stream.gone.addEventListener('abort', () => {
    live.wake();
  });
  try {
    while (!stream.isGone) {
      const event = next();
      if (!event) {
        await live.change();
        continue;
      }
      // The text that arrives while a slow client is awaited is then sent in one piece, so nothing is queued for it.
      const text = textFor(event);
      const drained = text === '' ? undefined : stream.sendText(text);
      // Awaited only when the client is slow: with thousands of tokens a second, a promise for each would delay other
      // requests.
      if (drained) await drained;
      if (event === live.end) return;
    }
  } finally {
    stream.end();
  }
}
