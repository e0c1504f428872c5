import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import { type AddressInfo } from 'node:net';

/** What a request for a chat completion held. */
export interface ChatRequest {
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly tools?: readonly unknown[];
  /** Of the `Authorization` header. */
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

/** A server of chat completions that does as it is told. */
export interface FakeOpenAi {
  /** For OPENAI_BASE_URL. */
  readonly url: string;
  readonly requests: readonly ChatRequest[];
  /** The last request. */
  readonly last: ChatRequest;
  /** The next request that is not spoken for gets this; those without get `says('reply <n>')`. */
  next(...replies: readonly Reply[]): void;
  /** All requests without a reply of their own get this. */
  always(reply: Reply): void;
  /** From now on a prompt that a provider might refuse is answered 400, and noted in `faults`. */
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
  let standing: Reply | undefined;
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
      const reply = replies.shift() ?? standing ?? says(`reply ${requests.length}`);
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
    next: (...given) => {
      replies.push(...given);
    },
    always: (reply) => {
      standing = reply;
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

/** What the strictest of providers would find wrong with a prompt. */
export function promptFault(messages: readonly ChatMessage[]): string | undefined {
  const open = new Set<string>();
  let before: string | undefined;
  for (const { role, content, tool_calls: calls, tool_call_id: answered } of messages) {
    if (role === 'tool') {
      if (!open.delete(answered ?? '')) return 'a tool result that answers no call';
      continue;
    }
    if (open.size > 0) return 'a tool call without its result';
    if (role === 'system') continue;
    if (role !== 'user' && role !== 'assistant') return `a role ${role}`;
    if ((content === '' || content === null) && !calls) return `an empty ${role} message`;
    if (role === 'assistant' && before === 'assistant' && !calls) return 'two replies in a row';
    for (const { id } of calls ?? []) {
      if (open.has(id)) return 'two calls with one id';
      open.add(id);
    }
    before = calls ? 'calls' : role;
  }
  if (open.size > 0) return 'a tool call without its result';
  const last = messages.findLast(({ role }) => role !== 'system')?.role;
  return last === 'user' || last === 'tool' ? undefined : `a last message of ${last ?? 'nobody'}`;
}

const json = (response: ServerResponse, status: number, body: unknown): void => {
  response
    // The SDK would try again what a test wants to fail once.
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

/** What the service asks for: the answer as a stream of pieces, usage last. */
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

/** The connection ends in the middle of the answer. */
export const drops: Reply = (_, response) => {
  response.socket?.destroy();
};

/** Says 200 and this, whatever it is. */
export const sends =
  (text: string): Reply =>
  (_, response) => {
    response.writeHead(200, { 'content-type': 'application/json', 'x-should-retry': 'false' }).end(text);
  };

export const neverAnswers: Reply = () => undefined;

/** A reply that waits until it is released, so that a test can act while the model "thinks". */
export interface HeldReply {
  readonly reply: Reply;
  /** The request is here. */
  readonly asked: Promise<void>;
  /** Whoever asked went away before the release. */
  readonly abandoned: Promise<void>;
  release(): void;
}

export function held(reply: Reply): HeldReply {
  let release = (): void => undefined;
  let arrive = (): void => undefined;
  let leave = (): void => undefined;
  const released = new Promise<void>((resolve) => (release = resolve));
  const asked = new Promise<void>((resolve) => (arrive = resolve));
  const abandoned = new Promise<void>((resolve) => (leave = resolve));
  return {
    asked,
    abandoned,
    release: () => {
      release();
    },
    reply: async (request, response) => {
      response.once('close', () => {
        if (!response.writableEnded) leave();
      });
      arrive();
      await released;
      if (!response.destroyed) await reply(request, response);
    },
  };
}

/** A reply that stops after these words until it is released; then it says the rest, or does what it is told. */
export function heldAfter(said: string, rest: string, then?: (response: ServerResponse) => void): HeldReply {
  let release = (): void => undefined;
  let arrive = (): void => undefined;
  let leave = (): void => undefined;
  const released = new Promise<void>((resolve) => (release = resolve));
  const asked = new Promise<void>((resolve) => (arrive = resolve));
  const abandoned = new Promise<void>((resolve) => (leave = resolve));
  return {
    asked,
    abandoned,
    release: () => {
      release();
    },
    reply: async (_, response) => {
      response.once('close', () => {
        if (!response.writableEnded) leave();
      });
      begin(response);
      for (const delta of words(said)) response.write(piece({ delta }));
      arrive();
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

/** A reply that a test gives piece by piece. */
export interface ConductedReply {
  readonly reply: Reply;
  /** The request is here, and the answer has begun. */
  readonly asked: Promise<void>;
  /** Whoever asked went away before the end. */
  readonly abandoned: Promise<void>;
  say(...texts: readonly string[]): void;
  /** Sends this as it is. */
  send(bytes: string): void;
  end(usage?: Usage | null): void;
  /** Breaks the connection. */
  drop(): void;
}

export function conducted(): ConductedReply {
  let arrive = (): void => undefined;
  let leave = (): void => undefined;
  const asked = new Promise<void>((resolve) => (arrive = resolve));
  const abandoned = new Promise<void>((resolve) => (leave = resolve));
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
        if (!given.writableEnded) leave();
      });
      begin(given);
      arrive();
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

/** Refuses for the moment; `headers` say for how long. */
export const refuses =
  (status: number, headers: Readonly<Record<string, string>> = {}): Reply =>
  (_, response) => {
    response
      .writeHead(status, { 'content-type': 'application/json', ...headers })
      .end(JSON.stringify({ error: { message: 'not now' } }));
  };

/** Sends `bytes` again and again, for as long as anybody takes them. */
export const floods =
  (status: number, bytes: string): Reply =>
  async (_, response) => {
    response.writeHead(status, { 'content-type': 'text/event-stream', 'x-should-retry': 'false' });
    while (!response.destroyed) {
      if (response.write(bytes)) await new Promise(setImmediate);
      else await Promise.race([once(response, 'drain'), once(response, 'close')]).catch(() => undefined);
    }
  };
