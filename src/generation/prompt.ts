import { type NewMessage } from '../domain/session.commands.js';
import { type Role } from '../domain/session.events.js';
import { type PromptMessage } from './chat-model.js';

/**
 * The messages of a history as a model takes them.
 *
 * A model refuses a prompt in which a tool's result does not follow its call at once, but while a tool runs other
 * messages may be appended: results are moved up to their calls.
 *
 * A partial reply stays only where a user has answered it. Where the model is asked anew instead, the next reply takes
 * its place: given as the last message some providers would continue it and others refuse the prompt, and before the
 * reply that took its place it would be a second answer to one question. One that holds nothing is left out too.
 */
export function buildPrompt(history: readonly NewMessage[]): PromptMessage[] {
  const results = new Map<string, NewMessage>();
  const prompt: PromptMessage[] = [];
  /** What stands after the message at hand, system messages and tool results aside. */
  let after: Role | undefined;
  // Backwards, so that each call finds the result that came after it even where ids repeat in a long history.
  for (const message of history.toReversed()) {
    if (message.role === 'tool') {
      results.set(message.toolCallId ?? '', message);
      continue;
    }
    const replaced = message.role === 'assistant' && message.status === 'incomplete' && after !== 'user';
    if (replaced && !message.toolCalls) continue;
    if (message.content === '' && !message.toolCalls) continue;
    if (message.role !== 'system') after = message.role;
    for (const call of (message.toolCalls ?? []).toReversed()) {
      const result = results.get(call.id);
      results.delete(call.id);
      prompt.push({
        role: 'tool',
        content: result?.content ?? 'cancelled',
        toolCallId: call.id,
        name: call.name,
      });
    }
    const { role, content, name, toolCalls } = message;
    prompt.push({ role, content, name, toolCalls });
  }
  return prompt.reverse();
}
