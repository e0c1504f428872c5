import {
  callsTools,
  conducted,
  type ConductedReply,
  fails,
  type FakeOpenAi,
  heldAfter,
  says,
} from '../support/fake-openai.js';
import { type EventStream, openEvents, type StreamedEvent, textIn } from '../support/event-stream.js';
import { type Api, type Answer, eventually, expectProblem } from '../support/http.js';
import { replyStream } from '../../src/generation/generation.schemas.js';
import { createWorld, type GeneratedAnswer, logged, type MessageView, type World } from './fixture.js';

const names = (events: readonly StreamedEvent[]) => events.map(({ event }) => event);

/** Checks that each event is one of those in the OpenAPI document, with data of the documented schema. */
function expectDocumented(events: readonly StreamedEvent[]): void {
  for (const { event, data } of events) {
    const schema = replyStream.events[event];
    expect({ event, isKnown: schema !== undefined }).toEqual({ event, isKnown: true });
    if (schema === 'Problem') expect(data).toMatchObject({ code: expect.any(String) as string });
    else expect(schema?.parse(data)).toEqual(data);
  }
}

describe('streaming', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;
  /** Another node on the same database. */
  let other: Api;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    [{ api }, { api: other }] = await Promise.all([
      world.node({ MAX_SESSIONS: '1000' }),
      world.node({ MAX_SESSIONS: '1000' }),
    ]);
  });
  afterAll(() => world.end());

  const create = (id: string) => api.post('/v1/sessions', { id });
  const generate = (id: string, body: object = { message: 'hi' }, headers = {}, through = api) =>
    openEvents(`${through.url}/v1/sessions/${id}/generate`, { body, headers });
  const follow = (id: string, generation: unknown, lastEventId?: string, through = api) =>
    openEvents(`${through.url}/v1/sessions/${id}/generations/${String(generation)}/stream`, {
      headers: lastEventId === undefined ? {} : { 'last-event-id': lastEventId },
    });
  const history = async (id: string, through = api) =>
    (await through.get<{ data: MessageView[] }>(`/v1/sessions/${id}/messages`)).body.data;
  const ended = (id: string) =>
    eventually(async () => {
      const types = (await logged(world.database, id)).map(({ type }) => type);
      return types.find((type) => /^Generation(Completed|Failed|Cancelled)$/.test(type));
    });

  /** Opens a stream whose reply the test sends piece by piece. The started event has been read. */
  async function streaming(
    id: string,
    through = api,
    headers: Record<string, string> = {},
  ): Promise<{ reply: ConductedReply; stream: EventStream; generationId: string }> {
    await create(id);
    const reply = conducted();
    model.next(reply.reply);
    const stream = await generate(id, { message: 'hi' }, headers, through);
    const started = await stream.next();
    await reply.asked;
    return { reply, stream, generationId: String(started.data['generationId']) };
  }

  describe('events', () => {
    it('given a reply, when it is streamed, then started, deltas and the whole message come, each with an id', async () => {
      await create('e-1');
      model.next(says('One two three.', { prompt_tokens: 3, completion_tokens: 4 }));
      const stream = await generate('e-1');
      expect(stream.status).toBe(200);
      expect(stream.headers.get('content-type')).toBe('text/event-stream');
      expect(stream.headers.get('cache-control')).toBe('no-store');
      expect(stream.headers.get('x-correlation-id')).toEqual(expect.any(String));
      const events = await stream.rest();
      expectDocumented(events);
      const [first] = events;
      const last = events.at(-1);
      expect(first).toEqual({
        id: '0-0',
        event: 'generation.started',
        data: {
          generationId: expect.stringMatching(/^gen_/) as string,
          sessionId: 'e-1',
          model: 'gpt-5-mini',
        },
      });
      expect(new Set(names(events.slice(1, -1)))).toEqual(new Set(['message.delta']));
      expect(textIn(events)).toBe('One two three.');
      expect(last).toMatchObject({ id: '14-0', event: 'message.completed' });
      const body = last?.data as unknown as GeneratedAnswer;
      expect(body).toEqual({
        content: 'One two three.',
        message: (await history('e-1'))[1],
        usage: { inputTokens: 3, outputTokens: 4 },
        finishReason: 'stop',
        sessionId: 'e-1',
        generationId: first?.data['generationId'],
      });
      for (const { id } of events) expect(id).toMatch(/^\d+-\d+$/);
      expect((await api.get('/v1/sessions/e-1')).body['usage']).toMatchObject({
        inputTokens: 3,
        outputTokens: 4,
      });
    });

    it('given a reply whose model pauses, when the client reads, then it has the text that arrived before the pause', async () => {
      const { reply, stream } = await streaming('e-2');
      reply.say('Wait');
      expect(await stream.text(4)).toBe('Wait');
      expect(await history('e-2')).toHaveLength(1);
      reply.say(' for it');
      expect(await stream.text(7)).toBe(' for it');
      reply.end();
      expect(names(await stream.rest())).toEqual(['message.completed']);
    });

    it.each([
      ['no approval', undefined, 'required'],
      ['an approval', { scope: 'session' }, 'granted'],
    ])(
      'given %s, when tools are called, then each call is an event that says whether it is approved',
      async (_, grant, approval) => {
        const id = `e-3-${approval}`;
        await create(id);
        if (grant) await api.put(`/v1/sessions/${id}/approvals/pay`, grant);
        model.next(
          callsTools([
            { id: 'c1', name: 'look', arguments: '{"at":"€"}' },
            { id: 'c2', name: 'pay', arguments: '{"sum":5}' },
          ]),
        );
        const tools = [{ name: 'look' }, { name: 'pay', approval: 'required' }];
        const stream = await generate(id, { message: 'buy it', tools });
        const events = await stream.rest();
        expect(names(events)).toEqual(['generation.started', 'tool.call', 'tool.call', 'message.completed']);
        expectDocumented(events);
        const calls = [
          { id: 'c1', name: 'look', arguments: '{"at":"€"}' },
          { id: 'c2', name: 'pay', arguments: '{"sum":5}', approval },
        ];
        expect(events.slice(1, 3).map(({ data }) => data)).toEqual(calls);
        expect(events.map((event) => event.id)).toEqual(['0-0', '0-1', '0-2', '0-2']);
        expect(events[3]?.data['message']).toMatchObject({ toolCalls: calls });
        // A client that resumes after the first call gets the second one and not the first one again.
        const again = await (await follow(id, events[0]?.data['generationId'], '0-1', other)).rest();
        expect(again).toEqual(events.slice(2));
      },
    );

    it('given a model that fails in the middle, when its reply is streamed, then the last event is the problem', async () => {
      await create('e-4');
      model.next(heldFailing.reply);
      const stream = await generate('e-4');
      const started = await stream.next();
      expect(await stream.text(8)).toBe('So far, ');
      heldFailing.release();
      const events = await stream.rest();
      expect(names(events)).toEqual(['generation.failed']);
      expectDocumented(events);
      expect(events[0]?.data).toMatchObject({
        type: 'urn:colloquy:problem:model-failed',
        code: 'model-failed',
        status: 502,
        detail: expect.any(String) as string,
        sessionId: 'e-4',
        generationId: started.data['generationId'],
      });
      expect((await history('e-4'))[1]).toMatchObject({ content: 'So far, ', status: 'incomplete' });
    });
    const heldFailing = heldAfter('So far, ', '', (response) => response.destroy());

    it('given a chat, when it is streamed, then the session is created and the same events are sent', async () => {
      model.next(says('Hello there.'));
      const events = await (
        await openEvents(`${api.url}/v1/chat`, { body: { message: 'hi', sessionId: 'e-5' } })
      ).rest();
      expect(textIn(events)).toBe('Hello there.');
      expect(events.at(-1)?.data).toMatchObject({ content: 'Hello there.', sessionId: 'e-5' });
      const anonymous = await (await openEvents(`${api.url}/v1/chat`, { body: { message: 'hi' } })).rest();
      expect(anonymous[0]?.data['sessionId']).toMatch(/^sess_/);
    });
  });

  describe('refused before the start', () => {
    const accept = { accept: 'text/event-stream' };

    it('given no session, a busy one, a full tenant or bad input, when a stream is requested, then the answer is a problem and no stream', async () => {
      expectProblem(
        await api.post('/v1/sessions/nobody/generate', { message: 'hi' }, accept),
        404,
        'session-not-found',
      );
      const { reply, stream } = await streaming('r-1');
      const busy = await api.post('/v1/sessions/r-1/generate', { message: 'hi' }, accept);
      expectProblem(busy, 409, 'session-busy');
      expectProblem(
        await api.post('/v1/chat', { message: 'hi', sessionId: 'r-1' }, accept),
        409,
        'session-busy',
      );
      expectProblem(
        await api.post('/v1/sessions/r-1/generate', { message: '' }, accept),
        400,
        'invalid-request',
      );
      reply.end();
      await stream.rest();

      const small = (await world.node({ MAX_SESSIONS: '1' })).api;
      expectProblem(await small.post('/v1/chat', { message: 'hi' }, accept), 429, 'session-limit-reached');
      expectProblem(await api.get('/v1/sessions/r-1/generations/gen_none/stream', accept), 404, 'not-found');
      expectProblem(
        await api.get('/v1/sessions/nobody/generations/gen_none/stream', accept),
        404,
        'session-not-found',
      );
    });
  });

  describe('a client that disconnects', () => {
    it.each(['before the first token', 'in the middle of the text'])(
      'given a reply under way, when its client leaves %s, then the reply is recorded whole',
      async (stage) => {
        const id = `g-${stage.includes('first') ? 'first' : 'middle'}`;
        const { reply, stream } = await streaming(id);
        if (stage !== 'before the first token') {
          reply.say('One ');
          await stream.text(4);
          stream.leave();
        } else {
          stream.leave();
          reply.say('One ');
        }
        reply.say('two ', 'three');
        reply.end();
        expect(await ended(id)).toBe('GenerationCompleted');
        expect((await history(id))[1]).toMatchObject({ content: 'One two three', status: 'complete' });
      },
    );

    it('given tool calls, when the client disconnects before they arrive, then they are recorded', async () => {
      await create('g-tools');
      const reply = conducted();
      model.next(reply.reply);
      const stream = await generate('g-tools', { message: 'hi', tools: [{ name: 'look' }] });
      await reply.asked;
      stream.leave();
      const call = { index: 0, id: 'c1', type: 'function', function: { name: 'look', arguments: '{}' } };
      reply.send(`data: ${JSON.stringify({ choices: [{ index: 0, delta: { tool_calls: [call] } }] })}\n\n`);
      reply.end();
      expect(await ended('g-tools')).toBe('GenerationCompleted');
      expect((await history('g-tools'))[1]).toMatchObject({ toolCalls: [{ id: 'c1', name: 'look' }] });
    });
  });

  describe('resuming', () => {
    const PIECES = ['Grüße \u{1f600}', ' a\u0000b', ' \ud83d', '\ude80!', ' 家', '族👨‍👩‍👧 ', 'end'];
    // The text that can be stored: the split emoji is whole again, and U+0000 is left out.
    const TEXT = 'Grüße \u{1f600} ab \u{1f680}! 家族👨‍👩‍👧 end';

    it.each([
      ['the same node', () => api],
      ['the other node', () => other],
    ])(
      'given a stream that drops in the middle, when it is resumed on %s from any place, then no character is missing or doubled',
      async (name, through) => {
        const id = `s-${name.length}`;
        const { reply, stream, generationId } = await streaming(id);
        const seen: StreamedEvent[] = [];
        const places: { id: string; text: string }[] = [{ id: '0-0', text: '' }];
        const read = async () => {
          seen.push(await stream.next());
          places.push({ id: seen.at(-1)?.id ?? '', text: textIn(seen) });
        };
        for (const part of PIECES.slice(0, 3)) reply.say(part);
        while (textIn(seen).length < 'Grüße \u{1f600} ab '.length) await read();
        stream.leave();
        // During the reply: one reader for every place at which a connection may have broken, and one without a place.
        const readers = await Promise.all([
          ...places.map(async (place) => ({
            place,
            from: await follow(id, generationId, place.id, through()),
          })),
          follow(id, generationId, undefined, through()).then((from) => ({ place: { text: '' }, from })),
        ]);
        for (const part of PIECES.slice(3)) reply.say(part);
        const all = readers.map(async ({ place, from }) => place.text + textIn(await from.rest()));
        reply.end();
        expect(new Set(await Promise.all(all))).toEqual(new Set([TEXT]));
        expect((await history(id, through()))[1]?.content).toBe(TEXT);
        // After the end, when only the log holds the reply.
        await eventually(async () => {
          const rows = await world.database.query('select 1 from generation_chunk where generation = $1', [
            generationId,
          ]);
          return rows.length === 0;
        });
        for (const place of places) {
          const events = await (await follow(id, generationId, place.id, through())).rest();
          expect(place.text + textIn(events)).toBe(TEXT);
          expect(events.at(-1)).toMatchObject({ event: 'message.completed', id: `${TEXT.length}-0` });
        }
        const whole = await (await follow(id, generationId, undefined, through())).rest();
        expect(names(whole)).toEqual(['generation.started', 'message.delta', 'message.completed']);
        expect(whole[2]?.data['content']).toBe(TEXT);
      },
    );

    it('given a Last-Event-ID that the service cannot have sent, when a stream is resumed with it, then the stream starts at the beginning', async () => {
      const { reply, stream, generationId } = await streaming('s-odd');
      reply.say('abc');
      reply.end();
      await stream.rest();
      for (const odd of ['abc', '1', '-1-0', '99999999999-0', '1-0-0-0', '']) {
        const events = await (await follow('s-odd', generationId, odd)).rest();
        expect(names(events)).toEqual(['generation.started', 'message.delta', 'message.completed']);
      }
      const beyond = await (await follow('s-odd', generationId, '100-7')).rest();
      expect(names(beyond)).toEqual(['message.completed']);
    });

    it.each(['fails', 'is cancelled'])(
      'given a reply that %s, when it is resumed on the other node, then what had arrived comes, and how it ended',
      async (how) => {
        const id = `s-${how.replace(' ', '-')}`;
        const { reply, stream, generationId } = await streaming(id);
        reply.say('abc');
        await stream.text(3);
        const watching = await follow(id, generationId, undefined, other);
        expect((await watching.next()).event).toBe('generation.started');
        await watching.text(3);
        reply.say('def');
        await stream.text(3);
        if (how === 'fails') reply.drop();
        else await api.post(`/v1/sessions/${id}/cancel`);
        const last = how === 'fails' ? 'generation.failed' : 'generation.cancelled';
        const rest = await watching.rest();
        expect(names(rest)).toEqual(['message.delta', last]);
        expect(textIn(rest)).toBe('def');
        expect(names(await stream.rest())).toEqual([last]);
        for (const through of [api, other]) {
          const events = await (await follow(id, generationId, '3-0', through)).rest();
          expect(names(events)).toEqual(['message.delta', last]);
          expect(textIn(events)).toBe('def');
          expect(events[0]?.id).toBe('6-0');
        }
        expect((await history(id))[1]).toMatchObject({ content: 'abcdef', status: 'incomplete' });
      },
    );

    it('given a stream with a key, when the request is sent again to either node, then it attaches to the generation, and the model is called once', async () => {
      const key = { 'idempotency-key': 'streamed' };
      const before = model.requests.length;
      const { reply, stream, generationId } = await streaming('s-key', api, key);
      reply.say('abc');
      await stream.text(3);
      const again = await generate('s-key', { message: 'hi' }, key);
      const elsewhere = await generate('s-key', { message: 'hi' }, key, other);
      const whole: Promise<Answer<GeneratedAnswer>> = other.post(
        '/v1/sessions/s-key/generate',
        { message: 'hi' },
        key,
      );
      for (const one of [again, elsewhere]) {
        expect((await one.next()).data).toMatchObject({ generationId });
        expect(await one.text(3)).toBe('abc');
      }
      reply.say('def');
      reply.end();
      for (const one of [again, elsewhere]) expect(textIn(await one.rest())).toBe('def');
      expect((await whole).body).toMatchObject({ content: 'abcdef', generationId });
      const late = await (await generate('s-key', { message: 'hi' }, key, other)).rest();
      expect(textIn(late)).toBe('abcdef');
      expect(model.requests.length - before).toBe(1);
    });

    it('given a failure with a key, when the stream is requested again, then it gets the same failure', async () => {
      await create('s-fail');
      model.next(fails(400, 'no such thing'));
      const key = { 'idempotency-key': 'failing' };
      const first = await (await generate('s-fail', { message: 'hi' }, key)).rest();
      const before = model.requests.length;
      for (const through of [api, other]) {
        expect(await (await generate('s-fail', { message: 'hi' }, key, through)).rest()).toEqual(first);
      }
      expect(names(first)).toEqual(['generation.started', 'generation.failed']);
      expect(model.requests.length).toBe(before);
    });
  });

  describe('a session that is gone', () => {
    it('given a deleted session, when its generations are requested, then 404, also after the session was created again', async () => {
      const { reply, stream, generationId } = await streaming('d-1');
      reply.say('secret');
      reply.end();
      await stream.rest();
      const paths = ['', '/stream'].map((end) => `/v1/sessions/d-1/generations/${generationId}${end}`);
      expect((await api.get(paths[0] ?? '')).status).toBe(200);
      await api.delete('/v1/sessions/d-1');
      for (const path of paths) {
        for (const one of [api, other]) expectProblem(await one.get(path), 404, 'session-not-found');
      }
      await create('d-1');
      for (const path of paths) expectProblem(await api.get(path), 404, 'not-found');
    });

    it('given a stream, when the session is deleted, then the stream ends with session-not-found', async () => {
      const { reply, stream } = await streaming('d-2');
      reply.say('abc');
      await stream.text(3);
      await other.delete('/v1/sessions/d-2');
      const events = await stream.rest();
      expect(names(events)).toEqual(['generation.failed']);
      expect(events[0]?.data).toMatchObject({ code: 'session-not-found', status: 404 });
      await reply.abandoned;
    });

    it('given a generation of another tenant or session, when it is requested, then 404', async () => {
      const { reply, stream, generationId } = await streaming('d-3');
      await create('d-4');
      const tenant = { 'colloquy-tenant': 'another' };
      await api.post('/v1/sessions', { id: 'd-3' }, tenant);
      for (const one of [api, other]) {
        for (const end of ['', '/stream']) {
          expectProblem(
            await one.get(`/v1/sessions/d-4/generations/${generationId}${end}`),
            404,
            'not-found',
          );
          expectProblem(
            await one.get(`/v1/sessions/d-3/generations/${generationId}${end}`, tenant),
            404,
            'not-found',
          );
        }
      }
      reply.end();
      await stream.rest();
    });
  });
});
