import { AIMessage, HumanMessage, SystemMessage, ToolMessage } from '@langchain/core/messages';
import {
  Agent,
  type AgentInputItem,
  OpenAIConversationsSession,
  OpenAIProvider,
  Runner,
  type Session,
  tool,
} from '@openai/agents';
import OpenAI from 'openai';
import { z } from 'zod';
import { ColloquySession } from '../../src/agents.js';
import { ColloquyChatMessageHistory } from '../../src/langchain.js';
import { callsTools, type FakeOpenAi, says } from '../support/fake-openai.js';
import { type Api } from '../support/http.js';
import { createWorld, logged, type World } from './fixture.js';

let world: World;
let model: FakeOpenAi;
let api: Api;
let openai: OpenAI;

beforeAll(async () => {
  process.env['OPENAI_AGENTS_DISABLE_TRACING'] = '1';
  world = await createWorld();
  model = await world.model();
  model.beStrict();
  ({ api } = await world.node({ MAX_SESSIONS: '10000' }));
  openai = new OpenAI({ baseURL: `${api.url}/openai/v1`, apiKey: 'any', maxRetries: 0 });
});
afterAll(async () => {
  expect(model.faults).toEqual([]);
  await world.end();
});

const runner = () =>
  new Runner({ modelProvider: new OpenAIProvider({ openAIClient: openai as never }), tracingDisabled: true });
const weather = (execute: () => Promise<string> | string) =>
  tool({ name: 'weather', description: 'tells', parameters: z.object({ city: z.string() }), execute });
const CALL = callsTools([{ id: 'c1', name: 'weather', arguments: '{"city":"Rome"}' }]);

const SESSIONS: [string, () => Session][] = [
  ['OpenAIConversationsSession', () => new OpenAIConversationsSession({ client: openai as never })],
  ['ColloquySession', () => new ColloquySession({ url: api.url })],
];

describe.each(SESSIONS)('OpenAI Agents with %s', (_name, create) => {
  it('given an agent with a tool, when it runs twice, then the second run knows the first', async () => {
    const session = create();
    const agent = new Agent({
      name: 'A',
      model: 'm',
      tools: [weather(() => '18 degrees')],
      modelSettings: { store: false },
    });
    model.next(CALL, says('It is 18 degrees.'));
    const first = await runner().run(agent, 'How warm is it in Rome?', { session });
    expect(first.finalOutput).toBe('It is 18 degrees.');
    const items = await session.getItems();
    expect(items.map((item) => item.type)).toEqual([
      'message',
      'function_call',
      'function_call_result',
      'message',
    ]);
    model.next(says('Mild.'));
    await runner().run(agent, 'And is that much?', { session });
    expect(model.last.messages.map(({ role }) => role)).toEqual([
      'user',
      'assistant',
      'tool',
      'assistant',
      'user',
    ]);
    expect(await session.getItems(2)).toHaveLength(2);
    expect((await session.getItems(1))[0]).toMatchObject({ role: 'assistant' });
    // The service has it as a session like any other.
    const id = await session.getSessionId();
    expect((await api.get(`/v1/sessions/${id}`)).body).toMatchObject({ messageCount: 6 });
  });

  it('given a run that is aborted while a tool runs, when the next run begins, then it works', async () => {
    const session = create();
    const abort = new AbortController();
    const agent = new Agent({
      name: 'A',
      model: 'm',
      modelSettings: { store: false },
      tools: [
        weather(
          () =>
            new Promise((resolve) => {
              abort.abort();
              setTimeout(() => {
                resolve('too late');
              }, 50);
            }),
        ),
      ],
    });
    model.next(CALL);
    await expect(runner().run(agent, 'How warm?', { session, signal: abort.signal })).rejects.toThrow();
    model.next(says('Never mind then.'));
    const next = await runner().run(agent, 'Forget it.', { session });
    expect(next.finalOutput).toBe('Never mind then.');
  });
});

