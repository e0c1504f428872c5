import { randomUUID } from 'node:crypto';
import { Connection, ColloquyError, type Fetch, type ServerEvent } from './connection.js';

export { ColloquyError };

export interface AgentOptions {
  /** Of a running service; without it the service runs in this process. */
  readonly url?: string;
  readonly apiKey?: string;
  /** Which tenant's sessions; only operators and services without keys take another than the key's own. */
  readonly tenant?: string;
  /** Of the service in this process: as in `colloquy.yml`. */
  readonly llm?: {
    readonly provider?: string;
    readonly model?: string;
    readonly apiKey?: string | undefined;
    readonly baseURL?: string | undefined;
    readonly [key: string]: unknown;
  };
  readonly sessions?: {
    readonly maxSessions?: number;
    readonly sessionTTL?: number;
    readonly [key: string]: unknown;
  };
  readonly storage?: {
    /** Of the type `redis`: replies that arrive travel between processes by it. Other types have no meaning here. */
    readonly cache?: { readonly type?: string; readonly url?: string };
    /** Without it PostgreSQL is run in `dataDir`. */
    readonly database?: {
      readonly type: string;
      readonly url?: string | undefined;
      readonly directUrl?: string | undefined;
      readonly replicas?: readonly string[];
    };
    readonly dataDir?: string;
    readonly [key: string]: unknown;
  };
}

/** The receipt of an erasure. */
export interface ErasureInfo {
  readonly sessionId: string;
  /** RFC 3339. */
  readonly erasedAt: string;
  /** Of the event `SessionErased`. */
  readonly version: number;
  readonly incarnations: readonly {
    readonly incarnation: number;
    readonly from: number;
    readonly to: number;
  }[];
  /** Ids of the keys that were destroyed. */
  readonly keys: readonly string[];
  /** Sessions that copied from it before, and were not erased themselves. */
  readonly forks: readonly string[];
}

/** An erasure that is to come. */
export interface ScheduledErasureInfo {
  readonly sessionId: string;
  /** RFC 3339. */
  readonly at: string;
  readonly reason?: string;
}

export interface SessionInfo {
  readonly id: string;
  readonly status: 'active' | 'expired';
  readonly title: string | null;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly messageCount: number;
  readonly version: number;
  readonly createdAt: string;
  readonly lastActivityAt: string;
  readonly expiresAt: string | null;
  readonly usage: Usage;
  readonly forkedFrom?: { readonly sessionId: string; readonly version: number };
}

export interface Usage {
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly cachedTokens?: number;
  readonly reasoningTokens?: number;
}

export interface HistoryMessage {
  readonly id: string;
  readonly role: 'system' | 'developer' | 'user' | 'assistant' | 'tool';
  /** Text, or typed parts. */
  readonly content: string | readonly Readonly<Record<string, unknown>>[];
  readonly version: number;
  readonly createdAt: string;
  readonly status: 'complete' | 'incomplete';
  readonly name?: string;
  readonly toolCalls?: readonly ToolCall[];
  readonly toolCallId?: string;
  readonly generationId?: string;
  /** By protocol, what only its clients understand. */
  readonly extensions?: Readonly<Record<string, unknown>>;
}

export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON text. */
  readonly arguments: string;
  readonly approval?: 'required' | 'granted';
}

export interface GenerateOptions {
  /** A session of its own is made without it. */
  readonly sessionId?: string;
  readonly model?: string;
  readonly instructions?: string;
  readonly tools?: readonly {
    readonly name: string;
    readonly description?: string;
    readonly parameters?: object;
    readonly approval?: 'required';
  }[];
  readonly temperature?: number;
  readonly topP?: number;
  readonly maxOutputTokens?: number;
  /** Texts at which the reply ends. */
  readonly stop?: readonly string[];
  readonly seed?: number;
  readonly toolChoice?: 'auto' | 'none' | 'required' | { readonly name: string };
  readonly parallelToolCalls?: boolean;
  readonly responseFormat?:
    | { readonly type: 'text' | 'json_object' }
    | {
        readonly type: 'json_schema';
        readonly name: string;
        readonly description?: string;
        readonly schema: object;
        readonly strict?: boolean;
      };
  readonly reasoning?: { readonly effort?: string };
  /** While another generation runs: fail with `session-busy`, or wait. */
  readonly onBusy?: 'reject' | 'queue';
  /** Stops waiting; the generation goes on. Use `cancel` to end it. */
  readonly signal?: AbortSignal;
}

