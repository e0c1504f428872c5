import fc from 'fast-check';
import { changesBetween, withChanges } from '../../../src/domain/json-changes.js';
import { type NewMessage } from '../../../src/domain/session.commands.js';
import { type Json, sessionEvents } from '../../../src/domain/session.events.js';
import { toRequest } from '../../../src/generation/openai-request.js';
import { buildPrompt } from '../../../src/generation/prompt.js';
import { draftedItems, itemsOf } from '../../../src/openai/items.js';
import { InputItem } from '../../../src/openai/items.schemas.js';
import { type ChatMessage, promptFault } from '../../support/fake-openai.js';
import { sized } from '../../support/heavy.js';

const RUNS = sized(10_000, 10_000, 500);

/** Text that any JSON may hold and PostgreSQL can keep. */
const text = fc.string({ unit: 'grapheme', maxLength: 20 }).map((one) => one.replaceAll('\0', ''));
const words = text.map((one) => `a${one}`);
const name = fc.stringMatching(/^[A-Za-z0-9_.:-]{1,20}$/);
const id = fc.stringMatching(/^[!-~]{1,40}$/);
const json: fc.Arbitrary<Json> = fc
  .jsonValue({ maxDepth: 2 })
  .map((value) => JSON.parse(JSON.stringify(value).replaceAll(/\\u0000|__proto__/g, '')) as Json);
/** Members that nobody here knows. */
const extra = fc.dictionary(fc.stringMatching(/^x_[a-z]{1,8}$/), json, { maxKeys: 2 });
const merged = (...parts: fc.Arbitrary<object>[]): fc.Arbitrary<Record<string, unknown>> =>
  fc.tuple(...parts).map((objects) => Object.assign({}, ...objects) as Record<string, unknown>);

const url = fc.oneof(fc.constant('https://example.com/a.png'), fc.constant('data:image/png;base64,AAAA'));
const inputPart = fc.oneof(
  merged(fc.record({ type: fc.constant('input_text'), text: words }), extra),
  merged(
    fc.record({ type: fc.constant('input_image'), detail: fc.constantFrom('low', 'high', 'auto', 'original') }),
    fc.oneof(fc.record({ image_url: url }), fc.record({ file_id: id })),
    extra,
  ),
  merged(
    fc.record({ type: fc.constant('input_file') }),
    fc.oneof(fc.record({ file_url: url, filename: words }), fc.record({ file_data: fc.constantFrom('data:application/pdf;base64,AA', 'AAAA') }), fc.record({ file_id: id })),
  ),
  fc.record({
    type: fc.constant('input_audio'),
    input_audio: fc.record({ data: fc.constant('AAAA'), format: fc.constantFrom('wav', 'mp3', 'odd one') }),
  }),
  merged(fc.record({ type: fc.constant('of_tomorrow') }), extra),
); // prettier-ignore
const outputPart = fc.oneof(
  merged(
    fc.record({
      type: fc.constant('output_text'),
      text,
      annotations: fc.array(fc.record({ type: fc.constant('url_citation'), url }), { maxLength: 2 }),
      logprobs: fc.array(fc.record({ token: text }), { maxLength: 1 }),
    }),
    extra,
  ),
  fc.record({ type: fc.constant('refusal'), refusal: text }),
);
const status = fc.constantFrom('completed', 'incomplete', 'in_progress');
const named = fc.record({ id });
const asked = merged(
  named,
  fc.record({
    type: fc.constant('message'),
    role: fc.constantFrom('user', 'system', 'developer'),
    status,
    content: fc.array(inputPart, { minLength: 1, maxLength: 3 }),
  }),
  extra,
);
const replied = merged(
  named,
  fc.record({
    type: fc.constant('message'),
    role: fc.constant('assistant'),
    status,
    content: fc.array(outputPart, { maxLength: 3 }),
  }),
  extra,
);
const reasoning = merged(
  named,
  fc.record({
    type: fc.constant('reasoning'),
    summary: fc.array(fc.record({ type: fc.constant('summary_text'), text }), { maxLength: 2 }),
  }),
  fc.record(
    {
      content: fc.array(fc.record({ type: fc.constant('reasoning_text'), text }), { maxLength: 2 }),
      encrypted_content: text,
      status,
    },
    { requiredKeys: [] },
  ),
  extra,
);
/** A call, and its result if it was run. */
const called = fc
  .tuple(named, named, name, text, fc.option(fc.oneof(text, fc.array(inputPart, { minLength: 1, maxLength: 2 }))), status, extra)
  .map(([first, second, tool, given, output, state, more]) => (call_id: string) => [
    { ...first, type: 'function_call', call_id, name: tool, arguments: given, status: state, ...more },
    ...(output === null
      ? []
      : [{ ...second, type: 'function_call_output', call_id, output, status: state, ...more }]),
  ]); // prettier-ignore
