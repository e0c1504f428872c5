import { StringDecoder } from 'node:string_decoder';
import { createParser } from 'eventsource-parser';
import { atLowPriority } from './low-priority.js';
import { brokenOff, tooLong } from './provider-errors.js';
import { bodyOf, letEnd } from './provider-fetch.js';

const DONE = '[DONE]';
/** Of a line of the stream, beyond the text that it may hold: its JSON, and escapes. */
const LINE_FACTOR = 6;
const LINE_EXTRA = 65_536;
/** Pieces of a response that may wait. A provider that sends more at once has to wait for what is done with them. */
const AHEAD = 64;

/**
 * Gives the `data` of a response's events to `onData` as they come, by nothing but calls from the socket on: with
 * thousands of tokens a second a promise or a generator at each step is a good part of what they cost.
 * @throws what `onData` throws; ModelError when the response breaks off, or a line of it is too long
 */
export async function readEvents(
  response: Response,
  maxOutputBytes: number,
  onData: (data: string) => void,
): Promise<void> {
  const body = bodyOf(response);
  const decoder = new StringDecoder('utf8');
  let isDone = false as boolean;
  const parser = createParser({
    onEvent: ({ data }) => {
      if (isDone) return;
      if (data.startsWith(DONE)) isDone = true;
      else onData(data);
    },
    onError: ({ type }) => {
      if (type === 'max-buffer-size-exceeded') throw tooLong(maxOutputBytes);
    },
    maxBufferSize: maxOutputBytes * LINE_FACTOR + LINE_EXTRA,
  });
  try {
    await new Promise<void>((resolve, reject) => {
      let isOver = false;
      const end = (error?: Error): void => {
        isOver = true;
        if (error) reject(error);
        else resolve();
      };
      const take = (piece: Buffer): void => {
        try {
          parser.feed(decoder.write(piece));
          if (isDone) end();
        } catch (error) {
          end(error as Error);
        }
      };
      const waiting: (() => void)[] = [];
      const run = (count: number): void => {
        for (const task of waiting.splice(0, count)) if (!isOver) task();
      };
      let isFirst = true;
      // An end waits for its turn, too: what arrived before it counts.
      const later = (task: () => void): void => {
        waiting.push(task);
        // The first of it is urgent: somebody looks at an empty page.
        if (isFirst || waiting.length > AHEAD) run(waiting.length);
        else
          atLowPriority(() => {
            run(1);
          });
        isFirst = false;
      };
      body
        .on('data', (piece: Buffer) => {
          later(() => {
            take(piece);
          });
        })
        .once('end', () => {
          later(end);
        })
        .on('error', (error) => {
          later(() => {
            end(error);
          });
        })
        .once('close', () => {
          // Without an end it was broken off.
          later(() => {
            end(brokenOff(undefined));
          });
        });
      // It may have gone before anybody listened for that.
      if (body.destroyed) end(body.errored ?? brokenOff(undefined));
    });
  } finally {
    body.removeAllListeners('data');
    // A body that was read to its end leaves its connection to the next call.
    if (isDone) letEnd(body);
    else body.destroy();
  }
}
