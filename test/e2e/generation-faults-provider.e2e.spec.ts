import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  callsTools,
  type ChatMessage,
  conducted,
  drops,
  echoesPrompt,
  fails,
  type FakeOpenAi,
  floods,
  held,
  type HeldReply,
  neverAnswers,
  refuses,
  type Reply,
  says,
  sends,
} from '../support/fake-openai.js';
import { openEvents } from '../support/event-stream.js';
import { type Api, eventually, expectProblem } from '../support/http.js';
import {
  createWorld,
  expectWellFormed,
  FULL,
  type GeneratedAnswer,
  logged,
  MODEL_KEY,
  type SessionAnswer,
  texts,
  user,
  type World,
} from './fixture.js';

const TIMEOUT_MS = 1_500;
const OUTPUT_BYTES = 2_000;
const piece = (delta: object, finish: string | null = null) =>
  `data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`;
const page =
  (status: number): Reply =>
  (_, response) => {
    const html = '<!doctype html><html><title>Gateway</title></html>';
    response.writeHead(status, { 'content-type': 'text/html', 'x-should-retry': 'false' }).end(html);
  };
const stream =
  (...bytes: string[]): Reply =>
  (_, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    for (const one of bytes) response.write(one);
    response.end();
  };

describe('what a model provider does', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    model.beStrict();
    const folder = await world.folder();
    await writeFile(
      join(folder, 'colloquy.yml'),
      `llm: { timeoutMs: ${TIMEOUT_MS}, maxOutputBytes: ${OUTPUT_BYTES} }\nsessions: { maxSessions: 100000 }`,
    );
    ({ api } = await world.node({}, folder));
  });
  afterAll(() => world.end());
  afterEach(() => {
    expect(model.faults).toEqual([]);
  });

  const create = (id: string) => api.post('/v1/sessions', { id });
  const generate = (id: string, body: object = { message: 'hi' }, through = api) =>
    through.post<GeneratedAnswer>(`/v1/sessions/${id}/generate`, body);

  async function usable(id: string): Promise<void> {
    expect((await generate(id, { message: 'and now?' })).status).toBe(200);
    expectWellFormed(await logged(world.database, id));
  }

  describe('temporary refusals', () => {
    it.each([
      // These pauses are longer than the default pause would be.
      ['429 with Retry-After', [refuses(429, { 'retry-after': '0.9' })], 900],
      ['429 with a date', [refuses(429, { 'retry-after': new Date(0).toUTCString() })], 0],
      ['500 twice', [refuses(500), refuses(503, { 'retry-after-ms': '50' })], 50],
      ['a broken connection', [drops], 0],
    ])(
      'given %s, when the model is called, then it is called again after the pause',
      async (name, replies, atLeastMs) => {
        const id = `t-${name.replaceAll(/\W/g, '')}`;
        await create(id);
        const before = model.requests.length;
        const began = performance.now();
        model.next(...replies, says('at last'));
        const answer = await generate(id);
        expect(answer.body.content).toBe('at last');
        expect(performance.now() - began).toBeGreaterThanOrEqual(atLeastMs);
        expect(model.requests.length - before).toBe(replies.length + 1);
        expect(await texts(api, id)).toEqual(['hi', 'at last']);
      },
    );

    it('given a pause that is longer than the timeout, when the model is called, then the call fails at once', async () => {
      await create('t-long');
      model.next(refuses(429, { 'retry-after': '3600' }));
      const began = performance.now();
      expectProblem(await generate('t-long'), 502, 'model-failed');
      expect(performance.now() - began).toBeLessThan(TIMEOUT_MS);
      await usable('t-long');
    });

    it('given a pause, when the generation is cancelled meanwhile, then the pause ends at once', async () => {
      await create('t-cancel');
      const refused = held(refuses(429, { 'retry-after': '1.4' }));
      model.next(refused.reply);
      const answer = generate('t-cancel');
      await refused.asked;
      refused.release();
      const began = performance.now();
      await api.post('/v1/sessions/t-cancel/cancel');
      expect((await answer).body.finishReason).toBe('cancelled');
      expect(performance.now() - began).toBeLessThan(1_400);
      await usable('t-cancel');
    });

    it('given a permanent refusal, when the model is called, then it is called once', async () => {
      await create('t-once');
      const before = model.requests.length;
      model.next(refuses(404));
      expectProblem(await generate('t-once', { message: 'hi', model: 'no-such-model' }), 502, 'model-failed');
      expect(model.requests.length - before).toBe(1);
      expect(model.last.model).toBe('no-such-model');
      await usable('t-once');
    });
  });

  describe('answers that cannot be used', () => {
    const bad: [string, Reply, number, RegExp][] = [
      ['broken JSON in its stream', stream('data: {"choices": [\n\n'), 502, /cannot be read/],
      ['JSON that is no piece', stream('data: {"choices": 5}\n\n'), 502, /broke off/],
      ['no stream', sends('{"choices": []}'), 502, /broke off/],
      ['an end without a reason', stream(piece({ content: 'abc' })), 502, /broke off/],
      ['an error after it had begun', stream(piece({ content: 'abc' }), 'data: {"error": {"message": "GPU lost"}}\n\n'), 502, /GPU lost/],
      ['a page of HTML', page(200), 502, /a page of HTML: Gateway/],
      ['a page of HTML as an error', page(403), 502, /403 a page of HTML: Gateway/],
      ['an error with a code alone', fails(400, ''), 502, /400 fake/],
      ['an error in place of a stream', sends('{"error": {"code": "gone"}}'), 502, /gone/],
      ['an event of the name error', stream(piece({ content: 'abc' }), 'event: error\ndata: {"message": "GPU lost"}\n\n'), 502, /GPU lost/],
      ['too many tool calls', callsTools(Array.from({ length: 129 }, (_, n) => ({ id: `c${n}`, name: 'a', arguments: '' }))), 502, /129 tool calls|longer/],
      ['nothing at all', neverAnswers, 504, /no sign/],
      ['comments for ever', floods(200, ': alive\n\n'), 504, /no sign/],
      ['text for ever', floods(200, piece({ content: 'abcdefghij' })), 502, /longer than 2000 bytes/],
      ['arguments for ever', floods(200, piece({ tool_calls: [{ index: 0, function: { arguments: 'xxxxxxxxxx' } }] })), 502, /longer/],
      ['empty pieces for ever', floods(200, piece({})), 502, /longer/],
      ['a line without an end', floods(200, 'data: aaaaaaaaaaaaaaaaaaaa'), 502, /longer/],
      ['an error without an end', floods(400, 'no no no no no no no '), 502, /answered/],
    ]; // prettier-ignore
    it.each(bad)(
      'given a model that sends %s, when it is called, then the answer is a problem, and the session stays usable',
      async (name, reply, status, detail) => {
        const id = `b-${name.replaceAll(/\W/g, '-')}`;
        await create(id);
        model.next(reply);
        const answer = await generate(id);
        const code = status === 504 ? 'model-timeout' : 'model-failed';
        expect(expectProblem(answer, status, code).detail).toMatch(detail);
        await usable(id);
        for (const content of await texts(api, id))
          expect(String(content).length).toBeLessThanOrEqual(OUTPUT_BYTES);
      },
    );

    it('given text, ids and reasons with characters that cannot be stored, when they arrive, then the rest is stored', async () => {
      await create('b-nul');
      model.next(
        stream(
          piece({ content: 'a\u0000b\ud83d' }),
          piece({
            tool_calls: [
              { index: 0, id: 'c\u00001', function: { name: 'look', arguments: '"\u0000\udc00"' } },
            ],
          }),
          piece({}, 'tool\u0000calls'),
        ),
      );
      const answer = await generate('b-nul', { message: 'hi', tools: [{ name: 'look' }] });
      expect(answer.status).toBe(200);
      expect(answer.body).toMatchObject({
        content: 'ab\ufffd',
        finishReason: 'toolcalls',
        message: { toolCalls: [{ id: 'c1', name: 'look', arguments: '"\ufffd"' }] },
      });
      model.next(fails(400, `no \u0000 good \ud83d ${'x'.repeat(600)}`));
      expectProblem(await generate('b-nul', { message: 'more' }), 502, 'model-failed');
      expect((await logged(world.database, 'b-nul')).at(-1)?.type).toBe('GenerationFailed');
      await usable('b-nul');
    });

    it('given a stream that stops in the middle, when the timeout is over, then 504, and the text that had arrived is kept', async () => {
      await create('b-stall');
      const reply = conducted();
      model.next(reply.reply);
      const answer = generate('b-stall');
      await reply.asked;
      reply.say('so far');
      expectProblem(await answer, 504, 'model-timeout');
      await reply.abandoned;
      expect(await texts(api, 'b-stall')).toEqual(['hi', 'so far']);
      await usable('b-stall');
    });
  });

  describe('keys', () => {
    it('given errors that quote the key, when they are answered, streamed, recorded and logged, then none of these holds the key', async () => {
      const other = 'sk-proj-AbCdEf0123456789';
      for (const [index, text] of [
        `Incorrect API key provided: ${MODEL_KEY}.`,
        `Incorrect API key provided: ${MODEL_KEY.slice(0, 8)}****${MODEL_KEY.slice(-4)}`,
        `{"key":"${MODEL_KEY}","hint":"${other}"}`,
        `Authorization: Bearer ${MODEL_KEY}`,
      ].entries()) {
        const id = `key-${index}`;
        await create(id);
        model.next(fails(401, text));
        const answer = await generate(id);
        model.next(
          stream(piece({ content: 'x' }), `data: ${JSON.stringify({ error: { message: text } })}\n\n`),
        );
        const events = await (
          await openEvents(`${api.url}/v1/sessions/${id}/generate`, { body: { message: 'again' } })
        ).rest();
        const seen = JSON.stringify([
          answer.body,
          events,
          await logged(world.database, id),
          (await api.get(`/v1/sessions/${id}/generations/${String(events[0]?.data['generationId'])}`)).body,
          world.output(),
        ]);
        for (const secret of [MODEL_KEY, MODEL_KEY.slice(0, 8), MODEL_KEY.slice(-4), other]) {
          expect(seen).not.toContain(secret);
        }
      }
    });
  });

  describe('the limit of parallel calls', () => {
    it('given a limit, when more calls are requested, then they wait, and a cancelled one leaves the queue', async () => {
      const folder = await world.folder();
      await writeFile(join(folder, 'colloquy.yml'), 'llm: { maxConcurrency: 2 }');
      const { api: narrow } = await world.node({ MAX_SESSIONS: '1000' }, folder);
      const replies: HeldReply[] = Array.from({ length: 3 }, (_, n) => held(says(`reply ${n}`)));
      model.next(...replies.map((one) => one.reply));
      const before = model.requests.length;
      const answers = [];
      for (let n = 0; n < 4; n += 1) {
        await create(`n-${n}`);
        const streaming = await openEvents(`${narrow.url}/v1/sessions/n-${n}/generate`, {
          body: { message: 'hi' },
        });
        await streaming.next();
        answers.push(streaming);
      }
      await Promise.all(replies.slice(0, 2).map((one) => one.asked));
      expect(model.requests.length - before).toBe(2);
      await narrow.post('/v1/sessions/n-2/cancel');
      expect((await answers[2]?.rest())?.[0]).toMatchObject({ event: 'generation.cancelled' });
      expect(model.requests.length - before).toBe(2);
      replies[0]?.release();
      await replies[2]?.asked;
      expect(model.requests.length - before).toBe(3);
      for (const one of replies) one.release();
      for (const n of [0, 1, 3]) expect((await answers[n]?.rest())?.at(-1)?.event).toBe('message.completed');
      expect(model.requests.length - before).toBe(3);
    });
  });

  describe('usage', () => {
    it('given a stream, when it ends, then its usage is recorded; a provider that reports none causes no error', async () => {
      await create('u-1');
      const reply = conducted();
      model.next(reply.reply);
      const answer = generate('u-1');
      await reply.asked;
      reply.say('x');
      reply.end({ prompt_tokens: 7, completion_tokens: 8, prompt_tokens_details: { cached_tokens: 2 } });
      const usage = { inputTokens: 7, outputTokens: 8, cachedTokens: 2 };
      expect((await answer).body.usage).toEqual(usage);
      const silent = conducted();
      model.next(silent.reply);
      const next = generate('u-1');
      await silent.asked;
      silent.end(null);
      expect((await next).body).toMatchObject({ usage: null, content: '' });
      expect((await api.get<SessionAnswer>('/v1/sessions/u-1')).body.usage).toMatchObject(usage);
    });
  });

  describe('titles', () => {
    const title = (id: string, body?: object, headers = {}) =>
      api.post<SessionAnswer>(`/v1/sessions/${id}/title`, body, headers);

    it('given a conversation, when a title is requested, then the model makes one, and an existing title stays unless overwrite is set', async () => {
      await create('ti-1');
      expect((await title('ti-1')).body.title).toBeNull();
      await generate('ti-1');
      model.next(says(' About nothing \nand more'));
      const key = { 'idempotency-key': 'title' };
      expect((await title('ti-1', undefined, key)).body.title).toBe('About nothing');
      const before = model.requests.length;
      expect((await title('ti-1', undefined, key)).body.title).toBe('About nothing');
      expect((await title('ti-1')).body.title).toBe('About nothing');
      expect(model.requests.length).toBe(before);
      model.next(says('😀'.repeat(150)));
      expect((await title('ti-1', { overwrite: true })).body.title).toBe('😀'.repeat(150));
      model.next(says(`a${'😀'.repeat(200)}`));
      expect((await title('ti-1', { overwrite: true })).status).toBe(200);
      expect(model.last.messages.slice(1)).toEqual([
        { role: 'user', content: expect.stringContaining('user: hi') as string },
      ]);
    });

    it('given a title that a client sets while the model is working, when the model has made one, then the title of the client stays', async () => {
      await create('ti-2');
      await generate('ti-2');
      const reply = held(says('Late'));
      model.next(reply.reply);
      const made = title('ti-2');
      await reply.asked;
      await api.patch('/v1/sessions/ti-2', { title: 'Mine' });
      reply.release();
      expect((await made).body.title).toBe('Mine');
      expect((await api.get('/v1/sessions/ti-2')).body['title']).toBe('Mine');
    });

    it('given a model that fails, when a title is requested, then 502, and nothing has changed', async () => {
      await create('ti-3');
      await generate('ti-3');
      const before = await logged(world.database, 'ti-3');
      model.next(fails(400, 'no'));
      expectProblem(await title('ti-3'), 502, 'model-failed');
      expectProblem(await title('nobody'), 404, 'session-not-found');
      expect(await logged(world.database, 'ti-3')).toEqual(before);
    });
  });

  describe('bad input', () => {
    it('given a session, when a generation is requested with bad input, then 400 names the place, and nothing has changed', async () => {
      await create('i-1');
      const before = await logged(world.database, 'i-1');
      const asked = model.requests.length;
      const result = { role: 'tool', toolCallId: 'nothing', content: 'x' };
      for (const [body, pointer] of [
        [{ message: '' }, '/message'],
        [{}, '/message'],
        [{ message: { role: 'user', content: '' } }, '/message/content'],
        [{ message: result }, '/message/toolCallId'],
        [{ message: 'x', model: '' }, '/model'],
        [{ message: 'x', model: 'two words' }, '/model'],
        [{ message: 'x', tools: [{ name: 'a' }, { name: 'a' }] }, '/tools'],
        [{ message: 'x', tools: [{ name: 'a b' }] }, '/tools/0/name'],
        [{ message: 'x', onBusy: 'wait' }, '/onBusy'],
        [{ message: 'x', surprise: 1 }, '/surprise'],
      ] as const) {
        expectProblem(await generate('i-1', body), 400, 'invalid-request', pointer);
      }
      expectProblem(await api.post('/v1/sessions/i-1/messages', result), 400, 'invalid-request');
      expectProblem(await api.delete('/v1/sessions/i-1/approvals/nothing'), 404, 'not-found');
      expectProblem(await api.put('/v1/sessions/i-1/approvals/no%20tool', {}), 400, 'invalid-request');
      expectProblem(
        await api.put('/v1/sessions/i-1/approvals/a', { scope: 'twice' }),
        400,
        'invalid-request',
        '/scope',
      );
      expectProblem(
        await api.put('/v1/sessions/i-1/approvals/a', { expiresAt: '2001-01-01T00:00:00Z' }),
        400,
        'invalid-request',
        '/expiresAt',
      );
      expectProblem(await api.put('/v1/sessions/nobody/approvals/a', {}), 404, 'session-not-found');
      expectProblem(await api.post('/v1/chat', { message: '' }), 400, 'invalid-request', '/message');
      expect(await logged(world.database, 'i-1')).toEqual(before);
      expect(model.requests.length).toBe(asked);
      await usable('i-1');
    });
  });

  describe('approvals', () => {
    const tools = [{ name: 'pay', approval: 'required' }];
    const approvals = async (id: string) =>
      (await api.get<{ data: object[] }>(`/v1/sessions/${id}/approvals`)).body.data;
    let calls = 0;
    const call = async (id: string) => {
      calls += 1;
      model.next(callsTools([{ id: `p${calls}`, name: 'pay', arguments: '{}' }]));
      const answer = await generate(id, { message: 'pay', tools });
      const [made] = (answer.body.message as { toolCalls: { approval: string }[] }).toolCalls;
      await api.post(`/v1/sessions/${id}/messages`, {
        role: 'tool',
        toolCallId: `p${calls}`,
        content: 'done',
      });
      return made?.approval;
    };

    it('given approvals of every scope, when the tool is called, then each holds for its scope', async () => {
      await create('a-1');
      expect(await call('a-1')).toBe('required');
      expect((await api.put('/v1/sessions/a-1/approvals/pay')).body).toEqual({ tool: 'pay', scope: 'once' });
      expect(await call('a-1')).toBe('granted');
      expect(await call('a-1')).toBe('required');
      await api.put('/v1/sessions/a-1/approvals/pay', { scope: 'session' });
      expect(await call('a-1')).toBe('granted');
      expect(await call('a-1')).toBe('granted');
      expect((await api.delete('/v1/sessions/a-1/approvals/pay')).status).toBe(204);
      expect(await call('a-1')).toBe('required');
      const expiresAt = new Date(Date.now() + 60_000).toISOString();
      await api.put('/v1/sessions/a-1/approvals/pay', { scope: 'session', expiresAt });
      expect(await call('a-1')).toBe('granted');
      await world.database.setClock({ offsetMs: 61_000 });
      expect(await call('a-1')).toBe('required');
      await world.database.setClock({ offsetMs: 0 });
      const types = (await logged(world.database, 'a-1')).map(({ type }) => type);
      expect(types.filter((type) => type.startsWith('ToolApproval'))).toEqual([
        'ToolApprovalGranted',
        'ToolApprovalGranted',
        'ToolApprovalRevoked',
        'ToolApprovalGranted',
      ]);
    });

    it('given an approval, when the session is reset, or deleted and created again, then the approval is gone', async () => {
      await create('a-2');
      await api.put('/v1/sessions/a-2/approvals/pay', { scope: 'session' });
      expect(await approvals('a-2')).toHaveLength(1);
      await api.post('/v1/sessions/a-2/reset');
      expect(await approvals('a-2')).toEqual([]);
      expect(await call('a-2')).toBe('required');
      await api.put('/v1/sessions/a-2/approvals/pay', { scope: 'session' });
      await api.delete('/v1/sessions/a-2');
      await create('a-2');
      expect(await approvals('a-2')).toEqual([]);
      expect(await call('a-2')).toBe('required');
    });
  });

  describe('the context budget', () => {
    it('given a long conversation with tools, when the next turn is taken, then whole old turns are left out, and the record shows exactly that prompt', async () => {
      const folder = await world.folder();
      await writeFile(
        join(folder, 'colloquy.yml'),
        'llm: { maxInputTokens: 400 }\nsessions: { maxSessions: 1000 }',
      );
      const { api: tight } = await world.node({}, folder);
      await create('w-1');
      await api.post('/v1/sessions/w-1/messages', { role: 'system', content: 'You sell shoes.' });
      const filler = 'word '.repeat(40).trim();
      for (let turn = 0; turn < 12; turn += 1) {
        const id = `call-${turn}`;
        model.next(callsTools([{ id, name: 'look', arguments: '{}' }]));
        await generate('w-1', { message: `question ${turn} ${filler}`, tools: [{ name: 'look' }] }, tight);
        // A message that is appended while a tool runs stands between the call and its result.
        await api.post('/v1/sessions/w-1/messages', user(`hurry ${turn}`));
        model.next(says(`answer ${turn}`));
        const { body } = await generate(
          'w-1',
          { message: { role: 'tool', toolCallId: id, content: `seen ${turn}` } },
          tight,
        );
        const { messages } = model.last;
        expect(messages[0]).toEqual({ role: 'system', content: 'You sell shoes.' });
        expect(messages.slice(-4)).toMatchObject([
          { role: 'user', content: `question ${turn} ${filler}` },
          { role: 'assistant', tool_calls: [{ id }] },
          { role: 'tool', content: `seen ${turn}` },
          { role: 'user', content: `hurry ${turn}` },
        ]);
        const described = await api.get<{ prompt: { messages: ChatMessage[] } }>(
          `/v1/sessions/w-1/generations/${body.generationId}`,
        );
        expect(described.body.prompt.messages.map(asSent)).toEqual(messages);
      }
      const first = model.requests.find(({ messages }) =>
        messages.some(({ content }) => content === `question 0 ${filler}`),
      );
      expect(first).toBeDefined();
      expect(JSON.stringify(model.last.messages)).not.toContain('question 0 ');
      expect(model.last.messages.length).toBeGreaterThan(6);
      // Nothing is lost: a node without a budget gives the whole history to the model.
      await generate('w-1', { message: 'all?' });
      expect(JSON.stringify(model.last.messages)).toContain('question 0 ');
    });

    /** A recorded message in the form of the provider's API. */
    function asSent(message: object): object {
      const { toolCalls, toolCallId, name, ...rest } = message as {
        role: string;
        toolCalls?: { id: string; name: string; arguments: string }[];
        toolCallId?: string;
        name?: string;
      };
      return {
        ...rest,
        ...(name !== undefined && rest.role !== 'tool' && { name }),
        ...(toolCallId !== undefined && { tool_call_id: toolCallId }),
        ...(toolCalls && {
          tool_calls: toolCalls.map((one) => ({
            id: one.id,
            type: 'function',
            function: { name: one.name, arguments: one.arguments },
          })),
        }),
      };
    }
  });

  describe('many at once', () => {
    it('given many sessions of two tenants in parallel, when each has several turns, then no prompt holds a word of another', async () => {
      const SESSIONS = FULL ? 200 : 50;
      // So many at once may take longer than the short timeout of the other tests.
      const { api: patient } = await world.node({ MAX_SESSIONS: '1000' });
      const from = model.requests.length;
      model.always(echoesPrompt);
      await Promise.all(
        Array.from({ length: SESSIONS }, async (_, n) => {
          // Both tenants use the same session ids.
          const headers = { 'colloquy-tenant': n % 2 ? 'red' : 'blue' };
          const id = `same-${Math.floor(n / 2)}`;
          await patient.post('/v1/sessions', { id }, headers);
          for (let turn = 1; turn <= 3; turn += 1) {
            const answer = await patient.post<GeneratedAnswer>(
              `/v1/sessions/${id}/generate`,
              { message: `mine-${n}-${turn}.`, instructions: `only-${n}.` },
              headers,
            );
            expect(answer.status).toBe(200);
            const own = new Set([`mine-${n}`, `only-${n}`]);
            for (const [found] of answer.body.content.matchAll(/(mine|only)-\d+/g)) {
              expect(own).toContain(found);
            }
          }
        }),
      );
      const prompts = model.requests.slice(from);
      expect(prompts).toHaveLength(3 * SESSIONS);
      for (const { messages } of prompts) {
        const owners = new Set(
          [...JSON.stringify(messages).matchAll(/(?:mine|only)-(\d+)/g)].map(([, n]) => n),
        );
        expect(owners.size).toBe(1);
        expect(messages.filter(({ role }) => role === 'system')).toHaveLength(1);
      }
    });
  });

  it('given all requests of this file, when the log of the service is read, then it holds no error', async () => {
    await eventually(async () => (await api.get('/health/ready')).status === 200);
    expect(world.output()).not.toContain('"level":"error"');
  });
});
