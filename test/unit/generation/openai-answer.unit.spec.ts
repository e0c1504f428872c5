import { Answer } from '../../../src/generation/openai-answer.js';
import { checkedCalls } from '../../../src/generation/tool-calls.js';

const choice = (delta: object, finish: string | null = null): object => ({
  choices: [{ index: 0, delta, finish_reason: finish }],
});
const end = choice({}, 'stop');

/** The answer of these pieces, and its text. */
function answerOf(...pieces: readonly (object | string)[]) {
  const answer = new Answer(1_000_000);
  const text = pieces
    .map((piece) => answer.add(typeof piece === 'string' ? piece : JSON.stringify(piece)).text)
    .join('');
  return { text, ...answer.end() };
}
const callsOf = (...deltas: readonly object[][]) =>
  answerOf(...deltas.map((calls) => choice({ tool_calls: calls })), choice({}, 'tool_calls')).toolCalls;
const call = (id: string, name: string, text: string) => ({ id, name, arguments: text });
const named = (name: string, text = '') => ({ function: { name, arguments: text } });
const more = (text: string) => ({ function: { arguments: text } });

describe('the pieces of an answer', () => {
  describe('with tool calls', () => {
    it.each([
      ['index and id', [[{ index: 0, id: 'a', ...named('f') }, { index: 1, id: 'b', ...named('g') }], [{ index: 0, ...more('{}') }], [{ index: 1, ...more('[]') }]]],
      ['index alone', [[{ index: 0, ...named('f') }], [{ index: 1, ...named('g') }], [{ index: 1, ...more('[]') }, { index: 0, ...more('{}') }]]],
      ['id alone, all in one piece', [[{ id: 'a', ...named('f', '{}') }, { id: 'b', ...named('g', '[]') }]]],
      ['id alone, continued without', [[{ id: 'a', ...named('f') }], [more('{}')], [{ id: 'b', ...named('g') }], [more('[]')]]],
      ['id alone, repeated', [[{ id: 'a', ...named('f') }], [{ id: 'b', ...named('g') }], [{ id: 'a', ...more('{}') }], [{ id: 'b', ...more('[]') }]]],
      ['one index for all', [[{ index: 0, id: 'a', ...named('f', '{}') }], [{ index: 0, id: 'b', ...named('g', '[') }], [{ index: 0, ...more(']') }]]],
      ['neither, but names', [[named('f', '{')], [more('}')], [named('g', '[]')]]],
      ['an index with gaps', [[{ index: 3, ...named('f', '{}') }], [{ index: 7, ...named('g', '[]') }]]],
      ['an empty id behind the first piece', [[{ index: 0, id: 'a', ...named('f') }], [{ index: 0, id: '', ...more('{}') }], [{ index: 1, id: 'b', ...named('g') }], [{ index: 1, id: '', ...more('[]') }]]],
    ] as [string, object[][]][])('given calls that are told apart by %s, when they are put together, then there are two', (_how, deltas) => {
      expect(callsOf(...deltas).map(({ name, arguments: text }) => `${name}${text}`)).toEqual(['f{}', 'g[]']);
    }); // prettier-ignore

    it('given arguments that are an object, when they are put together, then they are its text', () => {
      expect(callsOf([{ id: 'a', function: { name: 'f', arguments: { city: 'Rome' } } }])).toEqual([
        call('a', 'f', '{"city":"Rome"}'),
      ]);
    });

    it('given calls without an id, with one id twice, or with a name that is none, when they are recorded, then each can be', () => {
      const checked = checkedCalls([
        call('', 'f', '{}'),
        call('a', 'get weather!', '{}'),
        call('a', '', '{}'),
        call('x'.repeat(300), 'n'.repeat(90), '{}'),
      ]);
      expect(checked.map(({ name }) => name)).toEqual(['f', 'get_weather_', 'unnamed', 'n'.repeat(64)]);
      expect(checked.map(({ id }) => id)).toEqual([
        expect.stringMatching(/^call_\w+$/),
        'a',
        expect.stringMatching(/^call_\w+$/),
        'x'.repeat(128),
      ]);
      expect(() => checkedCalls(Array.from({ length: 129 }, () => call('', 'f', '')))).toThrow(
        '129 tool calls',
      );
    });
  });

  it.each([
    [
      'usage that is odd',
      { ...choice({ content: 'Hi' }), usage: { prompt_tokens_details: { cached_tokens: 0 } } },
    ],
    ['usage that is a text', { ...choice({ content: 'Hi' }), usage: 'none' }],
    ['choices beside it that are null', { choices: null, usage: null }],
    ['choices beside it that are none', { choices: [] }],
    ['an event without data', ''],
    ['tool calls that are null', choice({ tool_calls: null })],
    ['a tool call that is null', { ...choice({ role: 'assistant' }) }],
    ['an error that is null', { ...choice({}), error: null }],
  ] as [string, object | string][])(
    'given %s, when the answer is put together, then its text is kept',
    (_what, odd) => {
      const { text, finishReason } = answerOf(choice({ content: 'Hi' }), odd, end);
      expect({ text: text.slice(0, 2), finishReason }).toEqual({ text: 'Hi', finishReason: 'stop' });
    },
  );

  it('given a reason that is an empty text, when the stream ends, then the answer was broken off', () => {
    expect(() => answerOf(choice({ content: 'Hi' }, ''))).toThrow('broke off');
    expect(answerOf(choice({ content: 'Hi' }, ''), choice({}, 'stop'), choice({}, '')).finishReason).toBe(
      'stop',
    );
  });

  it('given a second choice, when it is put together, then it is not mixed into the text', () => {
    const second = { choices: [{ index: 1, delta: { content: 'other' } }] };
    const both = {
      choices: [
        { index: 1, delta: { content: 'other' } },
        { index: 0, delta: { content: 'Hi' } },
      ],
    };
    expect(answerOf(both, second, end).text).toBe('Hi');
  });

  it('given a whole answer in place of a stream, when it is read, then all of it is there', () => {
    const message = { role: 'assistant', content: 'Hi', tool_calls: [{ id: 'a', ...named('f', '{}') }] };
    const usage = {
      prompt_tokens: 3,
      completion_tokens: 2,
      completion_tokens_details: { reasoning_tokens: 1 },
    };
    expect(answerOf({ choices: [{ message, finish_reason: 'tool_calls' }], usage })).toEqual({
      text: 'Hi',
      toolCalls: [call('a', 'f', '{}')],
      finishReason: 'tool_calls',
      usage: { inputTokens: 3, outputTokens: 2, reasoningTokens: 1 },
    });
  });

  it.each([
    ['reasoning_content', [{ reasoning_content: 'Hm' }, { reasoning_content: 'm.' }], { text: 'Hmm.' }],
    ['reasoning', [{ reasoning: 'Hm' }, { reasoning: 'm.' }], { text: 'Hmm.' }],
    ['reasoning_details', [{ reasoning_details: [{ type: 'reasoning.text', text: 'Hmm.' }] }, { reasoning_details: [{ type: 'reasoning.encrypted', data: 'x1' }] }], { text: 'Hmm.', encrypted: 'x1' }],
    ['two of them with the same text', [{ reasoning: 'Hmm.', reasoning_details: [{ text: 'Hmm.' }] }], { text: 'Hmm.' }],
    ['a summary', [{ reasoning_details: [{ type: 'reasoning.summary', summary: 'Thought.' }] }], { summary: ['Thought.'] }],
    ['parts of its content', [{ content: [{ type: 'thinking', thinking: [{ type: 'text', text: 'Hmm.' }] }] }], { text: 'Hmm.' }],
  ] as [string, object[], object][])('given thoughts of a model in %s, when the answer is put together, then they are kept apart from its text', (_where, deltas, reasoning) => {
    expect(answerOf(...deltas.map((delta) => choice(delta)), choice({ content: 'Hi' }), end)).toMatchObject({ text: 'Hi', reasoning });
  }); // prettier-ignore

  it('given a refusal, when the answer is put together, then its words are text and are named', () => {
    expect(
      answerOf(choice({ content: 'Well, ' }), choice({ refusal: 'I ' }), choice({ refusal: 'cannot.' }), end),
    ).toMatchObject({ text: 'Well, I cannot.', refusal: 'I cannot.' });
    expect(answerOf(choice({ refusal: 'No. ' }), choice({ content: 'Or yes.' }), end)).toMatchObject({
      text: 'No. Or yes.',
    });
  });

  it.each([
    [{ error: { message: 'GPU lost' } }, 'GPU lost'],
    [{ error: 'GPU lost' }, 'GPU lost'],
    [{ error: { code: 'overloaded', type: 'server' } }, 'overloaded, server'],
    [{ error: { error: { message: 'GPU lost' } } }, 'GPU lost'],
    [{ error: { detail: 'GPU lost' } }, 'GPU lost'],
    [{ error: { odd: 1 } }, '{"odd":1}'],
  ])('given the error %j in the middle, when it arrives, then it is the reason', (piece, reason) => {
    const answer = new Answer(1_000);
    answer.add(JSON.stringify(choice({ content: 'Hi' })));
    expect(() => answer.add(JSON.stringify(piece))).toThrow(reason);
  });

  it('given an event of the name error, when it arrives, then its data is the reason', () => {
    expect(() => new Answer(1_000).add('{"message":"GPU lost"}', 'error')).toThrow('GPU lost');
  });
});
