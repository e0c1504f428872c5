import OpenAI, { AuthenticationError, BadRequestError, InternalServerError, NotFoundError } from 'openai';
import { zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { callsTools, conducted, type FakeOpenAi, fails, held, says } from '../support/fake-openai.js';
import { type Api } from '../support/http.js';
import { createWorld, logged, type Node, user, type World } from './fixture.js';

type Item = OpenAI.Conversations.ConversationItem;
type ResponseEvent = OpenAI.Responses.ResponseStreamEvent;

const SEARCH: OpenAI.Responses.FunctionTool = {
  type: 'function',
  name: 'search',
  description: 'finds',
  parameters: { type: 'object', properties: { q: { type: 'string' } } },
  strict: false,
};
const thinks = (text: string) =>
  `data: ${JSON.stringify({ choices: [{ delta: { reasoning_content: text } }] })}\n\n`;

let world: World;
let model: FakeOpenAi;
let nodes: Node[];
let api: Api;
let openai: OpenAI;

const clientOf = (node: Node | undefined, apiKey = 'any'): OpenAI =>
  new OpenAI({ baseURL: `${node?.service.url ?? ''}/openai/v1`, apiKey, maxRetries: 0 });

beforeAll(async () => {
  world = await createWorld();
  model = await world.model();
  model.beStrict();
  nodes = await Promise.all([world.node({ MAX_SESSIONS: '10000' }), world.node({ MAX_SESSIONS: '10000' })]);
  api = (nodes[0] as Node).api;
  openai = clientOf(nodes[0]);
});
afterAll(async () => {
  expect(model.faults).toEqual([]);
  await world.end();
});

async function all<T>(pages: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const one of pages) found.push(one);
  return found;
}
const textsOf = (items: readonly object[]): unknown[] =>
  (items as { content?: { text?: string }[] }[]).map((item) =>
    item.content?.map(({ text }) => text).join(''),
  );
const said = (role: 'user' | 'assistant', content: string): OpenAI.Responses.EasyInputMessage => ({
  role,
  content,
});
/** What an action throws. */
async function thrown<T extends Error>(
  action: Promise<unknown>,
  type: abstract new (...parameters: never[]) => T,
): Promise<T> {
  const error: unknown = await action.then(
    () => undefined,
    (one: unknown) => one,
  );
  expect(error).toBeInstanceOf(type);
  return error as T;
}

