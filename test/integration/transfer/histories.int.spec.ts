import { AppendMessages, CreateSession } from '../../../src/domain/session.commands.js';
import { message, Node } from '../projection-engine/fixture.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { exportedHistories, importHistories, importMessages, withStore } from './fixture.js';

let db: TestDatabase;
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(() => db.drop());

const eventsOf = (streamId: string, tenant = 'acme') =>
  withStore(db.url, (store) => store.streams.read({ tenant, streamId }));
const sessionIds = async () =>
  (await db.query<{ stream_id: string }>('select distinct stream_id from event order by 1')).map(
    ({ stream_id }) => stream_id,
  );
const messagesOf = async (streamId: string) =>
  (await eventsOf(streamId))
    .filter(({ type }) => type === 'MessageAppended')
    .map(({ data, time }) => {
      const {
        messageId: _id,
        origin: _origin,
        status: _status,
        ...message
      } = data as Record<string, unknown>;
      return { ...message, time };
    });
const lines = (...documents: unknown[]) => documents.map((one) => `${JSON.stringify(one)}\n`).join('');

const HISTORY = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', name: 'Ann', content: [{ type: 'text', text: 'Look' }, { type: 'image_url', image_url: { url: 'https://x/y.png', detail: 'low' } }] },
  { role: 'assistant', content: null, tool_calls: [{ id: 'c', type: 'function', function: { name: 'look', arguments: '{"a":1}' } }] },
  { role: 'tool', tool_call_id: 'c', content: 'A cat.' },
  { role: 'assistant', content: 'A cat.', refusal: 'No more.', reasoning_content: 'Hm.' },
]; // prettier-ignore

describe('OpenAI messages', () => {
  it('given a history, when it comes in and goes out again, then it is the same, and nothing of it was dropped', async () => {
    const odd = { role: 'user', content: [{ type: 'video', video: { id: 7 } }] };
    await importHistories(
      db,
      JSON.stringify({ id: 'cat', title: 'Cats', messages: [...HISTORY, odd] }),
      'openai',
    );
    expect(await messagesOf('cat')).toMatchObject([
      { role: 'system', content: 'Be brief.', time: '2026-01-01T00:00:00.000Z' },
      { content: [{ type: 'text', text: 'Look' }, { type: 'image', url: 'https://x/y.png', detail: 'low' }] },
      { content: '', toolCalls: [{ id: 'c', name: 'look', arguments: '{"a":1}' }] },
      { role: 'tool', toolCallId: 'c' },
      { content: [{ type: 'reasoning', text: 'Hm.' }, { type: 'text', text: 'A cat.' }, { type: 'refusal', text: 'No more.' }] },
      { content: [{ type: 'data', name: 'video', data: { type: 'video', video: { id: 7 } } }] },
    ]); // prettier-ignore
    const [exported] = await exportedHistories(db);
    expect(exported).toEqual({
      id: 'cat',
      title: 'Cats',
      messages: [...HISTORY, odd].map((one) => ({ ...one, content: one.content ?? '' })),
    });
  });

  it('given sessions whose stored state is behind, when they go out, then the last messages are there', async () => {
    const node = await Node.start(db.url, []);
    await node.handle('live', new CreateSession({ title: 'Live' }));
    for (let n = 1; n <= 5; n += 1) await node.handle('live', new AppendMessages([message(`${n}`)]));
    await node.stop();
    await importHistories(
      db,
      JSON.stringify({ id: 'after', messages: [{ role: 'user', content: 'x' }] }),
      'openai',
    );
    const exported = await exportedHistories(db);
    expect(exported.map(({ id, title, messages }) => [id, title, (messages as unknown[]).length])).toEqual([
      ['after', undefined, 1],
      ['live', 'Live', 5],
    ]);
  });

  it('given lines for fine-tuning with blank ones between, when they come in twice, then each is one session, and the second time nothing changes', async () => {
    const one = (text: string) => ({
      messages: [
        { role: 'user', content: text },
        { role: 'assistant', content: 'ok' },
      ],
    });
    const text = `${lines(one('a'), one('b'))}\n \n${lines(one('a'))}\n`;
    expect(await importHistories(db, text, 'openai')).toMatchObject({ sessions: 2, imported: 2 });
    expect(await importHistories(db, text, 'openai')).toMatchObject({ imported: 0, unchanged: 2 });
  });

  it('given our own answer, when it comes in, then messages and times are those of the answer', async () => {
    const message = {
      ...{ id: 'msg_1', role: 'user', version: 2, createdAt: '2024-01-01T00:00:00.000Z', status: 'complete' },
      content: [{ type: 'image', url: 'https://x/y.png' }],
    };
    await importHistories(db, JSON.stringify({ data: [message], nextCursor: null, version: 2 }), 'openai');
    const [id = ''] = await sessionIds();
    expect(await messagesOf(id)).toEqual([
      { role: 'user', content: message.content, time: '2024-01-01T00:00:00.000Z' },
    ]);
  });

  it.each([
    ['{"messages": 7}', /line 1: it has no list of messages/],
    ['[{"role": "user", "content": ""}]', /line 1: message 1: \/content: must not be empty/],
    ['[{"role": "oracle", "content": "x"}]', /message 1: \/role/],
    [
      '[{"role": "tool", "tool_call_id": "c", "content": "x"}]',
      /message 1: a tool message must answer a tool call/,
    ],
    ['[{"role": "user"', /neither JSON nor JSON lines/],
    [`${lines(HISTORY)}not json`, /line 2: it is not JSON/],
  ])(
    'given %s, when it comes in, then it is refused by a reason with its place, and nothing is written',
    async (text, reason) => {
      await expect(importHistories(db, text, 'openai')).rejects.toThrow(reason);
      expect(await sessionIds()).toEqual([]);
    },
  );
});

