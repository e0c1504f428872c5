import { type FastifyReply } from 'fastify';
import { fieldsOf } from '../domain/loose-json.js';
import { type Usage } from '../domain/session.events.js';
import { type LiveReply, type ReplyEnd, type ReplyEvent } from '../generation/live-reply.js';
import { sendReply } from '../generation/send-reply.js';
import { textOfEvent } from '../http/event-stream.js';
import { toOpenAi } from '../transfer/openai-messages.js';
import { openAiErrorOf } from './errors.js';
import { seconds } from './wire.js';

type Ended = Exclude<ReplyEnd, { type: 'failed' }>;

/** What is the same in all parts of an answer. */
const baseOf = ({ generationId, startedAt, model }: LiveReply) => ({
  id: generationId.replace(/^gen_/, 'chatcmpl-'),
  created: seconds(startedAt),
  model,
  service_tier: 'default',
  system_fingerprint: null,
});

const finishOf = ({ type, answer }: Ended): string =>
  type === 'cancelled' ? 'stop' : answer.message?.toolCalls ? 'tool_calls' : answer.finishReason;

/** A reply that has ended, as an answer of the chat completions API. */
export function completionOf(live: LiveReply, end: Ended): object {
  const { answer } = end;
  const { message } = answer;
  const form = message ? toOpenAi({ ...message, messageId: message.id }) : {};
  return {
    ...baseOf(live),
    object: 'chat.completion',
    choices: [
      {
        index: 0,
        message: {
          refusal: null,
          annotations: [],
          ...form,
          role: 'assistant',
          content: form['content'] || null,
        },
        logprobs: null,
        finish_reason: finishOf(end),
      },
    ],
    ...(answer.usage && { usage: usageOf(answer.usage) }),
  };
}

const usageOf = ({ inputTokens, outputTokens, cachedTokens, reasoningTokens }: Usage) => ({
  prompt_tokens: inputTokens,
  completion_tokens: outputTokens,
  total_tokens: inputTokens + outputTokens,
  prompt_tokens_details: { cached_tokens: cachedTokens ?? 0 },
  completion_tokens_details: { reasoning_tokens: reasoningTokens ?? 0 },
});

/** Sends a reply as the stream of the chat completions API. */
export function sendCompletion(
  reply: FastifyReply,
  live: LiveReply,
  { withUsage }: { readonly withUsage: boolean },
): Promise<void> {
  const base = { ...baseOf(live), object: 'chat.completion.chunk' };
  const chunk = (delta: object, finish_reason: string | null = null): object => ({
    ...base,
    choices: [{ index: 0, delta, logprobs: null, finish_reason }],
    ...(withUsage && { usage: null }),
  });
  return sendReply(reply, live, (event) => {
    const pieces = dataOf(event, chunk);
    if (withUsage && (event.type === 'completed' || event.type === 'cancelled')) {
      const { usage } = event.answer;
      pieces.push({ ...base, choices: [], usage: usage && usageOf(usage) });
    }
    const text = pieces.map((data) => textOfEvent({ data })).join('');
    return event === live.end ? `${text}data: [DONE]\n\n` : text;
  });
}

function dataOf(event: ReplyEvent, chunk: (delta: object, finish?: string) => object): object[] {
  switch (event.type) {
    case 'started':
      return [chunk({ role: 'assistant', content: '', refusal: null })];
    case 'reasoning':
      return [chunk({ reasoning_content: event.text })];
    case 'delta':
      return [chunk({ content: event.text })];
    case 'toolCall': {
      const { id, name, arguments: text } = event.call;
      const called = { index: event.number - 1, id, type: 'function', function: { name, arguments: text } };
      return [chunk({ tool_calls: [called] })];
    }
    case 'failed': {
      const { status: _status, ...error } = openAiErrorOf(event.error);
      return [{ error }];
    }
    default:
      return [chunk({}, finishOf(event))];
  }
}

/** Whether the client asks for the number of tokens at the end of a stream. */
export const wantsUsage = (options: unknown): boolean => fieldsOf(options)['include_usage'] === true;
