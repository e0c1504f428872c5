import { createParser } from 'eventsource-parser';

/** The service refused a request; `code` is that of its problem document. */
export class ColloquyError extends Error {
  override readonly name = 'ColloquyError';
  constructor(
    /** `session-not-found`, `session-busy`, … */
    readonly code: string,
    message: string,
    readonly status: number,
    /** The whole problem document. */
    readonly problem: Readonly<Record<string, unknown>>,
  ) {
    super(message);
  }
}

/** An event of a reply as it arrives; `data` is documented in the service's OpenAPI. */
export interface ServerEvent {
  readonly id: string;
  readonly event: string;
  readonly data: Record<string, unknown>;
}

export type Fetch = (path: string, init: RequestInit) => Promise<Response>;

export interface RequestOptions {
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal | undefined;
}

/** Tries of a request that is safe to repeat: a read, or a write with an idempotency key. */
const TRIES = 4;

/** Sends requests to a service, in this process or elsewhere. */
export class Connection {
  constructor(
    private readonly fetch: Fetch,
    private readonly headers: Readonly<Record<string, string>>,
  ) {}

  /** @throws ColloquyError; TypeError of `fetch` when the service cannot be reached */
  async json<T>(method: string, path: string, options: RequestOptions = {}): Promise<T> {
    const response = await this.request(method, path, options);
    return (response.status === 204 ? undefined : await response.json()) as T;
  }

  /** @throws ColloquyError when there is no stream to begin with */
  async *events(method: string, path: string, options: RequestOptions = {}): AsyncGenerator<ServerEvent> {
    const headers = { ...options.headers, accept: 'text/event-stream' };
    const response = await this.request(method, path, { ...options, headers });
    const events: ServerEvent[] = [];
    const parser = createParser({
      onEvent: ({ id = '', event = 'message', data }) => {
        events.push({ id, event, data: JSON.parse(data) as Record<string, unknown> });
      },
    });
    const decoder = new TextDecoder();
    for await (const bytes of response.body as unknown as AsyncIterable<Uint8Array>) {
      parser.feed(decoder.decode(bytes, { stream: true }));
      yield* events.splice(0);
    }
  }

  private async request(method: string, path: string, options: RequestOptions): Promise<Response> {
    for (let attempt = 1; ; attempt += 1) {
      let failure: unknown;
      try {
        const response = await this.fetch(path, {
          method,
          headers: {
            ...this.headers,
            ...options.headers,
            ...(options.body !== undefined && { 'content-type': 'application/json' }),
          },
          ...(options.body !== undefined && { body: JSON.stringify(options.body) }),
          ...(options.signal && { signal: options.signal }),
        });
        if (response.ok) return response;
        const problem = (await response.json().catch(() => ({}))) as Record<string, unknown>;
        const { code = 'internal-error', detail = response.statusText } = problem as Record<string, string>;
        failure = new ColloquyError(code, detail, response.status, problem);
        if (response.status !== 503) throw failure;
      } catch (error) {
        if (error instanceof ColloquyError && error.status !== 503) throw error;
        failure = error;
      }
      const repeatable = method === 'GET' || options.headers?.['idempotency-key'] !== undefined;
      if (!repeatable || attempt === TRIES || options.signal?.aborted) throw failure;
      await new Promise((resolve) => setTimeout(resolve, 100 * 2 ** attempt));
    }
  }
}
