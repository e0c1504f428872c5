import { isSilent } from '../domain/content.js';
import { type NewMessage } from '../domain/session.commands.js';
import { type Role } from '../domain/session.events.js';
import { type PromptMessage } from './chat-model.js';

/**
 * Turns the messages of a history into those of a prompt.
 *
 * Models refuse a prompt in which the result of a tool does not directly follow its call, but other messages may be
 * appended while a tool runs. Results are therefore moved up to their calls.
 *
 * A partial reply is kept only where a message of the user follows it. Otherwise the model was asked again, and the
 * next reply takes the place of the partial one. If a partial reply were the last message of a prompt, some providers
 * would continue it and others would refuse the prompt; if it stood before the next reply, the prompt would hold two
 * answers to the same question. Empty partial replies are left out as well.
 */
export function buildPrompt(history: readonly NewMessage[]): PromptMessage[] {
  const results = new Map<string, NewMessage>();
  const prompt: PromptMessage[] = [];
  /** The role of the message that follows the current one, not counting system messages and tool results. */
  let after: Role | undefined;
  // Goes backwards, so that each call finds the result that follows it, even if ids repeat in a long history.
  for (const message of history.toReversed()) {
    if (message.role === 'tool') {
      results.set(message.toolCallId ?? '', message);
      continue;
    }
    const replaced = message.role === 'assistant' && message.status === 'incomplete' && after !== 'user';
    if (replaced && !message.toolCalls) continue;
    if (isSilent(message.content) && !message.toolCalls) continue;
    if (message.role !== 'system' && message.role !== 'developer') after = message.role;
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
