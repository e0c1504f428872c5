import { once } from 'node:events';
import { Agent as HttpAgent, type IncomingMessage, request as requestHttp } from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';

/** Most characters that are read of the body of an error. */
const MAX_ERROR_LENGTH = 65_536;
/** How long a server may take to end a response whose content is complete. */
const DRAIN_MS = 1_000;
const NO_BODY = new Set([204, 205, 304]);

const httpAgent = new HttpAgent({ keepAlive: true });
const httpsAgent = new HttpsAgent({ keepAlive: true });

/** An addition to the options of `fetch`. */
export interface DelayedSend {
  /** The request is sent when this promise has resolved; the connection is opened before that. */
  readonly when?: Promise<unknown>;
}

/**
 * The part of `fetch` that the SDK needs, over `node:http`. With hundreds of streams that each bring a few bytes at a
 * time, the web streams of Node's own `fetch` cost more than everything that is done with the bytes. Does not follow
 * redirects.
 */
export async function providerFetch(
  url: string | URL | Request,
  init: RequestInit & DelayedSend = {},
): Promise<Response> {
  const target = new URL(url instanceof Request ? url.url : url);
  const isHttps = target.protocol === 'https:';
  const send = isHttps ? requestHttps : requestHttp;
  for (;;) {
    const request = send(target, {
      method: init.method ?? 'GET',
      headers: Object.fromEntries(init.headers instanceof Headers ? init.headers : new Headers(init.headers)),
      agent: isHttps ? httpsAgent : httpAgent,
      ...(init.signal && { signal: init.signal }),
    });
    // Errors after the beginning of the response are seen by the reader of its body. Without this listener, Node would
    // end the process because of them.
    request.on('error', () => undefined);
    const response = once(request, 'response') as Promise<[IncomingMessage]>;
    response.catch(() => undefined);
    try {
      await init.when;
      request.end(init.body);
      const [incoming] = await response;
      return await responseOf(incoming);
    } catch (error) {
      request.destroy();
      // The server closed the idle connection while the request was on its way, so the request is sent again.
      const isStale = request.reusedSocket && (error as NodeJS.ErrnoException).code === 'ECONNRESET';
      if (!isStale || init.signal?.aborted) throw error;
    }
  }
}

/** The body of an answer of `providerFetch`. */
export const bodyOf = (response: Response): IncomingMessage => response.body as unknown as IncomingMessage;

/** Reads and discards the rest of a body for a limited time, so that its connection can be used again. */
export function drain(body: IncomingMessage): void {
  if (body.closed) return;
  const timer = setTimeout(() => body.destroy(), DRAIN_MS);
  body.once('close', () => {
    clearTimeout(timer);
  });
  body.on('error', () => undefined).resume();
}

async function responseOf(incoming: IncomingMessage): Promise<Response> {
  const status = incoming.statusCode ?? 0;
  const headers = new Headers();
  for (const [name, values = []] of Object.entries(incoming.headersDistinct)) {
    for (const value of values) headers.append(name, value);
  }
  if (status >= 200 && status < 300)
    return { ok: true, status, headers, body: incoming } as unknown as Response;
  let text = '';
  incoming.setEncoding('utf8');
  for await (const part of incoming as AsyncIterable<string>) {
    text += part;
    if (text.length > MAX_ERROR_LENGTH) break;
  }
  return new Response(NO_BODY.has(status) ? null : text, { status, headers });
}
