import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import { type AddressInfo } from 'node:net';

/** The content of a request for a chat completion. */
export interface ChatRequest {
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly tools?: readonly unknown[];
  readonly stream_options?: object;
  /** The `Authorization` header. */
  readonly authorization: string | undefined;
}

export interface ChatMessage {
  readonly role: string;
  readonly content: unknown;
  readonly name?: string;
  readonly tool_calls?: readonly {
    readonly id: string;
    readonly type: 'function';
    readonly function: { readonly name: string; readonly arguments: string };
  }[];
  readonly tool_call_id?: string;
}

/** How one request is answered. */
export type Reply = (request: ChatRequest, response: ServerResponse) => void | Promise<void>;

/** A server of the chat completions API whose answers the test decides. */
export interface FakeOpenAi {
  /** For OPENAI_BASE_URL. */
  readonly url: string;
  readonly requests: readonly ChatRequest[];
  /** The last request. */
  readonly last: ChatRequest;
  /**
   * Queues replies: each of the next requests gets one of them. Requests beyond that get the reply of `always`, or else
   * `says('reply <n>')`.
   */
  next(...replies: readonly Reply[]): void;
  /** Drops the replies that are queued. */
  forget(): void;
  /** All requests for which no reply is queued get this one. */
  always(reply: Reply): void;
  /** From now on a prompt that some provider might refuse is answered 400 and recorded in `faults`. */
  beStrict(): void;
  readonly faults: readonly string[];
  close(): Promise<void>;
}

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly prompt_tokens_details?: { readonly cached_tokens: number };
  readonly completion_tokens_details?: { readonly reasoning_tokens: number };
}

