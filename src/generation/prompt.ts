import { isSilent } from '../domain/content.js';
import { type NewMessage } from '../domain/session.commands.js';
import { type Role, type ToolCall } from '../domain/session.events.js';
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
  /** By id of a call: the results behind, the nearest last. */
  const results = new Map<string, NewMessage[]>();
  const prompt: PromptMessage[] = [];
  /** The role of the message that follows the current one, not counting system messages and tool results. */
  let after: Role | undefined;
  // Goes backwards, so that each call finds the result that follows it, even if ids repeat in a long history.
  for (const message of history.toReversed()) {
    if (message.role === 'tool') {
      const id = message.toolCallId ?? '';
      results.set(id, [...(results.get(id) ?? []), message]);
      continue;
    }
    const replaced = message.role === 'assistant' && message.status === 'incomplete' && after !== 'user';
    if (replaced && !message.toolCalls) continue;
    if (isSilent(message.content) && !message.toolCalls) continue;
    if (message.role !== 'system' && message.role !== 'developer') after = message.role;
    const toolCalls = message.toolCalls && withOwnIds(message.toolCalls);
    const answers = (message.toolCalls ?? []).map(({ id, name }, index): PromptMessage => ({
      role: 'tool',
      content: results.get(id)?.pop()?.content ?? 'cancelled',
      toolCallId: toolCalls?.[index]?.id ?? id,
      name,
    }));
    // What is left of them answers no earlier call.
    for (const { id } of message.toolCalls ?? []) results.delete(id);
    prompt.push(...answers.reverse());
    const { role, content, name } = message;
    prompt.push({ role, content, name, toolCalls });
  }
  return prompt.reverse();
}

/** The calls of a message, each with an id of its own: some models have given one id to two of them. */
function withOwnIds(calls: readonly ToolCall[]): ToolCall[] {
  const taken = new Set(calls.map(({ id }) => id));
  if (taken.size === calls.length) return [...calls];
  const seen = new Set<string>();
  return calls.map((call) => {
    let { id } = call;
    for (let n = 2; seen.has(id) || (id !== call.id && taken.has(id)); n += 1)
      id = `${call.id.slice(0, 120)}_${n}`;
    seen.add(id);
    return { ...call, id };
  });
}
