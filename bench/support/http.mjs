import { once } from 'node:events';
import { connect } from 'node:net';

/**
 * A client with one keep-alive connection and one request at a time. It does as little work as possible, because client
 * and server share the machine, and the time of the client is missing for the server. It understands only answers with
 * a content-length.
 */
export class Connection {
  #socket;
  #received = Buffer.alloc(0);
  #waiting;

  static async open(url) {
    const { hostname, port } = new URL(url);
    const socket = connect({ host: hostname, port: Number(port), noDelay: true });
    await once(socket, 'connect');
    return new Connection(socket);
  }

  constructor(socket) {
    this.#socket = socket;
    socket.on('data', (chunk) => {
      this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
      this.#look();
    });
    socket.on('error', (error) => this.#waiting?.reject(error));
    socket.on('close', () => this.#waiting?.reject(new Error('the server closed the connection')));
  }

  /** Sends the bytes that `request` has made. Resolves to the status and the body. */
  send(bytes) {
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
      this.#socket.write(bytes);
    });
  }

  close() {
    this.#socket.removeAllListeners('close');
    this.#socket.destroy();
  }

  #look() {
    const end = this.#received.indexOf('\r\n\r\n');
    if (end < 0) return;
    const head = this.#received.latin1Slice(0, end);
    const length = Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0);
    if (this.#received.length < end + 4 + length) return;
    const body = this.#received.subarray(end + 4, end + 4 + length);
    this.#received = this.#received.subarray(end + 4 + length);
    if (!this.#waiting) throw new Error(`an answer that nobody has asked for: ${head} ${body}`);
    const { resolve } = this.#waiting;
    this.#waiting = undefined;
    resolve({ status: Number(head.slice(9, 12)), body });
  }
}

/** The bytes of a request, which is made once and sent often. */
export function request(method, path, body, headers = []) {
  const lines = [`${method} ${path} HTTP/1.1`, 'Host: localhost', ...headers];
  if (body === undefined) return Buffer.from([...lines, '', ''].join('\r\n'));
  const text = JSON.stringify(body);
  return Buffer.from(
    [...lines, 'Content-Type: application/json', `Content-Length: ${Buffer.byteLength(text)}`, '', text].join(
      '\r\n',
    ),
  );
}

/** Sends a request and resolves to the parsed body. @throws Error for any status but 2xx */
export async function ask(connection, method, path, body) {
  const answer = await connection.send(request(method, path, body));
  if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${answer.body}`);
  return JSON.parse(answer.body);
}
