import { type FastifyReply } from 'fastify';
import { EventStream } from '../http/event-stream.js';
import { renderProblem } from '../http/problem.js';
import { type LiveReply, type ReplyEvent, type ReplyPlace } from './live-reply.js';

/** The place that `Last-Event-ID` names; undefined when the header is missing or has another form. */
export function placeOf(lastEventId: string | undefined): ReplyPlace | undefined {
  const [, offset, calls, reasoning] = /^(\d{1,9})-(\d{1,3})(?:-(\d{1,9}))?$/.exec(lastEventId ?? '') ?? [];
  if (offset === undefined) return undefined;
  return {
    offset: Number(offset),
    toolCalls: Number(calls),
    ...(reasoning !== undefined && { reasoning: Number(reasoning) }),
  };
}

/**
 * Sends a reply as server-sent events. The id of each event is the place up to which a client has the reply, so that
 * the client can resume with `Last-Event-ID`. A client that disconnects ends the stream, but not the generation.
 */
export async function sendEvents(reply: FastifyReply, live: LiveReply, from?: ReplyPlace): Promise<void> {
  const stream = new EventStream(reply);
  let offset = from?.offset ?? 0;
  let calls = from?.toolCalls ?? 0;
  let reasoning = from?.reasoning ?? 0;
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
      if (event.type === 'delta') ({ offset } = event);
      if (event.type === 'reasoning') reasoning = event.offset;
      if (event.type === 'toolCall') calls = event.number;
      const { name, data } = present(event, live);
      // The text that arrives while a slow client is awaited is then sent in one piece, so nothing is queued for it.
      const drained = stream.send({ id: placeId(offset, calls, reasoning), event: name, data });
      // Awaited only when the client is slow: with thousands of tokens a second, a promise for each would delay other
      // requests.
      if (drained) await drained;
      if (event === live.end) return;
    }
  } finally {
    stream.end();
  }
}

/** Once there is text, all thoughts have been sent. */
const placeId = (offset: number, calls: number, reasoning: number): string =>
  `${offset}-${calls}${offset === 0 && reasoning > 0 ? `-${reasoning}` : ''}`;

function present(event: ReplyEvent, live: LiveReply): { name: string; data: unknown } {
  switch (event.type) {
    case 'started': {
      const { generationId, sessionId, model } = live;
      return { name: 'generation.started', data: { generationId, sessionId, model } };
    }
    case 'reasoning':
      return { name: 'reasoning.delta', data: { text: event.text } };
    case 'delta':
      return { name: 'message.delta', data: { text: event.text } };
    case 'toolCall':
      return { name: 'tool.call', data: event.call };
    case 'completed':
      return { name: 'message.completed', data: event.answer };
    case 'cancelled':
      return { name: 'generation.cancelled', data: event.answer };
    case 'failed':
      return { name: 'generation.failed', data: JSON.parse(renderProblem(event.error, undefined).body) };
  }
}
