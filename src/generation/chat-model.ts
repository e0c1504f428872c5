import {
  type Content,
  type Role,
  type ToolCall,
  type ToolDefinition,
  type Usage,
} from '../domain/session.events.js';

/** A message as a model is given it. */
export interface PromptMessage {
  readonly role: Role;
  readonly content: Content;
  readonly name?: string | undefined;
  readonly toolCalls?: readonly ToolCall[] | undefined;
  readonly toolCallId?: string | undefined;
}

export interface ModelRequest {
  readonly model: string;
  /** Stands before the messages, as a system message of its own. */
  readonly instructions?: string | undefined;
  readonly messages: readonly PromptMessage[];
  readonly tools?: readonly ToolDefinition[] | undefined;
}

/** A piece of an answer: text as it arrives, then at last one `end`. */
export type ModelPiece =
  | { readonly type: 'text'; readonly text: string }
  | {
      readonly type: 'end';
      readonly toolCalls: readonly ToolCall[];
      /** As the provider names it: `stop`, `length`, `tool_calls`, … */
      readonly finishReason: string;
      readonly usage?: Usage | undefined;
    };

/** A language model, or what stands in for one. */
export interface ChatModel {
  /**
   * One answer, as it arrives.
   * @throws ModelError; whatever `signal` gives as its reason when it aborts
   */
  answer(request: ModelRequest, signal: AbortSignal): AsyncIterable<ModelPiece>;
}

/** The model gave no answer. The message is safe to show and to keep: no key and no prompt is in it. */
export class ModelError extends Error {
  override readonly name = 'ModelError';
  constructor(
    readonly code: 'model-failed' | 'model-timeout',
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
