import { setTimeout as pause } from 'node:timers/promises';
import OpenAI, { APIConnectionError, APIConnectionTimeoutError, APIError } from 'openai';
import {
  type AnswerConditions,
  type AnswerEnd,
  type ChatModel,
  ModelError,
  type ModelRequest,
} from './chat-model.js';
import { ConcurrencyLimit } from './concurrency-limit.js';
import { Answer } from './openai-answer.js';
import { type Dialect, toRequest, type SentRequest } from './openai-request.js';
import {
  brokenOff,
  isConnectionLost,
  isRetryable,
  retryAfterMs,
  ProviderError,
  reasonOf,
  unreadable,
} from './provider-errors.js';
import { readEvents } from './provider-events.js';
import { type Forwarded, type ListedModel, type Provider } from './provider.js';
import { bodyOf, type DelayedSend, providerFetch } from './provider-fetch.js';
import { SilenceTimer } from './silence-timer.js';

export interface OpenAiSettings {
  readonly apiKey?: string | undefined;
  /** Any server that speaks the OpenAI chat completions API: OpenAI, vLLM, Ollama, … */
  readonly baseURL?: string | undefined;
  /**
   * Milliseconds without any data from the provider after which a call is given up. Retries do not restart this time.
   */
  readonly timeoutMs: number;
  /** Most bytes of one answer. */
  readonly maxOutputBytes: number;
  /** Most calls at the same time; further calls wait. */
  readonly maxConcurrency: number;
  /** Where system messages go: where they stand in the history, or all into one in front. */
  readonly systemMessages: 'in-place' | 'first';
  /** Model, or `*` → the member in which the provider wants to have the reasoning of earlier replies back. */
  readonly returnReasoning: Readonly<Record<string, 'reasoning_content' | 'reasoning'>>;
  /** Most bytes of `data:` URLs in one prompt. */
  readonly maxAttachedBytes: number;
}

const NEVER_MS = 2 ** 31 - 1;
/**
 * Attempts of a call that the provider refuses temporarily, and the pause in milliseconds before the second attempt,
 * which doubles with each further one.
 */
const MAX_ATTEMPTS = 3;
const FIRST_BACKOFF_MS = 500;

/**
 * Chat completions by the official SDK. They are always streamed, so that partial answers can be shown, kept and cut
 * off.
 */
export class OpenAiModel implements ChatModel, Provider {
  private readonly client: OpenAI;
  private readonly limit: ConcurrencyLimit;
  /** False when the provider has refused to tell the number of tokens. */
  private usage = true;

  constructor(private readonly settings: OpenAiSettings) {
    this.limit = new ConcurrencyLimit(settings.maxConcurrency);
    this.client = new OpenAI({
      // Local servers often need no key, but the SDK requires one.
      apiKey: settings.apiKey ?? 'none',
      baseURL: settings.baseURL ?? null,
      // The SDK's timeout would begin before the request may be sent. `SilenceTimer` is used instead.
      timeout: NEVER_MS,
      defaultHeaders: { 'X-Stainless-Timeout': null },
      // The SDK's pauses between attempts cannot be aborted: a cancelled call would wait for as long as `Retry-After`
      // says.
      maxRetries: 0,
      fetch: providerFetch,
      // The SDK's log would contain prompts.
      logLevel: 'off',
    });
  }

  async answer(
    request: ModelRequest,
    { signal: aborted, onText, onReasoning, when = Promise.resolve() }: AnswerConditions,
  ): Promise<AnswerEnd> {
    await this.limit.enter(aborted);
    const silence = new SilenceTimer(this.settings.timeoutMs);
    when.then(
      () => {
        silence.begin();
      },
      // When the start of the generation cannot be recorded, its caller gets that error, and the request is never sent.
      () => undefined,
    );
    const signal = AbortSignal.any([aborted, silence.signal]);
    try {
      const { maxOutputBytes } = this.settings;
      const answer = new Answer(maxOutputBytes);
      const { response, toolName } = await this.respond(request, signal, when);
      await readEvents(response, maxOutputBytes, {
        onData: (data, event) => {
          silence.heard();
          const { text, reasoning } = answer.add(data, event);
          if (reasoning !== '') onReasoning?.(reasoning);
          if (text !== '') onText(text);
        },
        onComment: () => {
          silence.commented();
        },
      });
      signal.throwIfAborted();
      const end = answer.end();
      return { ...end, toolCalls: end.toolCalls.map((call) => ({ ...call, name: toolName(call.name) })) };
    } catch (error) {
      aborted.throwIfAborted();
      throw this.toModelError(error, silence.signal.aborted);
    } finally {
      silence.end();
      this.limit.leave();
    }
  }

  async models(): Promise<ListedModel[]> {
    const signal = AbortSignal.timeout(this.settings.timeoutMs);
    try {
      const { data } = await this.client.models.list({ signal });
      return data.map(({ id, created, owned_by }) => ({ id, created, ownedBy: owned_by }));
    } catch (error) {
      throw this.toModelError(error, signal.aborted);
    }
  }

