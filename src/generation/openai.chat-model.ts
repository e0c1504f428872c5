import { StringDecoder } from 'node:string_decoder';
import { setTimeout as pause } from 'node:timers/promises';
import { createParser } from 'eventsource-parser';
import OpenAI, { APIConnectionError, APIConnectionTimeoutError, APIError } from 'openai';
import { z } from 'zod';
import { type ContentPart, type ToolCall, type Usage } from '../domain/session.events.js';
import {
  type AnswerEnd,
  type AnswerConditions,
  type ChatModel,
  ModelError,
  type ModelRequest,
  type PromptMessage,
} from './chat-model.js';
import { textOf } from './echo.chat-model.js';
import { bodyOf, type Departure, letEnd, providerFetch } from './provider-fetch.js';
import { atLowPriority } from './low-priority.js';

type MessageParam = OpenAI.Chat.Completions.ChatCompletionMessageParam;
type PartParam = OpenAI.Chat.Completions.ChatCompletionContentPart;

export interface OpenAiSettings {
  readonly apiKey?: string | undefined;
  /** Any server that speaks the OpenAI chat completions API: OpenAI, vLLM, Ollama, … */
  readonly baseURL?: string | undefined;
  /** Milliseconds without a sign of the provider after which a call is given up; retries are part of it. */
  readonly timeoutMs: number;
  /** Bytes of one answer. */
  readonly maxOutputBytes: number;
  /** Calls at the same time; more of them wait their turn. */
  readonly maxConcurrency: number;
}

const DONE = '[DONE]';
const NEVER_MS = 2 ** 31 - 1;
/** Tries of a call that the provider refuses for now, and the pause before the second; it doubles. */
const TRIES = 3;
const BACK_OFF_MS = 500;
/** What a piece counts that holds no text: a provider that only ever sends such must come to an end, too. */
const EMPTY_PIECE_BYTES = 16;
/** Of a line of the stream, beyond the text that it may hold: its JSON, and escapes. */
const LINE_FACTOR = 6;
const LINE_EXTRA = 65_536;

/** What is used of a piece. Servers that merely imitate the API leave out what the SDK's types promise. */
const Piece = z.object({
  choices: z
    .array(
      z.object({
        delta: z
          .object({
            content: z.string().nullish(),
            refusal: z.string().nullish(),
            tool_calls: z
              .array(
                z.object({
                  index: z.int().nonnegative().max(127).default(0),
                  id: z.string().nullish(),
                  function: z
                    .object({ name: z.string().nullish(), arguments: z.string().nullish() })
                    .nullish(),
                }),
              )
              .nullish(),
          })
          .nullish(),
        finish_reason: z.string().nullish(),
      }),
    )
    .default([]),
  /** Something went wrong after the answer had begun. */
  error: z.union([z.string(), z.object({ message: z.string() })]).nullish(),
  usage: z
    .object({
      prompt_tokens: z.int().nonnegative(),
      completion_tokens: z.int().nonnegative(),
      prompt_tokens_details: z.object({ cached_tokens: z.int().nonnegative().nullish() }).nullish(),
      completion_tokens_details: z.object({ reasoning_tokens: z.int().nonnegative().nullish() }).nullish(),
    })
    .nullish(),
});

/**
 * Streamed chat completions by the official SDK. Streamed always: what has arrived can then be shown, kept and cut off.
 */
export class OpenAiModel implements ChatModel {
  private readonly client: OpenAI;
  private running = 0;
  private readonly waiting: (() => void)[] = [];

  constructor(private readonly settings: OpenAiSettings) {
    this.client = new OpenAI({
      // Servers of one's own often ask for none; the SDK insists on a text.
      apiKey: settings.apiKey ?? 'none',
      baseURL: settings.baseURL ?? null,
      // Its time runs from before a call may leave; `Silence` counts instead.
      timeout: NEVER_MS,
      defaultHeaders: { 'X-Stainless-Timeout': null },
      // Its pauses cannot be broken off: a cancelled call would wait for as long as `Retry-After` says.
      maxRetries: 0,
      fetch: providerFetch,
      // Its log would hold prompts.
      logLevel: 'off',
    });
  }