export interface GenerateResult {
  readonly content: string;
  readonly message: HistoryMessage | null;
  readonly usage: Usage | null;
  readonly finishReason: string;
  readonly sessionId: string;
  readonly generationId: string;
}

export type StreamEvent =
  | {
      readonly type: 'generation.started';
      readonly generationId: string;
      readonly sessionId: string;
      readonly model: string;
    }
  /** What the model thinks before it answers, of models that tell. */
  | { readonly type: 'reasoning.delta'; readonly text: string }
  | { readonly type: 'message.delta'; readonly text: string }
  | ({ readonly type: 'tool.call' } & ToolCall)
  | ({ readonly type: 'message.completed' | 'generation.cancelled' } & GenerateResult);

interface InProcess {
  readonly fetch: Fetch;
  stop(): Promise<void>;
}

const told = new Set<string>();

/** Prints a warning once per process. */
function tell(warning: string): void {
  if (!told.has(warning)) console.warn(warning);
  told.add(warning);
}

/** How often in a row a stream is resumed that brings nothing. */
const RESUMPTIONS = 10;

/**
 * Conversations with a model that survive restarts: the service in this process, or a running one by `url`.
 *
 * @example
 * const agent = new Agent({ llm: { provider: 'openai', model: 'gpt-5-mini', apiKey: process.env.OPENAI_API_KEY } });
 * await agent.start();
 * const session = await agent.createSession('user-123');
 * const reply = await agent.generate('What is React?', { sessionId: session.id });
 * console.log(reply.content);
 * await agent.stop();
 */
export class Agent {
  private connection: Connection | undefined;
  private service: InProcess | undefined;
  private starting: Promise<void> | undefined;

  constructor(private readonly options: AgentOptions = {}) {}

  /** @throws Error when a setting is wrong, the data folder is in use, or the service cannot be reached */
  start(): Promise<void> {
    this.starting ??= this.connect().catch((error: unknown) => {
      this.starting = undefined;
      throw error;
    });
    return this.starting;
  }

  /** Waits for running requests, then stops what `start` started. */
  async stop(): Promise<void> {
    await this.starting?.catch(() => undefined);
    const { service } = this;
    this.connection = undefined;
    this.service = undefined;
    this.starting = undefined;
    await service?.stop();
  }

  private async connect(): Promise<void> {
    const { url, apiKey, tenant } = this.options;
    const headers = {
      ...(apiKey !== undefined && url !== undefined && { authorization: `Bearer ${apiKey}` }),
      ...(tenant !== undefined && { 'colloquy-tenant': tenant }),
    };
    if (url === undefined) {
      if (apiKey !== undefined)
        tell('apiKey has no meaning without url: a service in this process needs no key.');
      // Loaded only here, because a client of a running service does not need it.
      const { startInProcess } = await import('./in-process.js');
      this.service = await startInProcess(this.options, tell);
      this.connection = new Connection(this.service.fetch, headers);
      return;
    }
    for (const option of ['llm', 'sessions', 'storage'] as const) {
      if (this.options[option]) {
        tell(`${option} has no meaning with url: the service there has settings of its own.`);
      }
    }
    const base = url.replace(/\/+$/, '');
    const connection = new Connection((path, init) => fetch(base + path, init), headers);
    await connection.json('GET', '/health/live');
    this.connection = connection;
  }

  /** Creates a session. With the id of an existing session, returns that session, active again if it was expired. */
  createSession(id?: string, details: { title?: string; metadata?: object } = {}): Promise<SessionInfo> {
    return this.write('POST', '/v1/sessions', { ...(id !== undefined && { id }), ...details });
  }

