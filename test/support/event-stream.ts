import { createParser } from 'eventsource-parser';
import { type Fields } from './http.js';

export interface StreamedEvent {
  readonly id: string;
  readonly event: string;
  readonly data: Fields;
}

/** A response of server-sent events, which the test reads at its own pace. */
export interface EventStream {
  readonly status: number;
  readonly headers: Headers;
  /** The next event; rejects when the stream ends instead. */
  next(): Promise<StreamedEvent>;
  /** All further events up to the end of the stream. */
  rest(): Promise<StreamedEvent[]>;
  /** The texts of the next `message.delta` events, until they have at least `length` characters together. */
  text(length: number): Promise<string>;
  /** Comments that have arrived so far. */
  readonly comments: readonly string[];
  /** Closes the connection, as a client does that goes away. */
  leave(): void;
}

/** @param body the body of a POST; without it the request is a GET */
export async function openEvents(
  url: string,
  { body, headers = {} }: { body?: unknown; headers?: Readonly<Record<string, string>> } = {},
): Promise<EventStream> {
  const controller = new AbortController();
  const response = await fetch(url, {
    method: body === undefined ? 'GET' : 'POST',
    headers: {
      accept: 'text/event-stream',
      ...(body !== undefined && { 'content-type': 'application/json' }),
      ...headers,
    },
    ...(body !== undefined && { body: JSON.stringify(body) }),
    signal: controller.signal,
  });
  const comments: string[] = [];
  const ready: StreamedEvent[] = [];
  const parser = createParser({
    onEvent: ({ id = '', event = '', data }) => {
      ready.push({ id, event, data: JSON.parse(data) as Fields });
    },
    onComment: (comment) => {
      comments.push(comment);
    },
    onError: (error) => {
      throw error;
    },
  });
  const decoder = new TextDecoder();
  const bytes = (response.body as unknown as AsyncIterable<Uint8Array>)[Symbol.asyncIterator]();
  const take = async (): Promise<StreamedEvent | undefined> => {
    for (;;) {
      const event = ready.shift();
      if (event) return event;
      const chunk = await bytes.next();
      if (chunk.done === true) return undefined;
      parser.feed(decoder.decode(chunk.value, { stream: true }));
    }
  };
  const next = async (): Promise<StreamedEvent> => {
    const event = await take();
    if (!event) throw new Error('the stream has ended');
    return event;
  };
  return {
    status: response.status,
    headers: response.headers,
    comments,
    next,
    rest: async () => {
      const events: StreamedEvent[] = [];
      for (let event = await take(); event; event = await take()) events.push(event);
      return events;
    },
    text: async (length) => {
      let text = '';
      while (text.length < length) {
        const { event, data } = await next();
        if (event !== 'message.delta') throw new Error(`${event} came after ${text.length} characters`);
        text += String(data['text']);
      }
      return text;
    },
    leave: () => {
      controller.abort();
    },
  };
}

/** The text of a reply that a client has from these events. */
export const textIn = (events: readonly StreamedEvent[]): string =>
  events.map(({ event, data }) => (event === 'message.delta' ? String(data['text']) : '')).join('');