describe('conversations of the OpenAI client', () => {
  it('given a conversation, when it is created, read, updated and deleted, then it is a session', async () => {
    const made = await openai.conversations.create({
      metadata: { topic: 'sea' },
      items: [said('user', 'Hi')],
    });
    expect(made).toEqual({
      id: expect.stringMatching(/^conv_/) as string,
      object: 'conversation',
      created_at: expect.any(Number) as number,
      metadata: { topic: 'sea' },
    });
    expect((await api.get(`/v1/sessions/${made.id}`)).body).toMatchObject({
      metadata: { topic: 'sea' },
      messageCount: 1,
    });
    // The creation and its items are one append.
    expect((await logged(world.database, made.id)).map(({ type }) => type)).toEqual([
      'SessionCreated',
      'MessageAppended',
    ]);
    expect((await openai.conversations.update(made.id, { metadata: { topic: 'air' } })).metadata).toEqual({
      topic: 'air',
    });
    expect((await openai.conversations.retrieve(made.id)).metadata).toEqual({ topic: 'air' });
    expect(await openai.conversations.delete(made.id)).toEqual({
      id: made.id,
      object: 'conversation.deleted',
      deleted: true,
    });
    const error = await thrown(openai.conversations.retrieve(made.id), NotFoundError);
    expect(error).toMatchObject({ status: 404, type: 'invalid_request_error', code: 'not_found' });
    expect(error.requestID).toMatch(/\S/);
  });

  it('given a session of the native API, when it is read as a conversation, then its messages are items', async () => {
    await api.post('/v1/sessions', { id: 'native', metadata: { n: 1, s: 'x' } });
    await api.post('/v1/sessions/native/messages', {
      messages: [
        user('How warm?'),
        {
          role: 'assistant',
          content: [
            { type: 'reasoning', text: 'Hm.', summary: ['Thought.'] },
            { type: 'text', text: 'I look.' },
          ],
          toolCalls: [{ id: 'c1', name: 'search', arguments: '{}' }],
        },
        { role: 'tool', toolCallId: 'c1', content: '18' },
      ],
    });
    expect((await openai.conversations.retrieve('native')).metadata).toEqual({ n: '1', s: 'x' });
    const items = await all<Item>(openai.conversations.items.list('native', { order: 'asc' }));
    expect(items.map(({ type }) => type)).toEqual([
      'message',
      'reasoning',
      'message',
      'function_call',
      'function_call_output',
    ]);
    expect(items[1]).toMatchObject({
      summary: [{ type: 'summary_text', text: 'Thought.' }],
      content: [{ type: 'reasoning_text', text: 'Hm.' }],
    });
    expect(items[3]).toMatchObject({ call_id: 'c1', name: 'search', arguments: '{}', status: 'completed' });
    expect(items[4]).toMatchObject({ call_id: 'c1', output: '18' });
    for (const item of items) {
      const { id } = item as { id: string };
      expect(await openai.conversations.items.retrieve(id, { conversation_id: 'native' })).toEqual(item);
    }
  });

  it('given conversations, when they are listed, then pages give each once', async () => {
    const client = new OpenAI({
      baseURL: openai.baseURL,
      apiKey: 'x',
      defaultHeaders: { 'colloquy-tenant': 'lists' },
    });
    const made = [];
    for (let n = 0; n < 5; n += 1) made.push((await client.conversations.create()).id);
    const found: string[] = [];
    for (let after = ''; ;) {
      const page = await client.get<{ data: { id: string }[]; has_more: boolean; last_id: string }>(
        `/conversations?limit=2${after && `&after=${after}`}`,
      );
      found.push(...page.data.map(({ id }) => id));
      if (!page.has_more) break;
      after = page.last_id;
    }
    expect(found).toEqual(made);
  });

  it('given many items, when they are listed, then pages of any size give all of them once, in both orders', async () => {
    const { id } = await openai.conversations.create();
    const given = Array.from({ length: 25 }, (_, n) => [
      said('user', `q${n}`),
      { type: 'function_call' as const, call_id: `c${n}`, name: 'search', arguments: '{}' },
      { type: 'function_call_output' as const, call_id: `c${n}`, output: `r${n}` },
    ]).flat();
    const made = await openai.conversations.items.create(id, { items: given });
    expect(made.data).toHaveLength(75);
    expect(made.has_more).toBe(false);
    const ids = made.data.map((item) => (item as { id: string }).id);
    for (const limit of [1, 7, 100]) {
      for (const order of ['asc', 'desc'] as const) {
        const listed = await all<Item>(openai.conversations.items.list(id, { limit, order }));
        const found = listed.map((item) => (item as { id: string }).id);
        expect(found).toEqual(order === 'asc' ? ids : ids.toReversed());
      }
    }
    // Also at a node that has given out none of the pages.
    const elsewhere = clientOf(nodes[1]).conversations.items.list(id, { after: ids[40] ?? '', limit: 2 });
    expect((await elsewhere).data.map((item) => (item as { id: string }).id)).toEqual([ids[39], ids[38]]);
  });

  it('given items with ids and members of their own, when they are read back, then they are as they were given', async () => {
    const { id } = await openai.conversations.create();
    const items = [
      { id: 'my message', type: 'message', role: 'user', status: 'completed', content: [{ type: 'input_image', detail: 'original', file_id: 'file-1' }], phase: 'x' },
      { id: 'rs_mine', type: 'reasoning', summary: [], encrypted_content: 'abc' },
      { id: 'fc_mine', type: 'function_call', call_id: 'c', name: 'search', arguments: '{"q":', status: 'completed', namespace: 'n' },
      { id: 'fco', type: 'function_call_output', call_id: 'c', output: [{ type: 'input_text', text: 'a' }, { type: 'input_image', image_url: 'https://x/y.png', detail: 'low' }], status: 'completed' },
      { id: 'last', type: 'message', role: 'assistant', status: 'completed', content: [{ type: 'output_text', text: 'See', annotations: [{ type: 'url_citation', url: 'https://x', title: 't', start_index: 0, end_index: 1 }], logprobs: [{ token: 'S' }] }, { type: 'refusal', refusal: 'No.' }] },
    ] as unknown as OpenAI.Responses.ResponseInputItem[]; // prettier-ignore
    expect((await openai.conversations.items.create(id, { items })).data).toEqual(items);
    expect(await all(openai.conversations.items.list(id, { order: 'asc', limit: 2 }))).toEqual(items);
    // And the conversation goes on, with a prompt that a provider takes.
    model.next(says('Fine.'));
    const response = await openai.responses.create({ conversation: id, input: 'And now?' });
    expect(response.output_text).toBe('Fine.');
  });

  it('given a tool call with its result, when one of them is deleted, then both are gone, and the log has them', async () => {
    const { id } = await openai.conversations.create({
      items: [
        said('user', 'find it'),
        { type: 'function_call', call_id: 'c', name: 'search', arguments: '{}' },
        { type: 'function_call_output', call_id: 'c', output: 'found' },
      ],
    });
    const [, , output] = await all<Item>(openai.conversations.items.list(id, { order: 'asc' }));
    const { id: itemId } = output as { id: string };
    expect(await openai.conversations.items.delete(itemId, { conversation_id: id })).toMatchObject({ id });
    expect(textsOf(await all(openai.conversations.items.list(id)))).toEqual(['find it']);
    await thrown(openai.conversations.items.retrieve(itemId, { conversation_id: id }), NotFoundError);
    expect(await logged(world.database, id)).toHaveLength(5);
  });

  it('given requests that are wrong, when they are refused, then the error says where, and nothing changes', async () => {
    const { id } = await openai.conversations.create();
    const before = await logged(world.database, id);
    for (const [items, param] of [
      [[{ type: 'function_call_output', call_id: 'none', output: 'x' }], 'items[0]'],
      [
        [
          { role: 'user', content: 'a' },
          { role: 'nobody', content: 'b' },
        ],
        'items[1].role',
      ],
      [[{ type: 'web_search_call', id: 'w' }], 'items[0].type'],
      [[{ role: 'user', content: [] }], 'items[0].content'],
      [[{ role: 'user', content: 'x', big: 'x'.repeat(70_000) }], 'items[0]'],
      [[], 'items'],
    ] as [object[], string][]) {
      const error = await thrown(
        openai.conversations.items.create(id, { items: items as never }),
        BadRequestError,
      );
      expect(error).toMatchObject({ status: 400, param, type: 'invalid_request_error' });
    }
    const tooMany = Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`k${n}`, 'v']));
    expect(
      (await thrown(openai.conversations.update(id, { metadata: tooMany }), BadRequestError)).param,
    ).toBe('metadata');
    expect(await logged(world.database, id)).toEqual(before);
  });
});

