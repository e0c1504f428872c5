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

/** What is known of an answer when all of its text has arrived. */
export interface AnswerEnd {
  readonly toolCalls: readonly ToolCall[];
  /** As the provider names it: `stop`, `length`, `tool_calls`, … */
  readonly finishReason: string;
  readonly usage?: Usage | undefined;
}

export interface AnswerConditions {
  readonly signal: AbortSignal;
  /** Called with each piece of the text as it arrives, until the answer has ended in any way. */
  readonly onText: (text: string) => void;
  /**
   * The model is asked when this has resolved, not before; till then all is made ready for that. Rejects when `signal`
   * aborts first.
   */
  readonly when?: Promise<unknown> | undefined;
}

/** A language model, or what stands in for one. */
export interface ChatModel {
  /** @throws ModelError; whatever `signal` gives as its reason when it aborts; what `when` rejects with */
  answer(request: ModelRequest, conditions: AnswerConditions): Promise<AnswerEnd>;
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