describe('ColloquySession', () => {
  it('given items of every kind, when they are added, then they come back to the letter, in part and popped', async () => {
    const session = new ColloquySession({ url: api.url, sessionId: 'agent-items' });
    const items = [
      { role: 'system', content: 'Be kind.' },
      { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'Look' }, { type: 'input_image', image: 'https://x/y.png' }, { type: 'input_image', image: { id: 'file_1' } }] },
      { type: 'reasoning', id: 'rs_1', content: [{ type: 'input_text', text: 'Hm.' }], providerData: { a: 1 } },
      { type: 'hosted_tool_call', name: 'web_search', id: 'ws_1', status: 'completed', providerData: { x: [1] } },
      { type: 'function_call', id: 'fc_1', callId: 'c1', name: 'weather', arguments: '{"city":', status: 'completed', providerData: { id: 'x' } },
      { type: 'function_call_result', callId: 'c1', name: 'weather', status: 'completed', output: { type: 'text', text: '18' } },
      { type: 'function_call', callId: 'c2', name: 'weather', arguments: '{}' },
      { type: 'function_call_result', callId: 'c2', name: 'weather', status: 'completed', output: [{ type: 'input_text', text: 'a' }] },
      { type: 'message', role: 'assistant', status: 'completed', id: 'msg_1', content: [{ type: 'output_text', text: 'Blue.', annotations: [] }, { type: 'refusal', refusal: 'No.' }] },
      { type: 'unknown', providerData: { type: 'of tomorrow' } },
    ] as unknown as AgentInputItem[]; // prettier-ignore
    await session.addItems(items);
    expect(await session.getItems()).toEqual(items);
    expect(await session.getItems(3)).toEqual(items.slice(-3));
    expect(await session.getItems(0)).toEqual([]);
    expect(await session.popItem()).toEqual(items.at(-1));
    expect(await session.getItems()).toEqual(items.slice(0, -1));
    await session.clearSession();
    expect(await session.getItems()).toEqual([]);
    expect(await session.popItem()).toBeUndefined();
    expect((await logged(world.database, 'agent-items')).map(({ type }) => type)).toContain(
      'ConversationReset',
    );
    const unused = new ColloquySession({ url: api.url });
    expect(await unused.getItems()).toEqual([]);
    await unused.clearSession();
  });

  it('given transactions, when they are repeated, conflict or do not fit, then each takes effect once or not at all', async () => {
    const session = new ColloquySession({ url: api.url });
    const item = (text: string): AgentInputItem => ({ type: 'message', role: 'user', content: text });
    const add = (...texts: string[]) => ({ type: 'append_items' as const, items: texts.map(item) });
    const replace = (from: string[], to: string[]) => ({
      type: 'replace_suffix' as const,
      expectedSuffix: from.map(item),
      replacement: to.map(item),
    });
    const attempt = async (operationId: string, transaction: ReturnType<typeof add | typeof replace>) => {
      const outcome = await session.applyHistoryTransaction({ operationId, transaction }).then(
        () => 'done',
        () => 'refused',
      );
      const items = (await session.getItems()) as { content: string }[];
      return `${outcome} ${items.map(({ content }) => content).join('')}`;
    };
    expect(await attempt('1', add('a', 'b'))).toBe('done ab');
    expect(await attempt('1', add('a', 'b'))).toBe('done ab');
    expect(await attempt('1', add('other'))).toBe('refused ab');
    expect(await attempt('2', replace(['b'], ['c', 'd']))).toBe('done acd');
    expect(await attempt('2', replace(['b'], ['c', 'd']))).toBe('done acd');
    expect(await attempt('3', replace(['b'], ['x']))).toBe('refused acd');
    expect(await attempt('4', replace(['a', 'b', 'c', 'd'], ['x']))).toBe('refused acd');
    expect(await attempt('5', replace(['a', 'c', 'd'], ['e']))).toBe('done e');
    expect(await attempt('2', replace(['e'], ['f']))).toBe('refused e');
    expect(await attempt('6', replace([], ['g']))).toBe('done eg');
    expect(await attempt('2', replace(['b'], ['c', 'd']))).toBe('done eg');
    expect(await attempt('7', replace(['g'], []))).toBe('done e');
  });
});

describe('ColloquyChatMessageHistory of LangChain', () => {
  it('given messages of every kind, when they are added, then they come back to the letter', async () => {
    const history = new ColloquyChatMessageHistory({ url: api.url, sessionId: 'chain' });
    const messages = [
      new SystemMessage('Be kind.'),
      new HumanMessage({ content: [{ type: 'text', text: 'Look' }, { type: 'image_url', image_url: { url: 'https://x/y.png', detail: 'low' } }], id: 'h1', name: 'ann' }),
      new AIMessage({ content: 'I look.', tool_calls: [{ id: 'c1', name: 'search', args: { q: 'sea' }, type: 'tool_call' }], usage_metadata: { input_tokens: 1, output_tokens: 2, total_tokens: 3 } } as never),
      new ToolMessage({ content: 'found', tool_call_id: 'c1', name: 'search', status: 'success', artifact: { x: 1 } }),
      new AIMessage({ content: '', additional_kwargs: { reasoning_content: 'Hm.' } }),
      new HumanMessage(''),
    ]; // prettier-ignore
    await history.addMessages(messages);
    const back = await history.getMessages();
    expect(back.map((one) => one.toDict())).toEqual(messages.map((one) => one.toDict()));
    await history.addUserMessage('one');
    await history.addAIMessage('two');
    expect((await history.getMessages()).slice(-2).map(({ content }) => content)).toEqual(['one', 'two']);
    await history.clear();
    expect(await history.getMessages()).toEqual([]);
    expect(
      (await logged(world.database, 'chain')).filter(({ type }) => type === 'MessageAppended'),
    ).toHaveLength(8);
  });
});