describe('responses of the OpenAI client', () => {
  it('given a conversation, when a response is created in it, then it has every member, and is read back the same', async () => {
    const { id } = await openai.conversations.create();
    model.next(says('Four.'));
    const response = await openai.responses.create({
      conversation: id,
      input: 'What is 2 and 2?',
      instructions: 'Be short.',
      metadata: { of: 'me' },
      temperature: 0.5,
      max_output_tokens: 100,
      prompt_cache_key: 'key',
      text: { format: { type: 'json_schema', name: 'n', schema: { type: 'object' }, strict: true } },
      reasoning: { effort: 'low', summary: 'auto' },
      tools: [SEARCH],
      tool_choice: { type: 'function', name: 'search' },
    });
    expect(response).toMatchObject({
      object: 'response',
      status: 'completed',
      conversation: { id },
      output_text: 'Four.',
      instructions: 'Be short.',
      metadata: { of: 'me' },
      temperature: 0.5,
      max_output_tokens: 100,
      prompt_cache_key: 'key',
      text: { format: { type: 'json_schema', name: 'n', schema: { type: 'object' }, strict: true } },
      reasoning: { effort: 'low', summary: 'auto' },
      tools: [SEARCH],
      tool_choice: { type: 'function', name: 'search' },
      error: null,
      incomplete_details: null,
      previous_response_id: null,
      usage: { input_tokens: 10, output_tokens: 5, total_tokens: 15 },
    });
    expect(await openai.responses.retrieve(response.id)).toEqual(response);
    // Another node has it as well, and knows it by the name of its generation.
    const elsewhere = clientOf(nodes[1]);
    expect(await elsewhere.responses.retrieve(response.id)).toEqual(response);
    expect(await elsewhere.responses.retrieve(response.id.replace('resp_', 'gen_'))).toEqual(response);
    expect(textsOf((await openai.responses.inputItems.list(response.id)).data)).toEqual(['What is 2 and 2?']);
    expect(textsOf(await all(openai.conversations.items.list(id, { order: 'asc' })))).toEqual([
      'What is 2 and 2?',
      'Four.',
    ]);
    expect(model.requests.at(-1)).toMatchObject({
      temperature: 0.5,
      reasoning_effort: 'low',
      tools: [{ function: { name: 'search', strict: false } }],
    });
  });

  it('given responses behind each other, when the newest is continued its session goes on, and when an older one is, a fork does', async () => {
    const first = await openai.responses.create({ input: 'one' });
    const second = await openai.responses.create({ input: 'two', previous_response_id: first.id });
    const branch = await openai.responses.create({ input: 'other', previous_response_id: first.id });
    const third = await openai.responses.create({ input: 'three', previous_response_id: second.id });
    const inputs = async (id: string) =>
      textsOf(await all(openai.responses.inputItems.list(id, { order: 'asc' })));
    expect(await inputs(third.id)).toEqual(['one', first.output_text, 'two', second.output_text, 'three']);
    expect(await inputs(branch.id)).toEqual(['one', first.output_text, 'other']);
    expect(third).toMatchObject({ previous_response_id: second.id, conversation: null });
    // Both behind the newest at once: one goes on, the other becomes a fork, and both are answered.
    const both = await Promise.all(
      ['a', 'b'].map((input) => openai.responses.create({ input, previous_response_id: third.id })),
    );
    for (const [index, { id }] of both.entries())
      expect(await inputs(id)).toEqual([
        ...['one', first.output_text, 'two', second.output_text, 'three', third.output_text],
        ['a', 'b'][index],
      ]);
    const error = await thrown(
      openai.responses.create({ input: 'x', previous_response_id: 'resp_none' }),
      BadRequestError,
    );
    expect(error).toMatchObject({ code: 'previous_response_not_found', param: 'previous_response_id' });
  });

  it('given tools, when the model calls several and their results come in one request, then it goes on with all of them', async () => {
    const calls = ['c1', 'c2'].map((id) => ({ id, name: 'search', arguments: `{"q":"${id}"}` }));
    model.next(callsTools(calls));
    const asked = await openai.responses.create({ input: 'find both', tools: [SEARCH] });
    expect(asked.output.map((item) => item.type)).toEqual(['function_call', 'function_call']);
    const outputs = asked.output.map((item) => ({
      type: 'function_call_output' as const,
      call_id: (item as { call_id: string }).call_id,
      output: 'found',
    }));
    const done = await openai.responses.create({
      previous_response_id: asked.id,
      input: outputs,
      tools: [SEARCH],
    });
    expect(done.status).toBe('completed');
    expect(model.requests.at(-1)?.messages.map(({ role }) => role)).toEqual([
      'user',
      'assistant',
      'tool',
      'tool',
    ]);
    // A client may also send everything itself, as the items that it got.
    const whole = await openai.responses.create({
      input: [said('user', 'find both'), ...asked.output, ...outputs] as OpenAI.Responses.ResponseInput,
      store: false,
    });
    expect(whole.status).toBe('completed');
  });

  it('given a tool call that was given up, when the next request leaves its result out, then the conversation goes on', async () => {
    const { id } = await openai.conversations.create({
      items: [said('user', 'find'), { type: 'function_call', call_id: 'c', name: 'search', arguments: '{}' }],
    });
    expect((await openai.responses.create({ conversation: id, input: 'Never mind.' })).status).toBe(
      'completed',
    );
    const sent = await openai.responses.create({
      input: [
        said('user', 'find'),
        { type: 'function_call', call_id: 'c', name: 'search', arguments: '{}' },
        said('user', 'Never mind.'),
      ],
    });
    expect(sent.status).toBe('completed');
  });

  it('given a stream, when it is read by the helper, then every event is one it knows, in order, and the end is what is recorded', async () => {
    const { id } = await openai.conversations.create();
    const events: ResponseEvent[] = [];
    model.next(says('A long story.'));
    const stream = openai.responses.stream({ conversation: id, input: 'tell me' });
    for await (const event of stream) events.push(event);
    const final = await stream.finalResponse();
    expect(final.output_text).toBe('A long story.');
    const types = events.map(({ type }) => type).filter((type, index, list) => type !== list[index - 1]);
    expect(types).toEqual([
      'response.created',
      'response.in_progress',
      'response.output_item.added',
      'response.content_part.added',
      'response.output_text.delta',
      'response.output_text.done',
      'response.content_part.done',
      'response.output_item.done',
      'response.completed',
    ]);
    const numbers = events.map((event) => event.sequence_number);
    expect(numbers).toEqual([...new Set(numbers)].sort((a, b) => a - b));
    const { parsed: _parsed, ...recorded } = (await openai.responses.retrieve(final.id)) as object as Record<
      string,
      unknown
    >;
    expect(final).toMatchObject(recorded);
    // The helper reads an old one from its beginning.
    const replayed = await openai.responses.stream({ response_id: final.id }).finalResponse();
    expect(replayed.output_text).toBe('A long story.');
  });

  it('given a model that thinks and calls tools, when its response is streamed, then each item has its events, and a replay has the same', async () => {
    const { id } = await openai.conversations.create();
    const reply = conducted();
    model.next(reply.reply);
    const events: ResponseEvent[] = [];
    const stream = openai.responses.stream({ conversation: id, input: 'think', tools: [SEARCH] });
    const reading = (async () => {
      for await (const event of stream) events.push(event);
    })();
    await reply.asked;
    reply.send(thinks('Hm, '));
    reply.send(thinks('well.'));
    reply.say('I ', 'look.');
    reply.send(
      `data: ${JSON.stringify({ choices: [{ delta: { tool_calls: [{ index: 0, id: 'c', function: { name: 'search', arguments: '{}' } }] } }] })}\n\n`,
    );
    reply.end();
    await reading;
    const { output } = await stream.finalResponse();
    expect(output.map((item) => item.type)).toEqual(['reasoning', 'message', 'function_call']);
    expect(output[0]).toMatchObject({ content: [{ type: 'reasoning_text', text: 'Hm, well.' }] });
    const joined = (type: string) =>
      events.flatMap((event) => (event.type === type && 'delta' in event ? [event.delta] : [])).join('');
    expect(joined('response.reasoning_text.delta')).toBe('Hm, well.');
    expect(joined('response.output_text.delta')).toBe('I look.');
    expect(joined('response.function_call_arguments.delta')).toBe('{}');
    const last = await openai.responses.retrieve((await stream.finalResponse()).id);
    expect(last.output).toEqual(output.map((item) => withoutParsed(item)));
    // At another node, after the end: the same events with the same numbers, but for the cut of the pieces.
    const again: ResponseEvent[] = [];
    for await (const event of clientOf(nodes[1]).responses.stream({ response_id: last.id }))
      again.push(event);
    const marks = (list: ResponseEvent[]) =>
      list
        .filter(({ type }) => !type.endsWith('.delta'))
        .map(({ type, sequence_number }) => [type, sequence_number]);
    expect(marks(again)).toEqual(marks(events));
  });

  it('given a stream that breaks off, when it is resumed behind the last event at another node, then the rest comes and nothing twice', async () => {
    const reply = conducted();
    model.next(reply.reply);
    const abort = new AbortController();
    const stream = await openai.responses.create(
      { input: 'break', stream: true, background: true },
      { signal: abort.signal },
    );
    await reply.asked;
    reply.send(thinks('Hm.'));
    reply.say('one ', 'two ');
    let id = '';
    let text = '';
    let last = 0;
    for await (const event of stream) {
      last = event.sequence_number;
      if (event.type === 'response.created') ({ id } = event.response);
      if (event.type === 'response.output_text.delta') text += event.delta;
      if (text === 'one two ') break;
    }
    abort.abort();
    const rest = await clientOf(nodes[1]).responses.retrieve(id, { stream: true, starting_after: last });
    reply.say('three');
    reply.end();
    for await (const event of rest) {
      expect(event.sequence_number).toBeGreaterThan(last);
      last = event.sequence_number;
      if (event.type === 'response.output_text.delta') text += event.delta;
    }
    expect(text).toBe('one two three');
    expect((await openai.responses.retrieve(id)).output_text).toBe('one two three');
  });

  it('given a response in the background, when it is cancelled, then its text is kept, its stream ends, and its conversation goes on', async () => {
    const { id } = await openai.conversations.create();
    const reply = conducted();
    model.next(reply.reply);
    const started = await openai.responses.create({ conversation: id, input: 'slowly', background: true });
    expect(started).toMatchObject({ status: 'in_progress', background: true, output: [] });
    await reply.asked;
    const stream = openai.responses.stream({ response_id: started.id });
    const deltas: string[] = [];
    stream.on('response.output_text.delta', ({ delta }) => deltas.push(delta));
    reply.say('begun');
    const error = await thrown(
      openai.responses.create({ conversation: id, input: 'me too' }),
      BadRequestError,
    );
    expect(error).toMatchObject({ status: 400, code: 'conversation_locked' });
    while (deltas.join('') !== 'begun') await new Promise((resolve) => setTimeout(resolve, 10));
    const cancelled = await openai.responses.cancel(started.id);
    expect(cancelled.status).toBe('cancelled');
    expect(textsOf(cancelled.output)).toEqual(['begun']);
    const final = await stream.finalResponse();
    expect(final.output_text).toBe('begun');
    expect((await openai.responses.create({ conversation: id, input: 'on' })).status).toBe('completed');
  });

  it('given a schema, when the client parses the response, then it has the value', async () => {
    model.next(says('{"number":4}'));
    const format = zodTextFormat(z.object({ number: z.number() }), 'answer');
    const response = await openai.responses.parse({ model: 'm', input: 'a number', text: { format } });
    expect(response.output_parsed).toEqual({ number: 4 });
    expect(model.last).toMatchObject({
      response_format: { type: 'json_schema', json_schema: { name: 'answer', strict: true } },
    });
  });

  it('given store: false, when a response is created, then nothing is recorded', async () => {
    const before = await openai.responses.create({ input: 'remember' });
    const [{ events } = { events: 0 }] = await world.database.query<{ events: number }>(
      'select count(*)::int as events from event',
    );
    const response = await openai.responses.create({
      input: 'and forget',
      store: false,
      previous_response_id: before.id,
    });
    expect(response).toMatchObject({ status: 'completed', store: false });
    expect(model.requests.at(-1)?.messages.map(({ content }) => content)).toEqual([
      'remember',
      before.output_text,
      'and forget',
    ]);
    await thrown(openai.responses.retrieve(response.id), NotFoundError);
    const streamed = await openai.responses.stream({ input: 'hi', store: false }).finalResponse();
    expect(streamed.status).toBe('completed');
    expect(await world.database.query('select count(*)::int as events from event')).toEqual([{ events }]);
  });

  it('given an answer that was cut off by its limit, when it is read, then the response is incomplete and says why', async () => {
    model.next((_, response) => {
      const piece = { choices: [{ delta: { content: 'This is' }, finish_reason: 'length' }] };
      response
        .writeHead(200, { 'content-type': 'text/event-stream' })
        .end(`data: ${JSON.stringify(piece)}\n\ndata: [DONE]\n\n`);
    });
    const response = await openai.responses.create({ input: 'too long' });
    expect(response).toMatchObject({
      status: 'incomplete',
      incomplete_details: { reason: 'max_output_tokens' },
      output_text: 'This is',
    });
  });

  it('given a model that fails, when a response is created, then the client does not try again, and the error has the reason', async () => {
    model.next(fails(500, 'GPU lost'));
    const trying = new OpenAI({ baseURL: openai.baseURL, apiKey: 'x' });
    const { id } = await openai.conversations.create();
    const error = await thrown(
      trying.responses.create({ conversation: id, input: 'fail me' }),
      InternalServerError,
    );
    expect(error.message).toMatch(/GPU lost/);
    expect(textsOf(await all(openai.conversations.items.list(id)))).toEqual(['fail me']);
    model.next(fails(500, 'GPU lost'));
    const streamed = await trying.responses.stream({ conversation: id, input: 'fail me' }).finalResponse();
    expect(streamed).toMatchObject({
      status: 'failed',
      error: { message: expect.stringMatching(/GPU lost/) as string },
    });
    expect((await openai.responses.create({ conversation: id, input: 'again' })).status).toBe('completed');
  });

  it('given an idempotency key, when a request is sent twice, then the model is asked once', async () => {
    const headers = { 'Idempotency-Key': 'once' };
    const before = model.requests.length;
    const twice = await Promise.all(
      [0, 1].map(() => openai.responses.create({ input: 'once' }, { headers })),
    );
    expect(twice[0]).toEqual(twice[1]);
    expect(await openai.responses.create({ input: 'once' }, { headers })).toEqual(twice[0]);
    expect(model.requests).toHaveLength(before + 1);
    const next = { input: 'behind it', previous_response_id: twice[0]?.id ?? '' };
    const behind = await openai.responses.create(next, { headers: { 'Idempotency-Key': 'behind' } });
    expect(await openai.responses.create(next, { headers: { 'Idempotency-Key': 'behind' } })).toEqual(behind);
    expect(model.requests).toHaveLength(before + 2);
  });

  it('given a response, when it is deleted, then it is gone: with its session if that is its own, else out of the history', async () => {
    const alone = await openai.responses.create({ input: 'alone' });
    await openai.responses.delete(alone.id);
    await thrown(openai.responses.retrieve(alone.id), NotFoundError);
    const { id } = await openai.conversations.create();
    const one = await openai.responses.create({ conversation: id, input: 'in company' });
    await openai.responses.delete(one.id);
    await thrown(openai.responses.retrieve(one.id), NotFoundError);
    expect(textsOf(await all(openai.conversations.items.list(id)))).toEqual(['in company']);
  });

  it.each([
    [{ tools: [{ type: 'web_search' }] }, 'unsupported_parameter', 'tools[0].type'],
    [{ prompt: { id: 'p' } }, 'unsupported_parameter', 'prompt'],
    [{ tool_choice: { type: 'mcp' } }, 'unsupported_parameter', 'tool_choice.type'],
    [{ no_such_thing: 1 }, 'unknown_parameter', 'no_such_thing'],
    [{ temperature: 3 }, null, 'temperature'],
    [{ conversation: 'c', previous_response_id: 'r' }, null, 'previous_response_id'],
    [{ conversation: 'c', store: false }, null, 'store'],
    [{ background: true, store: false }, null, 'store'],
    [{ input: [] }, null, 'input'],
    [{ text: { format: { type: 'yaml' } } }, null, 'text.format.type'],
  ])('given %j, when it is asked for, then it is refused by name', async (asked, code, param) => {
    const error = await thrown(openai.responses.create({ input: 'x', ...asked } as never), BadRequestError);
    expect(error).toMatchObject({ status: 400, code, param });
  });
});

