import { Agent, type AgentOptions, type StreamEvent } from '../../../src/client/agent.js';
import {
  breaks,
  json,
  refuses,
  type ScriptedServer,
  sse,
  startScriptedServer,
  streams,
} from './scripted-server.js';

const ALIVE = json(200, { status: 'ok' });
const STARTED = sse('0-0', 'generation.started', { generationId: 'g', sessionId: 's', model: 'm' });
const delta = (id: string, text: string) => sse(id, 'message.delta', { text });
const completed = (id: string, content: string) => sse(id, 'message.completed', { content });

describe('the agent of a running service', () => {
  let server: ScriptedServer;
  let said: jest.SpyInstance;
  beforeAll(async () => {
    server = await startScriptedServer();
    said = jest.spyOn(console, 'warn').mockImplementation(() => undefined);
  });
  afterAll(async () => {
    said.mockRestore();
    await server.close();
  });

  /** Starts an agent, and forgets the requests that the start has made. */
  async function started(options: AgentOptions = {}): Promise<Agent> {
    server.next(ALIVE);
    const agent = new Agent({ url: server.url, ...options });
    await agent.start();
    return agent;
  }
  const collect = async (stream: AsyncIterable<StreamEvent>): Promise<StreamEvent[]> => {
    const all: StreamEvent[] = [];
    for await (const event of stream) all.push(event);
    return all;
  };
  const textOf = (events: readonly StreamEvent[]) =>
    events.map((event) => (event.type === 'message.delta' ? event.text : '')).join('');

  describe('options', () => {
    it('given a url, a key and a tenant, when the agent sends a request, then all three are used', async () => {
      server.next(ALIVE, json(200, { id: 'a b' }));
      const agent = new Agent({ url: `${server.url}//`, apiKey: 'secret', tenant: 'red' });
      await agent.start();
      await agent.getSession('a/b?c');
      expect(server.asked.map(({ path }) => path)).toEqual(['/health/live', '/v1/sessions/a%2Fb%3Fc']);
      for (const { headers } of server.asked) {
        expect(headers).toMatchObject({ authorization: 'Bearer secret', 'colloquy-tenant': 'red' });
      }
    });

    it('given neither key nor tenant, when the agent sends a request, then the request has neither', async () => {
      await started();
      expect(server.asked[0]?.headers).not.toHaveProperty('authorization');
      expect(server.asked[0]?.headers).not.toHaveProperty('colloquy-tenant');
    });

    it('given options that only the embedded service uses, when agents with a url start, then each option is explained once', async () => {
      const other = { llm: { model: 'm' }, sessions: { maxSessions: 5 }, storage: {} };
      await started(other);
      await started(other);
      // The agent stops at the invalid setting, before it starts anything.
      const wrong = new Agent({ apiKey: 'secret', sessions: { maxSessions: 0 } });
      await expect(wrong.start()).rejects.toThrow('sessions.maxSessions');
      await expect(wrong.start()).rejects.toThrow('sessions.maxSessions');
      expect(said.mock.calls.flat()).toEqual([
        'llm has no meaning with url: the service there has settings of its own.',
        'sessions has no meaning with url: the service there has settings of its own.',
        'storage has no meaning with url: the service there has settings of its own.',
        'apiKey has no meaning without url: a service in this process needs no key.',
      ]);
    });
  });

  describe('start and stop', () => {
    it('given an agent that is not started, or was stopped, when it is used, then it throws an error that says so', async () => {
      const agent = await started();
      await agent.stop();
      for (const one of [agent, new Agent({ url: server.url })]) {
        await expect(one.listSessions()).rejects.toThrow('await agent.start() first');
        await expect(one.stream('x', { sessionId: 's' }).next()).rejects.toThrow('not started');
      }
    });

    it('given several starts at once, when they have resolved, then only one request was made to find the service', async () => {
      server.next(ALIVE);
      const agent = new Agent({ url: server.url });
      await Promise.all([agent.start(), agent.start()]);
      expect(server.asked).toHaveLength(1);
    });

    it('given an agent that could not reach its service, when the service is reachable, then the agent can be started', async () => {
      server.next(json(404, {}), ALIVE);
      const agent = new Agent({ url: server.url });
      await expect(agent.start()).rejects.toMatchObject({ name: 'ColloquyError', status: 404 });
      await agent.start();
    });
  });

  describe('sessions', () => {
    it('given several pages, when sessions are listed, then all ids come in order', async () => {
      const agent = await started();
      server.next(
        json(200, { data: [{ id: 'a' }, { id: 'b' }], nextCursor: 'x+/=' }),
        json(200, { data: [{ id: 'c' }], nextCursor: null }),
      );
      expect(await agent.listSessions()).toEqual(['a', 'b', 'c']);
      expect(server.asked[1]?.path).toBe('/v1/sessions?limit=200&cursor=x%2B%2F%3D');
    });

    it('given no such session, when it is read or deleted, then that is no error; any other refusal is', async () => {
      const agent = await started();
      server.next(refuses(404, 'session-not-found'));
      expect(await agent.getSession('s')).toBeUndefined();
      await expect(agent.deleteSession('s')).resolves.toBeUndefined();
      await expect(agent.resetConversation('s')).rejects.toMatchObject({ code: 'session-not-found' });
      server.next(refuses(403, 'forbidden'));
      await expect(agent.getSession('s')).rejects.toMatchObject({ code: 'forbidden' });
      await expect(agent.deleteSession('s')).rejects.toMatchObject({ code: 'forbidden' });
    });

    it('given several writes, when they are sent, then each has a key of its own', async () => {
      const agent = await started();
      server.next(json(200, {}));
      await agent.createSession('s', { title: 'T' });
      await agent.generate('hi', { sessionId: 's', model: 'm', onBusy: 'queue' });
      await agent.cancel('s');
      await agent.resetConversation('s');
      await agent.deleteSession('s');
      expect(server.asked.map(({ method, path, body }) => ({ method, path, body }))).toEqual([
        { method: 'POST', path: '/v1/sessions', body: { id: 's', title: 'T' } },
        {
          method: 'POST',
          path: '/v1/sessions/s/generate',
          body: { message: 'hi', model: 'm', onBusy: 'queue' },
        },
        { method: 'POST', path: '/v1/sessions/s/cancel', body: undefined },
        { method: 'POST', path: '/v1/sessions/s/reset', body: undefined },
        { method: 'DELETE', path: '/v1/sessions/s', body: undefined },
      ]);
      expect(new Set(server.asked.map(({ headers }) => headers['idempotency-key'])).size).toBe(5);
    });

    it('given no session, when the agent generates, then it creates a session first', async () => {
      const agent = await started();
      server.next(json(201, { id: 'sess_1' }), json(200, { content: 'Hi.' }));
      expect(await agent.generate('Hello')).toEqual({ content: 'Hi.' });
      expect(server.asked.map(({ path, body }) => ({ path, body }))).toEqual([
        { path: '/v1/sessions', body: {} },
        { path: '/v1/sessions/sess_1/generate', body: { message: 'Hello' } },
      ]);
    });
  });

  describe('streams', () => {
    it('given a stream that breaks off, when the agent reconnects, then the stream goes on where it was', async () => {
      const agent = await started();
      server.next(
        streams([STARTED, delta('3-0', 'One')], 'breaks'),
        streams([delta('7-0', ' two')]),
        streams([completed('7-0', 'One two')]),
      );
      const events = await collect(agent.stream('count', { sessionId: 's' }));
      expect(textOf(events)).toBe('One two');
      expect(events.at(-1)).toEqual({ type: 'message.completed', content: 'One two' });
      const path = '/v1/sessions/s/generations/g/stream';
      expect(server.asked).toMatchObject([
        { method: 'POST', path: '/v1/sessions/s/generate', body: { message: 'count' } },
        { method: 'GET', path, headers: { 'last-event-id': '3-0' } },
        { method: 'GET', path, headers: { 'last-event-id': '7-0' } },
      ]);
    });

    it('given a stream that ends before its first event, when the agent requests it again, then it uses the same key', async () => {
      const agent = await started();
      server.next(streams([]), breaks, streams([STARTED, completed('0-0', '')]));
      await collect(agent.stream('count', { sessionId: 's' }));
      const keys = server.asked.map(
        ({ method, headers }) => `${method} ${String(headers['idempotency-key'])}`,
      );
      expect(keys).toHaveLength(3);
      expect(new Set(keys).size).toBe(1);
    });

    it('given a generation that fails, when its stream is read, then the problem is thrown, and the request is not repeated', async () => {
      const agent = await started();
      const problem = { code: 'model-failed', detail: 'no', status: 502 };
      server.next(streams([STARTED, sse('0-0', 'generation.failed', problem)]));
      await expect(collect(agent.stream('x', { sessionId: 's' }))).rejects.toMatchObject({
        name: 'ColloquyError',
        code: 'model-failed',
        status: 502,
        problem,
      });
      expect(server.asked).toHaveLength(1);
    });

    it('given a program that reads a stream, when it stops reading, then the connection is closed', async () => {
      const agent = await started();
      server.next(streams([STARTED, delta('3-0', 'One')], 'stays'));
      const seen: string[] = [];
      for await (const event of agent.stream('x', { sessionId: 's' })) {
        seen.push(event.type);
        if (event.type === 'message.delta') break;
      }
      expect(seen).toEqual(['generation.started', 'message.delta']);
      expect(server.asked).toHaveLength(1);
    });
  });
});
