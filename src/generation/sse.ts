import { type ServerResponse } from 'node:http';
import { type FastifyReply, type FastifyRequest } from 'fastify';
import { renderProblem } from '../http/problem.js';
import { type LiveReply, type ReplyEvent, type ReplyPlace } from './live-reply.js';

/** Proxies close connections on which nothing happens. */
const KEEP_ALIVE_MS = 15_000;

/** Whether the client asks for a stream of events. */
export const wantsEvents = (request: FastifyRequest): boolean =>
  request.headers.accept?.includes('text/event-stream') ?? false;

/** The place that `Last-Event-ID` names; undefined when there is none or it is not ours. */
export function placeOf(lastEventId: string | undefined): ReplyPlace | undefined {
  const [, offset, calls] = /^(\d{1,9})-(\d{1,3})$/.exec(lastEventId ?? '') ?? [];
  return offset === undefined ? undefined : { offset: Number(offset), toolCalls: Number(calls) };
}

/**
 * Sends a reply as server-sent events. The id of each is the place up to which a client has the reply, so that it can
 * come back with `Last-Event-ID` and miss nothing. A client that goes away ends the stream, not the generation.
 */
export async function sendEvents(
  reply: FastifyReply,
  live: LiveReply,
  from?: ReplyPlace,
  keepAliveMs = KEEP_ALIVE_MS,
): Promise<void> {
  const headers = {
    ...reply.getHeaders(),
    'content-type': 'text/event-stream',
    'cache-control': 'no-store',
    // nginx would collect the pieces.
    'x-accel-buffering': 'no',
  };
  reply.hijack();
  const { raw } = reply;
  const gone = new AbortController();
  raw.once('close', () => {
    gone.abort();
  });
  raw.writeHead(200, headers as Record<string, string>);
  // Whoever resumes where nothing new has come would else not even know that it is connected.
  raw.flushHeaders();
  const keepAlive = setInterval(() => {
    // Behind what a client does not take, nothing more is put.
    if (!raw.writableNeedDrain) raw.write(': keep-alive\n\n');
  }, keepAliveMs);
  let offset = from?.offset ?? 0;
  let calls = from?.toolCalls ?? 0;
  try {
    for await (const event of live.events(from, gone.signal)) {
      if (event.type === 'delta') ({ offset } = event);
      if (event.type === 'toolCall') calls = event.number;
      const { name, data } = present(event, live);
      const text = `id: ${offset}-${calls}\nevent: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
      // A slow client holds up nothing: what arrives meanwhile comes to it in one piece.
      if (!raw.write(text) && !gone.signal.aborted) await drained(raw, gone.signal);
      if (gone.signal.aborted) return;
    }
  } finally {
    clearInterval(keepAlive);
    if (!gone.signal.aborted) raw.end();
  }
}

const drained = (raw: ServerResponse, gone: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const go = (): void => {
      raw.off('drain', go);
      gone.removeEventListener('abort', go);
      resolve();
    };
    raw.once('drain', go);
    gone.addEventListener('abort', go, { once: true });
  });

function present(event: ReplyEvent, live: LiveReply): { name: string; data: unknown } {
  switch (event.type) {
    case 'started': {
      const { generationId, sessionId, model } = live;
      return { name: 'generation.started', data: { generationId, sessionId, model } };
    }
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
