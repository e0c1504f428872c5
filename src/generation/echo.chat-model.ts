import { type Content } from '../domain/session.events.js';
import { type ChatModel, type ModelPiece, type ModelRequest } from './chat-model.js';

/** Answers without any model, so that everything can be tried before there is a key; it says what it is. */
export const echoModel: ChatModel = {
  // eslint-disable-next-line @typescript-eslint/require-await -- an async generator is what the port asks for
  async *answer({ messages }: ModelRequest): AsyncIterable<ModelPiece> {
    const said = messages.flatMap((message) => (message.role === 'user' ? [textOf(message.content)] : []));
    const last = said.at(-1) ?? '';
    const before = said.at(-2);
    const content = [
      `[echo: no model is configured] You said: "${last}".`,
      ...(before === undefined ? [] : [`Before that you said: "${before}".`]),
      `I see ${messages.length} message${messages.length === 1 ? '' : 's'} of this conversation.`,
    ].join(' ');
    for (const word of content.split(/(?<= )/)) yield { type: 'text', text: word };
    const inputTokens = messages.reduce((sum, message) => sum + words(textOf(message.content)), 0);
    yield {
      type: 'end',
      toolCalls: [],
      finishReason: 'stop',
      usage: { inputTokens, outputTokens: words(content) },
    };
  },
};

const words = (text: string): number => text.split(/\s+/).filter(Boolean).length;

/** The text in a message; what is not text is left out. */
export function textOf(content: Content): string {
  if (typeof content === 'string') return content;
  return content.flatMap((part) => (part.type === 'text' ? [part.text] : [])).join('\n');
}
