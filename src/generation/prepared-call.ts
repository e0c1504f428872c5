import { type ToolDefinition } from '../domain/session.events.js';
import { endOfTurn } from '../event-store/end-of-turn.js';
import { type AnswerEnd, type ChatModel } from './chat-model.js';
import { type VersionedMessage } from './context-window.js';
import { buildPrompt } from './prompt.js';
import { StorableText } from './storable-text.js';

/** A call of the model that is made ready while the start of its generation is appended. */
export interface PreparedCall {
  /** Ends the call, whatever state it is in. */
  readonly controller: AbortController;
  readonly answer: Promise<AnswerEnd>;
  /** The generation is recorded: the request may leave, and the reply's text goes to `onText`. */
  readonly begin: (onText: (text: string) => void) => void;
}

/**
 * Makes a call ready up to a connection on which the request can leave. The request leaves when the call begins, and
 * never if it is aborted before: the model must not be asked, and paid, for a generation that was not recorded.
 *
 * @param read gives the messages; it is told when the generation is recorded
 */
export function prepareCall(
  model: ChatModel,
  request: {
    readonly model: string;
    readonly instructions?: string | undefined;
    readonly tools?: readonly ToolDefinition[] | undefined;
  },
  read: (recorded: Promise<void>) => Promise<VersionedMessage[]>,
): PreparedCall {
  const controller = new AbortController();
  const { signal } = controller;
  let begin: PreparedCall['begin'] = () => undefined;
  let take: (text: string) => void = () => undefined;
  const when = new Promise<void>((resolve, reject) => {
    begin = (onText) => {
      take = onText;
      resolve();
    };
    signal.addEventListener('abort', () => {
      reject(signal.reason as Error);
    });
  });
  const ask = async (): Promise<AnswerEnd> => {
    // The append is sent first.
    await endOfTurn();
    const messages = buildPrompt((await read(when)).map((one) => one.message));
    const text = new StorableText();
    const onText = (piece: string): void => {
      // What comes after the end of the generation has no place in what is recorded.
      if (!signal.aborted) take(text.add(piece));
    };
    const end = await model.answer({ ...request, messages }, { signal, onText, when });
    take(text.end());
    return end;
  };
  const answer = ask();
  // Whoever begins the call waits for `answer` and hears of its error. A call that is aborted before it began has
  // nobody who waits, and Node would end the process for the rejection.
  for (const promise of [when, answer]) promise.catch(() => undefined);
  return { controller, answer, begin };
}
