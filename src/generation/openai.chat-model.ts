import OpenAI, { APIConnectionError, APIConnectionTimeoutError, APIError } from 'openai';
import { z } from 'zod';
import { type ContentPart } from '../domain/session.events.js';
import {
  type ChatModel,
  ModelError,
  type ModelReply,
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
  /** Milliseconds for one answer, retries included. */
  readonly timeoutMs: number;
}

/** Chat completions by the official SDK, which also retries what is worth retrying and honours `Retry-After`. */
export class OpenAiModel implements ChatModel {
  private readonly client: OpenAI;

  constructor(private readonly settings: OpenAiSettings) {
    this.client = new OpenAI({
      // Servers of one's own often ask for none; the SDK insists on a text.
      apiKey: settings.apiKey ?? 'none',
      baseURL: settings.baseURL ?? null,
      timeout: settings.timeoutMs,
      // Its log would hold prompts.
      logLevel: 'off',
    });
  }

  async complete(request: ModelRequest, signal: AbortSignal): Promise<ModelReply> {
    const timeout = AbortSignal.timeout(this.settings.timeoutMs);
    let completion: unknown;
    try {
      completion = await this.client.chat.completions.create(
        {
          model: request.model,
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
        },
        { signal: AbortSignal.any([signal, timeout]) },
      );
    } catch (error) {
      signal.throwIfAborted();
      throw timeout.aborted || error instanceof APIConnectionTimeoutError
        ? new ModelError('model-timeout', `the model gave no answer within ${this.settings.timeoutMs} ms`, {
            cause: error,
          })
        : this.explained(error);
    }
    return toReply(completion);
  }

  private explained(error: unknown): ModelError {
    if (error instanceof APIConnectionError) {
      return new ModelError('model-failed', 'the model provider cannot be reached', { cause: error });
    }
    if (error instanceof APIError) {
      return new ModelError(
        'model-failed',
        this.withoutKeys(`the model provider answered: ${error.message}`),
        {
          cause: error,
        },
      );
    }
    return new ModelError('model-failed', 'the model provider sent an answer that cannot be read', {
      cause: error,
    });
  }

  /** Providers quote the key they were given; and their texts have no bound. */
  private withoutKeys(text: string): string {
    const { apiKey } = this.settings;
    const masked = apiKey ? text.replaceAll(apiKey, '***') : text;
    return masked.replaceAll(/\b(sk|pk|key)-[\w*.-]+/gi, '***').slice(0, 500);
  }
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

/** What is used of an answer. Servers that merely imitate the API leave out what the SDK's types promise. */
const Answer = z.object({
  choices: z
    .array(
      z.object({
        message: z.object({
          content: z.string().nullish(),
          refusal: z.string().nullish(),
          tool_calls: z
            .array(
              z.object({ id: z.string(), function: z.object({ name: z.string(), arguments: z.string() }) }),
            )
            .nullish(),
        }),
        finish_reason: z.string().nullish(),
      }),
    )
    .min(1),
  usage: z
    .object({
      prompt_tokens: z.int(),
      completion_tokens: z.int(),
      prompt_tokens_details: z.object({ cached_tokens: z.int().nullish() }).nullish(),
      completion_tokens_details: z.object({ reasoning_tokens: z.int().nullish() }).nullish(),
    })
    .nullish(),
});

function toReply(completion: unknown): ModelReply {
  const parsed = Answer.safeParse(completion);
  const choice = parsed.data?.choices[0];
  if (!choice) {
    throw new ModelError('model-failed', 'the model provider sent an answer that cannot be read', {
      cause: parsed.error,
    });
  }
  const { content, refusal, tool_calls: calls } = choice.message;
  const usage = parsed.data?.usage;
  const cachedTokens = usage?.prompt_tokens_details?.cached_tokens ?? undefined;
  const reasoningTokens = usage?.completion_tokens_details?.reasoning_tokens ?? undefined;
  return {
    content: content ?? refusal ?? '',
    ...(calls?.length && { toolCalls: calls.map(({ id, function: called }) => ({ id, ...called })) }),
    finishReason: choice.finish_reason ?? 'stop',
    ...(usage && {
      usage: {
        inputTokens: usage.prompt_tokens,
        outputTokens: usage.completion_tokens,
        ...(cachedTokens !== undefined && { cachedTokens }),
        ...(reasoningTokens !== undefined && { reasoningTokens }),
      },
    }),
  };
}