  async answer(
    request: ModelRequest,
    { signal: aborted, onText, when = Promise.resolve() }: AnswerConditions,
  ): Promise<AnswerEnd> {
    await this.enter(aborted);
    const silence = new Silence(this.settings.timeoutMs);
    when.then(
      () => {
        silence.begin();
      },
      () => undefined,
    );
    const signal = AbortSignal.any([aborted, silence.signal]);
    try {
      const { maxOutputBytes } = this.settings;
      const answer = new Answer(maxOutputBytes);
      await readEvents(await this.respond(request, signal, when), maxOutputBytes, (data) => {
        silence.broken();
        const text = answer.add(data);
        if (text !== '') onText(text);
      });
      signal.throwIfAborted();
      return answer.end();
    } catch (error) {
      aborted.throwIfAborted();
      throw this.explained(error, silence.signal.aborted);
    } finally {
      silence.end();
      this.leave();
    }
  }

  /** Asks, and again after a pause when the provider is busy, broken or out of reach for the moment. */
  private async respond(
    request: ModelRequest,
    signal: AbortSignal,
    when: Promise<unknown>,
  ): Promise<Response> {
    // Handed to `providerFetch` as it is.
    const fetchOptions = { when } satisfies Departure as object;
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.client.chat.completions
          .create(toParams(request), { signal, fetchOptions })
          .asResponse();
      } catch (error) {
        signal.throwIfAborted();
        const wait = pauseBefore(error) ?? BACK_OFF_MS * 2 ** (attempt - 1) * (1 - Math.random() / 4);
        if (attempt === TRIES || !isPassing(error) || wait >= this.settings.timeoutMs) throw error;
        await pause(wait, undefined, { signal });
      }
    }
  }

  /** First come, first served. */
  private async enter(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.running < this.settings.maxConcurrency) {
      this.running += 1;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const turn = (): void => {
        signal.removeEventListener('abort', gone);
        resolve();
      };
      const gone = (): void => {
        this.waiting.splice(this.waiting.indexOf(turn), 1);
        reject(signal.reason as Error);
      };
      signal.addEventListener('abort', gone, { once: true });
      this.waiting.push(turn);
    });
  }

  /** The place goes to whoever waits, so that `running` stays as it is then. */
  private leave(): void {
    const next = this.waiting.shift();
    if (next) next();
    else this.running -= 1;
  }

  private explained(error: unknown, isSilent: boolean): ModelError {
    if (isSilent || error instanceof APIConnectionTimeoutError) {
      const message = `the model gave no sign for ${this.settings.timeoutMs} ms`;
      return new ModelError('model-timeout', message, { cause: error });
    }
    if (error instanceof ModelError) return error;
    if (error instanceof APIConnectionError) {
      return new ModelError('model-failed', 'the model provider cannot be reached', { cause: error });
    }
    if (error instanceof APIError || error instanceof ProviderError) {
      const message = this.withoutKeys(`the model provider answered: ${error.message}`);
      return new ModelError('model-failed', message, { cause: error });
    }
    return isBroken(error) ? brokenOff(error) : unreadable(error);
  }

  /** Providers quote the key they were given; and their texts have no bound. */
  private withoutKeys(text: string): string {
    const { apiKey } = this.settings;
    const masked = apiKey ? text.replaceAll(apiKey, '***') : text;
    return masked.replaceAll(/\b(sk|pk|key)-[\w*.-]+/gi, '***').slice(0, 500);
  }
}

/** Pieces of a response that may wait. A provider that sends more at once has to wait for what is done with them. */
const AHEAD = 64;

/**
 * Gives the `data` of a response's events to `onData` as they come, by nothing but calls from the socket on: with
 * thousands of tokens a second a promise or a generator at each step is a good part of what they cost.
 * @throws what `onData` throws; ModelError when the response breaks off, or a line of it is too long
 */
