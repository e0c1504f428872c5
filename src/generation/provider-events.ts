import { type Readable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
import { createParser } from 'eventsource-parser';
import { atLowPriority } from './low-priority.js';
import { brokenOff, ProviderError, reasonOf, tooLong } from './provider-errors.js';
import { bodyOf, drain } from './provider-fetch.js';

const DONE = '[DONE]';
/** How many times longer than its text a line of the stream may be, because of JSON and escapes. */
const LINE_FACTOR = 6;
const LINE_EXTRA = 65_536;
/**
 * Most pieces of a response that are queued. Beyond that all of them are handled at once, and the provider has to wait
 * because nothing is read from its connection meanwhile.
 */
const MAX_QUEUED = 64;

/** Who is told of what a provider sends. */
export interface Listener {
  /** @param event the name of the event, if it has one */
  readonly onData: (data: string, event: string | undefined) => void;
  /** A comment, by which a provider that has nothing to send yet keeps the connection open. */
  readonly onComment: () => void;
}

/**
 * Calls the listener with the `data` of a response's events as they arrive; with the whole body at once when the
 * provider did not stream it. All steps from the socket on are plain calls: with thousands of tokens a second, a promise
 * or a generator at each step would be a large part of the cost.
 * @throws what the listener throws; ModelError when the response breaks off, or a line of it is too long; ProviderError
 * when it is a page of HTML
 */
export async function readEvents(
  response: Response,
  maxOutputBytes: number,
  { onData, onComment }: Listener,
): Promise<void> {
  const body = bodyOf(response);
  const type = response.headers.get('content-type') ?? '';
  if (/^(?:application\/json|text\/html)\b/i.test(type)) {
    const text = await readWhole(body, maxOutputBytes * LINE_FACTOR + LINE_EXTRA, maxOutputBytes);
    if (/^text\/html/i.test(type)) throw new ProviderError(reasonOf(text));
    onData(text, undefined);
    return;
  }
  const decoder = new StringDecoder('utf8');
  let isDone = false as boolean;
  const parser = createParser({
    onEvent: ({ data, event }) => {
      if (isDone) return;
      if (data.startsWith(DONE)) isDone = true;
      else onData(data, event);
    },
    onComment,
    onError: ({ type }) => {
      if (type === 'max-buffer-size-exceeded') throw tooLong(maxOutputBytes);
    },
    maxBufferSize: maxOutputBytes * LINE_FACTOR + LINE_EXTRA,
  });
  try {
    await new Promise<void>((resolve, reject) => {
      let isOver = false;
      const settle = (error?: Error): void => {
        isOver = true;
        if (error) reject(error);
        else resolve();
      };
      const handle = (piece: Buffer): void => {
        try {
          parser.feed(decoder.write(piece));
          if (isDone) settle();
        } catch (error) {
          settle(error as Error);
        }
      };
      // The last event may lack the blank line behind it.
      const end = (): void => {
        try {
          parser.feed(`${decoder.end()}\n\n`);
          settle();
        } catch (error) {
          // A piece that was cut off is no answer to complain about: the end of the answer is missing.
          settle(error instanceof SyntaxError ? undefined : (error as Error));
        }
      };
      const waiting: (() => void)[] = [];
      const run = (count: number): void => {
        for (const task of waiting.splice(0, count)) if (!isOver) task();
      };
      let isFirst = true;
      // The end of the body is queued like its pieces, so that everything that arrived before it is handled first.
      const enqueue = (task: () => void): void => {
        waiting.push(task);
        // The first piece is handled at once, because the user sees nothing until then.
        if (isFirst || waiting.length > MAX_QUEUED) run(waiting.length);
        else
          atLowPriority(() => {
            run(1);
          });
        isFirst = false;
      };
      body
        .on('data', (piece: Buffer) => {
          enqueue(() => {
            handle(piece);
          });
        })
        .once('end', () => {
          enqueue(() => {
            end();
          });
        })
        .on('error', (error) => {
          enqueue(() => {
            settle(error);
          });
        })
        .once('close', () => {
          // After a complete body the promise is settled already. Otherwise the connection was lost before the end.
          enqueue(() => {
            settle(brokenOff(undefined));
          });
        });
      // The body may have been destroyed before the listeners were added.
      if (body.destroyed) settle(body.errored ?? brokenOff(undefined));
    });
  } finally {
    body.removeAllListeners('data');
    // Once a body is read to its end, the next call can use its connection.
    if (isDone) drain(body);
    else body.destroy();
  }
}

async function readWhole(body: Readable, most: number, maxOutputBytes: number): Promise<string> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of body as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > most) throw tooLong(maxOutputBytes);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString();
}
