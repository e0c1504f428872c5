import { once } from 'node:events';
import { connect } from 'node:net';

const HEAD_END = Buffer.from('\r\n\r\n');
/** Length of the text that the paced model sends again and again. */
const TOKEN_LENGTH = 'token '.length;

/**
 * The deltas of the model and of the service. The last event of the service repeats the whole text, so only the texts in
 * deltas are counted.
 */
const DELTA = /"(?:delta":\{"content|text)":"([^"]*)"[^\n]*\n/g;

/**
 * One streamed reply on a connection of its own, read with as little work as possible. The same code reads the model
 * and the service, so its cost is the same on both sides.
 */
export class Streamed {
  /** When the request was sent, and when the first and the last token arrived, by `performance.now()`. */
  sent = 0;
  first = 0;
  last = 0;
  tokens = 0;
  /** Called with the number of tokens in each chunk that holds some. */
  onTokens = () => undefined;
  #socket;
  #host;
  #pattern;
  #head = Buffer.alloc(0);
  #started = false;
  #tail = '';

  /** @param pattern of a line with a piece of the text as its group */
  static async open(url, pattern = DELTA) {
    const { hostname, port } = new URL(url);
    const socket = connect({ host: hostname, port: Number(port), noDelay: true });
    await once(socket, 'connect');
    return new Streamed(socket, hostname, pattern);
  }

  constructor(socket, host, pattern) {
    this.#socket = socket;
    this.#pattern = pattern;
    this.#host = host;
  }

  /** Resolves when the server has closed the connection. */
  async ask(path, body) {
    const text = JSON.stringify(body);
    const done = new Promise((resolve, reject) => {
      this.#socket.on('data', (chunk) => {
        try {
          this.#read(chunk);
        } catch (error) {
          reject(error);
        }
      });
      this.#socket.once('close', resolve);
      this.#socket.once('error', reject);
    });
    this.sent = performance.now();
    this.#socket.write(
      `POST ${path} HTTP/1.1\r\nHost: ${this.#host}\r\nAccept: text/event-stream\r\nConnection: close\r\n` +
        `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
    );
    await done;
  }

  close() {
    this.#socket.destroy();
  }

  #read(chunk) {
    if (!this.#started) {
      this.#head = Buffer.concat([this.#head, chunk]);
      const end = this.#head.indexOf(HEAD_END);
      if (end < 0) return;
      if (!this.#head.latin1Slice(0, 15).includes(' 200 ')) throw new Error(this.#head.toString());
      this.#started = true;
      chunk = this.#head.subarray(end + HEAD_END.length);
    }
    const text = this.#tail + chunk.latin1Slice();
    let found = 0;
    let read = 0;
    for (const match of text.matchAll(this.#pattern)) {
      found += match[1].length / TOKEN_LENGTH;
      read = match.index + match[0].length;
    }
    this.#tail = text.slice(Math.max(read, text.lastIndexOf('\n') + 1));
    if (found === 0) return;
    this.last = performance.now();
    if (this.tokens === 0) this.first = this.last;
    this.tokens += found;
    this.onTokens(found);
  }
}
