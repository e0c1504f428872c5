import OpenAI, { APIConnectionError, APIConnectionTimeoutError, APIError } from 'openai';
import { type ContentPart } from '../domain/session.events.js';
import {
  type ChatModel,
  ModelError,
  type ModelReply,
  type ModelRequest,
  type PromptMessage,
} from './chat-model.js';
import { textOf } from './echo.chat-model.js';

type Completion = OpenAI.Chat.Completions.ChatCompletion;
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
    let completion: Completion;
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

function toReply(completion: Completion): ModelReply {
  // Servers that merely imitate the API leave out what the types promise.
  const choice = (completion as Partial<Completion>).choices?.[0];
  const message = choice?.message;
  if (!choice || !message)
    throw new ModelError('model-failed', 'the model provider sent an answer without a message');
  const { usage } = completion;
  const toolCalls = (message.tool_calls ?? []).flatMap((call) =>
    call.type === 'function'
      ? [{ id: call.id, name: call.function.name, arguments: call.function.arguments }]
      : [],
  );
  return {
    content: message.content ?? message.refusal ?? '',
    ...(toolCalls.length > 0 && { toolCalls }),
    finishReason: choice.finish_reason ?? 'stop',
    ...(usage && {
      usage: {
        inputTokens: usage.prompt_tokens,
        outputTokens: usage.completion_tokens,
        ...(usage.prompt_tokens_details?.cached_tokens !== undefined && {
          cachedTokens: usage.prompt_tokens_details.cached_tokens,
        }),
        ...(usage.completion_tokens_details?.reasoning_tokens !== undefined && {
          reasoningTokens: usage.completion_tokens_details.reasoning_tokens,
        }),
      },
    }),
  };
}
