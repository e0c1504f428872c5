import { endOfTurn } from '../event-store/end-of-turn.js';
import { type AnswerEnd, type ChatModel, type ModelRequest } from './chat-model.js';
import { type VersionedMessage } from '../sessions/history-reader.js';
import { buildPrompt } from './prompt.js';
import { StorableText } from './storable-text.js';

/** Who is told what the model says and thinks. */
export interface ReplyListener {
  readonly text: (text: string) => void;
  readonly reasoning: (text: string) => void;
}

/** A model call that is prepared while the start of its generation is appended. */
export interface PreparedCall {
  /** Aborts the call in any state. */
  readonly controller: AbortController;
  readonly answer: Promise<AnswerEnd>;
  /**
   * Must be called when the generation is recorded: it sends the request, and what comes of the reply goes to `heard`.
   */
  readonly begin: (heard: ReplyListener) => void;
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
  let heard: ReplyListener = { text: () => undefined, reasoning: () => undefined };
  const when = new Promise<void>((resolve, reject) => {
    begin = (listener) => {
      heard = listener;
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
    const thoughts = new StorableText();
    const end = await model.answer(
      { ...request, messages },
      {
        signal,
        when,
        // What arrives after the end of the generation is not part of what is recorded.
        onText: (piece) => {
          if (!signal.aborted) heard.text(text.add(piece));
        },
        onReasoning: (piece) => {
          if (!signal.aborted) heard.reasoning(thoughts.add(piece));
        },
      },
    );
    heard.text(text.end());
    return end;
  };
  const answer = ask();
  // The code that begins the call awaits `answer` and handles its error. When a call is aborted before it began, nobody
  // awaits it, and Node would end the process because of the unhandled rejection.
  for (const promise of [when, answer]) promise.catch(() => undefined);
  return { controller, answer, begin };
}