it('given messages of LangChain in each of its forms, when they come in, then they are the same conversation', async () => {
  const plain = [
    { type: 'human', data: { content: 'Hi', name: null } },
    {
      type: 'ai',
      data: { content: '', tool_calls: [{ name: 'f', args: { a: 1 }, id: 'c', type: 'tool_call' }] },
    },
    { type: 'tool', data: { content: 'done', tool_call_id: 'c' } },
    { type: 'ai', data: { content: [{ type: 'text', text: 'Bye' }] } },
  ];
  const path = ['langchain', 'schema', 'messages'];
  const kinds: Record<string, string> = { human: 'HumanMessage', ai: 'AIMessage', tool: 'ToolMessage' };
  const serialised = plain.map(({ type, data }) => ({
    ...{ lc: 1, type: 'constructor', id: [...path, kinds[type]], kwargs: data },
  }));
  await importHistories(db, JSON.stringify({ session_id: 'one', messages: plain }, null, 2), 'langchain');
  await importHistories(db, JSON.stringify({ session_id: 'two', messages: serialised }), 'langchain');
  const expected = [
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: '', toolCalls: [{ id: 'c', name: 'f', arguments: '{"a":1}' }] },
    { role: 'tool', content: 'done', toolCallId: 'c' },
    { role: 'assistant', content: [{ type: 'text', text: 'Bye' }] },
  ];
  expect(await messagesOf('one')).toMatchObject(expected);
  expect(await messagesOf('two')).toMatchObject(expected);
});

it('given a ChatGPT export, when it comes in, then the chosen branch is the session, and the others are forks of it', async () => {
  const said = (role: string, text: string, time: number) => ({
    author: { role },
    content: { content_type: 'text', parts: [text] },
    create_time: time,
  });
  const mapping = {
    root: { parent: null, children: ['q'], message: null },
    q: { parent: 'root', children: ['a1', 'a2'], message: said('user', 'Question', 1_700_000_000.5) },
    a1: { parent: 'q', children: [], message: said('assistant', 'First', 1_700_000_001) },
    a2: { parent: 'q', children: ['t'], message: said('assistant', 'Second', 1_700_000_002) },
    t: { parent: 'a2', children: [], message: { ...said('tool', 'Page', 1_700_000_003), author: { role: 'tool', name: 'browser' } } },
  }; // prettier-ignore
  const conversation = { conversation_id: 'conv-1', title: 'Branches', mapping, current_node: 't' };
  await importHistories(db, JSON.stringify([conversation], null, 1), 'chatgpt');
  expect(await messagesOf('conv-1')).toEqual([
    { role: 'user', content: 'Question', time: '2023-11-14T22:13:20.500Z' },
    { role: 'assistant', content: 'Second', time: '2023-11-14T22:13:22.000Z' },
    { role: 'system', content: '[browser] Page', time: '2023-11-14T22:13:23.000Z' },
  ]);
  expect(await messagesOf('conv-1.1')).toMatchObject([{ content: 'Question' }, { content: 'First' }]);
  const [created] = await eventsOf('conv-1.1');
  expect(created?.data).toEqual({
    title: 'Branches',
    forkedFrom: { sessionId: 'conv-1', version: 2 },
    imported: true,
  });
  expect(await sessionIds()).toEqual(['conv-1', 'conv-1.1']);
});

describe('plain messages', () => {
  const line = (more: object) => ({ sessionId: 's', role: 'user', content: 'x', ...more });

  it('given times in seconds or milliseconds, when they come in, then they are those times', async () => {
    await importMessages(
      db,
      [line({ createdAt: 1_600_000_000 }), line({ createdAt: 1_600_000_001_000 })],
      'acme',
    );
    expect((await messagesOf('s')).map(({ time }) => time)).toEqual([
      '2020-09-13T12:26:40.000Z',
      '2020-09-13T12:26:41.000Z',
    ]);
  });

  it('given two messages of one id in a session, when they come in, then they are refused', async () => {
    const twice = { createdAt: '2024-01-01T00:00:00Z', messageId: 'm' };
    await expect(importMessages(db, [line(twice), line(twice)], 'acme')).rejects.toThrow(
      /line 2: .*two messages of the id m/,
    );
    expect(
      (await importMessages(db, [line(twice), { ...line(twice), sessionId: 't' }], 'acme')).imported,
    ).toBe(2);
  });
});
