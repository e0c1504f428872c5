import { once } from 'node:events';
import { createServer, type RequestListener, type Server } from 'node:http';
import { type AddressInfo } from 'node:net';
import { endOfTurn } from '../../../src/event-store/end-of-turn.js';
import { OpenAiModel } from '../../../src/generation/openai.chat-model.js';

const REQUEST = { model: 'm', messages: [{ role: 'user' as const, content: 'hello' }] };
const SSE = { 'content-type': 'text/event-stream' };
const piece = (delta: object, finish: string | null = null) =>
  `data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`;
const END = `${piece({}, 'stop')}data: [DONE]\n\n`;

describe('a model over the OpenAI API', () => {
  let server: Server;
  let listener: RequestListener;
  let asked: number;

  beforeEach(async () => {
    asked = 0;
    server = createServer((request, response) => {
      asked += 1;
      request.resume();
      listener(request, response);
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
  });
  afterEach(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  const model = (timeoutMs = 60_000) =>
    new OpenAiModel({
      baseURL: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
      timeoutMs,
      maxOutputBytes: 1_000_000,
      maxConcurrency: 4,
      systemMessages: 'in-place',
      returnReasoning: {},
      maxAttachedBytes: 1_000_000,
    });
  const { signal } = new AbortController();

  it('given much text and then a broken connection, when both arrive at once, then the text is delivered before the error', async () => {
    const words = Array.from({ length: 300 }, (_, n) => `word ${n} `);
    const chunks = words.map((word) => piece({ content: word }));
    listener = (_, response) => {
      response.writeHead(200, SSE).flushHeaders();
      // The text is written to the socket, because the response would add an end of its own.
      response.socket?.end(chunks.map((one) => `${one.length.toString(16)}\r\n${one}\r\n`).join(''));
    };
    let text = '';
    const answer = model().answer(REQUEST, { signal, onText: (one) => (text += one) });
    await expect(answer).rejects.toMatchObject({ code: 'model-failed' });
    expect(text).toBe(words.join(''));
  });

  it('given a call that must not be sent yet, when it may be sent, then it uses a connection that is open already', async () => {
    listener = (_, response) => response.writeHead(200, SSE).end(piece({ content: 'Hi' }) + END);
    const connected = once(server, 'connection');
    let go = (): void => undefined;
    const when = new Promise<void>((resolve) => (go = resolve));
    let text = '';
    const answer = model().answer(REQUEST, { signal, onText: (one) => (text += one), when });
    await connected;
    for (let turn = 0; turn < 100; turn += 1) await endOfTurn();
    expect(asked).toBe(0);
    go();
    await expect(answer).resolves.toMatchObject({ finishReason: 'stop' });
    expect([asked, text]).toEqual([1, 'Hi']);
  });

  it('given a call that must not be sent, when it is aborted, then no request is sent, and its connection is closed', async () => {
    const connected = once(server, 'connection') as Promise<[NodeJS.EventEmitter]>;
    let refuse = (_: Error): void => undefined;
    const when = new Promise<void>((_, reject) => (refuse = reject));
    const controller = new AbortController();
    const call = { signal: controller.signal, onText: () => undefined, when };
    const answer = model().answer(REQUEST, call);
    const [socket] = await connected;
    const closed = once(socket, 'close');
    const reason = new Error('not started');
    refuse(reason);
    controller.abort(reason);
    await expect(answer).rejects.toBe(reason);
    await closed;
    expect(asked).toBe(0);
  });

  it('given a short timeout, when the call may be sent only after it, then the timeout counts from the sending', async () => {
    listener = (_, response) => response.writeHead(200, SSE).end(piece({ content: 'Hi' }) + END);
    const when = new Promise((resolve) => setTimeout(resolve, 120));
    const answer = model(60).answer(REQUEST, { signal, onText: () => undefined, when });
    await expect(answer).resolves.toMatchObject({ finishReason: 'stop' });
  });
});
