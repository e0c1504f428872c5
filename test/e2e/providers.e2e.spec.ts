import { type FakeOpenAi, type Reply, says, sends } from '../support/fake-openai.js';
import { type Api, expectProblem } from '../support/http.js';
import { createWorld, type GeneratedAnswer, logged, type MessageView, user, type World } from './fixture.js';

const piece = (delta: object, finish: string | null = null) =>
  `data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`;
const streams =
  (...texts: string[]): Reply =>
  (_, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).end(texts.join(''));
  };

describe('messages and providers as they are', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    model.beStrict();
    ({ api } = await world.node({ MAX_SESSIONS: '1000' }));
  });
  afterAll(async () => {
    expect(model.faults).toEqual([]);
    await world.end();
  });

  const create = (id: string) => api.post('/v1/sessions', { id });
  const messages = async (id: string) =>
    (await api.get<{ data: MessageView[] }>(`/v1/sessions/${id}/messages?limit=200`)).body.data;
  const generate = (id: string, body: object = { message: 'hi' }) =>
    api.post<GeneratedAnswer>(`/v1/sessions/${id}/generate`, body);

  describe('messages', () => {
    it('given messages of every role with every part and extensions, when they are appended, then they come back as they were given', async () => {
      await create('m-1');
      const given = [
        { role: 'developer', content: 'Be kind.', extensions: { openai: { id: 'msg_1' } } },
        {
          role: 'user',
          name: 'Ann',
          content: [
            { type: 'text', text: '', annotations: [{ type: 'url_citation', url: 'https://x' }] },
            { type: 'image', url: 'data:image/png;base64,AAAA', detail: 'high' },
            { type: 'audio', url: 'https://x/y.wav', mediaType: 'audio/wav' },
            { type: 'data', name: 'order', data: [1, { a: null }] },
          ],
        },
        {
          role: 'assistant',
          content: [
            { type: 'reasoning', text: 'Hm.', summary: ['Thought.'], encrypted: 'x' },
            { type: 'text', text: 'Well.' },
            { type: 'refusal', text: 'No.' },
          ],
          toolCalls: [{ id: 'c', name: 'f', arguments: '{"city": "Ro' }],
        },
        { role: 'tool', toolCallId: 'c', content: [{ type: 'image', url: 'https://x/y.png' }] },
      ];
      expect((await api.post('/v1/sessions/m-1/messages', { messages: given })).status).toBe(201);
      const stored = await messages('m-1');
      expect(
        stored.map(
          ({ id: _id, version: _version, createdAt: _createdAt, status: _status, ...message }) => message,
        ),
      ).toEqual(given);
      expect((await logged(world.database, 'm-1'))[1]).toMatchObject({ type: 'MessageAppended' });
      // And every model takes it.
      expect((await generate('m-1')).status).toBe(200);
    });

    it('given assistants without content, when they are appended, then they are taken, and no prompt has an empty one', async () => {
      await create('m-2');
      const toolCalls = [{ id: 'c', name: 'f', arguments: '{}' }];
      const given = [
        user('one'),
        { role: 'assistant', content: '' },
        { role: 'assistant' },
        { role: 'assistant', content: null, toolCalls },
        { role: 'tool', toolCallId: 'c', content: '' },
      ];
      expect((await api.post('/v1/sessions/m-2/messages', { messages: given })).status).toBe(201);
      expect((await messages('m-2')).map(({ content }) => content)).toEqual(['one', '', '', '', '']);
      expect((await generate('m-2')).status).toBe(200);
    });
  });

  describe('replies', () => {
    it('given a model that tells its thoughts, when it answers, then they are kept beside the text, and are not sent back', async () => {
      await create('r-1');
      model.next(
        streams(
          piece({ role: 'assistant', reasoning_content: 'Let me ' }),
          piece({ reasoning_content: 'think.' }),
          piece({ content: 'Four.' }),
          piece({}, 'stop'),
        ),
      );
      const { body } = await generate('r-1', { message: '2 + 2?' });
      const content = [
        { type: 'reasoning', text: 'Let me think.' },
        { type: 'text', text: 'Four.' },
      ];
      expect(body).toMatchObject({ content: 'Four.', message: { content } });
      expect((await messages('r-1')).at(-1)).toMatchObject({ content });
      await generate('r-1', { message: 'Sure?' });
      expect(model.last.messages.map((one) => one.content)).toEqual(['2 + 2?', 'Four.', 'Sure?']);
      const described = await api.get(`/v1/sessions/r-1/generations/${body.generationId}`);
      expect(described.body).toMatchObject({ result: { content: 'Four.' } });
    });

    it('given a model that refuses, when it answers, then its words are the reply, and are kept as a refusal', async () => {
      await create('r-2');
      model.next(streams(piece({ refusal: 'I ' }), piece({ refusal: 'cannot.' }), piece({}, 'stop')));
      const { body } = await generate('r-2');
      expect(body).toMatchObject({
        content: 'I cannot.',
        message: { content: [{ type: 'refusal', text: 'I cannot.' }] },
      });
      expect((await generate('r-2', { message: 'Why?' })).status).toBe(200);
    });

    it.each<[string, Reply, object]>([
      ['without a stream', sends(JSON.stringify({ choices: [{ message: { role: 'assistant', content: 'Hi' }, finish_reason: 'stop' }] })), { content: 'Hi' }],
      ['without [DONE] and without the last blank line', streams(piece({ content: 'Hi' }), piece({}, 'stop').trimEnd()), { content: 'Hi' }],
      ['with a call that has no id and a name that is none', streams(piece({ content: 'Hi', tool_calls: [{ function: { name: 'get weather', arguments: '{}' } }] }), piece({}, 'tool_calls')), { content: 'Hi', message: { toolCalls: [{ id: expect.stringMatching(/^call_/) as string, name: 'get_weather' }] } }],
      ['with one id for two calls', streams(piece({ tool_calls: [{ index: 0, id: 'c', function: { name: 'a', arguments: '' } }, { index: 1, id: 'c', function: { name: 'b', arguments: '{"x": ' } }] }), piece({}, 'tool_calls')), { message: { toolCalls: [{ id: 'c', name: 'a' }, { id: expect.stringMatching(/^call_/) as string, name: 'b' }] } }],
      ['with comments, CRLF and a first piece without choices', streams(': hello\r\n\r\n', 'data: {"id":"x","choices":[]}\r\n\r\n', piece({ content: 'Hi' }).replaceAll('\n', '\r\n'), piece({}, 'stop')), { content: 'Hi' }],
    ])('given an answer %s, when it arrives, then it is kept, and the session goes on', async (what, reply, expected) => {
      const id = `a-${what.replaceAll(/\W/g, '-')}`;
      await create(id);
      model.next(reply);
      const answer = await generate(id);
      expect(answer).toMatchObject({ status: 200, body: expected });
      expect((await generate(id, { message: 'and now?' })).status).toBe(200);
    }); // prettier-ignore

    it('given a tool whose name the API does not allow, when it is called, then the client hears the name that it gave', async () => {
      await create('r-3');
      const reply: Reply = ({ tools }, response) => {
        const [tool] = tools as { function: { name: string } }[];
        expect(tool?.function.name).toBe('browser_tabs_open');
        const call = { index: 0, id: 'c', function: { name: tool?.function.name, arguments: '{}' } };
        return streams(piece({ tool_calls: [call] }), piece({}, 'tool_calls'))({} as never, response);
      };
      model.next(reply);
      const tools = [{ name: 'browser.tabs.open', approval: 'required' }];
      const { body } = await generate('r-3', { message: 'open', tools });
      expect(body.message?.toolCalls).toMatchObject([{ name: 'browser.tabs.open', approval: 'required' }]);
      await api.post('/v1/sessions/r-3/messages', { role: 'tool', toolCallId: 'c', content: 'opened' });
      expect((await generate('r-3', { tools })).status).toBe(200);
    });

    it('given a server that refuses to count tokens, when it is asked, then it is asked again without, and from then on', async () => {
      await create('r-4');
      const [{ api: fresh }, picky] = [
        await world.node(),
        ((request, response) => {
          if (!request.stream_options) return says('Hi.')(request, response);
          response.writeHead(400, { 'content-type': 'application/json' });
          response.end('{"error":{"message":"Unknown parameter: stream_options"}}');
          return undefined;
        }) satisfies Reply,
      ];
      model.next(picky, picky, picky);
      const before = model.requests.length;
      for (const message of ['one', 'two'])
        expect((await fresh.post('/v1/sessions/r-4/generate', { message })).status).toBe(200);
      expect(model.requests.slice(before).map((one) => one.stream_options !== undefined)).toEqual([
        true,
        false,
        false,
      ]);
    });
  });

  describe('parameters', () => {
    it('given parameters, when a reply is requested, then the model gets them, and the start of the generation has them', async () => {
      await create('p-1');
      const parameters = {
        temperature: 0.3,
        maxOutputTokens: 50,
        stop: ['END'],
        responseFormat: { type: 'json_object' },
      };
      const { body } = await generate('p-1', { message: 'hi', ...parameters });
      expect(model.last).toMatchObject({
        temperature: 0.3,
        max_tokens: 50,
        stop: ['END'],
        response_format: { type: 'json_object' },
      });
      const started = (await logged(world.database, 'p-1')).find(({ type }) => type === 'GenerationStarted');
      expect(started?.data).toMatchObject({ parameters });
      const described = await api.get(`/v1/sessions/p-1/generations/${body.generationId}`);
      expect(described.body).toMatchObject({ prompt: { parameters } });
      await api.post('/v1/chat', { message: 'hi', sessionId: 'p-1', temperature: 1 });
      expect(model.last).toMatchObject({ temperature: 1 });
    });

    it.each([
      [{ temperature: 3 }, '/temperature'],
      [{ topP: -1 }, '/topP'],
      [{ maxOutputTokens: 0 }, '/maxOutputTokens'],
      [{ stop: [] }, '/stop'],
      [{ toolChoice: { name: 'f' } }, '/toolChoice/name'],
      [{ responseFormat: { type: 'json_schema', name: 'a b', schema: {} } }, '/responseFormat/name'],
      [{ reasoning: { effort: 7 } }, '/reasoning/effort'],
    ])(
      'given the parameters %j, when a reply is requested, then 400 names the place',
      async (body, pointer) => {
        await create('p-2');
        expectProblem(await generate('p-2', { message: 'hi', ...body }), 400, 'invalid-request', pointer);
      },
    );
  });
});
