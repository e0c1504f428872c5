import { type NewMessage } from '../domain/session.js';
import { type PromptMessage } from './chat-model.js';

/**
 * The messages of a history as a model takes them.
 *
 * A model refuses a prompt in which a tool's result does not follow its call at once, but while a tool runs other
 * messages may be appended: results are moved up to their calls. A partial reply that holds nothing is left out.
 */
export function buildPrompt(history: readonly NewMessage[]): PromptMessage[] {
  const results = new Map<string, NewMessage>();
  const prompt: PromptMessage[] = [];
  // Backwards, so that each call finds the result that came after it even where ids repeat in a long history.
  for (const message of history.toReversed()) {
    if (message.role === 'tool') {
      results.set(message.toolCallId ?? '', message);
      continue;
    }
    if (message.content === '' && !message.toolCalls) continue;
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
