import { endOfTurn } from '../event-store/end-of-turn.js';
import { type AnswerEnd, type ChatModel, type ModelRequest } from './chat-model.js';
import { type VersionedMessage } from '../sessions/history-reader.js';
import { buildPrompt } from './prompt.js';
import { StorableText } from './storable-text.js';

/** A model call that is prepared while the start of its generation is appended. */
export interface PreparedCall {
  /** Aborts the call in any state. */
  readonly controller: AbortController;
  readonly answer: Promise<AnswerEnd>;
  /**
   * Must be called when the generation is recorded: it sends the request, and the text of the reply goes to `onText`.
   */
  readonly begin: (onText: (text: string) => void) => void;
}

/**
 * Prepares a call up to an open connection. The request is sent when `begin` is called, and never if the call is
 * aborted before that: otherwise the model would be asked, and paid, for a generation that was not recorded.
 *
 * @param read reads the messages; its argument resolves when the generation is recorded
 */
export function prepareCall(
  model: ChatModel,
  request: Omit<ModelRequest, 'messages'>,
  read: (recorded: Promise<void>) => Promise<VersionedMessage[]>,
): PreparedCall {
  const controller = new AbortController();
  const { signal } = controller;
  let begin: PreparedCall['begin'] = () => undefined;
  let onReplyText: (text: string) => void = () => undefined;
  const when = new Promise<void>((resolve, reject) => {
    begin = (onText) => {
      onReplyText = onText;
      resolve();
    };
    signal.addEventListener('abort', () => {
      reject(signal.reason as Error);
    });
  });
  const ask = async (): Promise<AnswerEnd> => {
    // The append is sent before the history is read, because the generation starts with it.
    await endOfTurn();
    const messages = buildPrompt((await read(when)).map((one) => one.message));
    const text = new StorableText();
    const onText = (piece: string): void => {
      // Text that arrives after the end of the generation is not part of what is recorded.
      if (!signal.aborted) onReplyText(text.add(piece));
    };
    const end = await model.answer({ ...request, messages }, { signal, onText, when });
    onReplyText(text.end());
    return end;
  };
  const answer = ask();
  // The code that begins the call awaits `answer` and handles its error. When a call is aborted before it began, nobody
  // awaits it, and Node would end the process because of the unhandled rejection.
  for (const promise of [when, answer]) promise.catch(() => undefined);
  return { controller, answer, begin };
}
