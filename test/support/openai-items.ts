import fc from 'fast-check';
import { type Json } from '../../src/domain/session.events.js';

/** Text that any JSON may hold and PostgreSQL can keep. */
const text = fc.string({ unit: 'grapheme', maxLength: 20 }).map((one) => one.replaceAll('\0', ''));
const words = text.map((one) => `a${one}`);
const name = fc.stringMatching(/^[A-Za-z0-9_.:-]{1,20}$/);
const id = fc.stringMatching(/^[!-~]{1,40}$/);
export const json: fc.Arbitrary<Json> = fc
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
/** Histories of items of OpenAI's API, with members that nobody here knows. */
export const itemHistories: fc.Arbitrary<Record<string, unknown>[]> = fc
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
