import { type ModelRequest, type PromptMessage } from '../../../src/generation/chat-model.js';
import { type Dialect, toRequest } from '../../../src/generation/openai-request.js';

const DIALECT: Dialect = { systemFirst: false, usage: true, maxTokens: 'max_completion_tokens' };
const sent = (request: Partial<ModelRequest>, dialect: Partial<Dialect> = {}) =>
  toRequest({ model: 'm', messages: [], ...request }, { ...DIALECT, ...dialect });
const messagesOf = (messages: readonly PromptMessage[], more: Partial<ModelRequest> = {}, dialect = {}) =>
  sent({ messages, ...more }, dialect).params.messages;

const user = (content: PromptMessage['content']): PromptMessage => ({ role: 'user', content });
const calling = (...calls: [id: string, name: string, text: string][]): PromptMessage => ({
  role: 'assistant',
  content: '',
  toolCalls: calls.map(([id, name, text]) => ({ id, name, arguments: text })),
});
const result = (toolCallId: string, content: PromptMessage['content']): PromptMessage => ({
  role: 'tool',
  toolCallId,
  content,
});

describe('a request in the form of the OpenAI API', () => {
  it.each([
    ['{"city":"Rome"}', '{"city":"Rome"}'],
    ['', '{}'],
    ['  ', '{}'],
    ['null', '{}'],
    ['{"city": "Ro', '{"invalid":"{\\"city\\": \\"Ro"}'],
    ['[1]', '{"invalid":"[1]"}'],
    ['"x"', '{"invalid":"\\"x\\""}'],
  ])('given arguments %s in the history, when it is sent, then they are a JSON object', (text, expected) => {
    expect(messagesOf([calling(['a', 'f', text])])).toMatchObject([
      { tool_calls: [{ function: { arguments: expected } }] },
    ]);
  });

  it('given names of tools that the API does not allow, when they are sent, then they differ, and each can be told', () => {
    const names = ['browser.tabs.open', 'browser:tabs:open', 'browser_tabs_open', 'ok'];
    const { params, toolName } = sent({
      tools: names.map((name) => ({ name })),
      messages: [calling(['a', 'browser.tabs.open', '{}']), result('a', 'done')],
    });
    const given = (params.tools ?? []).map((tool) => (tool.type === 'function' ? tool.function.name : ''));
    expect(given.every((name) => /^[a-zA-Z0-9_-]{1,64}$/.test(name))).toBe(true);
    expect(new Set(given).size).toBe(4);
    expect(given.map(toolName)).toEqual(names);
    expect(given.slice(2)).toEqual(['browser_tabs_open', 'ok']);
    expect(params.messages[0]).toMatchObject({ tool_calls: [{ function: { name: given[0] } }] });
    expect(toolName('unheard_of')).toBe('unheard_of');
  });

  it('given a result with an image, when it is sent, then the text announces it, and it follows behind all results', () => {
    const image = { type: 'image' as const, url: 'data:image/png;base64,AAAA' };
    const messages = messagesOf([
      calling(['a', 'f', '{}'], ['b', 'f', '{}']),
      result('a', [{ type: 'text', text: 'Look:' }, image]),
      result('b', 'nothing'),
      user('And?'),
    ]);
    expect(messages.map(({ role }) => role)).toEqual(['assistant', 'tool', 'tool', 'user', 'user']);
    expect(messages[1]?.content).toBe('Look:\n[The result goes on in the next message: image]');
    expect(messages[3]?.content).toEqual([
      { type: 'text', text: '[From the result of the tool call a]' },
      { type: 'image_url', image_url: { url: image.url } },
    ]);
  });

  it('given a result with an image as the last message, when it is sent, then the image is sent as well', () => {
    const image = { type: 'image' as const, url: 'https://x/y.png' };
    expect(messagesOf([calling(['a', 'f', '{}']), result('a', [image])]).at(-1)).toMatchObject({
      role: 'user',
      content: [{ type: 'text' }, { type: 'image_url', image_url: { url: image.url } }],
    });
  });

  it('given instructions and system messages, when the server wants one in front, then they are one in front, and else they stay', () => {
    const history: PromptMessage[] = [
      { role: 'system', content: 'One.' },
      user('q'),
      { role: 'developer', content: [{ type: 'text', text: 'Two.' }] },
    ];
    const more = { instructions: 'Zero.' };
    expect(messagesOf(history, more, { systemFirst: true })).toEqual([
      { role: 'system', content: 'Zero.\n\nOne.\n\nTwo.' },
      { role: 'user', content: 'q' },
    ]);
    expect(messagesOf(history, more).map(({ role }) => role)).toEqual(['system', 'system', 'user', 'system']);
  });

  it('given parts of every kind, when they are sent, then what cannot be shown is named, and thoughts are left out', () => {
    const audio = 'data:audio/wav;base64,UklG';
    expect(
      messagesOf([
        user([
          { type: 'text', text: '' },
          { type: 'image', url: 'https://x/y.png', detail: 'low' },
          { type: 'file', url: 'data:application/pdf;base64,AA', name: 'a.pdf' },
          { type: 'audio', url: audio },
          { type: 'audio', url: 'https://x/y.ogg' },
          { type: 'data', name: 'order', data: { id: 7 } },
        ]),
        {
          role: 'assistant',
          content: [
            { type: 'reasoning', text: 'secret' },
            { type: 'text', text: 'See', annotations: [{ url: 'x' }] },
            { type: 'image', url: 'https://x/z.png' },
            { type: 'refusal', text: 'No.' },
          ],
        },
      ]),
    ).toEqual([
      {
        role: 'user',
        content: [
          { type: 'image_url', image_url: { url: 'https://x/y.png', detail: 'low' } },
          { type: 'file', file: { file_data: 'data:application/pdf;base64,AA', filename: 'a.pdf' } },
          { type: 'input_audio', input_audio: { data: 'UklG', format: 'wav' } },
          { type: 'text', text: '[audio: https://x/y.ogg]' },
          { type: 'text', text: 'order: {"id":7}' },
        ],
      },
      { role: 'assistant', content: 'See\n[image: https://x/z.png]\nNo.' },
    ]);
  });

  it('given parameters, when they are sent, then they have the names of the API; a choice among no tools is left out', () => {
    const parameters = {
      temperature: 0,
      topP: 0.5,
      maxOutputTokens: 100,
      stop: ['END'],
      seed: 7,
      parallelToolCalls: false,
      reasoning: { effort: 'low' },
      responseFormat: { type: 'json_schema' as const, name: 'n', schema: { type: 'object' }, strict: true },
    };
    const toolChoice = { name: 'a.b' };
    const { params } = sent({ parameters: { ...parameters, toolChoice }, tools: [{ name: 'a.b' }] });
    expect(params).toMatchObject({
      temperature: 0,
      top_p: 0.5,
      max_completion_tokens: 100,
      stop: ['END'],
      seed: 7,
      parallel_tool_calls: false,
      reasoning_effort: 'low',
      response_format: {
        type: 'json_schema',
        json_schema: { name: 'n', schema: { type: 'object' }, strict: true },
      },
      tool_choice: { type: 'function', function: { name: 'a_b' } },
    });
    const other = sent(
      { parameters: { ...parameters, toolChoice: 'auto' } },
      { maxTokens: 'max_tokens', usage: false },
    );
    expect(other.params).toMatchObject({ max_tokens: 100 });
    for (const name of ['tool_choice', 'parallel_tool_calls', 'stream_options', 'max_completion_tokens'])
      expect(other.params).not.toHaveProperty(name);
    expect(Object.keys(sent({}).params).sort()).toEqual(['messages', 'model', 'stream', 'stream_options']);
  });

  it('given a model that wants its reasoning back, when a prompt is sent, then replies have it, and to others they have not', () => {
    const reply: PromptMessage = {
      role: 'assistant',
      content: [
        { type: 'reasoning', text: 'Hm.' },
        { type: 'text', text: 'Well.' },
      ],
    };
    expect(messagesOf([reply], {}, { reasoning: 'reasoning_content' })).toEqual([
      { role: 'assistant', content: 'Well.', reasoning_content: 'Hm.' },
    ]);
    expect(messagesOf([reply])).toEqual([{ role: 'assistant', content: 'Well.' }]);
  });

  it('given more attachments than a prompt may have, when it is sent, then the oldest are named and the others are there', () => {
    const photo = (n: number): PromptMessage =>
      user([{ type: 'image', url: `data:image/png;base64,${'A'.repeat(1000)}${n}` }]);
    const photos = [photo(1), photo(2), photo(3), user([{ type: 'image', url: 'https://x/y.png' }])];
    const kinds = (dialect: Partial<Dialect>) =>
      messagesOf(photos, {}, dialect).map(({ content }) => (content as { type: string }[])[0]?.type);
    expect(kinds({ maxAttachedBytes: 2_500 })).toEqual(['text', 'image_url', 'image_url', 'image_url']);
    expect(kinds({ maxAttachedBytes: 0 })).toEqual(['text', 'text', 'text', 'image_url']);
    expect(kinds({})).toEqual(['image_url', 'image_url', 'image_url', 'image_url']);
  });
});
