import { once } from 'node:events';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import fastify, { type FastifyInstance } from 'fastify';
import { LiveReply } from '../../../src/generation/live-reply.js';
import { placeOf, sendEvents } from '../../../src/generation/sse.js';
import { openEvents, textIn } from '../../support/event-stream.js';
import { fakeIntervals } from '../../support/fake-intervals.js';

const answer = (content: string) => ({
  content,
  message: null,
  usage: null,
  finishReason: 'stop',
  sessionId: 's',
  generationId: 'g',
});

describe('a reply over server-sent events', () => {
  let app: FastifyInstance;
  let url: string;
  let live: LiveReply;

  beforeAll(async () => {
    app = fastify({ forceCloseConnections: true });
    app.get('/', (request, reply) =>
      sendEvents(reply, live, placeOf(request.headers['last-event-id'] as string | undefined)),
    );
    url = await app.listen({ host: '127.0.0.1', port: 0 });
  });
  afterAll(() => app.close());
  beforeEach(() => {
    live = new LiveReply('s', 'g', 'm', '2026-01-01T00:00:00.000Z');
  });
  const finish = () => {
    live.finish({ type: 'completed', answer: answer(live.text), version: 1 });
  };

  it('given a silent model, when 15 seconds have passed, then a comment keeps the connection open', async () => {
    fakeIntervals();
    try {
      const stream = await openEvents(url);
      await stream.next();
      jest.advanceTimersByTime(14_999);
      live.append('a');
      await stream.next();
      expect(stream.comments).toEqual([]);
      jest.advanceTimersByTime(1);
      live.append('b');
      await stream.next();
      expect(stream.comments).toEqual(['keep-alive']);
      finish();
      await stream.rest();
      expect(jest.getTimerCount()).toBe(0);
    } finally {
      jest.useRealTimers();
    }
  });

  it('given a client that stops reading, when much text arrives, then it is not queued for the client, and is sent in few pieces later', async () => {
    const PIECES = 2_000;
    const piece = 'x'.repeat(10_000);
    const asked = httpRequest(url, { agent: false }).end();
    const [response] = (await once(asked, 'response')) as [IncomingMessage];
    for (let n = 0; n < PIECES; n += 1) {
      live.append(piece);
      await new Promise(setImmediate);
    }
    finish();
    let text = '';
    response.setEncoding('utf8');
    for await (const part of response) text += part as string;
    const deltas = [...text.matchAll(/^event: message\.delta\ndata: (.*)$/gm)];
    expect(deltas.length).toBeLessThan(PIECES);
    const said = deltas.map(([, data = '']) => (JSON.parse(data) as { text: string }).text).join('');
    expect(said.length).toBe(PIECES * piece.length);
  });

  it('given any place in a reply, when a client resumes there, then it gets exactly the rest', async () => {
    const text = 'One 😀 two';
    for (const part of ['One ', '😀', ' two']) live.append(part);
    for (let offset = 0; offset <= text.length; offset += 1) {
      const stream = await openEvents(url, { headers: { 'last-event-id': `${offset}-0` } });
      if (offset === text.length) finish();
      else expect(await stream.text(text.length - offset)).toBe(text.slice(offset));
      stream.leave();
    }
    const whole = await (await openEvents(url)).rest();
    expect(whole.map(({ id, event }) => `${id} ${event}`)).toEqual([
      '0-0 generation.started',
      `${text.length}-0 message.delta`,
      `${text.length}-0 message.completed`,
    ]);
    expect(textIn(whole)).toBe(text);
  });
});