const history: fc.Arbitrary<Record<string, unknown>[]> = fc
  .array(
    fc.oneof(
      asked.map((one) => () => [one]),
      replied.map((one) => () => [one]),
      reasoning.map((one) => () => [one]),
      called,
    ),
    { maxLength: 8 },
  )
  .map((turns) => turns.flatMap((turn, index) => turn(`call_${index}`) as Record<string, unknown>[]));

const drafted = (items: readonly object[]): NewMessage[] =>
  draftedItems(
    items.map((item) => InputItem.parse(item)),
    'items',
  );
const readBack = (messages: readonly NewMessage[]) =>
  messages.flatMap((message) => itemsOf({ ...message, id: message.messageId }));

describe('items of OpenAI’s API as messages', () => {
  it(`given ${RUNS} histories of items, when they become messages, then they come back to the letter, and every message fits its event`, () => {
    fc.assert(
      fc.property(history, (items) => {
        const messages = drafted(items);
        for (const message of messages)
          expect(sessionEvents.MessageAppended.data.parse(message)).toEqual(message);
        expect(readBack(messages)).toEqual(items);
      }),
      { numRuns: RUNS, seed: 20_261_128 },
    );
  });

  it(`given ${RUNS} histories of items, when a model is asked to go on, then no provider refuses the prompt`, () => {
    fc.assert(
      fc.property(history, fc.boolean(), (items, systemFirst) => {
        const messages = [...drafted(items), ...drafted([{ role: 'user', content: 'And now?' }])];
        const { params } = toRequest(
          { model: 'm', messages: buildPrompt(messages) },
          { systemFirst: true, usage: systemFirst, maxTokens: 'max_tokens' },
        );
        expect(promptFault(params.messages as readonly ChatMessage[])).toBeUndefined();
      }),
      { numRuns: RUNS, seed: 20_261_129 },
    );
  });

  it('given the easy form of an item, when it is read back, then it is whole, with an id', () => {
    const [item, reply] = readBack(
      drafted([
        { role: 'user', content: 'Hi' },
        { role: 'assistant', content: 'Ho' },
      ]),
    );
    expect(item).toEqual({
      id: expect.stringMatching(/^msg_/) as string,
      type: 'message',
      role: 'user',
      status: 'completed',
      content: [{ type: 'input_text', text: 'Hi' }],
    });
    expect(reply).toMatchObject({
      content: [{ type: 'output_text', text: 'Ho', annotations: [], logprobs: [] }],
    });
  });
});

describe('changes of a JSON value', () => {
  it('given any two values, when one is changed by what lies between them, then it is the other', () => {
    fc.assert(
      fc.property(json, json, (from, to) => {
        expect(withChanges(from, changesBetween(from, to))).toEqual(to);
        expect(changesBetween(from, from)).toEqual([]);
      }),
      { numRuns: RUNS, seed: 20_261_130 },
    );
  });
});
