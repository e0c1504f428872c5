import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { type AddressInfo } from 'node:net';

export interface Asked {
  readonly method: string;
  /** Path and query. */
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
  /** Parsed; undefined when there was none. */
  readonly body: unknown;
}

type Reply = (response: ServerResponse, asked: Asked) => void;

/** An HTTP server whose answers the test decides, one reply per request. */
export interface ScriptedServer {
  readonly url: string;
  /** All requests since the last `next`. */
  readonly asked: readonly Asked[];
  /**
   * Forgets the requests so far, and answers the next ones with these replies. The last reply is also used for all
   * further requests.
   */
  next(...replies: Reply[]): void;
  close(): Promise<void>;
}

export async function startScriptedServer(): Promise<ScriptedServer> {
  let replies: Reply[] = [];
  let asked: Asked[] = [];
  const server = createServer((request, response) => {
    let text = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    request.once('end', () => {
      const { method = '', url: path = '', headers } = request;
      const one = { method, path, headers, body: text === '' ? undefined : (JSON.parse(text) as unknown) };
      asked.push(one);
      const reply = replies.length > 1 ? replies.shift() : replies[0];
      reply?.(response, one);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    get asked() {
      return asked;
    },
    next: (...given) => {
      replies = given;
      asked = [];
    },
    close: async () => {
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
  };
}

export const json =
  (status: number, body: unknown): Reply =>
  (response) => {
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  };

export const refuses = (status: number, code: string): Reply =>
  json(status, { type: `urn:colloquy:problem:${code}`, title: code, status, code, detail: `${code}.` });

/** Breaks the connection before anything is answered. */
export const breaks: Reply = (response) => {
  response.socket?.destroy();
};

/** Answers with server-sent events in exactly these chunks, and then ends the answer or breaks the connection. */
export const streams =
  (chunks: readonly (string | Uint8Array)[], end: 'ends' | 'breaks' | 'stays' = 'ends'): Reply =>
  (response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.flushHeaders();
    let sent = Promise.resolve();
    for (const chunk of chunks) {
      // Each chunk is sent after the one before has left, so that the reader gets it as a chunk of its own.
      sent = sent.then(() => new Promise((resolve) => response.write(chunk, () => setImmediate(resolve))));
    }
    void sent.then(() => {
      if (end === 'ends') response.end();
      if (end === 'breaks') response.socket?.destroy();
    });
  };

export const sse = (id: string, event: string, data: object): string =>
  `id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
