import { type FastifyReply } from 'fastify';
import { textOfEvent } from '../http/event-stream.js';
import { renderProblem } from '../http/problem.js';
import { type LiveReply, type ReplyEvent, type ReplyPlace } from './live-reply.js';
import { sendReply } from './send-reply.js';

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
 * the client can resume with `Last-Event-ID`.
 */
export function sendEvents(reply: FastifyReply, live: LiveReply, from?: ReplyPlace): Promise<void> {
  let offset = from?.offset ?? 0;
  let calls = from?.toolCalls ?? 0;
  let reasoning = from?.reasoning ?? 0;
  const textFor = (event: ReplyEvent): string => {
    if (event.type === 'delta') ({ offset } = event);
    if (event.type === 'reasoning') reasoning = event.offset;
    if (event.type === 'toolCall') calls = event.number;
    const { name, data } = present(event, live);
    return textOfEvent({ id: placeId(offset, calls, reasoning), event: name, data });
  };
  return sendReply(reply, live, textFor, from);
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
