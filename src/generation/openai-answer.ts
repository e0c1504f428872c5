import { z } from 'zod';
import { type ToolCall, type Usage } from '../domain/session.events.js';
import { type AnswerEnd } from './chat-model.js';
import { brokenOff, ProviderError, tooLong } from './provider-errors.js';

/**
 * Bytes that a piece without text counts for. Otherwise a provider that sends only such pieces would never reach the
 * limit.
 */
const EMPTY_PIECE_BYTES = 16;

/** The parts of a piece that are used. Servers that imitate the API leave out members that the SDK's types promise. */
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
  /** Present when something went wrong after the answer had begun. */
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

/** Puts an answer together from the pieces of a stream. */
export class Answer {
  private readonly calls = new Map<number, ToolCall>();
  private finishReason: string | undefined;
  private usage: Usage | undefined;
  private bytes = 0;

  constructor(private readonly maxBytes: number) {}

  /**
   * @param data one piece as JSON
   * @returns the text of the piece
   * @throws ModelError when the answer exceeds the limit; ProviderError when the piece reports an error; SyntaxError or
   * ZodError when it cannot be read
   */
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
    // A connection that breaks between two pieces looks like the end of the stream; only the missing reason tells.
    if (finishReason === undefined) throw brokenOff(undefined);
    return { toolCalls: [...calls.values()], finishReason, ...(usage && { usage }) };
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