describe('chat completions and models of the OpenAI client', () => {
  it('given a chat completion, when it is not recorded, then it goes to the provider as it is, whole and streamed', async () => {
    const messages = [{ role: 'user' as const, content: 'straight' }];
    model.next(says('Through.'));
    const events = await world.database.query('select count(*) from event');
    const stream = await openai.chat.completions.create({
      messages,
      model: 'm',
      stream: true,
      safety_identifier: 'u',
    });
    let text = '';
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
    expect(text).toBe('Through.');
    expect(model.requests.at(-1)).toMatchObject({ model: 'm', safety_identifier: 'u' });
    expect(await world.database.query('select count(*) from event')).toEqual(events);
    model.next(fails(429, 'slow down'));
    const error = await openai.chat.completions.create({ messages, model: 'm' }).catch((one: unknown) => one);
    expect(error).toMatchObject({ status: 429, message: expect.stringMatching(/slow down/) as string });
  });

  it('given chat completions that are to be stored, when a client sends its whole conversation each time, then the session has each turn once', async () => {
    const metadata = { session_id: 'chat-1' };
    const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'system', content: 'Be kind.' }];
    for (const content of ['one', 'two']) {
      messages.push({ role: 'user', content });
      const { choices } = await openai.chat.completions.create({
        model: 'm',
        messages,
        store: true,
        metadata,
      });
      messages.push(choices[0]?.message as OpenAI.ChatCompletionMessageParam);
    }
    const stream = await openai.chat.completions.create({
      ...{ model: 'm', store: true, metadata, stream: true, stream_options: { include_usage: true } },
      messages: [...messages, { role: 'user', content: 'three' }],
    });
    const chunks = await all(stream);
    expect(chunks.at(-1)?.usage).toMatchObject({ prompt_tokens: 10, completion_tokens: 5 });
    const { body } = await api.get<{ data: { role: string; content: string }[] }>(
      '/v1/sessions/chat-1/messages',
    );
    expect(body.data.map(({ role }) => role)).toEqual([
      ...['system', 'user', 'assistant', 'user', 'assistant', 'user', 'assistant'],
    ]);
    // Another history than the session's: the session is brought to it, and the log keeps what it was.
    await openai.chat.completions.create({
      ...{ model: 'm', store: true, metadata },
      messages: [...messages.slice(0, 3), { role: 'user', content: 'two, but other' }],
    });
    const now = await api.get<{ data: { content: string }[] }>('/v1/sessions/chat-1/messages');
    expect(now.body.data.map(({ content }) => content).slice(0, -1)).toEqual([
      'Be kind.',
      'one',
      (messages[2] as { content: string }).content,
      'two, but other',
    ]);
    expect((await logged(world.database, 'chat-1')).map(({ type }) => type)).toContain('HistoryRewound');
  });

  it('given tools, when the model calls one in a stored chat completion, then the call comes back in both forms', async () => {
    const tools: OpenAI.ChatCompletionTool[] = [{ type: 'function', function: { name: 'search' } }];
    const asked = { model: 'm', tools, store: true, metadata: { session_id: 'chat-2' } };
    const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: 'call it' }];
    model.next(callsTools([{ id: 'c1', name: 'search', arguments: '{}' }]));
    const { choices } = await openai.chat.completions.create({ ...asked, messages });
    expect(choices[0]).toMatchObject({
      finish_reason: 'tool_calls',
      message: { content: null, tool_calls: [{ id: 'c1', function: { name: 'search', arguments: '{}' } }] },
    });
    messages.push(choices[0]?.message as OpenAI.ChatCompletionMessageParam);
    messages.push({ role: 'tool', tool_call_id: 'c1', content: 'found' });
    const final = await openai.chat.completions.stream({ ...asked, messages }).finalChatCompletion();
    expect(final.choices[0]?.finish_reason).toBe('stop');
  });

  it('given a provider without a list of models, when models are asked for, then there is the one of the settings', async () => {
    const { data } = await openai.models.list();
    expect(data).toMatchObject([{ id: expect.any(String) as string, object: 'model' }]);
    expect(await openai.models.retrieve(data[0]?.id ?? '')).toEqual(data[0]);
    expect(await thrown(openai.models.retrieve('none'), NotFoundError)).toMatchObject({ code: 'not_found' });
  });
});

