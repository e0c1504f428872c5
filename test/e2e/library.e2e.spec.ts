import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Agent, ColloquyError, type StreamEvent } from '../../src/client/agent.js';
import {
  callsTools,
  conducted,
  fails,
  type FakeOpenAi,
  held,
  heldAfter,
  says,
} from '../support/fake-openai.js';
import { type Application, createApplication } from '../support/seed-programs.js';
import { startProxy, type TcpProxy } from '../support/tcp-proxy.js';
import { createWorld, MODEL_KEY, type Node, type World } from './fixture.js';

async function collect(stream: AsyncIterable<StreamEvent>): Promise<StreamEvent[]> {
  const events: StreamEvent[] = [];
  for await (const event of stream) events.push(event);
  return events;
}
const textOf = (events: readonly StreamEvent[]) =>
  events.map((event) => (event.type === 'message.delta' ? event.text : '')).join('');
const refused = (code: string) => expect.objectContaining({ name: 'ColloquyError', code }) as unknown;

describe('the library', () => {
  let world: World;
  let model: FakeOpenAi;
  let node: Node;
  let other: Node;
  let proxy: TcpProxy;
  let said: jest.SpyInstance;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    [node, other] = await Promise.all([
      world.node({ MAX_SESSIONS: '1000' }),
      world.node({ MAX_SESSIONS: '1000' }),
    ]);
    proxy = await startProxy(node.service.url);
    said = jest.spyOn(console, 'warn').mockImplementation(() => undefined);
  });
  afterAll(async () => {
    said.mockRestore();
    await proxy.close();
    await world.end();
  });

  interface Mode {
    readonly name: string;
    make(): Agent;
  }
  const modes: Mode[] = [
    {
      name: 'against a running service',
      make: () => new Agent({ url: `${node.service.url}/` }),
    },
    {
      name: 'in one process with the service',
      make: (): Agent =>
        new Agent({
          llm: { provider: 'openai', model: 'gpt-5-mini', apiKey: MODEL_KEY, baseURL: model.url },
          sessions: { maxSessions: 1000 },
          storage: { database: { type: 'postgresql', url: world.database.url } },
        }),
    },
  ];

  describe.each(modes)('$name', (mode) => {
    const { name } = mode;
    let agent: Agent;
    const own = (id: string) => `${name.startsWith('in') ? 'in' : 'by'}-${id}`;
    beforeAll(async () => {
      agent = mode.make();
      await agent.start();
    });
    afterAll(() => agent.stop());

    it('creates a session with an id and details, and returns the existing one when it is created again', async () => {
      const made = await agent.createSession(own('c'), { title: 'T', metadata: { a: 1 } });
      expect(made).toMatchObject({ id: own('c'), title: 'T', metadata: { a: 1 }, status: 'active' });
      expect(await agent.createSession(own('c'))).toEqual(made);
      expect(await agent.getSession(own('c'))).toEqual(made);
      expect(await agent.getSession('nobody')).toBeUndefined();
      expect(await agent.getSessionMetadata('nobody')).toBeUndefined();
      await expect(agent.createSession('not an id')).rejects.toEqual(refused('invalid-request'));
      await expect(agent.getSessionHistory('nobody')).rejects.toEqual(refused('session-not-found'));
      await expect(agent.deleteSession('nobody')).resolves.toBeUndefined();
    });

    it('lists all sessions, expired ones too, through all pages', async () => {
      const ids = Array.from({ length: 205 }, (_, n) => own(`l-${n}`));
      await Promise.all(ids.map((id) => agent.createSession(id)));
      expect(await agent.listSessions()).toEqual(expect.arrayContaining(ids));
      await world.database.setClock({ offsetMs: 2 * 3_600_000 });
      await agent.generate('wake up', { sessionId: ids[0] ?? '' });
      expect(await agent.listSessions()).toEqual(expect.arrayContaining(ids));
      await world.database.setClock({ offsetMs: 0 });
    });

    it('generates with all options, and creates a session where none is named', async () => {
      model.next(says('Hi.'));
      const answer = await agent.generate('Hello', {
        instructions: 'Be brief.',
        model: 'm',
        tools: [{ name: 't' }],
        temperature: 0.5,
        responseFormat: { type: 'json_object' },
      });
      expect(answer).toMatchObject({ content: 'Hi.', finishReason: 'stop', usage: { inputTokens: 10 } });
      expect(model.last).toMatchObject({
        ...{ model: 'm', tools: [{ function: { name: 't' } }] },
        ...{ temperature: 0.5, response_format: { type: 'json_object' } },
      });
      expect(model.last.messages[0]).toEqual({ role: 'system', content: 'Be brief.' });
      expect((await agent.getSessionHistory(answer.sessionId)).map(({ content }) => content)).toEqual([
        'Hello',
        'Hi.',
      ]);
    });

    it('changes a history: asks again, whole and streamed, removes a message, goes back', async () => {
      const id = own('h');
      const contents = async () => (await agent.getSessionHistory(id)).map(({ content }) => content);
      await agent.createSession(id);
      model.next(says('First.'), says('Second.'), says('Third.'));
      await agent.generate('Ask', { sessionId: id });
      expect((await agent.regenerate(id, { instructions: 'Again.' })).content).toBe('Second.');
      expect(textOf(await collect(agent.streamRegenerated(id)))).toBe('Third.');
      expect(await contents()).toEqual(['Ask', 'Third.']);
      const [ask, third] = await agent.getSessionHistory(id);
      await agent.removeMessage(id, ask?.id ?? '');
      expect(await contents()).toEqual(['Third.']);
      await expect(agent.removeMessage(id, ask?.id ?? '')).rejects.toEqual(refused('not-found'));
      expect((await agent.rewindHistory(id, (third?.version ?? 1) - 1, 'edited')).messageCount).toBe(0);
      await expect(agent.rewindHistory(id, 999)).rejects.toEqual(refused('invalid-request'));
    });

    it('streams as an async iterator', async () => {
      await agent.createSession(own('s'));
      model.next(says('One two.'));
      const events = await collect(agent.stream('Count', { sessionId: own('s') }));
      expect(events[0]).toMatchObject({ type: 'generation.started', sessionId: own('s') });
      expect(textOf(events)).toBe('One two.');
      expect(events.at(-1)).toMatchObject({ type: 'message.completed', content: 'One two.' });
      model.next(callsTools([{ id: 'c', name: 't', arguments: '{}' }]));
      const tools = [{ name: 't', approval: 'required' as const }];
      expect(await collect(agent.stream('Use it', { sessionId: own('s'), tools }))).toContainEqual({
        type: 'tool.call',
        id: 'c',
        name: 't',
        arguments: '{}',
        approval: 'required',
      });
    });

    it('stops reading when the program stops, and the reply is recorded all the same', async () => {
      await agent.createSession(own('b'));
      const reply = heldAfter('One ', 'two.');
      model.next(reply.reply);
      for await (const event of agent.stream('Count', { sessionId: own('b') })) {
        if (event.type === 'message.delta') break;
      }
      reply.release();
      // The queued turn begins when the reply has ended.
      await agent.generate('And?', { sessionId: own('b'), onBusy: 'queue' });
      expect((await agent.getSessionHistory(own('b')))[1]).toMatchObject({
        content: 'One two.',
        status: 'complete',
      });
    });

    it('cancels, and says whether there was anything to cancel', async () => {
      await agent.createSession(own('x'));
      const reply = heldAfter('One ', 'two.');
      model.next(reply.reply);
      const events: StreamEvent[] = [];
      for await (const event of agent.stream('Count', { sessionId: own('x') })) {
        events.push(event);
        if (event.type === 'message.delta') expect(await agent.cancel(own('x'))).toBe(true);
      }
      expect(events.at(-1)).toMatchObject({
        type: 'generation.cancelled',
        content: 'One ',
        finishReason: 'cancelled',
      });
      expect(await agent.cancel(own('x'))).toBe(false);
      await reply.abandoned;
    });

    it('stops waiting when its signal aborts, and the generation goes on', async () => {
      await agent.createSession(own('a'));
      const reply = held(says('Late.'));
      model.next(reply.reply);
      const controller = new AbortController();
      const answer = agent.generate('Hello', { sessionId: own('a'), signal: controller.signal });
      await reply.asked;
      controller.abort();
      await expect(answer).rejects.toThrow(/abort/i);
      reply.release();
      await agent.generate('And?', { sessionId: own('a'), onBusy: 'queue' });
      expect((await agent.getSessionHistory(own('a')))[1]).toMatchObject({ content: 'Late.' });
    });

    it('throws an error with the code of the service when a request is refused', async () => {
      await expect(agent.generate('x', { sessionId: 'nobody' })).rejects.toEqual(
        refused('session-not-found'),
      );
      await agent.createSession(own('e'));
      model.next(fails(400, 'no'));
      const error: unknown = await agent.generate('x', { sessionId: own('e') }).catch((one: unknown) => one);
      expect(error).toBeInstanceOf(ColloquyError);
      expect(error).toMatchObject({ code: 'model-failed', status: 502, problem: { sessionId: own('e') } });
      model.next(fails(400, 'no'));
      await expect(collect(agent.stream('x', { sessionId: own('e') }))).rejects.toEqual(
        refused('model-failed'),
      );
      await expect(collect(agent.stream('x', { sessionId: 'nobody' }))).rejects.toEqual(
        refused('session-not-found'),
      );
      await expect(agent.resetConversation('nobody')).rejects.toEqual(refused('session-not-found'));
    });
  });

  it('names each option that has no effect together with a url, once', async () => {
    const options = { url: node.service.url, llm: { model: 'm' }, sessions: {}, storage: {} };
    for (let n = 0; n < 2; n += 1) {
      const agent = new Agent(options);
      await agent.start();
      await agent.stop();
    }
    const lines = said.mock.calls.flat().filter((line) => String(line).includes('with url'));
    expect(lines.map((line) => String(line).split(' ')[0])).toEqual(['llm', 'sessions', 'storage']);
  });

  it('uses the key and names the tenant', async () => {
    const keyed = await world.node({ COLLOQUY_API_KEYS: 'one:red:secret-1,op:*:secret-2' });
    const agent = new Agent({ url: keyed.service.url, apiKey: 'secret-1' });
    await agent.start();
    await agent.createSession('red-one');
    const operator = new Agent({ url: keyed.service.url, apiKey: 'secret-2', tenant: 'red' });
    await operator.start();
    expect(await operator.listSessions()).toEqual(['red-one']);
    const wrong = new Agent({ url: keyed.service.url, apiKey: 'wrong' });
    await wrong.start();
    await expect(wrong.listSessions()).rejects.toEqual(refused('unauthenticated'));
  });

  it('needs to be started, and can be started again after a failure', async () => {
    const agent = new Agent({ url: proxy.url });
    await expect(agent.listSessions()).rejects.toThrow('not started');
    proxy.refuse();
    await expect(agent.start()).rejects.toThrow();
    await expect(agent.listSessions()).rejects.toThrow('not started');
    proxy.up();
    await Promise.all([agent.start(), agent.start()]);
    expect(await agent.getSession('nobody')).toBeUndefined();
    await agent.stop();
  });

  describe('over a connection that breaks', () => {
    let agent: Agent;
    beforeAll(async () => {
      agent = new Agent({ url: proxy.url });
      await agent.start();
    });

    it('resumes a stream where it broke off, and misses nothing', async () => {
      await agent.createSession('p-1');
      const reply = conducted();
      model.next(reply.reply);
      const events: StreamEvent[] = [];
      const cut = proxy.cuts;
      let n = 0;
      for await (const event of agent.stream('Count', { sessionId: 'p-1' })) {
        events.push(event);
        if (event.type === 'generation.started') await reply.asked;
        if (event.type === 'message.completed') break;
        // After each piece the connection breaks, and the next piece arrives while no client is connected.
        if (n > 0) {
          proxy.down();
          proxy.up();
        }
        n += 1;
        if (n <= 5) reply.say(`${n} 😀 `);
        else reply.end();
      }
      expect(textOf(events)).toBe('1 😀 2 😀 3 😀 4 😀 5 😀 ');
      expect(events.filter(({ type }) => type === 'generation.started')).toHaveLength(1);
      expect(proxy.cuts).toBe(cut);
    });

    it.each(['lose request', 'lose answer'] as const)(
      'tries again when it %ss, with one model call and one message',
      async (fate) => {
        const id = `p-2-${fate.replace(' ', '-')}`;
        await agent.createSession(id);
        const before = model.requests.length;
        for (const work of [
          () => agent.generate('one', { sessionId: id }),
          () => collect(agent.stream('two', { sessionId: id })),
        ]) {
          let lost = 0;
          proxy.decide((bytes) => {
            const isHit = bytes.includes('/generate') && lost === 0;
            if (isHit) lost += 1;
            return isHit ? fate : 'pass';
          });
          await work();
          expect(lost).toBe(1);
        }
        proxy.decide(() => 'pass');
        expect(model.requests.length - before).toBe(2);
        expect((await agent.getSessionHistory(id)).map(({ role }) => role).join()).toBe(
          'user,assistant,user,assistant',
        );
      },
    );
  });

  describe('a program', () => {
    let application: Application;
    beforeAll(() => {
      application = createApplication();
    });
    afterAll(() => {
      application.remove();
    });

    it('ends by itself after stop, even when it left a stream in the middle', async () => {
      const dataDir = join(application.folder, 'data');
      mkdirSync(dataDir);
      const reply = heldAfter('One ', 'two.');
      model.next(reply.reply);
      application.writeProgram(
        'left.mjs',
        `import { Agent } from 'colloquy';
        const agent = new Agent();
        await agent.start();
        const session = await agent.createSession();
        for await (const event of agent.stream('x', { sessionId: session.id })) {
          if (event.type === 'message.delta') break;
        }
        console.log('left');
        await agent.stop();
        console.log('stopped');`,
      );
      const program = application.run('left.mjs', {
        OPENAI_BASE_URL: model.url,
        COLLOQUY_DATA_DIR: dataDir,
      });
      await program.says(/left/);
      reply.release();
      expect(await program.ended).toMatchObject({ code: 0, lines: ['left', 'stopped'] });
    });
  });

  it('lets two programs use one database at once', async () => {
    const agent = modes[1]?.make();
    await agent?.start();
    await agent?.createSession('shared');
    expect((await other.api.get('/v1/sessions/shared')).status).toBe(200);
    await agent?.stop();
  });
});