async function readEvents(
  response: Response,
  maxOutputBytes: number,
  onData: (data: string) => void,
): Promise<void> {
  const body = bodyOf(response);
  const decoder = new StringDecoder('utf8');
  let isDone = false as boolean;
  const parser = createParser({
    onEvent: ({ data }) => {
      if (isDone) return;
      if (data.startsWith(DONE)) isDone = true;
      else onData(data);
    },
    onError: ({ type }) => {
      if (type === 'max-buffer-size-exceeded') throw tooLong(maxOutputBytes);
    },
    maxBufferSize: maxOutputBytes * LINE_FACTOR + LINE_EXTRA,
  });
  try {
    await new Promise<void>((resolve, reject) => {
      let isOver = false;
      const end = (error?: Error): void => {
        isOver = true;
        if (error) reject(error);
        else resolve();
      };
      const take = (piece: Buffer): void => {
        try {
          parser.feed(decoder.write(piece));
          if (isDone) end();
        } catch (error) {
          end(error as Error);
        }
      };
      const waiting: (() => void)[] = [];
      const run = (count: number): void => {
        for (const task of waiting.splice(0, count)) if (!isOver) task();
      };
      let isFirst = true;
      // An end waits for its turn, too: what arrived before it counts.
      const later = (task: () => void): void => {
        waiting.push(task);
        // The first of it is urgent: somebody looks at an empty page.
        if (isFirst || waiting.length > AHEAD) run(waiting.length);
        else
          atLowPriority(() => {
            run(1);
          });
        isFirst = false;
      };
      body
        .on('data', (piece: Buffer) => {
          later(() => {
            take(piece);
          });
        })
        .once('end', () => {
          later(end);
        })
        .on('error', (error) => {
          later(() => {
            end(error);
          });
        })
        .once('close', () => {
          // Without an end it was broken off.
          later(() => {
            end(brokenOff(undefined));
          });
        });
      // It may have gone before anybody listened for that.
      if (body.destroyed) end(body.errored ?? brokenOff(undefined));
    });
  } finally {
    body.removeAllListeners('data');
    // A body that was read to its end leaves its connection to the next call.
    if (isDone) letEnd(body);
    else body.destroy();
  }
}

/** An answer as it comes together. */
class Answer {
  private readonly calls = new Map<number, ToolCall>();
  private finishReason: string | undefined;
  private usage: Usage | undefined;
  private bytes = 0;

  constructor(private readonly maxBytes: number) {}

  /** @returns the text in it. @throws when it cannot be read, is an error, or too much */
  add(data: string): string {
    const { choices, error, usage } = Piece.parse(JSON.parse(data));
    if (error) throw new ProviderError(typeof error === 'string' ? error : error.message);
    const choice = choices[0];
    const text = choice?.delta?.content ?? choice?.delta?.refusal ?? '';
    let size = Buffer.byteLength(text);
    for (const part of choice?.delta?.tool_calls ?? []) {
      const call = this.calls.get(part.index) ?? { id: '', name: '', arguments: '' };
      call.id ||= part.id ?? '';
      call.name ||= part.function?.name ?? '';
      call.arguments += part.function?.arguments ?? '';
      size += Buffer.byteLength(part.function?.arguments ?? '');
      this.calls.set(part.index, call);
    }
    this.bytes += size === 0 ? EMPTY_PIECE_BYTES : size;
    if (this.bytes > this.maxBytes) throw tooLong(this.maxBytes);
    this.finishReason = choice?.finish_reason ?? this.finishReason;
    this.usage = usageOf(usage) ?? this.usage;
    return text;
  }

  end(): AnswerEnd {
    const { calls, finishReason, usage } = this;
    // A connection that breaks off between two pieces looks like an end.
    if (finishReason === undefined) throw brokenOff(undefined);
    return { toolCalls: [...calls.values()], finishReason, ...(usage && { usage }) };
  }
}

/** What a provider says of its failure after the answer has begun. */
class ProviderError extends Error {}

const unreadable = (cause: unknown): ModelError =>
  new ModelError('model-failed', 'the model provider sent an answer that cannot be read', { cause });
const brokenOff = (cause: unknown): ModelError =>
  new ModelError('model-failed', 'the model provider broke off its answer', { cause });
const tooLong = (bytes: number): ModelError =>
  new ModelError('model-failed', `the answer is longer than ${bytes} bytes`);

