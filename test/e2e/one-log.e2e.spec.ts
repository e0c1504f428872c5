import { randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Chat } from '@ai-sdk/react';
import { Agent, OpenAIProvider, Runner } from '@openai/agents';
import { DefaultChatTransport, type UIMessage } from 'ai';
import OpenAI from 'openai';
import { ColloquySession } from '../../src/agents.js';
import { ColloquyChatMessageHistory } from '../../src/langchain.js';
import { colloquy } from '../support/colloquy.js';
import { callsTools, conducted, type FakeOpenAi, says } from '../support/fake-openai.js';
import { describeWithKafka, tap } from '../support/kafka.js';
import { eventually } from '../support/http.js';
import { createWorld, type Node, type World } from './fixture.js';

let world: World;
let model: FakeOpenAi;
beforeEach(async () => {
  world = await createWorld();
  model = await world.model();
  model.beStrict();
});
afterEach(async () => {
  expect(model.faults).toEqual([]);
  await world.end();
});

const openaiOf = ({ service }: Node): OpenAI =>
  new OpenAI({ baseURL: `${service.url}/openai/v1`, apiKey: 'any', maxRetries: 0 });
async function chatOf({ api, service }: Node, id: string): Promise<Chat<UIMessage>> {
  return new Chat<UIMessage>({
    id,
    messages: (await api.get(`/ai-sdk/chat/${id}/messages`)).body as unknown as UIMessage[],
    transport: new DefaultChatTransport({ api: `${service.url}/ai-sdk/chat` }),
  });
}

describeWithKafka('one log', (brokers) => {
  it('given one session, when OpenAI’s SDK begins it, useChat and an agent go on and LangChain reads it, then all have one history, and the audit trail and Kafka have every event of it', async () => {
    const topic = `one-log-${randomUUID()}`;
    const cwd = await world.folder();
    await writeFile(join(cwd, 'colloquy.yml'), `kafka: { topic: ${topic} }\n`);
    const node = await world.node({ KAFKA_BROKERS: brokers }, cwd);
    const { url } = node.service;
    const openai = openaiOf(node);

    // OpenAI's SDK begins, with a tool.
    const { id } = await openai.conversations.create();
    model.next(
      callsTools([{ id: 'c1', name: 'weather', arguments: '{"city":"Rome"}' }]),
      says('It is 18 degrees.'),
    );
    const tools = [
      { type: 'function' as const, name: 'weather', parameters: { type: 'object' }, strict: false },
    ];
    await openai.responses.create({ conversation: id, input: 'How warm is it in Rome?', tools });
    await openai.responses.create({
      conversation: id,
      input: [{ type: 'function_call_output', call_id: 'c1', output: '18' }],
      tools,
    });

    // A page goes on.
    const chat = await chatOf(node, id);
    expect(chat.messages.map(({ role }) => role)).toEqual(['user', 'assistant']);
    model.next(says('Mild.'));
    await chat.sendMessage({ text: 'Is that much?' });
    expect(chat.error).toBeUndefined();

    // An agent goes on.
    model.next(says('Rome.'));
    const session = new ColloquySession({ url, sessionId: id });
    const agent = new Agent({ name: 'A', model: 'm', modelSettings: { store: false } });
    const runner = new Runner({
      modelProvider: new OpenAIProvider({ openAIClient: openai as never }),
      tracingDisabled: true,
    });
    expect((await runner.run(agent, 'Which city?', { session })).finalOutput).toBe('Rome.');

    // LangChain reads, and writes a word of its own.
    const history = new ColloquyChatMessageHistory({ url, sessionId: id });
    const said = [
      'How warm is it in Rome?',
      '',
      '18',
      'It is 18 degrees.',
      'Is that much?',
      'Mild.',
      'Which city?',
    ];
    expect((await history.getMessages()).map(({ text }) => text)).toEqual([...said, 'Rome.']);
    await history.addUserMessage('Thanks.');

    // All of them have the same history.
    const { body } = await node.api.get<{ data: { content: unknown }[] }>(`/v1/sessions/${id}/messages`);
    const texts = body.data.map(({ content }) =>
      typeof content === 'string' ? content : JSON.stringify(content),
    );
    expect(texts).toEqual([...said, 'Rome.', 'Thanks.']);
    const items = [];
    for await (const item of openai.conversations.items.list(id, { order: 'asc', limit: 3 }))
      items.push(item.type);
    expect(items).toEqual([
      ...['message', 'function_call', 'function_call_output', 'message'],
      ...['message', 'message', 'message', 'message', 'message'],
    ]);
    expect(await session.getItems()).toHaveLength(9);
    expect((await chatOf(node, id)).messages.map(({ role }) => role)).toEqual([
      ...['user', 'assistant', 'user', 'assistant', 'user', 'assistant', 'user'],
    ]);

    // The trail has every event, and so has Kafka, in their order.
    const trail = await colloquy(['events', '--session', id, '--limit', '1000', '--url', url]);
    const logged = await world.database.query<{ id: string; type: string }>(
      'select id::text, type from event where stream_id = $1 order by version',
      [id],
    );
    const listening = await tap(brokers, topic);
    await eventually(
      () =>
        Promise.resolve(
          listening.records.filter((record) => logged.some(({ id: event }) => event === record.id)).length ===
            logged.length,
        ),
      20_000,
    );
    await listening.stop();
    const published = listening.records
      .map((record) => record.id)
      .filter((one) => logged.some(({ id: event }) => event === one));
    expect(published).toEqual(logged.map((event) => event.id));
    const listed = trail.out
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { type: string }).type);
    expect(listed).toEqual(logged.map(({ type }) => type));
  }, 120_000);
});

it('given clients of different protocols on one session at once, when both ask, then one is answered, each other is told that it is busy in its own form, and nothing is lost', async () => {
  const nodes = await Promise.all([world.node(), world.node()]);
  const [first, second] = nodes;
  const { id } = await openaiOf(first).conversations.create();
  const reply = conducted();
  model.next(reply.reply);
  const asking = openaiOf(first).responses.create({ conversation: id, input: 'first' });
  await reply.asked;

  const refused = await openaiOf(second)
    .responses.create({ conversation: id, input: 'second' })
    .catch((error: unknown) => error);
  expect(refused).toMatchObject({ status: 400, code: 'conversation_locked' });
  const chat = await chatOf(second, id);
  await chat.sendMessage({ text: 'third' });
  expect(chat.error?.message).toBe('the session is generating a reply');
  const native = await first.api.post(`/v1/sessions/${id}/generate`, { message: 'fourth' });
  expect(native).toMatchObject({ status: 409, body: { code: 'session-busy' } });
  // Words that need no answer are taken meanwhile.
  await new ColloquyChatMessageHistory({ url: second.service.url, sessionId: id }).addUserMessage(
    'by the way',
  );

  reply.say('Answer.');
  reply.end();
  expect((await asking).output_text).toBe('Answer.');
  const { body } = await second.api.get<{ data: { content: string }[] }>(`/v1/sessions/${id}/messages`);
  expect(body.data.map(({ content }) => content)).toEqual(['first', 'by the way', 'Answer.']);
  model.next(says('Now.'));
  await chat.sendMessage({ text: 'third, again' });
  expect(chat.error).toBeUndefined();
});
