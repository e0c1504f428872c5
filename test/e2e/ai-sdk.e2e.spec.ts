import { Chat } from '@ai-sdk/react';
import {
  DefaultChatTransport,
  lastAssistantMessageIsCompleteWithApprovalResponses,
  lastAssistantMessageIsCompleteWithToolCalls,
  type UIMessage,
} from 'ai';
import { callsTools, conducted, type FakeOpenAi, fails, says } from '../support/fake-openai.js';
import { type Api, apiOf, eventually } from '../support/http.js';
import { createWorld, logged, user, type World } from './fixture.js';

type Init = ConstructorParameters<typeof Chat<UIMessage>>[0];

const thinks = (text: string) =>
  `data: ${JSON.stringify({ choices: [{ delta: { reasoning_content: text } }] })}\n\n`;
const SEARCH = { name: 'search', parameters: { type: 'object' } };

let world: World;
let model: FakeOpenAi;
let api: Api;
const errors: Error[] = [];

beforeAll(async () => {
  world = await createWorld();
  model = await world.model();
  model.beStrict();
  ({ api } = await world.node({ MAX_SESSIONS: '10000' }));
});
afterAll(async () => {
  expect(model.faults).toEqual([]);
  await world.end();
});

/** A chat as a page has it, after it has been loaded. */
async function open(id: string, init: Partial<Init> = {}, body: object = {}): Promise<Chat<UIMessage>> {
  const known = await api.get<UIMessage[]>(`/ai-sdk/chat/${id}/messages`);
  return new Chat<UIMessage>({
    id,
    messages: known.status === 200 ? known.body : [],
    transport: new DefaultChatTransport({ api: `${api.url}/ai-sdk/chat`, body }),
    onError: (error) => errors.push(error),
    ...init,
  });
}
/** The transport sends only the last message, as the documentation of the AI SDK shows it. */
const lastOnly = () =>
  new DefaultChatTransport<UIMessage>({
    api: `${api.url}/ai-sdk/chat`,
    prepareSendMessagesRequest: ({ id, messages, trigger, messageId }) => ({
      body: { id, messages: messages.slice(-1), trigger, messageId },
    }),
  });
const textsOf = (chat: Chat<UIMessage>): string[] =>
  chat.messages.map(({ parts }) => parts.map((part) => (part.type === 'text' ? part.text : '')).join(''));
/** Messages without what the client alone adds: the names of parts in a stream, and inputs of tools as texts. */
const plain = (messages: readonly UIMessage[]): unknown =>
  messages.map(({ parts, ...message }) => ({
    ...message,
    parts: parts.map((part) => {
      const { rawInput: _raw, ...others } = JSON.parse(JSON.stringify(part)) as Record<string, unknown>;
      const { id: _id, ...unnamed } = others;
      return part.type === 'reasoning' ? unnamed : others;
    }),
  }));
const saved = async (id: string) =>
  plain((await api.get(`/ai-sdk/chat/${id}/messages`)).body as unknown as UIMessage[]);