  /** The session, or undefined when it does not exist. */
  async getSession(id: string): Promise<SessionInfo | undefined> {
    return unlessMissing(this.connected.json<SessionInfo>('GET', session(id)));
  }

  /** The ids of all sessions, including expired ones. */
  async listSessions(): Promise<string[]> {
    const sessions = await this.pages<SessionInfo>('/v1/sessions?limit=200');
    return sessions.map(({ id }) => id);
  }

  /** All messages of the present history, oldest first. @throws ColloquyError `session-not-found` */
  getSessionHistory(id: string): Promise<HistoryMessage[]> {
    return this.pages<HistoryMessage>(`${session(id)}/messages?limit=200`);
  }

  /** Title, metadata, counts and times; undefined when there is no such session. */
  getSessionMetadata(id: string): Promise<SessionInfo | undefined> {
    return this.getSession(id);
  }

  /**
   * Asks the model and returns its whole answer. After a lost connection it tries again, without a second model call.
   * @throws ColloquyError `session-not-found`, `session-busy`, `model-failed`, …
   */
  async generate(message: string, options: GenerateOptions = {}): Promise<GenerateResult> {
    const { sessionId, signal, ...ask } = options;
    const path = `${session(sessionId ?? (await this.createSession()).id)}/generate`;
    return this.write('POST', path, { message, ...ask }, signal);
  }

  /**
   * Takes the last reply out of the history and has the model answer again.
   * @throws ColloquyError as `generate`
   */
  regenerate(sessionId: string, options: Omit<GenerateOptions, 'sessionId'> = {}): Promise<GenerateResult> {
    const { signal, ...ask } = options;
    return this.write('POST', `${session(sessionId)}/generate`, { regenerate: true, ...ask }, signal);
  }

  /**
   * Asks the model and yields its answer as it arrives. A lost connection is resumed where it ended.
   * @throws ColloquyError as `generate`
   */
  async *stream(message: string, options: GenerateOptions = {}): AsyncGenerator<StreamEvent> {
    const { sessionId, signal, ...ask } = options;
    const path = session(sessionId ?? (await this.createSession()).id);
    yield* this.streamed(path, { message, ...ask }, signal);
  }

  /** As `regenerate`, and yields the answer as it arrives. @throws ColloquyError as `generate` */
  streamRegenerated(
    sessionId: string,
    options: Omit<GenerateOptions, 'sessionId'> = {},
  ): AsyncGenerator<StreamEvent> {
    const { signal, ...ask } = options;
    return this.streamed(session(sessionId), { regenerate: true, ...ask }, signal);
  }

