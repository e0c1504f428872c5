import { type ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import { type FastifyReply, type FastifyRequest } from 'fastify';

/** Time between two comments on a silent stream: proxies close idle connections. */
const KEEP_ALIVE_MS = 15_000;
/** A client that has read nothing for this long is disconnected. */
const PATIENCE_MS = 60_000;

/** Whether the client asks for a stream of events. HEAD does not get one, because nobody would read it. */
export const wantsEvents = ({ method, headers }: FastifyRequest): boolean =>
  method !== 'HEAD' && (headers.accept?.includes('text/event-stream') ?? false);

export interface StreamEvent {
  readonly id?: string;
  readonly event?: string;
  readonly data: unknown;
}

/** An event as it is sent. */
export const textOfEvent = ({ id, event, data }: StreamEvent): string =>
  `${id === undefined ? '' : `id: ${id}\n`}${event === undefined ? '' : `event: ${event}\n`}data: ${JSON.stringify(data)}\n\n`;

export interface StreamOptions {
  readonly keepAliveMs?: number;
  readonly patienceMs?: number;
  /** Called once when the stream has ended, or its client is gone. */
  readonly onGone?: (() => void) | undefined;
}

/**
 * An answer of server-sent events. Nothing is queued for a slow client: `send` resolves when the client has room for
 * more, and the producer of the events must wait for that.
 */
export class EventStream {
  private readonly controller = new AbortController();
  private readonly raw: ServerResponse;
  private readonly keepAlive: NodeJS.Timeout;
  private readonly patienceMs: number;
  private unseenId: string | undefined;
  private hasGone = false;

  /**
   * Takes one of the places that the caller has for streams, and begins. The stream of a reply that the request itself has
   * begun needs none: the reply has a place already, and to refuse its stream would not take it back.
   * @throws ApiError `rate-limited`
   */
  static async open(reply: FastifyReply): Promise<EventStream> {
    const { caller, method } = reply.request;
    const onGone = caller && method === 'GET' ? await reply.server.guard.enterStream(caller) : undefined;
    return new EventStream(reply, { onGone });
  }

  /** Takes the answer over and sends its headers, after which an error can no longer change the status. */
  constructor(
    reply: FastifyReply,
    { keepAliveMs = KEEP_ALIVE_MS, patienceMs = PATIENCE_MS, onGone }: StreamOptions = {},
  ) {
    const headers = {
      ...reply.getHeaders(),
      'content-type': 'text/event-stream',
      'cache-control': 'no-store',
      // Without this header nginx would buffer the events.
      'x-accel-buffering': 'no',
    };
    reply.hijack();
    this.raw = reply.raw;
    this.patienceMs = patienceMs;
    const leave = (): void => {
      this.hasGone = true;
      this.controller.abort();
      onGone?.();
    };
    this.raw.once('close', leave);
    // The client may have disconnected before this listener was added.
    if (this.raw.destroyed) leave();
    this.raw.writeHead(200, headers as Record<string, string>);
    // Without this, a client that resumes a silent stream would not learn that it is connected.
    this.raw.flushHeaders();
    this.keepAlive = setInterval(() => {
      // No comment is queued behind data that the client has not read yet.
      if (this.raw.writableNeedDrain || this.raw.socket?.writableNeedDrain) return;
      this.write(`${this.unseenId === undefined ? '' : `id: ${this.unseenId}\n`}: keep-alive\n\n`);
      this.unseenId = undefined;
    }, keepAliveMs);
  }

  /** Whether the client has disconnected. Cheaper than `gone`, for code that asks thousands of times a second. */
  get isGone(): boolean {
    return this.hasGone;
  }

  /** Aborted when the client went away. */
  get gone(): AbortSignal {
    return this.controller.signal;
  }

  /**
   * @returns undefined when the client can take more at once, which is nearly always; else what resolves when it can, or
   * is gone. One that takes nothing for a minute is dropped.
   */
  send(event: StreamEvent): Promise<void> | undefined {
    return this.sendText(textOfEvent(event));
  }

  /** The same for events that are text already, each with the blank line behind it. */
  sendText(text: string): Promise<void> | undefined {
    this.unseenId = undefined;
    return this.write(text) || this.hasGone ? undefined : this.drained();
  }

  /**
   * There was nothing to send up to here. The id goes out with the next keep-alive: browsers come back with it, and
   * what was passed over is not looked at again.
   */
  passed(id: string): void {
    this.unseenId = id;
  }

  end(): void {
    clearInterval(this.keepAlive);
    if (!this.hasGone) this.raw.end();
  }

  /**
   * What `ServerResponse.write` does, by one write of one piece: there each chunk becomes four, which the socket joins
   * again in a tick of its own. With thousands of tokens a second that is felt.
   * @returns whether the client can take more at once
   */
  private write(text: string): boolean {
    const { socket, chunkedEncoding } = this.raw;
    // HTTP/1.0 knows no chunks; a pipelined answer has no socket before its turn, and one within the process never has.
    if (!chunkedEncoding || !(socket instanceof Socket)) return this.raw.write(text);
    return socket.write(`${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`);
  }

  private drained(): Promise<void> {
    return new Promise((resolve) => {
      const { raw } = this;
      const { socket } = raw;
      const patience = setTimeout(() => {
        raw.destroy();
      }, this.patienceMs);
      const go = (): void => {
        clearTimeout(patience);
        raw.off('drain', go);
        socket?.off('drain', go);
        this.gone.removeEventListener('abort', go);
        resolve();
      };
      raw.once('drain', go);
      socket?.once('drain', go);
      this.gone.addEventListener('abort', go, { once: true });
    });
  }
}
