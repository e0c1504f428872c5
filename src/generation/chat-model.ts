import { type GenerationParameters } from './parameters.js';
import {
  type Content,
  type Role,
  type ToolCall,
  type ToolDefinition,
  type Usage,
} from '../domain/session.events.js';

/** A message of a prompt. */
export interface PromptMessage {
  readonly role: Role;
  readonly content: Content;
  readonly name?: string | undefined;
  readonly toolCalls?: readonly ToolCall[] | undefined;
  readonly toolCallId?: string | undefined;
}

export interface ModelRequest {
  readonly model: string;
  /** Sent before the messages, as a system message of its own. */
  readonly instructions?: string | undefined;
  readonly messages: readonly PromptMessage[];
  readonly tools?: readonly ToolDefinition[] | undefined;
  readonly parameters?: GenerationParameters | undefined;
  /** Of the request that asks. It is not sent. */
  readonly correlationId?: string | undefined;
}

/** What is known of an answer once all of its text has arrived. */
export interface AnswerEnd {
  readonly toolCalls: readonly ToolCall[];
  /** Why the answer ended, as the provider names it: `stop`, `length`, `tool_calls`, … */
  readonly finishReason: string;
  readonly usage?: Usage | undefined;
  /** What the model thought before it answered, as far as its provider tells; its text went to `onReasoning`. */
  readonly reasoning?: Reasoning | undefined;
  /** The end of the text, if it is the words with which the model refuses to answer. */
  readonly refusal?: string | undefined;
}

export interface Reasoning {
  /** What was thought before the first text. */
  readonly text?: string;
  /** What was thought after it. */
  readonly late?: string;
  readonly summary?: string[];
  /** Only the provider can read it. */
  readonly encrypted?: string;
}

export interface AnswerConditions {
  readonly signal: AbortSignal;
  /** Called with each piece of the text as it arrives, until the answer has ended in any way. */
  readonly onText: (text: string) => void;
  /** The same for what the model thinks, as long as there is no text. */
  readonly onReasoning?: ((text: string) => void) | undefined;
  /**
   * The request is prepared at once, but sent only when this promise has resolved. It must reject when `signal` aborts
   * before that.
   */
  readonly when?: Promise<unknown> | undefined;
}

/** A language model, or the built-in echo that takes its place. */
export interface ChatModel {
  /** @throws ModelError; the reason of `signal` when it aborts; the error with which `when` rejects */
  answer(request: ModelRequest, conditions: AnswerConditions): Promise<AnswerEnd>;
}

/** The model gave no answer. The message contains neither keys nor prompts, so it may be shown and stored. */
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
