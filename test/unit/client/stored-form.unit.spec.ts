import fc from 'fast-check';
import { AGENTS_FORM } from '../../../src/client/agents-session.js';
import { LANGCHAIN_FORM } from '../../../src/client/langchain-history.js';
import { shown, stored } from '../../../src/client/stored-form.js';
import { type Json } from '../../../src/domain/session.events.js';
import { NewMessage } from '../../../src/sessions/session.schemas.js';
import { sized } from '../../support/heavy.js';

const RUNS = sized(10_000, 10_000, 500);

const text = fc.string({ unit: 'grapheme', maxLength: 12 }).map((one) => one.replaceAll('\0', ''));
const words = text.map((one) => `a${one}`);
const json: fc.Arbitrary<Json> = fc
  .jsonValue({ maxDepth: 2 })
  .map((value) => JSON.parse(JSON.stringify(value).replaceAll(/\\u0000|__proto__/g, '')) as Json);
const more = fc.record(
  { id: words, providerData: fc.dictionary(fc.constantFrom('x', 'y'), json) },
  { requiredKeys: [] },
);
const merged = (...parts: fc.Arbitrary<object>[]): fc.Arbitrary<object> =>
  fc.tuple(...parts).map((objects) => Object.assign({}, ...objects) as object);
const url = fc.constantFrom('https://x/y.png', 'data:image/png;base64,AA', 'no url');
const status = fc.constantFrom('completed', 'in_progress', 'incomplete');

const inputPart = fc.oneof(
  fc.record({ type: fc.constant('input_text'), text: words }),
  fc.record({ type: fc.constant('input_image'), image: fc.oneof(url, fc.record({ id: words })) }),
  fc.record({ type: fc.constant('input_file'), file: url }),
  fc.record({ type: fc.constant('audio'), audio: words, format: fc.constant('wav') }),
);
const agentItem = fc.oneof(
  merged(
    fc.record({
      role: fc.constantFrom('user', 'system'),
      content: fc.oneof(words, fc.array(inputPart, { maxLength: 3 })),
    }),
    fc.record({ type: fc.constant('message') }, { requiredKeys: [] }),
    more,
  ),
  merged(
    fc.record({
      type: fc.constant('message'),
      role: fc.constant('assistant'),
      status,
      content: fc.array(
        fc.oneof(
          fc.record({ type: fc.constant('output_text'), text }),
          fc.record({ type: fc.constant('refusal'), refusal: text }),
        ),
        { maxLength: 3 },
      ),
    }),
    more,
  ),
  merged(
    fc.record({
      type: fc.constant('function_call'),
      callId: words,
      name: fc.constantFrom('search', 'a name with blanks'),
      arguments: text,
    }),
    fc.record({ status }, { requiredKeys: [] }),
    more,
  ),
  merged(
    fc.record({
      type: fc.constant('function_call_result'),
      callId: words,
      name: words,
      status,
      output: fc.oneof(text, fc.record({ type: fc.constant('text'), text }), fc.array(inputPart)),
    }),
    more,
  ),
  merged(
    fc.record({
      type: fc.constant('reasoning'),
      content: fc.array(fc.record({ type: fc.constant('input_text'), text }), { maxLength: 2 }),
    }),
    more,
  ),
  merged(
    fc.record({ type: fc.constantFrom('hosted_tool_call', 'compaction', 'of_tomorrow'), name: words }),
    more,
  ),
);

const chainPart = fc.oneof(
  fc.record({ type: fc.constant('text'), text }),
  fc.record({ type: fc.constant('image_url'), image_url: fc.oneof(url, fc.record({ url, detail: words })) }),
  fc.record({ type: fc.constant('of_tomorrow'), x: json }),
);
const chainData = merged(
  fc.record({
    content: fc.oneof(text, fc.array(chainPart, { maxLength: 3 })),
    additional_kwargs: fc.dictionary(fc.constantFrom('x', 'y'), json),
    response_metadata: fc.dictionary(fc.constantFrom('x', 'y'), json),
  }),
  fc.record({ id: words, name: words, artifact: json }, { requiredKeys: [] }),
);
const chainCall = fc.record({
  id: words,
  name: fc.constantFrom('search', 'a name with blanks'),
  args: fc.dictionary(fc.constantFrom('q', 'n'), json),
  type: fc.constant('tool_call'),
});
const chainMessage = fc.oneof(
  fc.record({ type: fc.constantFrom('human', 'system', 'generic'), data: chainData }),
  fc.record({
    type: fc.constant('ai'),
    data: merged(
      chainData,
      fc.record({ tool_calls: fc.array(chainCall, { maxLength: 2 }) }, { requiredKeys: [] }),
    ),
  }),
  fc.record({ type: fc.constant('tool'), data: merged(chainData, fc.record({ tool_call_id: words })) }),
);

describe.each([
  ['items of OpenAI Agents', AGENTS_FORM, agentItem],
  ['messages of LangChain', LANGCHAIN_FORM, chainMessage as fc.Arbitrary<object>],
])('%s as messages of the service', (_what, form, given) => {
  it(`given ${RUNS} of them, when they are stored and read back, then they are to the letter, and the service takes each`, () => {
    fc.assert(
      fc.property(given, (one) => {
        const message = stored(form, one);
        const taken = NewMessage.safeParse(message);
        expect(taken.error?.issues ?? []).toEqual([]);
        expect(shown(form, { ...message, content: message.content ?? '' })).toEqual(one);
      }),
      { numRuns: RUNS, seed: 20_261_129 },
    );
  });
});