  async forward(body: object, aborted: AbortSignal): Promise<Forwarded> {
    await this.limit.enter(aborted);
    const silence = new SilenceTimer(this.settings.timeoutMs);
    const leave = (): void => {
      silence.end();
      this.limit.leave();
    };
    silence.begin();
    const signal = AbortSignal.any([aborted, silence.signal]);
    try {
      const answer = this.client.chat.completions.create(body as never, { signal });
      const response = await answer.asResponse();
      const stream = bodyOf(response);
      stream.on('data', () => {
        silence.heard();
      });
      stream.pause();
      stream.once('close', leave);
      return {
        status: response.status,
        contentType: response.headers.get('content-type') ?? '',
        body: stream,
      };
    } catch (error) {
      leave();
      aborted.throwIfAborted();
      const { status, error: told } = error as Partial<APIError>;
      if (!(error instanceof APIError) || status === undefined)
        throw this.toModelError(error, silence.signal.aborted);
      // The reason is the client's own fault in most cases, and in the form that it expects.
      const text = JSON.stringify({
        error: told ?? { message: error.message, type: 'server_error', param: null, code: null },
      });
      return { status, contentType: 'application/json', body: this.withoutKeys(text, text.length) };
    }
  }

  /**
   * Sends the request, and sends it again after a pause when the provider is temporarily busy, broken or unreachable.
   */
  private async respond(
    request: ModelRequest,
    signal: AbortSignal,
    when: Promise<unknown>,
  ): Promise<Pick<SentRequest, 'toolName'> & { readonly response: Response }> {
    // The SDK passes `fetchOptions` on to `providerFetch` unchanged.
    const fetchOptions = { when } satisfies DelayedSend as object;
    for (let attempt = 1; ; attempt += 1) {
      try {
        const { params, toolName } = toRequest(request, {
          systemFirst: this.settings.systemMessages === 'first',
          reasoning: this.reasoningMember(request.model),
          maxAttachedBytes: this.settings.maxAttachedBytes,
          usage: this.usage,
          maxTokens: this.settings.baseURL === undefined ? 'max_completion_tokens' : 'max_tokens',
        });
        const call = this.client.chat.completions.create(params, { signal, fetchOptions });
        return { response: await call.asResponse(), toolName };
      } catch (error) {
        signal.throwIfAborted();
        if (this.usage && refusesUsage(error)) {
          this.usage = false;
          continue;
        }
        const pauseMs =
          retryAfterMs(error) ?? FIRST_BACKOFF_MS * 2 ** (attempt - 1) * (1 - Math.random() / 4);
        if (attempt === MAX_ATTEMPTS || !isRetryable(error) || pauseMs >= this.settings.timeoutMs)
          throw error;
        await pause(pauseMs, undefined, { signal });
      }
    }
  }

  private reasoningMember(model: string): Dialect['reasoning'] {
    const { returnReasoning: members } = this.settings;
    return Object.hasOwn(members, model) ? members[model] : members['*'];
  }

  private toModelError(error: unknown, isSilent: boolean): ModelError {
    if (isSilent || error instanceof APIConnectionTimeoutError) {
      const message = `the model gave no sign for ${this.settings.timeoutMs} ms`;
      return new ModelError('model-timeout', message, { cause: error });
    }
    if (error instanceof ModelError) return error;
    if (error instanceof APIConnectionError) {
      return new ModelError('model-failed', 'the model provider cannot be reached', { cause: error });
    }
    if (error instanceof APIError || error instanceof ProviderError) {
      const reason = error instanceof APIError ? reasonGivenBy(error as APIError) : error.message;
      const message = this.withoutKeys(`the model provider answered: ${reason}`);
      return new ModelError('model-failed', message, { cause: error });
    }
    return isConnectionLost(error) ? brokenOff(error) : unreadable(error);
  }

  /**
   * Masks API keys in a text of the provider, which may quote them, and cuts the text, because its length has no limit.
   */
  private withoutKeys(text: string, length = 500): string {
    const { apiKey } = this.settings;
    const masked = apiKey ? text.replaceAll(apiKey, '***') : text;
    return masked.replaceAll(/\b(sk|pk|key)-[\w*.-]+/gi, '***').slice(0, length);
  }
}

/** Whether a provider refuses a request because of the option by which the number of tokens is asked for. */
const refusesUsage = (error: unknown): boolean =>
  error instanceof APIError &&
  (error.status === 400 || error.status === 422) &&
  /stream_options|include_usage/.test(error.message);

/** The status and the reason of an answer that is an error. The SDK has the reason only where it is where OpenAI has it. */
function reasonGivenBy({ status, error, message }: APIError): string {
  // In front of a body that is no JSON the SDK puts the status itself.
  const reason = reasonOf(error ?? message.replace(/^\d{3} /, ''));
  return status === undefined ? reason : `${status} ${reason}`;
}