describe('errors below the path of the OpenAI API', () => {
  it('given a service with keys, when a client has a wrong one, then it gets the error of its class, with a request id', async () => {
    const node = await world.node({ COLLOQUY_API_KEYS: 'ann:acme:the-key' });
    const wrong = clientOf(node, 'wrong');
    const error = await thrown(wrong.conversations.retrieve('c'), AuthenticationError);
    expect(error).toMatchObject({ status: 401, code: 'invalid_api_key', type: 'authentication_error' });
    expect((await clientOf(node, 'the-key').conversations.create()).object).toBe('conversation');
  });

  it('given paths, bodies and sizes that are wrong, when they are sent, then each error has the form of the API', async () => {
    for (const [method, path, body, status, code] of [
      ['POST', '/openai/v1/responses', '{', 400, null],
      ['GET', '/openai/v1/nothing', undefined, 404, 'not_found'],
      ['PUT', '/openai/v1/responses', '{}', 405, 'method_not_allowed'],
      [
        'POST',
        '/openai/v1/conversations',
        `{"metadata":{"a":"${'x'.repeat(17_000_000)}"}}`,
        413,
        'request_too_large',
      ],
    ] as [string, string, string | undefined, number, string | null][]) {
      const answer = await api.send(method, path, body, {
        ...(body && { 'content-type': 'application/json' }),
      });
      expect(answer.status).toBe(status);
      expect(answer.body).toEqual({
        error: { message: expect.any(String) as string, type: 'invalid_request_error', param: null, code },
      });
      expect(answer.headers.get('x-request-id')).toMatch(/\S/);
    }
  });

  it('given a model that is slow and a client that leaves, when the response is not stored, then the model call ends', async () => {
    const reply = held(says('late'));
    model.next(reply.reply);
    const abort = new AbortController();
    const asking = openai.responses.create({ input: 'leave me', store: false }, { signal: abort.signal });
    asking.catch(() => undefined);
    await reply.asked;
    abort.abort();
    await reply.abandoned;
    expect(await asking.catch((error: unknown) => error)).toBeInstanceOf(Error);
  });
});

const withoutParsed = (item: object): object => {
  const { parsed_arguments: _parsed, ...others } = item as Record<string, unknown>;
  return 'content' in others && Array.isArray(others['content'])
    ? {
        ...others,
        content: (others['content'] as Record<string, unknown>[]).map(({ parsed: _p, ...part }) => part),
      }
    : others;
};
