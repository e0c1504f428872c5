import { setTimeout as pause } from 'node:timers/promises';
import { createParser } from 'eventsource-parser';
import OpenAI, { APIConnectionError, APIConnectionTimeoutError, APIError } from 'openai';
import { z } from 'zod';
import { type ContentPart, type ToolCall, type Usage } from '../domain/session.events.js';
import {
  type ChatModel,
  ModelError,
  type ModelPiece,
  type ModelRequest,
  type PromptMessage,
} from './chat-model.js';
import { textOf } from './echo.chat-model.js';

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

/** Tries of a call that the provider refuses for now, and the pause before the second; it doubles. */
const TRIES = 3;
const BACK_OFF_MS = 500;
/** What a piece counts that holds no text: a provider that only ever sends such must come to an end, too. */
const EMPTY_PIECE_BYTES = 16;
/** Of a line of the stream, beyond the text that it may hold: its JSON, and escapes. */
const LINE_FACTOR = 6;
const LINE_EXTRA = 65_536;
/** Of an error's body; the rest is not read. */
const ERROR_BYTES = 65_536;

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
      timeout: settings.timeoutMs,
      // Its pauses cannot be broken off: a cancelled call would wait for as long as `Retry-After` says.
      maxRetries: 0,
      // It reads the bodies of errors whole.
      fetch: async (url, init) => shortened(await fetch(url, init)),
      // Its log would hold prompts.
      logLevel: 'off',
    });
  }

  async *answer(request: ModelRequest, signal: AbortSignal): AsyncIterable<ModelPiece> {
    await this.enter(signal);
    const silence = new Silence(this.settings.timeoutMs);
    try {
      yield* this.pieces(request, AbortSignal.any([signal, silence.signal]), silence);
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof ModelError) throw error;
      throw silence.signal.aborted || error instanceof APIConnectionTimeoutError
        ? new ModelError('model-timeout', `the model gave no sign for ${this.settings.timeoutMs} ms`, {
            cause: error,
          })
        : this.explained(error);
    } finally {
      silence.end();
      this.leave();
    }
  }

  private async *pieces(
    request: ModelRequest,
    signal: AbortSignal,
    silence: Silence,
  ): AsyncGenerator<ModelPiece> {
    const response = await this.respond(request, signal);
    const calls = new Map<number, ToolCall>();
    let finishReason: string | undefined;
    let usage: Usage | undefined;
    let bytes = 0;
    for await (const data of this.dataOf(response)) {
      silence.broken();
      const parsed = Piece.safeParse(JSON.parse(data));
      if (!parsed.success) throw unreadable(parsed.error);
      const { choices, error } = parsed.data;
      if (error) throw this.refused(typeof error === 'string' ? error : error.message);
      const choice = choices[0];
      const text = choice?.delta?.content ?? choice?.delta?.refusal ?? '';
      let size = Buffer.byteLength(text);
      for (const part of choice?.delta?.tool_calls ?? []) {
        const call = calls.get(part.index) ?? { id: '', name: '', arguments: '' };
        call.id ||= part.id ?? '';
        call.name ||= part.function?.name ?? '';
        call.arguments += part.function?.arguments ?? '';
        size += Buffer.byteLength(part.function?.arguments ?? '');
        calls.set(part.index, call);
      }
      bytes += size === 0 ? EMPTY_PIECE_BYTES : size;
      if (bytes > this.settings.maxOutputBytes) throw this.tooLong();
      if (text !== '') yield { type: 'text', text };
      finishReason = choice?.finish_reason ?? finishReason;
      usage = usageOf(parsed.data.usage) ?? usage;
    }
    signal.throwIfAborted();
    // A connection that breaks off between two pieces looks like an end.
    if (finishReason === undefined) {
      throw new ModelError('model-failed', 'the model provider broke off its answer');
    }
    yield { type: 'end', toolCalls: [...calls.values()], finishReason, ...(usage && { usage }) };
  }

  /** Asks, and again after a pause when the provider is busy, broken or out of reach for the moment. */
  private async respond(request: ModelRequest, signal: AbortSignal): Promise<Response> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.client.chat.completions.create(toParams(request), { signal }).asResponse();
      } catch (error) {
        signal.throwIfAborted();
        const wait = pauseBefore(error) ?? BACK_OFF_MS * 2 ** (attempt - 1) * (1 - Math.random() / 4);
        if (attempt === TRIES || !isPassing(error) || wait >= this.settings.timeoutMs) throw error;
        await pause(wait, undefined, { signal });
      }
    }
  }

  /** The `data` of a response's events, up to `[DONE]`. */
  private async *dataOf(response: Response): AsyncGenerator<string> {
    let ready: string[] = [];
    const seen = { tooLong: false };
    const parser = createParser({
      onEvent: ({ data }) => {
        ready.push(data);
      },
      onError: ({ type }) => {
        seen.tooLong ||= type === 'max-buffer-size-exceeded';
      },
      maxBufferSize: this.settings.maxOutputBytes * LINE_FACTOR + LINE_EXTRA,
    });
    const decoder = new TextDecoder();
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      parser.feed(decoder.decode(chunk, { stream: true }));
      const events = ready;
      ready = [];
      for (const data of events) {
        if (data.startsWith('[DONE]')) return;
        yield data;
      }
      if (seen.tooLong) throw this.tooLong();
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

  private explained(error: unknown): ModelError {
    if (error instanceof APIConnectionError) {
      return new ModelError('model-failed', 'the model provider cannot be reached', { cause: error });
    }
    if (error instanceof APIError) return this.refused(error.message, error);
    return unreadable(error);
  }

  private refused(message: string, cause?: unknown): ModelError {
    return new ModelError('model-failed', this.withoutKeys(`the model provider answered: ${message}`), {
      cause,
    });
  }

  private tooLong(): ModelError {
    return new ModelError('model-failed', `the answer is longer than ${this.settings.maxOutputBytes} bytes`);
  }

  /** Providers quote the key they were given; and their texts have no bound. */
  private withoutKeys(text: string): string {
    const { apiKey } = this.settings;
    const masked = apiKey ? text.replaceAll(apiKey, '***') : text;
    return masked.replaceAll(/\b(sk|pk|key)-[\w*.-]+/gi, '***').slice(0, 500);
  }
}

const unreadable = (cause: unknown): ModelError =>
  new ModelError('model-failed', 'the model provider sent an answer that cannot be read', { cause });

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

/** An error's response with no more of its body than is of use. */
async function shortened(response: Response): Promise<Response> {
  if (response.ok || !response.body) return response;
  let text = '';
  const decoder = new TextDecoder();
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    text += decoder.decode(chunk, { stream: true });
    if (text.length > ERROR_BYTES) break;
  }
  return new Response(text, { status: response.status, headers: response.headers });
}

/** Aborts when nothing was heard for a while. */
class Silence {
  private readonly controller = new AbortController();
  private readonly timer: NodeJS.Timeout;

  constructor(ms: number) {
    this.timer = setTimeout(() => {
      this.controller.abort();
    }, ms);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  broken(): void {
    this.timer.refresh();
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
