import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  callsTools,
  drops,
  echoesPrompt,
  fails,
  type FakeOpenAi,
  held,
  neverAnswers,
  says,
  sends,
} from '../support/fake-openai.js';
import { type Api, eventually, expectProblem } from '../support/http.js';
import {
  createWorld,
  expectWellFormed,
  type GeneratedAnswer,
  logged,
  type MessageView,
  MODEL_KEY,
  say,
  type SessionAnswer,
  texts,
  user,
  type World,
} from './fixture.js';

interface Chat {
  readonly response: string;
  readonly sessionId: string;
}
const LEASE_OVER_MS = 10_000;

describe('generation', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;
  /** Another node on the same database. */
  let other: Api;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    const folder = await world.folder();
    await writeFile(
      join(folder, 'colloquy.yml'),
      'llm: { timeoutMs: 1500 }\nsessions: { maxSessions: 1000 }',
    );
    // The other node has a long timeout.
    [{ api }, { api: other }] = await Promise.all([
      world.node({}, folder),
      world.node({ MAX_SESSIONS: '1000' }),
    ]);
  });
  afterAll(() => world.end());
  afterEach(async () => {
    for (const [id] of await ids()) expectWellFormed(await logged(world.database, id));
  });

  const ids = async () =>
    (await world.database.query<{ stream_id: string }>('select distinct stream_id from event')).map(
      ({ stream_id }) => [stream_id] as const,
    );
  const types = async (id: string) => (await logged(world.database, id)).map((event) => event.type);
  const generate = (id: string, body: unknown, headers: Record<string, string> = {}, through = api) =>
    through.post<GeneratedAnswer>(`/v1/sessions/${id}/generate`, body, headers);
  const create = (id: string) => api.post('/v1/sessions', { id });
  /** How many requests the model got during this. */
  const asked = async (work: () => Promise<void>): Promise<number> => {
    const before = model.requests.length;
    await work();
    return model.requests.length - before;
  };

  describe('a turn', () => {
    it('given a message, when a reply is requested, then the reply is returned, recorded and counted', async () => {
      await create('t-1');
      model.next(
        says('Hi, Alice.', {
          prompt_tokens: 12,
          completion_tokens: 34,
          prompt_tokens_details: { cached_tokens: 5 },
          completion_tokens_details: { reasoning_tokens: 6 },
        }),
      );
      const answer = await generate('t-1', { message: 'Hello' });
      expect(answer.status).toBe(200);
      const usage = { inputTokens: 12, outputTokens: 34, cachedTokens: 5, reasoningTokens: 6 };
      const { body } = answer;
      expect(body).toEqual({
        content: 'Hi, Alice.',
        message: {
          id: expect.stringMatching(/^msg_/) as string,
          role: 'assistant',
          content: 'Hi, Alice.',
          version: 4,
          createdAt: expect.stringMatching(/Z$/) as string,
          status: 'complete',
          generationId: body.generationId,
        },
        usage,
        finishReason: 'stop',
        sessionId: 't-1',
        generationId: expect.stringMatching(/^gen_/) as string,
      });
      expect(answer.headers.get('etag')).toBe('"5"');
      expect(await types('t-1')).toEqual([
        'SessionCreated',
        'MessageAppended',
        'GenerationStarted',
        'MessageAppended',
        'GenerationCompleted',
      ]);
      const history = await api.get<{ data: MessageView[] }>('/v1/sessions/t-1/messages');
      expect(history.body.data[1]).toEqual(body.message);
      expect((await api.get('/v1/sessions/t-1')).body).toMatchObject({ usage, messageCount: 2, version: 5 });
      const used = await api.get<{ data: unknown[] }>('/v1/sessions/t-1/usage');
      const day = expect.stringMatching(/^\d{4}-\d\d-\d\d$/) as string;
      expect(used.body).toEqual({ data: [{ model: 'gpt-5-mini', day, generations: 1, ...usage }] });
      await api.post('/v1/sessions/t-1/reset');
      expect((await api.get('/v1/sessions/t-1')).body).toMatchObject({ usage, messageCount: 0 });
    });

    it('given a conversation, when its second turn is taken, then the model gets the instructions, the whole history, and the tools', async () => {
      await create('t-2');
      await api.post('/v1/sessions/t-2/messages', { role: 'system', content: 'You sell shoes.' });
      model.next(says('We have sandals.'));
      await generate('t-2', { message: 'What do you have?' });
      const parameters = { type: 'object', properties: { size: { type: 'integer' } } };
      model.next(echoesPrompt);
      const { body } = await generate('t-2', {
        message: { role: 'user', content: 'In size 42?', name: 'Alice B.' },
        instructions: 'Be brief.',
        model: 'other-model',
        tools: [{ name: 'stock', description: 'How many there are', parameters }, { name: 'price' }],
      });
      const prompt = [
        { role: 'system', content: 'Be brief.\n\nYou sell shoes.' },
        { role: 'user', content: 'What do you have?' },
        { role: 'assistant', content: 'We have sandals.' },
        { role: 'user', content: 'In size 42?', name: expect.stringMatching(/^Alice_B_$/) as string },
      ];
      expect(model.last.messages).toEqual(prompt);
      expect(JSON.parse(body.content)).toEqual(prompt);
      expect(model.last).toMatchObject({
        model: 'other-model',
        authorization: `Bearer ${MODEL_KEY}`,
        tools: [
          { type: 'function', function: { name: 'stock', description: 'How many there are', parameters } },
          { type: 'function', function: { name: 'price' } },
        ],
      });
      const started = (await logged(world.database, 't-2')).findLast(
        (event) => event.type === 'GenerationStarted',
      );
      expect(started?.data).toMatchObject({ model: 'other-model', instructions: 'Be brief.' });
      // Instructions are for one turn and are not a message.
      model.next(echoesPrompt);
      await generate('t-2', {});
      expect(model.last.messages[0]).toEqual({ role: 'system', content: 'You sell shoes.' });
      expect(model.last.tools).toBeUndefined();
    });

    it('given a reset and a new message, when a reply is requested, then the model sees nothing from before the reset', async () => {
      await create('t-3');
      await generate('t-3', { message: 'the old secret' });
      await api.post('/v1/sessions/t-3/reset');
      model.next(echoesPrompt);
      await generate('t-3', { message: 'new' });
      expect(model.last.messages).toEqual([user('new')]);
      await api.delete('/v1/sessions/t-3');
      await create('t-3');
      await generate('t-3', { message: 'newer' });
      expect(model.last.messages).toEqual([user('newer')]);
    });

    it('given content in typed parts, when the model is called, then it gets these parts', async () => {
      await create('t-4');
      const content = [
        { type: 'text', text: 'What is this?' },
        { type: 'image', url: 'https://example.com/a.png', detail: 'low' },
      ];
      await generate('t-4', { message: { role: 'user', content } });
      expect(model.last.messages).toEqual([
        {
          role: 'user',
          content: [
            { type: 'text', text: 'What is this?' },
            { type: 'image_url', image_url: { url: 'https://example.com/a.png', detail: 'low' } },
          ],
        },
      ]);
    });

    it('given a reply with characters that cannot be stored, when it arrives, then it is stored without them', async () => {
      await create('t-5');
      model.next(says('a\0b \ud83d c'));
      const { status, body } = await generate('t-5', { message: 'x' });
      expect(status).toBe(200);
      expect(body.content).toMatch(/^ab . ?c$/u);
      expect(await texts(api, 't-5')).toEqual(['x', body.content]);
    });

    it('given no session, when a chat is sent, then a session is created, which the next chat continues', async () => {
      model.next(says('Hello!'), echoesPrompt);
      const first = await api.post<Chat>('/v1/chat', { message: 'Hi' });
      expect(first.status).toBe(200);
      expect(first.body).toEqual({
        response: 'Hello!',
        sessionId: expect.stringMatching(/^sess_/) as string,
      });
      const { sessionId } = first.body;
      const second = await other.post<Chat>('/v1/chat', { message: 'Again', sessionId });
      expect(JSON.parse(second.body.response)).toEqual([
        user('Hi'),
        { role: 'assistant', content: 'Hello!' },
        user('Again'),
      ]);
      const named = await api.post<Chat>('/v1/chat', { message: 'x', sessionId: 'chat-named' });
      expect(named.body.sessionId).toBe('chat-named');
      expect((await api.get('/v1/sessions/chat-named')).body).toMatchObject({ messageCount: 2 });
    });
  });

  describe('tools', () => {
    const calls = [
      { id: 'call-1', name: 'stock', arguments: '{"size":42}' },
      { id: 'call-2', name: 'price', arguments: '{}' },
    ];

    it('given tool calls, when their results are sent, then the model gets calls and results in the right order', async () => {
      await create('c-1');
      model.next(callsTools(calls));
      const { body } = await generate('c-1', { message: 'Size 42?' });
      expect(body).toMatchObject({ content: '', finishReason: 'tool_calls', message: { content: '' } });
      expect(body.message?.toolCalls).toMatchObject(calls);
      await api.post('/v1/sessions/c-1/messages', { role: 'tool', toolCallId: 'call-2', content: '99' });
      await say(api, 'c-1', 'Are you there?');
      await generate('c-1', { message: { role: 'tool', toolCallId: 'call-1', content: '3 left' } });
      const [asks, ...rest] = model.last.messages;
      expect(asks).toEqual(user('Size 42?'));
      expect(rest).toMatchObject([
        {
          role: 'assistant',
          tool_calls: calls.map(({ id, ...called }) => ({ id, type: 'function', function: called })),
        },
        { role: 'tool', tool_call_id: 'call-1', content: '3 left' },
        { role: 'tool', tool_call_id: 'call-2', content: '99' },
        user('Are you there?'),
      ]);
      expect(rest).toHaveLength(4);
    });

    it('given tool calls without results, when the next turn is taken, then they count as cancelled', async () => {
      await create('c-2');
      model.next(callsTools(calls));
      await generate('c-2', { message: 'Size 42?' });
      const { status } = await generate('c-2', { message: 'Never mind' });
      expect(status).toBe(200);
      expect(model.last.messages.slice(2)).toMatchObject([
        { role: 'tool', tool_call_id: 'call-1', content: 'cancelled' },
        { role: 'tool', tool_call_id: 'call-2', content: 'cancelled' },
        user('Never mind'),
      ]);
      const { body } = await api.get<{ data: MessageView[] }>('/v1/sessions/c-2/messages');
      expect(body.data.map((message) => [message.role, message.status])).toEqual([
        ['user', 'complete'],
        ['assistant', 'complete'],
        ['tool', 'incomplete'],
        ['tool', 'incomplete'],
        ['user', 'complete'],
        ['assistant', 'complete'],
      ]);
      // The calls have their results, so further results are refused.
      const late = await api.post('/v1/sessions/c-2/messages', {
        role: 'tool',
        toolCallId: 'call-1',
        content: '3',
      });
      expectProblem(late, 400, 'invalid-request', '/toolCallId');
    });
  });

  describe('failure', () => {
    const tooLong = { message: 'x'.repeat(10) };

    it.each([
      ['an error of its own', () => fails(500, 'the GPU is on fire'), 'GPU'],
      [
        'a refusal that quotes the key',
        () => fails(401, `Incorrect API key provided: ${MODEL_KEY}. It is ${MODEL_KEY.slice(0, 8)}****`),
        'Incorrect',
      ],
      ['no JSON', () => sends('<html>Bad gateway</html>'), ''],
      ['half of a body', () => sends('{"choices":[{"message"'), ''],
      ['no choice', () => sends('{"choices":[]}'), ''],
      ['nothing at all', () => sends(''), ''],
    ])(
      'given a model that sends %s, when it is called, then 502, and the session stays usable',
      async (what, reply, hint) => {
        const id = `f-${what.replaceAll(' ', '-')}`;
        await create(id);
        model.next(reply());
        let generationId: unknown;
        expect(
          await asked(async () => {
            const problem = expectProblem(await generate(id, tooLong), 502, 'model-failed');
            expect(problem.detail).toContain(hint);
            expect(problem).toMatchObject({ sessionId: id });
            expect(JSON.stringify(problem)).not.toContain(MODEL_KEY.slice(0, 8));
            ({ generationId } = problem);
          }),
        ).toBe(1);
        const failed = (await logged(world.database, id)).at(-1);
        expect(failed).toMatchObject({
          type: 'GenerationFailed',
          data: { generationId, code: 'model-failed' },
        });
        expect((await generate(id, {})).status).toBe(200);
        expect(model.last.messages).toEqual([user(tooLong.message)]);
        expect(await types(id)).toEqual([
          'SessionCreated',
          'MessageAppended',
          'GenerationStarted',
          'GenerationFailed',
          'GenerationStarted',
          'MessageAppended',
          'GenerationCompleted',
        ]);
      },
    );

    it('given a model whose connection breaks, when it is called, then the call is repeated, and finally 502', async () => {
      await create('f-drop');
      model.next(drops, says('at the second try'));
      expect(
        await asked(async () => {
          expect((await generate('f-drop', { message: 'x' })).body.content).toBe('at the second try');
        }),
      ).toBe(2);
      model.always(drops);
      try {
        const answer = await generate('f-drop', { message: 'y' }, {}, other);
        expectProblem(answer, 502, 'model-failed');
      } finally {
        model.always(says('back'));
      }
      expect((await generate('f-drop', {})).body.content).toBe('back');
    });

    it('given a model that never answers, when its timeout is over, then 504, and the session stays usable', async () => {
      await create('f-time');
      model.next(neverAnswers);
      expectProblem(await generate('f-time', { message: 'x' }), 504, 'model-timeout');
      expect((await generate('f-time', {})).status).toBe(200);
      expect((await api.get<{ data: unknown[] }>('/v1/sessions/f-time/usage')).body.data).toMatchObject([
        { generations: 2, inputTokens: 10, outputTokens: 5 },
      ]);
    });

    it('given a chat without a session, when the model fails, then the problem names the session that was created', async () => {
      model.next(fails(500, 'no'));
      const problem = expectProblem(await api.post('/v1/chat', { message: 'x' }), 502, 'model-failed');
      const id = problem['sessionId'] as string;
      expect((await api.get<SessionAnswer>(`/v1/sessions/${id}`)).body.messageCount).toBe(1);
    });

    it('given all requests of this file, when log and events are searched, then neither holds the key', async () => {
      expect(world.output()).not.toContain(MODEL_KEY.slice(0, 8));
      const [found] = await world.database.query(
        'select count(*)::int as n from event where data::text like $1',
        [`%${MODEL_KEY.slice(0, 8)}%`],
      );
      expect(found).toEqual({ n: 0 });
      expect(world.output()).not.toMatch(/"level":"error"|GPU|sandals/);
    });
  });

  describe('while the model is working', () => {
    /** A session whose model was called and has not answered yet. */
    async function thinking(id: string, headers: Record<string, string> = {}, through = other) {
      await create(id);
      const reply = held(says('the reply'));
      model.next(reply.reply);
      const answer = generate(id, { message: 'question' }, headers, through);
      await reply.asked;
      return { reply, answer };
    }

    it('given a running generation, when another one is requested on either node, then 409 with Retry-After', async () => {
      const { reply, answer } = await thinking('w-1');
      expect(
        await asked(async () => {
          for (const through of [api, other]) {
            for (const busy of [
              await generate('w-1', { message: 'me too' }, {}, through),
              await through.post('/v1/chat', { message: 'me too', sessionId: 'w-1' }),
            ]) {
              expectProblem(busy, 409, 'session-busy');
              expect(busy.headers.get('retry-after')).toBe('1');
            }
          }
        }),
      ).toBe(0);
      reply.release();
      expect((await answer).status).toBe(200);
      expect(await texts(api, 'w-1')).toEqual(['question', 'the reply']);
      expect((await generate('w-1', { message: 'now' })).status).toBe(200);
    });

    it('given a node that does not know yet of a running generation, when another one is requested from it, then the model is not called', async () => {
      await create('w-old');
      // The node has a cached state of the session, and prepares the model call before the log shows that the session
      // is busy.
      await say(other, 'w-old', 'hello');
      const { reply, answer } = await thinking('w-old', {}, api);
      expect(
        await asked(async () => {
          const busy = await generate('w-old', { message: 'me too' }, {}, other);
          expectProblem(busy, 409, 'session-busy');
        }),
      ).toBe(0);
      reply.release();
      expect((await answer).status).toBe(200);
    });

    it('given a running generation, when messages are appended, then they stand before its reply, and the next turn sees all of them', async () => {
      const { reply, answer } = await thinking('w-2');
      expect((await say(api, 'w-2', 'one more thing')).status).toBe(201);
      expect((await api.patch('/v1/sessions/w-2', { title: 'T' })).status).toBe(200);
      expect(await texts(api, 'w-2')).toEqual(['question', 'one more thing']);
      reply.release();
      expect((await answer).body.message?.version).toBe(6);
      expect(model.last.messages).toEqual([user('question')]);
      expect(await texts(api, 'w-2')).toEqual(['question', 'one more thing', 'the reply']);
      await generate('w-2', {});
      expect(model.last.messages).toEqual([
        user('question\n\none more thing'),
        { role: 'assistant', content: 'the reply' },
      ]);
    });

    it('given messages that are appended while a turn starts, when the model is called, then it sees exactly those before the start', async () => {
      await create('w-race');
      for (let round = 0; round < 30; round += 1) {
        const [{ body }] = await Promise.all([
          generate('w-race', { message: `question ${round}` }),
          ...[api, other].map((through, n) => say(through, 'w-race', `aside ${round} ${n}`)),
        ]);
        const path = `/v1/sessions/w-race/generations/${body.generationId}`;
        const { prompt } = (await api.get<{ prompt: { messages: { content: string }[] } }>(path)).body;
        // Messages of the user in a row are sent as one.
        expect(model.last.messages.map(({ content }) => content).join('\n\n')).toEqual(
          prompt.messages.map(({ content }) => content).join('\n\n'),
        );
      }
    });

    it.each(['this node', 'the other node'])(
      'given a reply under way, when the session is reset on %s, then the reply is dropped and all goes on',
      async (where) => {
        const id = `w-3-${where.replaceAll(' ', '-')}`;
        const { reply, answer } = await thinking(id, {}, where === 'this node' ? api : other);
        expect((await api.post(`/v1/sessions/${id}/reset`)).status).toBe(200);
        // The next generation may be requested before the old reply arrives, and must not take the old reply for its
        // own.
        const second = held(says('the second'));
        model.next(second.reply);
        const anew = generate(id, { message: 'anew' });
        await second.asked;
        reply.release();
        const { status, body } = await answer;
        expect(status).toBe(200);
        expect(body).toMatchObject({ content: '', message: null, finishReason: 'cancelled', sessionId: id });
        second.release();
        expect((await anew).body.content).toBe('the second');
        expect(await texts(api, id)).toEqual(['anew', 'the second']);
        const events = await logged(world.database, id);
        const reset = events.findIndex((event) => event.type === 'ConversationReset');
        expect(events[reset - 1]?.type).toMatch(/^Generation(Cancelled|Failed)$/);
        const times = await world.database.query(
          'select count(distinct time)::int as n from event where stream_id = $1 and version in ($2, $3)',
          [id, reset, reset + 1],
        );
        expect(times).toEqual([{ n: 1 }]);
        expect(JSON.stringify(events)).not.toContain('the reply');
      },
    );

    it('given a running generation, when the session is deleted and created again, then the reply is dropped', async () => {
      const { reply, answer } = await thinking('w-4');
      expect((await api.delete('/v1/sessions/w-4')).status).toBe(204);
      await create('w-4');
      await say(api, 'w-4', 'second life');
      reply.release();
      expect([200, 404]).toContain((await answer).status);
      expect(await texts(api, 'w-4')).toEqual(['second life']);
      expect(await types('w-4')).toEqual([
        'SessionCreated',
        'MessageAppended',
        'GenerationStarted',
        'GenerationCancelled',
        'SessionDeleted',
        'SessionCreated',
        'MessageAppended',
      ]);
    });

    it('given a running generation, when the session is deleted, then its client gets 404', async () => {
      const { reply, answer } = await thinking('w-5');
      await api.delete('/v1/sessions/w-5');
      reply.release();
      expectProblem(await answer, 404, 'session-not-found');
      expect((await types('w-5')).slice(-2)).toEqual(['GenerationCancelled', 'SessionDeleted']);
    });

    it('given a running generation, when its client disconnects, then the reply is recorded all the same', async () => {
      await create('w-6');
      const reply = held(says('for nobody'));
      model.next(reply.reply);
      const controller = new AbortController();
      const gone = fetch(`${api.url}/v1/sessions/w-6/generate`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ message: 'question' }),
        signal: controller.signal,
      }).catch(() => 'gone');
      await reply.asked;
      controller.abort();
      expect(await gone).toBe('gone');
      reply.release();
      await eventually(async () => (await types('w-6')).at(-1) === 'GenerationCompleted');
      expect(await texts(api, 'w-6')).toEqual(['question', 'for nobody']);
    });

    it('given a node that is killed during a generation, when its lease has expired, then another node can take the next turn', async () => {
      const victim = await world.node();
      const key = { 'idempotency-key': 'killed' };
      await create('k-1');
      const reply = held(says('never recorded'));
      model.next(reply.reply);
      const answer = generate('k-1', { message: 'question' }, key, victim.api).catch(() => 'gone');
      await reply.asked;
      await victim.service.kill9();
      expect(await answer).toBe('gone');
      expectProblem(await generate('k-1', { message: 'too soon' }), 409, 'session-busy');
      await world.database.setClock({ offsetMs: LEASE_OVER_MS });
      const taken = await generate('k-1', { message: 'are you there?' });
      expect(taken.status).toBe(200);
      reply.release();
      expect(model.last.messages).toEqual([user('question\n\nare you there?')]);
      const events = await logged(world.database, 'k-1');
      expectWellFormed(events);
      expect(events.find((event) => event.type === 'GenerationFailed')?.data).toMatchObject({
        code: 'lease-expired',
      });
      // The request to the killed node has an outcome as well.
      expectProblem(await generate('k-1', { message: 'question' }, key), 502, 'model-failed');
      expect(JSON.stringify(await logged(world.database, 'k-1'))).not.toContain('never recorded');
    });

    it('given a node that is killed during a generation, when the request is sent again to another node, then it gets the failure', async () => {
      const victim = await world.node();
      const key = { 'idempotency-key': 'killed and asked again' };
      await create('k-2');
      const reply = held(says('never recorded'));
      model.next(reply.reply);
      const answer = generate('k-2', { message: 'question' }, key, victim.api).catch(() => 'gone');
      await reply.asked;
      await victim.service.kill9();
      await answer;
      // The retry attaches to the generation and waits, because the lease is still valid.
      const again = generate('k-2', { message: 'question' }, key);
      await world.database.setClock({ offsetMs: 2 * LEASE_OVER_MS });
      expectProblem(await again, 502, 'model-failed');
      reply.release();
      expect((await generate('k-2', {})).status).toBe(200);
      expect(model.last.messages).toEqual([user('question')]);
    });
  });

  describe('Idempotency-Key', () => {
    it('given a reply, when the request is sent again to either node, then the model is called only once', async () => {
      await create('i-1');
      const key = { 'idempotency-key': 'i-1' };
      model.next(says('only once'));
      expect(
        await asked(async () => {
          const first = await generate('i-1', { message: 'x' }, key);
          expect(first.body.content).toBe('only once');
          await say(api, 'i-1', 'later');
          for (const through of [api, other]) {
            const again = await generate('i-1', { message: 'x' }, key, through);
            expect([again.status, again.body]).toEqual([200, first.body]);
            expect(again.headers.get('etag')).toBe(first.headers.get('etag'));
          }
          expectProblem(await generate('i-1', { message: 'y' }, key), 409, 'idempotency-key-reused');
          expectProblem(
            await generate('i-1', { message: 'x', model: 'm' }, key),
            409,
            'idempotency-key-reused',
          );
        }),
      ).toBe(1);
      expect(await texts(api, 'i-1')).toEqual(['x', 'only once', 'later']);
    });

    it('given tool calls, when the request is sent again, then the same calls are returned', async () => {
      await create('i-2');
      const key = { 'idempotency-key': 'i-2' };
      model.next(callsTools([{ id: 'c', name: 'f', arguments: '{}' }]));
      const first = await generate('i-2', { message: 'x' }, key);
      const again = await generate('i-2', { message: 'x' }, key, other);
      expect(again.body).toEqual(first.body);
      expect(again.body.finishReason).toBe('tool_calls');
    });

    it('given a running generation, when the request is sent again to either node, then all requests get the same answer', async () => {
      await create('i-3');
      const key = { 'idempotency-key': 'i-3' };
      const reply = held(says('for all'));
      model.next(reply.reply);
      expect(
        await asked(async () => {
          const first = generate('i-3', { message: 'x' }, key, other);
          await reply.asked;
          const again = [api, other, api].map((through) => generate('i-3', { message: 'x' }, key, through));
          expectProblem(await generate('i-3', { message: 'y' }, key), 409, 'idempotency-key-reused');
          reply.release();
          const { body } = await first;
          expect(body.content).toBe('for all');
          for (const one of await Promise.all(again)) expect([one.status, one.body]).toEqual([200, body]);
        }),
      ).toBe(1);
    });

    it('given requests with one key at once on two nodes, when all are answered, then the model was called once', async () => {
      await create('i-4');
      const key = { 'idempotency-key': 'i-4' };
      expect(
        await asked(async () => {
          const answers = await Promise.all(
            Array.from({ length: 8 }, (_, index) =>
              generate('i-4', { message: 'x' }, key, index % 2 ? api : other),
            ),
          );
          expect(new Set(answers.map((answer) => answer.status))).toEqual(new Set([200]));
          expect(new Set(answers.map((answer) => answer.body.message?.id)).size).toBe(1);
        }),
      ).toBe(1);
      expect(await texts(api, 'i-4')).toHaveLength(2);
    });

    it('given a failure, when the request is sent again, then it gets the same failure; a new key without a message tries again', async () => {
      await create('i-5');
      const key = { 'idempotency-key': 'i-5' };
      model.next(fails(500, 'the GPU is cold'));
      expect(
        await asked(async () => {
          const first = expectProblem(await generate('i-5', { message: 'x' }, key), 502, 'model-failed');
          for (const through of [api, other]) {
            expect(
              expectProblem(await generate('i-5', { message: 'x' }, key, through), 502, 'model-failed'),
            ).toEqual(first);
          }
        }),
      ).toBe(1);
      expect((await generate('i-5', {}, { 'idempotency-key': 'i-5 again' })).status).toBe(200);
      expect(model.last.messages).toEqual([user('x')]);
      expectProblem(await generate('i-5', { message: 'x' }, key), 502, 'model-failed');
    });

    it('given a reply that a reset dropped, when the request is sent again, then the answer says that it was cancelled', async () => {
      await create('i-6');
      const key = { 'idempotency-key': 'i-6' };
      const reply = held(says('dropped'));
      model.next(reply.reply);
      const first = generate('i-6', { message: 'x' }, key);
      await reply.asked;
      await api.post('/v1/sessions/i-6/reset');
      reply.release();
      const { body } = await first;
      expect(body.finishReason).toBe('cancelled');
      expect((await generate('i-6', { message: 'x' }, key, other)).body).toEqual(body);
    });

    it('given a busy session, when a request with a key is refused, then the key can be used again', async () => {
      await create('i-7');
      const reply = held(says('first'));
      model.next(reply.reply);
      const first = generate('i-7', { message: 'x' });
      await reply.asked;
      const key = { 'idempotency-key': 'i-7' };
      expectProblem(await generate('i-7', { message: 'y' }, key), 409, 'session-busy');
      reply.release();
      await first;
      expect((await generate('i-7', { message: 'y' }, key)).status).toBe(200);
    });

    it('given a chat without a session, when it is sent again, also to the other node, then session and answer are the same', async () => {
      const key = { 'idempotency-key': 'chat-1' };
      model.next(says('one answer'));
      expect(
        await asked(async () => {
          const first = await api.post<Chat>('/v1/chat', { message: 'x' }, key);
          expect(first.body.response).toBe('one answer');
          for (const through of [api, other]) {
            expect((await through.post<Chat>('/v1/chat', { message: 'x' }, key)).body).toEqual(first.body);
          }
          expectProblem(await api.post('/v1/chat', { message: 'y' }, key), 409, 'idempotency-key-reused');
          expect(await texts(api, first.body.sessionId)).toEqual(['x', 'one answer']);
          // A session that was deleted since stays deleted.
          await api.delete(`/v1/sessions/${first.body.sessionId}`);
          expect((await other.post<Chat>('/v1/chat', { message: 'x' }, key)).body).toEqual(first.body);
          expectProblem(await api.get(`/v1/sessions/${first.body.sessionId}`), 404, 'session-not-found');
        }),
      ).toBe(1);
    });

    it('given chats with one key at once on two nodes, when all are answered, then there is one session and one reply', async () => {
      const key = { 'idempotency-key': 'chat-2' };
      expect(
        await asked(async () => {
          const answers = await Promise.all(
            Array.from({ length: 8 }, (_, index) =>
              (index % 2 ? api : other).post<Chat>('/v1/chat', { message: 'x' }, key),
            ),
          );
          expect(answers.map((answer) => answer.status)).toEqual(answers.map(() => 200));
          expect(new Set(answers.map((answer) => answer.text)).size).toBe(1);
        }),
      ).toBe(1);
    });
  });
});
