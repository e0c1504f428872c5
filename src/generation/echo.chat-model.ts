import { type Content } from '../domain/session.events.js';
import { type ChatModel, type ModelReply, type ModelRequest } from './chat-model.js';

/** Answers without any model, so that everything can be tried before there is a key; it says what it is. */
export const echoModel: ChatModel = {
  complete({ messages }: ModelRequest): Promise<ModelReply> {
    const said = messages
      .filter((message) => message.role === 'user')
      .map((message) => textOf(message.content));
    const last = said.at(-1) ?? '';
    const before = said.at(-2);
    const content = [
      `[echo: no model is configured] You said: "${last}".`,
      ...(before === undefined ? [] : [`Before that you said: "${before}".`]),
      `I see ${messages.length} message${messages.length === 1 ? '' : 's'} of this conversation.`,
    ].join(' ');
    const inputTokens = messages.reduce((sum, message) => sum + words(textOf(message.content)), 0);
    return Promise.resolve({
      content,
      finishReason: 'stop',
      usage: { inputTokens, outputTokens: words(content) },
    });
  },
};

const words = (text: string): number => text.split(/\s+/).filter(Boolean).length;

/** The text in a message; what is not text is left out. */
export function textOf(content: Content): string {
  if (typeof content === 'string') return content;
  return content.flatMap((part) => (part.type === 'text' ? [part.text] : [])).join('\n');
}
