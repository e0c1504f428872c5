import { type AddressInfo, connect } from 'node:net';
import Fastify, { type FastifyInstance } from 'fastify';
import { EventStream, wantsEvents } from '../../../src/http/event-stream.js';

let app: FastifyInstance;
let opened: (stream: EventStream) => void;
let stream: Promise<EventStream>;
let answerSlow: () => void;

async function serve(options: ConstructorParameters<typeof EventStream>[1] = {}): Promise<number> {
  app = Fastify();
  stream = new Promise((resolve) => {
    opened = resolve;
  });
  app.get('/', (request, reply) => {
    if (!wantsEvents(request)) return reply.send('page');
    opened(new EventStream(reply, options));
    return reply;
  });
  app.get('/slow', async () => {
    await new Promise<void>((resolve) => (answerSlow = resolve));
    return 'slow page';
  });
  await app.listen({ host: '127.0.0.1', port: 0 });
  return (app.server.address() as AddressInfo).port;
}
afterEach(() => app.close());

/** A client that works on bytes and reads only when the test says so. */
function client(port: number, method = 'GET', { http = '1.1', before = '' } = {}) {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => undefined);
  socket.write(`${before}${method} / HTTP/${http}\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n`);
  let text = '';
  let look = (): void => undefined;
  socket.on('data', (chunk: Buffer) => {
    text = (text + chunk.toString()).slice(-100_000);
    look();
  });
  return {
    socket,
    /** The last of what has come, once this is in it. */
    until: (part: string): Promise<string> =>
      new Promise((resolve) => {
        look = () => {
          if (text.includes(part)) resolve(text);
        };
        look();
      }),
  };
}

const BIG = 'x'.repeat(1_000_000);

describe('EventStream', () => {
  it('given events, when they are sent, then each is a frame of its own, after headers that forbid caching', async () => {
    const { socket, until } = client(await serve());
    const sent = await stream;
    const headers = await until('\r\n\r\n');
    expect(headers).toContain('content-type: text/event-stream');
    expect(headers).toContain('cache-control: no-store');
    await sent.send({ id: '1', event: 'Said', data: { text: 'two\nlines' } });
    expect(await until('lines')).toContain('id: 1\nevent: Said\ndata: {"text":"two\\nlines"}\n\n');
    sent.end();
    socket.destroy();
  });

  it('given nothing to send, when time passes, then a comment with the last id keeps the connection open', async () => {
    const { socket, until } = client(await serve({ keepAliveMs: 5 }));
    const sent = await stream;
    await until(': keep-alive\n\n');
    sent.passed('7');
    expect(await until('id: 7\n: keep-alive\n\n')).not.toContain('event:');
    sent.end();
    socket.destroy();
  });

  it('given a client that stops reading, when more is sent than its buffers hold, then sending waits until it reads on', async () => {
    const { socket, until } = client(await serve());
    const sent = await stream;
    socket.pause();
    let done = 0;
    const sending = (async () => {
      for (let index = 0; index < 20; index += 1) {
        await sent.send({ id: String(index), event: 'Big', data: BIG });
        done += 1;
      }
    })();
    // All ready callbacks run first. After that, only the client can make progress possible.
    for (let turn = 0; turn < 1_000; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    expect(done).toBeLessThan(20);
    socket.resume();
    await until('id: 19\n');
    await sending;
    sent.end();
    socket.destroy();
  });

  it('given a client that stops reading for too long, when the limit has passed, then its connection is closed and sending no longer waits', async () => {
    const { socket } = client(await serve({ patienceMs: 20 }));
    const sent = await stream;
    socket.pause();
    for (let index = 0; index < 20 && !sent.gone.aborted; index += 1) {
      await sent.send({ id: String(index), event: 'Big', data: BIG });
    }
    expect(sent.gone.aborted).toBe(true);
    sent.end();
    socket.destroy();
  });

  it('given a client that disconnects, when a send waits for it, then the wait ends', async () => {
    const { socket } = client(await serve());
    const sent = await stream;
    socket.pause();
    const sending = (async () => {
      for (let index = 0; index < 40 && !sent.gone.aborted; index += 1) {
        await sent.send({ id: String(index), event: 'Big', data: BIG });
      }
    })();
    socket.destroy();
    await sending;
    expect(sent.gone.aborted).toBe(true);
    sent.end();
  });

  it('given a client of HTTP/1.0, which does not know chunked encoding, when events are sent, then they are sent without it', async () => {
    const { socket, until } = client(await serve(), 'GET', { http: '1.0' });
    const sent = await stream;
    await sent.send({ id: '1', event: 'Said', data: 'ä' });
    await sent.send({ id: '2', event: 'Said', data: 'b' });
    expect(await until('id: 2\nevent: Said\ndata: "b"\n\n')).toMatch(
      /\r\n\r\nid: 1\nevent: Said\ndata: "ä"\n\nid: 2/,
    );
    sent.end();
    socket.destroy();
  });

  it('given a pipelined request, when its events begin before the first answer is complete, then they are sent after that answer', async () => {
    const before = 'GET /slow HTTP/1.1\r\nHost: x\r\n\r\n';
    const { socket, until } = client(await serve(), 'GET', { before });
    const sent = await stream;
    await sent.send({ id: '1', event: 'Said', data: 'ä' });
    answerSlow();
    expect(await until('id: 1\n')).toMatch(
      /slow page.*HTTP\/1\.1 200 OK.*id: 1\nevent: Said\ndata: "ä"\n\n/s,
    );
    await sent.send({ id: '2', event: 'Said', data: 'b' });
    sent.end();
    expect(await until('0\r\n\r\n')).toContain('id: 2\nevent: Said\ndata: "b"\n\n\r\n0\r\n\r\n');
    socket.destroy();
  });

  it('given a HEAD request, when it is answered, then no stream is opened', async () => {
    const { socket, until } = client(await serve(), 'HEAD');
    expect(await until('\r\n\r\n')).toContain('200 OK');
    socket.destroy();
  });
});
