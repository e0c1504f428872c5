import { type Json, type ToolDefinition, type Usage } from '../domain/session.events.js';
import { fieldsOf } from '../domain/loose-json.js';
import { type GenerationParameters } from '../generation/parameters.js';
import { type ReplyEnd } from '../generation/live-reply.js';
import { openAiErrorOf } from './errors.js';
import { type Item, itemsOf } from './items.js';
import { seconds } from './wire.js';

/** How a response began: what is the same from its first to its last event. */
export interface ResponseHead {
  readonly generationId: string;
  readonly sessionId: string;
  readonly startedAt: string;
  readonly model: string;
  readonly instructions?: string | undefined;
  readonly tools?: readonly ToolDefinition[] | undefined;
  readonly parameters?: GenerationParameters | undefined;
  /** What the response shows and the generation does not say. */
  readonly shown: Readonly<Record<string, Json>>;
  /** False for one of which nothing is kept. */
  readonly store: boolean;
}

export type ResponseStatus = 'in_progress' | 'completed' | 'incomplete' | 'cancelled' | 'failed';
export type ResponseView = Record<string, unknown> & {
  readonly id: string;
  readonly status: ResponseStatus;
  readonly output: readonly Item[];
};

/** The id of a response, for that of its generation: both name the same. */
export const responseIdOf = (generationId: string): string => generationId.replace(/^gen_/, 'resp_');
export const generationIdOf = (responseId: string): string => responseId.replace(/^resp_/, 'gen_');

/** Reasons of the end with which an answer is not whole, by the names that they have at providers. */
const INCOMPLETE: Readonly<Record<string, string>> = {
  length: 'max_output_tokens',
  content_filter: 'content_filter',
};

export function statusOf(end: ReplyEnd | undefined): ResponseStatus {
  if (!end) return 'in_progress';
  if (end.type !== 'completed') return end.type;
  return Object.hasOwn(INCOMPLETE, end.answer.finishReason) ? 'incomplete' : 'completed';
}

/** The items of a reply that has ended. */
export const outputOf = (end: ReplyEnd | undefined): Item[] =>
  end && end.type !== 'failed' && end.answer.message ? itemsOf(end.answer.message) : [];

/** A response as clients get it. Strict ones expect every member, also those that mean nothing here. */
export function viewOf(head: ResponseHead, end: ReplyEnd | undefined): ResponseView {
  const { parameters = {}, shown } = head;
  const status = statusOf(end);
  const answer = end && end.type !== 'failed' ? end.answer : undefined;
  const reason = status === 'incomplete' && answer ? INCOMPLETE[answer.finishReason] : undefined;
  const { type: formatType, ...format } = parameters.responseFormat ?? { type: 'text' };
  return {
    id: responseIdOf(head.generationId),
    object: 'response',
    created_at: seconds(head.startedAt),
    completed_at: status === 'completed' && answer?.message ? seconds(answer.message.createdAt) : null,
    status,
    background: shown['background'] ?? false,
    error: end?.type === 'failed' ? errorOf(end.error) : null,
    incomplete_details: reason ? { reason } : null,
    instructions: head.instructions ?? null,
    max_output_tokens: parameters.maxOutputTokens ?? null,
    max_tool_calls: shown['max_tool_calls'] ?? null,
    model: head.model,
    output: outputOf(end),
    parallel_tool_calls: parameters.parallelToolCalls ?? true,
    previous_response_id: shown['previous_response_id'] ?? null,
    conversation: shown['conversation'] === true ? { id: head.sessionId } : null,
    prompt_cache_key: shown['prompt_cache_key'] ?? null,
    prompt_cache_retention: shown['prompt_cache_retention'] ?? null,
    reasoning: {
      effort: parameters.reasoning?.effort ?? null,
      summary: shown['reasoning_summary'] ?? null,
    },
    safety_identifier: shown['safety_identifier'] ?? null,
    service_tier: shown['service_tier'] ?? 'default',
    store: head.store,
    temperature: parameters.temperature ?? 1,
    text: { format: { type: formatType, ...format }, verbosity: parameters.verbosity ?? 'medium' },
    tool_choice: choiceOf(parameters.toolChoice),
    tools: (head.tools ?? []).map(toolView),
    top_logprobs: 0,
    top_p: parameters.topP ?? 1,
    presence_penalty: 0,
    frequency_penalty: 0,
    truncation: shown['truncation'] ?? 'disabled',
    usage: answer?.usage ? usageView(answer.usage) : null,
    user: shown['user'] ?? null,
    metadata: fieldsOf(shown['metadata']),
  };
}

const choiceOf = (choice: GenerationParameters['toolChoice']): unknown =>
  typeof choice === 'object' ? { type: 'function', name: choice.name } : (choice ?? 'auto');

const toolView = ({ name, description, parameters, strict }: ToolDefinition) => ({
  type: 'function',
  name,
  description: description ?? null,
  parameters: parameters ?? null,
  strict: strict ?? false,
});

const usageView = ({ inputTokens, outputTokens, cachedTokens, reasoningTokens }: Usage) => ({
  input_tokens: inputTokens,
  input_tokens_details: { cached_tokens: cachedTokens ?? 0, cache_write_tokens: 0 },
  output_tokens: outputTokens,
  output_tokens_details: { reasoning_tokens: reasoningTokens ?? 0 },
  total_tokens: inputTokens + outputTokens,
});

function errorOf(error: unknown): { code: string; message: string } {
  const { code, message } = openAiErrorOf(error);
  return { code: code ?? 'server_error', message };
}
