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
import { toParams } from './openai-request.js';
import { brokenOff, isBroken, isPassing, pauseBefore, ProviderError, unreadable } from './provider-errors.js';
import { readEvents } from './provider-events.js';
import { type Departure, providerFetch } from './provider-fetch.js';
import { SilenceTimer } from './silence-timer.js';

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

const NEVER_MS = 2 ** 31 - 1;
/**
 * Tries of a call that the provider refuses for the moment, and the pause before the second try, which then doubles.
 */
const TRIES = 3;
const BACK_OFF_MS = 500;

/**
 * Chat completions by the official SDK. They are always streamed, so that partial answers can be shown, kept and cut
 * off.
 */
export class OpenAiModel implements ChatModel {
  private readonly client: OpenAI;
  private readonly places: ConcurrencyLimit;

  constructor(private readonly settings: OpenAiSettings) {
    this.places = new ConcurrencyLimit(settings.maxConcurrency);
    this.client = new OpenAI({
      // Local servers often need no key, but the SDK requires one.
      apiKey: settings.apiKey ?? 'none',
      baseURL: settings.baseURL ?? null,
      // The SDK's timeout would begin before the request may be sent. `SilenceTimer` is used instead.
      timeout: NEVER_MS,
      defaultHeaders: { 'X-Stainless-Timeout': null },
      // The SDK's pauses between tries cannot be aborted: a cancelled call would wait for as long as `Retry-After`
      // says.
      maxRetries: 0,
      fetch: providerFetch,
      // The SDK's log would contain prompts.
      logLevel: 'off',
    });
  }

  async answer(
    request: ModelRequest,
    { signal: aborted, onText, when = Promise.resolve() }: AnswerConditions,
  ): Promise<AnswerEnd> {
    await this.places.enter(aborted);
    const silence = new SilenceTimer(this.settings.timeoutMs);
    when.then(
      () => {
        silence.begin();
      },
      // A failure of the start is reported elsewhere, and the request is then never sent.
      () => undefined,
    );
    const signal = AbortSignal.any([aborted, silence.signal]);
    try {
      const { maxOutputBytes } = this.settings;
      const answer = new Answer(maxOutputBytes);
      await readEvents(await this.respond(request, signal, when), maxOutputBytes, (data) => {
        silence.heard();
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
      this.places.leave();
    }
  }

  /** Sends the request, and again after a pause when the provider is busy, broken or unreachable for the moment. */
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

  /** Removes keys from a text of the provider, which may quote them, and cuts it, because its length has no limit. */
  private withoutKeys(text: string): string {
    const { apiKey } = this.settings;
    const masked = apiKey ? text.replaceAll(apiKey, '***') : text;
    return masked.replaceAll(/\b(sk|pk|key)-[\w*.-]+/gi, '***').slice(0, 500);
  }
}