const isBroken = (error: unknown): boolean =>
  ['ECONNRESET', 'EPIPE', 'ETIMEDOUT'].includes((error as NodeJS.ErrnoException).code ?? '');

/** Whether it may go better in a moment. */
function isPassing(error: unknown): boolean {
  if (!(error instanceof APIError)) return false;
  const { status, headers } = error as APIError;
  if (status === undefined) return error instanceof APIConnectionError;
  const advice = headers?.get('x-should-retry');
  if (advice === 'true' || advice === 'false') return advice === 'true';
  return status === 408 || status === 409 || status === 429 || status >= 500;
}

/** Milliseconds that the provider asks to be left alone. */
function pauseBefore(error: unknown): number | undefined {
  if (!(error instanceof APIError)) return undefined;
  const headers = error.headers as Headers | undefined;
  const ms = Number.parseFloat(headers?.get('retry-after-ms') ?? '');
  if (ms >= 0) return ms;
  const after = headers?.get('retry-after') ?? '';
  const seconds = /^\s*[\d.]+\s*$/.test(after)
    ? Number.parseFloat(after)
    : (Date.parse(after) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? undefined : Math.max(0, seconds * 1000);
}

/** Aborts when nothing was heard for a while, from its beginning on. */
class Silence {
  private readonly controller = new AbortController();
  private timer: NodeJS.Timeout | undefined;

  constructor(private readonly ms: number) {}

  begin(): void {
    this.timer = setTimeout(() => {
      this.controller.abort();
    }, this.ms);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  broken(): void {
    this.timer?.refresh();
  }

  end(): void {
    clearTimeout(this.timer);
  }
}

function usageOf(usage: z.infer<typeof Piece>['usage']): Usage | undefined {
  if (!usage) return undefined;
  const cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? undefined;
  const reasoningTokens = usage.completion_tokens_details?.reasoning_tokens ?? undefined;
  return {
    inputTokens: usage.prompt_tokens,
    outputTokens: usage.completion_tokens,
    ...(cachedTokens !== undefined && { cachedTokens }),
    ...(reasoningTokens !== undefined && { reasoningTokens }),
  };
}

function toParams(request: ModelRequest): OpenAI.Chat.Completions.ChatCompletionCreateParamsStreaming {
  return {
    model: request.model,
    stream: true,
    stream_options: { include_usage: true },
    messages: [
      ...(request.instructions === undefined
        ? []
        : [{ role: 'system' as const, content: request.instructions }]),
      ...request.messages.map(toParam),
    ],
    ...(request.tools?.length && {
      tools: request.tools.map(({ name, description, parameters }) => ({
        type: 'function' as const,
        function: {
          name,
          ...(description !== undefined && { description }),
          ...(parameters && { parameters }),
        },
      })),
    }),
  };
}

function toParam(message: PromptMessage): MessageParam {
  // The API takes no other characters in a name, and would refuse the whole prompt.
  const name = message.name?.replaceAll(/[^a-zA-Z0-9_-]/g, '_').slice(0, 64);
  const named = name === undefined ? {} : { name };
  switch (message.role) {
    case 'system':
      return { role: 'system', content: textOf(message.content), ...named };
    case 'user':
      return {
        role: 'user',
        content: typeof message.content === 'string' ? message.content : message.content.map(toPart),
        ...named,
      };
    case 'assistant':
      return {
        role: 'assistant',
        content: textOf(message.content),
        ...named,
        ...(message.toolCalls && {
          tool_calls: message.toolCalls.map((call) => ({
            id: call.id,
            type: 'function' as const,
            function: { name: call.name, arguments: call.arguments },
          })),
        }),
      };
    case 'tool':
      return { role: 'tool', content: textOf(message.content), tool_call_id: message.toolCallId ?? '' };
  }
}

function toPart(part: ContentPart): PartParam {
  switch (part.type) {
    case 'text':
      return { type: 'text', text: part.text };
    case 'image':
      return { type: 'image_url', image_url: { url: part.url, ...(part.detail && { detail: part.detail }) } };
    case 'file':
      return {
        type: 'file',
        file: { file_data: part.url, ...(part.name !== undefined && { filename: part.name }) },
      };
  }
}
