import { textOf } from '../domain/content.js';
import { type AnswerConditions, type AnswerEnd, type ChatModel, type ModelRequest } from './chat-model.js';

/** Answers without a model, so that the service can be tried without a key. The answers say that they are an echo. */
export const echoModel: ChatModel = {
  async answer({ messages }: ModelRequest, { onText, when }: AnswerConditions): Promise<AnswerEnd> {
    await when;
    const userTexts = messages.flatMap((message) =>
      message.role === 'user' ? [textOf(message.content)] : [],
    );
    const last = userTexts.at(-1) ?? '';
    const before = userTexts.at(-2);
    const content = [
      `[echo: no model is configured] You said: "${last}".`,
      ...(before === undefined ? [] : [`Before that you said: "${before}".`]),
      `I see ${messages.length} message${messages.length === 1 ? '' : 's'} of this conversation.`,
    ].join(' ');
    for (const word of content.split(/(?<= )/)) onText(word);
    const inputTokens = messages.reduce((sum, message) => sum + words(textOf(message.content)), 0);
    const usage = { inputTokens, outputTokens: words(content) };
    return { toolCalls: [], finishReason: 'stop', usage };
  },
};

const words = (text: string): number => text.split(/\s+/).filter(Boolean).length;