  /** @param path of the session */
  private async *streamed(
    path: string,
    body: object,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<StreamEvent> {
    // With an idempotency key, a request that is repeated before the generation's id is known attaches to that
    // generation.
    const headers = { 'idempotency-key': randomUUID() };
    let generationId: string | undefined;
    let lastId = '';
    for (let fruitless = 0; ; fruitless += 1) {
      const source =
        generationId === undefined
          ? this.connected.events('POST', `${path}/generate`, { body, headers, signal })
          : this.connected.events('GET', `${path}/generations/${generationId}/stream`, {
              headers: { 'last-event-id': lastId },
              signal,
            });
      try {
        for await (const event of source) {
          fruitless = 0;
          lastId = event.id;
          if (event.event === 'generation.started') generationId = event.data['generationId'] as string;
          if (event.event === 'generation.failed') throw failed(event);
          yield { type: event.event, ...event.data } as StreamEvent;
          if (event.event === 'message.completed' || event.event === 'generation.cancelled') return;
        }
        if (fruitless >= RESUMPTIONS) throw new Error('the service ended the stream before the reply');
      } catch (error) {
        if (error instanceof ColloquyError || signal?.aborted || fruitless >= RESUMPTIONS) throw error;
      }
      if (fruitless > 0) await new Promise((resolve) => setTimeout(resolve, 50 * 2 ** fruitless));
    }
  }

  /** Cancels the running generation and keeps what has arrived. Resolves to whether there was one. */
  async cancel(sessionId: string): Promise<boolean> {
    const answer = await this.write<{ cancelled: boolean }>('POST', `${session(sessionId)}/cancel`);
    return answer.cancelled;
  }

  /** Empties the history and keeps the session. @throws ColloquyError `session-not-found` */
  async resetConversation(sessionId: string): Promise<void> {
    await this.write('POST', `${session(sessionId)}/reset`);
  }

  /**
   * Takes a message out of the history; a tool call and its results go together. The log keeps it.
   * @throws ColloquyError `session-not-found`, `not-found`, `session-busy`
   */
  async removeMessage(sessionId: string, messageId: string): Promise<void> {
    await this.write('DELETE', `${session(sessionId)}/messages/${encodeURIComponent(messageId)}`);
  }

  /**
   * Takes all messages after a version out of the history. The log keeps them.
   * @throws ColloquyError `session-not-found`, `invalid-request`, `session-busy`
   */
  async rewindHistory(sessionId: string, toVersion: number, reason?: string): Promise<SessionInfo> {
    const body = { toVersion, ...(reason !== undefined && { reason }) };
    return this.write('POST', `${session(sessionId)}/rewind`, body);
  }

  /** Deletes a session; resolves also when it does not exist. */
  async deleteSession(sessionId: string): Promise<void> {
    await unlessMissing(this.write('DELETE', session(sessionId)));
  }

  /**
   * Makes unreadable, for ever, what was said in a session through all its incarnations.
   * @param reason is kept, and must name nobody
   * @throws ColloquyError `session-not-found`, `legal-hold`, `not-sealed`
   */
  async eraseSession(sessionId: string, reason?: string): Promise<ErasureInfo>;
  /**
   * Schedules that for a time to come, in place of what was asked for before; `cancelErasure` calls it off until then.
   * @throws ColloquyError `session-not-found`, `legal-hold`, `not-sealed`, `invalid-request` for a time that is past
   */
  async eraseSession(
    sessionId: string,
    options: { readonly at: Date | string; readonly reason?: string },
  ): Promise<ScheduledErasureInfo>;
  async eraseSession(
    sessionId: string,
    options?: string | { readonly at: Date | string; readonly reason?: string },
  ): Promise<ErasureInfo | ScheduledErasureInfo> {
    const body = typeof options === 'string' ? { reason: options } : (options ?? {});
    return this.write('POST', `${session(sessionId)}/erase`, body);
  }

  /**
   * Calls off the erasures of a session that are scheduled, also those by the policy of its tenant.
   * @param reason is kept, and must name nobody
   * @throws ColloquyError `session-not-found`, `not-found` when none is scheduled
   */
  async cancelErasure(sessionId: string, reason?: string): Promise<void> {
    const body = reason === undefined ? {} : { reason };
    await this.write('DELETE', `${session(sessionId)}/erasure`, body);
  }

  private get connected(): Connection {
    if (!this.connection) throw new Error('the agent is not started: await agent.start() first');
    return this.connection;
  }

  /** Sends a write with an idempotency key, so that a repeated request takes effect once. */
  private write<T>(method: string, path: string, body?: object, signal?: AbortSignal): Promise<T> {
    return this.connected.json<T>(method, path, {
      ...(body && { body }),
      headers: { 'idempotency-key': randomUUID() },
      signal,
    });
  }

  private async pages<T>(path: string): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | null = null;
    do {
      const next: string = cursor === null ? path : `${path}&cursor=${encodeURIComponent(cursor)}`;
      const page: { data: T[]; nextCursor: string | null } = await this.connected.json('GET', next);
      items.push(...page.data);
      cursor = page.nextCursor;
    } while (cursor !== null);
    return items;
  }
}

const session = (id: string): string => `/v1/sessions/${encodeURIComponent(id)}`;

async function unlessMissing<T>(request: Promise<T>): Promise<T | undefined> {
  try {
    return await request;
  } catch (error) {
    if (error instanceof ColloquyError && error.code === 'session-not-found') return undefined;
    throw error;
  }
}

function failed({ data }: ServerEvent): ColloquyError {
  const { code, detail, status } = data as { code: string; detail: string; status: number };
  return new ColloquyError(code, detail, status, data);
}
