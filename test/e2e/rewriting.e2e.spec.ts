import { callsTools, type FakeOpenAi, held, says } from '../support/fake-openai.js';
import { type Api, expectProblem } from '../support/http.js';
import {
  createWorld,
  type GeneratedAnswer,
  logged,
  type MessageView,
  say,
  type SessionAnswer,
  texts,
  user,
  type World,
} from './fixture.js';

interface Page {
  readonly data: readonly MessageView[];
  readonly nextCursor: string | null;
}

describe('a history that is changed', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;
  /** Another node on the same database. */
  let other: Api;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    model.beStrict();
    [{ api }, { api: other }] = await Promise.all([world.node(), world.node()]);
  });
  afterAll(async () => {
    expect(model.faults).toEqual([]);
    await world.end();
  });

  const create = (id: string) => api.post('/v1/sessions', { id });
  const messages = async (id: string, query = ''): Promise<readonly MessageView[]> =>
    (await api.get<Page>(`/v1/sessions/${id}/messages?limit=200&${query}`)).body.data;
  const remove = (id: string, messageId: string, headers: Record<string, string> = {}, through = api) =>
    through.delete(`/v1/sessions/${id}/messages/${messageId}`, headers);
  const rewind = (id: string, body: object, headers: Record<string, string> = {}) =>
    api.post<SessionAnswer>(`/v1/sessions/${id}/rewind`, body, headers);
  const generate = (id: string, body: object, headers: Record<string, string> = {}) =>
    api.post<GeneratedAnswer>(`/v1/sessions/${id}/generate`, body, headers);
  const types = async (id: string) => (await logged(world.database, id)).map(({ type }) => type);
  const prompt = () => model.last.messages.map(({ content }) => content);

  describe('by removing a message', () => {
    it('given a message, when it is removed, then it is in no answer and no prompt, and the log and `at=` have it', async () => {
      await create('r-1');
      for (const text of ['one', 'two', 'three']) await say(api, 'r-1', text);
      const [, two] = await messages('r-1');

      const removed = await remove('r-1', two?.id ?? '');

      expect({ status: removed.status, etag: removed.headers.get('etag') }).toEqual({
        status: 204,
        etag: '"5"',
      });
      expect(await texts(api, 'r-1')).toEqual(['one', 'three']);
      expect(await texts(other, 'r-1')).toEqual(['one', 'three']);
      expect((await messages('r-1', 'order=desc')).map(({ content }) => content)).toEqual(['three', 'one']);
      expect((await api.get<SessionAnswer>('/v1/sessions/r-1')).body.messageCount).toBe(2);
      const listed = await api.get<{ data: SessionAnswer[] }>('/v1/sessions');
      expect(listed.body.data.find(({ id }) => id === 'r-1')?.messageCount).toBe(2);
      expect((await messages('r-1', 'at=4')).map(({ content }) => content)).toEqual(['one', 'two', 'three']);
      const found = await api.get<{ data: unknown[] }>('/v1/search?q=two');
      expect(found.body.data).toEqual([]);
      expect((await logged(world.database, 'r-1')).at(-1)).toMatchObject({
        type: 'MessageRemoved',
        data: { messageId: two?.id, versions: [3] },
      });
      await generate('r-1', { message: 'four' });
      // What the user said in a row is one message for a model with templates.
      expect(prompt()).toEqual(['one\n\nthree\n\nfour']);
    });

    it('given a tool call with results, when the call or one of its results is removed, then all of them leave together', async () => {
      for (const victim of [0, 1, 2]) {
        const id = `r-2-${victim}`;
        await create(id);
        await say(api, id, 'before');
        model.next(
          callsTools([
            { id: 'a', name: 'search', arguments: '{}' },
            { id: 'b', name: 'search', arguments: '{}' },
          ]),
        );
        await generate(id, {});
        await api.post(`/v1/sessions/${id}/messages`, {
          messages: ['b', 'a'].map((toolCallId) => ({
            role: 'tool',
            toolCallId,
            content: `of ${toolCallId}`,
          })),
        });
        await say(api, id, 'after');
        const exchange = (await messages(id)).filter(({ role }) => role === 'assistant' || role === 'tool');

        expect((await remove(id, exchange[victim]?.id ?? '')).status).toBe(204);

        expect(await texts(api, id)).toEqual(['before', 'after']);
        expect((await logged(world.database, id)).at(-1)?.data).toEqual({
          messageId: exchange[victim]?.id,
          versions: exchange.map(({ version }) => version),
        });
        expect((await generate(id, {})).status).toBe(200);
      }
    });

    it('given a tool call without a result, when it is removed, then its result is refused, and the next turn makes none up', async () => {
      await create('r-3');
      model.next(callsTools([{ id: 'open', name: 'search', arguments: '{}' }]));
      const { body } = await generate('r-3', { message: 'search' });
      await remove('r-3', body.message?.id ?? '');
      const result = { role: 'tool', toolCallId: 'open', content: 'late' };
      expectProblem(await api.post('/v1/sessions/r-3/messages', result), 400, 'invalid-request');
      await generate('r-3', { message: 'again' });
      expect(await texts(api, 'r-3')).toEqual(['search', 'again', expect.any(String)]);
    });

    it('given an id that the history does not have, when it is removed, then 404, and nothing changes', async () => {
      await create('r-4');
      await say(api, 'r-4', 'one');
      const [one] = await messages('r-4');
      expectProblem(await remove('r-4', 'msg_unknown'), 404, 'not-found');
      expectProblem(await remove('nobody', one?.id ?? ''), 404, 'session-not-found');
      await remove('r-4', one?.id ?? '');
      expectProblem(await remove('r-4', one?.id ?? ''), 404, 'not-found');
      await say(api, 'r-4', 'two');
      const [two] = await messages('r-4');
      await api.post('/v1/sessions/r-4/reset', {});
      expectProblem(await remove('r-4', two?.id ?? ''), 404, 'not-found');
      expect(await types('r-4')).toEqual([
        'SessionCreated',
        'MessageAppended',
        'MessageRemoved',
        'MessageAppended',
        'ConversationReset',
      ]);
    });

    it('given a removal that is repeated with its key, or made for another version, then it happens once, or not at all', async () => {
      await create('r-5');
      await say(api, 'r-5', 'one');
      await say(api, 'r-5', 'two');
      const [one, two] = await messages('r-5');
      expectProblem(await remove('r-5', one?.id ?? '', { 'if-match': '"2"' }), 412, 'version-mismatch');
      const key = { 'idempotency-key': 'once' };
      expect((await remove('r-5', one?.id ?? '', { ...key, 'if-match': '"3"' })).status).toBe(204);
      const again = await remove('r-5', one?.id ?? '', key, other);
      expect({ status: again.status, etag: again.headers.get('etag') }).toEqual({ status: 204, etag: '"4"' });
      expect((await messages('r-5')).map(({ id }) => id)).toEqual([two?.id]);
    });

    it('given two nodes that remove different messages at once, when both are answered, then both are gone', async () => {
      await create('r-6');
      const texts = Array.from({ length: 20 }, (_, n) => `m${n}`);
      await api.post('/v1/sessions/r-6/messages', { messages: texts.map(user) });
      const all = await messages('r-6');
      const removed = await Promise.all(
        all.slice(0, 16).map(({ id }, index) => remove('r-6', id, {}, index % 2 ? api : other)),
      );
      expect(removed.map(({ status }) => status)).toEqual(removed.map(() => 204));
      expect((await messages('r-6')).map(({ content }) => content)).toEqual(['m16', 'm17', 'm18', 'm19']);
      expect((await api.get<SessionAnswer>('/v1/sessions/r-6')).body.messageCount).toBe(4);
    });
  });

  describe('by rewinding', () => {
    it('given a conversation, when it is rewound, then what came after is gone, and what is said next follows', async () => {
      await create('w-1');
      await generate('w-1', { message: 'one' });
      await generate('w-1', { message: 'two' });
      const [, answer] = await messages('w-1');

      const rewound = await rewind('w-1', { toVersion: answer?.version, reason: 'edited' });

      expect(rewound).toMatchObject({ status: 200, body: { messageCount: 2 } });
      expect(rewound.headers.get('etag')).toBe(`"${rewound.body.version}"`);
      expect((await logged(world.database, 'w-1')).at(-1)).toMatchObject({
        type: 'HistoryRewound',
        data: { toVersion: answer?.version, reason: 'edited', messageCount: 2 },
      });
      await generate('w-1', { message: 'another two' });
      expect(prompt()).toEqual(['one', answer?.content, 'another two']);
      expect(await texts(api, 'w-1')).toEqual(['one', answer?.content, 'another two', expect.any(String)]);
      expect((await messages('w-1', `at=${rewound.body.version - 1}`)).map(({ content }) => content)).toEqual(
        ['one', answer?.content, 'two', expect.any(String)],
      );
    });

    it('given a place between a tool call and its result, when it is rewound there, then the call waits for a result again', async () => {
      await create('w-2');
      model.next(callsTools([{ id: 'c', name: 'search', arguments: '{}' }]));
      const { body } = await generate('w-2', { message: 'search' });
      const result = (content: string) => ({ role: 'tool', toolCallId: 'c', content });
      await api.post('/v1/sessions/w-2/messages', result('wrong'));
      await generate('w-2', {});
      await rewind('w-2', { toVersion: body.message?.version });
      expect((await api.post('/v1/sessions/w-2/messages', result('right'))).status).toBe(201);
      await generate('w-2', {});
      expect(prompt().slice(-1)).toEqual(['right']);
    });

    it('given a version outside of the present history, when it is rewound there, then 400, and nothing changes', async () => {
      await create('w-3');
      await say(api, 'w-3', 'one');
      await api.post('/v1/sessions/w-3/reset', {});
      await say(api, 'w-3', 'two');
      for (const toVersion of [2, 5, 0, 1.5, 'x']) {
        const { body } = await rewind('w-3', { toVersion });
        expect(body).toMatchObject({ code: 'invalid-request', errors: [{ pointer: '/toVersion' }] });
      }
      expect((await rewind('w-3', { toVersion: 4 })).body.version).toBe(4);
      expect((await rewind('w-3', { toVersion: 3 })).body).toMatchObject({ version: 5, messageCount: 0 });
      expect(await texts(api, 'w-3')).toEqual([]);
    });

    it('given a generation that runs, when a message is removed or the history is rewound, then 409, and afterwards it works', async () => {
      await create('w-4');
      await say(api, 'w-4', 'one');
      const [one] = await messages('w-4');
      const reply = held(says('late'));
      model.next(reply.reply);
      const answer = generate('w-4', { message: 'two' });
      await reply.asked;
      expectProblem(await remove('w-4', one?.id ?? '', {}, other), 409, 'session-busy');
      expectProblem(await rewind('w-4', { toVersion: 2 }), 409, 'session-busy');
      reply.release();
      await answer;
      expect((await remove('w-4', one?.id ?? '', {}, other)).status).toBe(204);
      expect((await rewind('w-4', { toVersion: 3 })).body.messageCount).toBe(1);
      expect(await texts(api, 'w-4')).toEqual(['two']);
    });

    it('given a fork of a version, when it is made, then it has the messages that the history had then', async () => {
      await create('w-5');
      for (const text of ['one', 'two', 'three']) await say(api, 'w-5', text);
      const [one] = await messages('w-5');
      await remove('w-5', one?.id ?? '');
      await rewind('w-5', { toVersion: 3 });
      const fork = async (id: string, body: object) => {
        await api.post('/v1/sessions/w-5/fork', { id, ...body });
        return texts(api, id);
      };
      expect(await fork('w-5-4', { at: 4 })).toEqual(['one', 'two', 'three']);
      expect(await fork('w-5-5', { at: 5 })).toEqual(['two', 'three']);
      expect(await fork('w-5-6', {})).toEqual(['two']);
    });
  });

  describe('by asking again', () => {
    it('given a reply, when it is asked for again, then the new one takes its place, and the trail and both prompts are kept', async () => {
      await create('g-1');
      model.next(says('first'), says('second'));
      const first = await generate('g-1', { message: 'ask' });
      const second = await generate('g-1', { regenerate: true });

      expect(second).toMatchObject({ status: 200, body: { content: 'second' } });
      expect(await texts(api, 'g-1')).toEqual(['ask', 'second']);
      expect(prompt()).toEqual(['ask']);
      expect(await types('g-1')).toEqual([
        'SessionCreated',
        'MessageAppended',
        'GenerationStarted',
        'MessageAppended',
        'GenerationCompleted',
        'HistoryRewound',
        'GenerationStarted',
        'MessageAppended',
        'GenerationCompleted',
      ]);
      for (const { body } of [first, second]) {
        const described = await api.get<{ prompt: { messages: { content: string }[] } }>(
          `/v1/sessions/g-1/generations/${body.generationId}`,
        );
        expect(described.body.prompt.messages.map(({ content }) => content)).toEqual(['ask']);
      }
    });

    it('given no reply yet, when it is asked for again, then the last message is answered; and with a message or without any, 400', async () => {
      await create('g-2');
      expectProblem(await generate('g-2', { regenerate: true }), 400, 'invalid-request');
      await say(api, 'g-2', 'ask');
      expect((await generate('g-2', { regenerate: true })).status).toBe(200);
      expect(await types('g-2')).not.toContain('HistoryRewound');
      const both = await generate('g-2', { regenerate: true, message: 'more' });
      expect(both.body).toMatchObject({ code: 'invalid-request', errors: [{ pointer: '/regenerate' }] });
    });

    it('given a retry with the same key, when it is asked for again, then the history is rewound once', async () => {
      await create('g-3');
      await generate('g-3', { message: 'ask' });
      const key = { 'idempotency-key': 'again' };
      const [one, two] = [
        await generate('g-3', { regenerate: true }, key),
        await generate('g-3', { regenerate: true }, key),
      ];
      expect(two.body.generationId).toBe(one.body.generationId);
      expect((await types('g-3')).filter((type) => type === 'HistoryRewound')).toHaveLength(1);
    });

    it('given the call of a tool as the last reply, when it is asked for again, then its results leave with it', async () => {
      await create('g-4');
      model.next(callsTools([{ id: 'c', name: 'search', arguments: '{}' }]), says('without a tool'));
      await generate('g-4', { message: 'ask' });
      await api.post('/v1/sessions/g-4/messages', { role: 'tool', toolCallId: 'c', content: 'found' });
      expect((await generate('g-4', { regenerate: true })).body.content).toBe('without a tool');
      expect(await texts(api, 'g-4')).toEqual(['ask', 'without a tool']);
    });
  });
});