describe('useChat', () => {
  it.each([
    ['all of them', undefined],
    ['only the last one', lastOnly],
  ])(
    'given two turns, when the client sends %s, then the page has what is recorded, and a page that is loaded again has it with the same ids',
    async (name, transport) => {
      const id = `two-${name.length}`;
      const chat = await open(id, transport ? { transport: transport() } : {});
      model.next(says('First.'), says('Second.'));
      await chat.sendMessage({ text: 'one' });
      await chat.sendMessage({ text: 'two' });
      expect(textsOf(chat)).toEqual(['one', 'First.', 'two', 'Second.']);
      expect(chat.status).toBe('ready');
      expect(await saved(id)).toEqual(plain(chat.messages));
      const again = await open(id);
      await again.sendMessage({ text: 'three' });
      expect(again.messages.map((message) => message.id).slice(0, 4)).toEqual(
        chat.messages.map((message) => message.id),
      );
      expect(model.last.messages).toHaveLength(5);
      expect(
        (await logged(world.database, id)).filter(({ type }) => type === 'MessageAppended'),
      ).toHaveLength(6);
    },
  );

  it('given a model that thinks, when it answers, then its thoughts are a part of their own, also when the page is loaded again', async () => {
    const reply = conducted();
    model.next(reply.reply);
    const chat = await open('thinking');
    const sending = chat.sendMessage({ text: 'think' });
    await reply.asked;
    reply.send(thinks('Hm.'));
    reply.say('Well.');
    reply.end();
    await sending;
    expect(chat.messages.at(-1)?.parts.map(({ type }) => type)).toEqual(['step-start', 'reasoning', 'text']);
    expect(await saved('thinking')).toEqual(plain(chat.messages));
  });

  it('given a page that is loaded again in the middle of a reply, when it resumes, then it reads on to the end', async () => {
    const reply = conducted();
    model.next(reply.reply);
    const chat = await open('reload');
    const sending = chat.sendMessage({ text: 'tell' });
    await reply.asked;
    reply.say('one ');
    await eventually(() => Promise.resolve(textsOf(chat).at(-1) === 'one '));
    await chat.stop();
    await sending;
    const again = await open('reload');
    expect(textsOf(again)).toEqual(['tell']);
    const resuming = again.resumeStream();
    await eventually(() => Promise.resolve(textsOf(again).at(-1) === 'one '));
    reply.say('two');
    reply.end();
    await resuming;
    expect(textsOf(again)).toEqual(['tell', 'one two']);
    expect(await saved('reload')).toEqual(plain(again.messages));
    // Nothing runs now, and nothing is resumed.
    const later = await open('reload');
    await later.resumeStream();
    expect(textsOf(later)).toEqual(['tell', 'one two']);
    await (await open('never used')).resumeStream();
  });

  it('given a reply that arrives, when it is stopped, then what has arrived is kept, and the chat goes on', async () => {
    const reply = conducted();
    model.next(reply.reply);
    const chat = await open('stop');
    const sending = chat.sendMessage({ text: 'tell' });
    await reply.asked;
    reply.say('begun');
    await eventually(() => Promise.resolve(textsOf(chat).at(-1) === 'begun'));
    expect((await api.post('/ai-sdk/chat/stop/stop')).body).toEqual({ stopped: true });
    await sending;
    await reply.abandoned;
    model.next(says('Sure.'));
    await chat.sendMessage({ text: 'and now?' });
    expect(textsOf(chat)).toEqual(['tell', 'begun', 'and now?', 'Sure.']);
    expect(await saved('stop')).toEqual(plain(chat.messages));
    expect((await api.post('/ai-sdk/chat/stop/stop')).body).toEqual({ stopped: false });
  });

  it('given a chat, when replies are made again and a message is edited, then the history is what the page shows, and the log keeps the rest', async () => {
    const chat = await open('again');
    model.next(says('A1'), says('B1'), says('B2'), says('A2'), says('C1'));
    await chat.sendMessage({ text: 'a' });
    await chat.sendMessage({ text: 'b' });
    await chat.regenerate();
    expect(textsOf(chat)).toEqual(['a', 'A1', 'b', 'B2']);
    expect(await saved('again')).toEqual(plain(chat.messages));
    // An earlier reply: what came behind it leaves as well, as on the page.
    await chat.regenerate({ messageId: chat.messages[1]?.id ?? '' });
    expect(textsOf(chat)).toEqual(['a', 'A2']);
    expect(await saved('again')).toEqual(plain(chat.messages));
    const edited = chat.messages[0]?.id ?? '';
    await chat.sendMessage({ text: 'a, but other', messageId: edited });
    expect(textsOf(chat)).toEqual(['a, but other', 'C1']);
    expect(chat.messages[0]?.id).toBe(edited);
    expect(await saved('again')).toEqual(plain(chat.messages));
    const said = (await logged(world.database, 'again')).filter(({ type }) => type === 'MessageAppended');
    expect(said).toHaveLength(8);
  });

  it('given a tool that the page runs, when the model calls it, then its result goes to the model, and one message has both steps', async () => {
    model.next(callsTools([{ id: 'c1', name: 'search', arguments: '{"q":"sea"}' }]), says('Blue.'));
    const chat: Chat<UIMessage> = await open(
      'tools',
      {
        sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
        onToolCall: ({ toolCall }) => {
          void chat.addToolOutput({
            tool: 'search',
            toolCallId: toolCall.toolCallId,
            output: { found: [toolCall.input, 1] },
          });
        },
      },
      { tools: [SEARCH], temperature: 0.1 },
    );
    await chat.sendMessage({ text: 'which colour?' });
    await eventually(() => Promise.resolve(textsOf(chat).at(-1) === 'Blue.' && chat.status === 'ready'));
    expect(chat.messages).toHaveLength(2);
    expect(chat.messages[1]?.parts.map(({ type }) => type)).toEqual([
      'step-start',
      'tool-search',
      'step-start',
      'text',
    ]);
    expect(await saved('tools')).toEqual(plain(chat.messages));
    expect(model.last.messages.at(-1)).toMatchObject({
      role: 'tool',
      tool_call_id: 'c1',
      content: '{"found":[{"q":"sea"},1]}',
    });
    expect(model.last).toMatchObject({ temperature: 0.1 });
  });

  it.each([true, false])(
    'given a tool that needs an approval, when the answer is %s, then it is run or refused, and the chat goes on',
    async (approved) => {
      const id = `approval-${approved}`;
      const ran: unknown[] = [];
      model.next(callsTools([{ id: 'c1', name: 'search', arguments: '{}' }]), says('So be it.'));
      const chat: Chat<UIMessage> = await open(
        id,
        {
          sendAutomaticallyWhen: (options) =>
            lastAssistantMessageIsCompleteWithToolCalls(options) ||
            lastAssistantMessageIsCompleteWithApprovalResponses(options),
          onToolCall: ({ toolCall }) => {
            ran.push(toolCall.toolCallId);
            void chat.addToolOutput({ tool: 'search', toolCallId: toolCall.toolCallId, output: 'found' });
          },
        },
        { tools: [{ ...SEARCH, approval: 'required' }] },
      );
      await chat.sendMessage({ text: 'find' });
      const part = chat.messages.at(-1)?.parts.at(-1) as { state: string; approval: { id: string } };
      expect(part.state).toBe('approval-requested');
      expect(ran).toEqual([]);
      // The page may be loaded again meanwhile.
      expect(await saved(id)).toEqual(plain(chat.messages));
      await chat.addToolApprovalResponse({ id: part.approval.id, approved, reason: 'because' });
      await eventually(() =>
        Promise.resolve(textsOf(chat).at(-1) === 'So be it.' && chat.status === 'ready'),
      );
      expect(ran).toEqual(approved ? ['c1'] : []);
      expect(await saved(id)).toEqual(plain(chat.messages));
      expect(model.last.messages.at(-1)).toMatchObject({
        role: 'tool',
        content: approved ? 'found' : 'denied: because',
      });
      expect(
        (await logged(world.database, id)).filter(({ type }) => type === 'ToolApprovalGranted'),
      ).toHaveLength(approved ? 1 : 0);
    },
  );

  it('given a chat that others write to at another node, when a page that has read that sends all it has, then nothing is in the history twice', async () => {
    const other = (await world.node()).api;
    const chat = await open('twice');
    await chat.sendMessage({ text: 'one' });
    await chat.sendMessage({ text: 'two' });
    await other.post('/v1/sessions/twice/messages', user('from elsewhere'));
    // The page is loaded from the other node, and goes on at the first.
    const known = (await other.get('/ai-sdk/chat/twice/messages')).body as unknown as UIMessage[];
    const transport = new DefaultChatTransport<UIMessage>({ api: `${api.url}/ai-sdk/chat` });
    const again = new Chat<UIMessage>({ id: 'twice', messages: known, transport });
    await again.sendMessage({ text: 'three' });
    expect(again.error).toBeUndefined();
    expect(await saved('twice')).toEqual(plain(again.messages));
    expect(textsOf(again).filter((text) => text === 'from elsewhere')).toHaveLength(1);
  });

  it('given a file and parts of its own, when a message is sent, then the model gets the file, and the page gets everything back', async () => {
    const chat = await open('parts');
    await chat.sendMessage({
      metadata: { at: 1 },
      parts: [
        { type: 'text', text: 'What is this?' },
        { type: 'file', mediaType: 'image/png', url: 'data:image/png;base64,AAAA', filename: 'a.png' },
        { type: 'data-place', data: { lat: 1 } },
      ],
    });
    expect(model.last.messages.at(-1)?.content).toMatchObject([
      { type: 'text', text: 'What is this?' },
      { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } },
      {},
    ]);
    expect(await saved('parts')).toEqual(plain(chat.messages));
  });

  it('given a model that fails, when a chat is answered, then the page shows the reason and can try again', async () => {
    const chat = await open('failing');
    model.next(fails(400, 'GPU lost'), says('Now.'));
    await chat.sendMessage({ text: 'try' });
    expect(chat.status).toBe('error');
    expect(chat.error?.message).toMatch(/GPU lost/);
    await chat.regenerate();
    expect(textsOf(chat)).toEqual(['try', 'Now.']);
    expect(await saved('failing')).toEqual(plain(chat.messages));
  });

  it('given a chat that is being answered, when another client writes to it, then one is answered, the other is told that it is busy, and nothing is lost', async () => {
    const reply = conducted();
    model.next(reply.reply);
    const chat = await open('busy');
    const sending = chat.sendMessage({ text: 'first' });
    await reply.asked;
    const other = await open('busy');
    await other.sendMessage({ text: 'second' });
    expect(other.error?.message).toBe('the session is generating a reply');
    // What the other client says meanwhile without asking for a reply stays in the history of both.
    await api.post('/v1/sessions/busy/messages', user('by the way'));
    reply.say('Done.');
    reply.end();
    await sending;
    await chat.sendMessage({ text: 'third' });
    const texts = ((await saved('busy')) as UIMessage[]).map(({ parts }) =>
      parts.map((part) => (part.type === 'text' ? part.text : '')).join(''),
    );
    expect(texts.slice(0, 4)).toEqual(['first', 'by the way', 'Done.', 'third']);
  });

  it('given requests that are wrong, when they are sent, then the answer is one sentence', async () => {
    const wrong = await api.post('/ai-sdk/chat', {
      id: 'wrong',
      messages: [{ id: 'a', role: 'nobody', parts: [] }],
    });
    expect(wrong.status).toBe(400);
    expect(wrong.headers.get('content-type')).toMatch(/^text\/plain/);
    expect(wrong.headers.get('x-error-code')).toBe('invalid-request');
    expect(wrong.text).toMatch(/^body \/messages\/0\/role: /);
    expect((await api.get('/ai-sdk/chat/none/messages')).status).toBe(404);
    expect((await apiOf(api.url).get('/ai-sdk/nothing')).text).toBe('There is no GET /ai-sdk/nothing.');
  });
});