export async function startFakeOpenAi(): Promise<FakeOpenAi> {
  const requests: ChatRequest[] = [];
  const replies: Reply[] = [];
  let defaultReply: Reply | undefined;
  let isStrict = false;
  const faults: string[] = [];
  const server = createServer((request, response) => {
    let text = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    request.once('end', () => {
      if (request.method !== 'POST' || request.url !== '/v1/chat/completions') {
        response.writeHead(404).end();
        return;
      }
      const { authorization } = request.headers;
      const chat = { ...(JSON.parse(text) as Omit<ChatRequest, 'authorization'>), authorization };
      requests.push(chat);
      const fault = isStrict ? promptFault(chat.messages) : undefined;
      if (fault !== undefined) {
        faults.push(`${fault}: ${JSON.stringify(chat.messages)}`);
        void fails(400, fault)(chat, response);
        return;
      }
      const reply = replies.shift() ?? defaultReply ?? says(`reply ${requests.length}`);
      void reply(chat, response);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    requests,
    get last() {
      const last = requests.at(-1);
      if (!last) throw new Error('the model was not asked');
      return last;
    },
    forget: () => {
      replies.length = 0;
    },
    next: (...given) => {
      replies.push(...given);
    },
    always: (reply) => {
      defaultReply = reply;
    },
    beStrict: () => {
      isStrict = true;
    },
    faults,
    close: async () => {
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
  };
}

/**
 * What the strictest provider would refuse about a prompt; undefined when there is nothing.
 * @param inTurns whether the roles of messages have to take turns, as the templates of many models want it
 */
export function promptFault(messages: readonly ChatMessage[], inTurns = true): string | undefined {
  const open = new Set<string>();
  let before: string | undefined;
  for (const [index, { role, content, tool_calls: calls, tool_call_id: answered }] of messages.entries()) {
    if (role === 'tool') {
      if (!open.delete(answered ?? '')) return 'a tool result that answers no call';
      continue;
    }
    if (open.size > 0) return 'a tool call without its result';
    if (role === 'system' && index > 0) return 'a system message that is not the first message';
    if (role === 'system') continue;
    if (role !== 'user' && role !== 'assistant') return `a role ${role}`;
    if ((content === '' || content === null) && !calls) return `an empty ${role} message`;
    if (role === 'assistant' && before === 'assistant') return 'two replies in a row';
    if (inTurns && role === 'user' && before === 'user') return 'two messages of the user in a row';
    for (const { id, function: called } of calls ?? []) {
      if (!/^[a-zA-Z0-9_-]{1,64}$/.test(called.name)) return `a tool of the name ${called.name}`;
      if (!isObject(called.arguments)) return `arguments that are no object: ${called.arguments}`;
      if (open.has(id)) return 'two calls with one id';
      open.add(id);
    }
    before = calls ? 'calls' : role;
  }
  if (open.size > 0) return 'a tool call without its result';
  const last = messages.findLast(({ role }) => role !== 'system')?.role;
  return last === 'user' || last === 'tool' ? undefined : `a last message of ${last ?? 'nobody'}`;
}

function isObject(text: string): boolean {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}

const json = (response: ServerResponse, status: number, body: unknown): void => {
  response
    // Without this header the SDK would retry a request that a test wants to fail once.
    .writeHead(status, { 'content-type': 'application/json', 'x-should-retry': 'false' })
    .end(JSON.stringify(body));
};

const USAGE: Usage = { prompt_tokens: 10, completion_tokens: 5 };

const piece = (choice: object | null, rest: object = {}): string =>
  `data: ${JSON.stringify({
    id: 'chatcmpl-fake',
    object: 'chat.completion.chunk',
    created: 0,
    model: 'fake',
    choices: choice ? [{ index: 0, finish_reason: null, ...choice }] : [],
    ...rest,
  })}\n\n`;

/** Begins a streamed answer; the caller ends it. */
function begin(response: ServerResponse): void {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'x-should-retry': 'false' });
  response.write(piece({ delta: { role: 'assistant', content: '' } }));
}

/** Sends the answer as the service requests it: a stream of pieces, with the usage last. */
function stream(response: ServerResponse, deltas: readonly object[], finish: string, usage: Usage): void {
  begin(response);
  for (const delta of deltas) response.write(piece({ delta }));
  response.write(piece({ delta: {}, finish_reason: finish }));
  response.end(`${piece(null, { usage })}data: [DONE]\n\n`);
}

const words = (content: string): object[] => content.split(/(?<= )/).map((word) => ({ content: word }));

export const says =
  (content: string, usage: Usage = USAGE): Reply =>
  (_, response) => {
    stream(response, words(content), 'stop', usage);
  };

/** Answers with the messages that it was sent, as JSON. */
export const echoesPrompt: Reply = ({ messages }, response) => {
  stream(response, words(JSON.stringify(messages)), 'stop', USAGE);
};

export const callsTools =
  (calls: readonly { readonly id: string; readonly name: string; readonly arguments: string }[]): Reply =>
  (_, response) => {
    const deltas = calls.flatMap(({ id, name, arguments: text }, index) => [
      { tool_calls: [{ index, id, type: 'function', function: { name, arguments: '' } }] },
      { tool_calls: [{ index, function: { arguments: text } }] },
    ]);
    stream(response, deltas, 'tool_calls', USAGE);
  };

export const fails =
  (status: number, message: string): Reply =>
  (_, response) => {
    json(response, status, { error: { message, type: 'fake', param: null, code: null } });
  };

/** Ends the connection in the middle of the answer. */
export const drops: Reply = (_, response) => {
  response.socket?.destroy();
};

/** Answers 200 with this text, even if it is no valid answer. */
export const sends =
  (text: string): Reply =>
  (_, response) => {
    response.writeHead(200, { 'content-type': 'application/json', 'x-should-retry': 'false' }).end(text);
  };

export const neverAnswers: Reply = () => undefined;

/** A reply that waits until it is released, so that a test can act while the model is working. */
export interface HeldReply {
  readonly reply: Reply;
  /** Resolves when the request has arrived. */
  readonly asked: Promise<void>;
  /** Resolves when the client closes the connection before the release. */
  readonly abandoned: Promise<void>;
  release(): void;
}

export function held(reply: Reply): HeldReply {
  let release = (): void => undefined;
  let onArrival = (): void => undefined;
  let onLeave = (): void => undefined;
  const released = new Promise<void>((resolve) => (release = resolve));
  const asked = new Promise<void>((resolve) => (onArrival = resolve));
  const abandoned = new Promise<void>((resolve) => (onLeave = resolve));
  return {
    asked,
    abandoned,
    release: () => {
      release();
    },
    reply: async (request, response) => {
      response.once('close', () => {
        if (!response.writableEnded) onLeave();
      });
      onArrival();
      await released;
      if (!response.destroyed) await reply(request, response);
    },
  };
}

/** A reply that stops after the words `said` until it is released. Then it sends `rest`, or runs `then`. */
export function heldAfter(said: string, rest: string, then?: (response: ServerResponse) => void): HeldReply {
  let release = (): void => undefined;
  let onArrival = (): void => undefined;
  let onLeave = (): void => undefined;
  const released = new Promise<void>((resolve) => (release = resolve));
  const asked = new Promise<void>((resolve) => (onArrival = resolve));
  const abandoned = new Promise<void>((resolve) => (onLeave = resolve));
  return {
    asked,
    abandoned,
    release: () => {
      release();
    },
    reply: async (_, response) => {
      response.once('close', () => {
        if (!response.writableEnded) onLeave();
      });
      begin(response);
      for (const delta of words(said)) response.write(piece({ delta }));
      onArrival();
      await released;
      if (response.destroyed) return;
      if (then) {
        then(response);
        return;
      }
      for (const delta of words(rest)) response.write(piece({ delta }));
      response.write(piece({ delta: {}, finish_reason: 'stop' }));
      response.end(`${piece(null, { usage: USAGE })}data: [DONE]\n\n`);
    },
  };
}

/** A reply that a test sends piece by piece. */
export interface ConductedReply {
  readonly reply: Reply;
  /** Resolves when the request has arrived and the answer has begun. */
  readonly asked: Promise<void>;
  /** Resolves when the client closes the connection before the end of the reply. */
  readonly abandoned: Promise<void>;
  say(...texts: readonly string[]): void;
  /** Sends these bytes unchanged. */
  send(bytes: string): void;
  end(usage?: Usage | null): void;
  /** Breaks the connection. */
  drop(): void;
}

export function conducted(): ConductedReply {
  let onArrival = (): void => undefined;
  let onLeave = (): void => undefined;
  const asked = new Promise<void>((resolve) => (onArrival = resolve));
  const abandoned = new Promise<void>((resolve) => (onLeave = resolve));
  let to: ServerResponse | undefined;
  const response = (): ServerResponse => {
    if (!to) throw new Error('nobody has asked yet');
    return to;
  };
  return {
    asked,
    abandoned,
    reply: (_, given) => {
      to = given;
      given.once('close', () => {
        if (!given.writableEnded) onLeave();
      });
      begin(given);
      onArrival();
    },
    say: (...texts) => {
      for (const content of texts) response().write(piece({ delta: { content } }));
    },
    send: (bytes) => {
      response().write(bytes);
    },
    end: (usage = USAGE) => {
      response().write(piece({ delta: {}, finish_reason: 'stop' }));
      response().end(`${usage ? piece(null, { usage }) : ''}data: [DONE]\n\n`);
    },
    drop: () => {
      response().socket?.destroy();
    },
  };
}

/** Refuses temporarily. `headers` may say for how long. */
export const refuses =
  (status: number, headers: Readonly<Record<string, string>> = {}): Reply =>
  (_, response) => {
    response
      .writeHead(status, { 'content-type': 'application/json', ...headers })
      .end(JSON.stringify({ error: { message: 'not now' } }));
  };

/** Sends `bytes` again and again until the client closes the connection. */
export const floods =
  (status: number, bytes: string): Reply =>
  async (_, response) => {
    response.writeHead(status, { 'content-type': 'text/event-stream', 'x-should-retry': 'false' });
    while (!response.destroyed) {
      if (response.write(bytes)) await new Promise(setImmediate);
      else await Promise.race([once(response, 'drain'), once(response, 'close')]).catch(() => undefined);
    }
  };
