import { safeValidateUIMessages } from 'ai';
import fc from 'fast-check';
import { type NewMessage } from '../../../src/domain/session.commands.js';
import { type Json, sessionEvents } from '../../../src/domain/session.events.js';
import { sessionDecider } from '../../../src/domain/session.js';
import { AppendMessages } from '../../../src/domain/session.commands.js';
import { toRequest } from '../../../src/generation/openai-request.js';
import { buildPrompt } from '../../../src/generation/prompt.js';
import { draftedResult, draftedUi, groupsOf, type UiMessage } from '../../../src/ai-sdk/ui-messages.js';
import { itemsOf } from '../../../src/openai/items.js';
import { InputItem } from '../../../src/openai/items.schemas.js';
import { draftedItems } from '../../../src/openai/items.js';
import { type ChatMessage, promptFault } from '../../support/fake-openai.js';
import { sized } from '../../support/heavy.js';

const RUNS = sized(10_000, 10_000, 500);

const text = fc.string({ unit: 'grapheme', maxLength: 20 }).map((one) => one.replaceAll('\0', ''));
const words = text.map((one) => `a${one}`);
const json: fc.Arbitrary<Json> = fc
  .jsonValue({ maxDepth: 2 })
  .map((value) => JSON.parse(JSON.stringify(value).replaceAll(/\\u0000|__proto__/g, '')) as Json);
const merged = (...parts: fc.Arbitrary<object>[]): fc.Arbitrary<Record<string, Json>> =>
  fc.tuple(...parts).map((objects) => Object.assign({}, ...objects) as Record<string, Json>);
const provider = fc.record(
  { providerMetadata: fc.record({ x: fc.dictionary(fc.constantFrom('a', 'b'), json) }) },
  { requiredKeys: [] },
);
const state = fc.record({ state: fc.constantFrom('done', 'streaming') }, { requiredKeys: [] });

const textPart = merged(fc.record({ type: fc.constant('text'), text: words }), state, provider);
const filePart = merged(
  fc.record({
    type: fc.constant('file'),
    mediaType: fc.constantFrom('image/png', 'audio/wav', 'application/pdf', 'image/*'),
    url: fc.constantFrom('https://x/y', 'data:image/png;base64,AA', 'data:,x', 'blob:1'),
  }),
  fc.record({ filename: words }, { requiredKeys: [] }),
  provider,
);
const dataPart = merged(
  fc.record({ type: fc.constantFrom('data-a', 'data-b'), data: json }),
  fc.record({ id: words }, { requiredKeys: [] }),
);
const reasoningPart = merged(fc.record({ type: fc.constant('reasoning'), text }), state, provider);
const sourcePart = merged(
  fc.record({ type: fc.constant('source-url'), sourceId: words, url: fc.constant('https://x') }),
  provider,
);
const step = fc.record({ type: fc.constant('step-start') });
const callId = fc.uuid();
const called = fc.oneof(
  fc.record({ type: fc.constantFrom('tool-search', 'tool-mail') }),
  fc.record({ type: fc.constant('dynamic-tool'), toolName: fc.constant('mcp') }),
);
const outcome = fc.oneof(
  fc.record({ state: fc.constant('input-available') }),
  fc.record({ state: fc.constant('output-available'), output: json }),
  fc.record({ state: fc.constant('output-error'), errorText: words }),
  fc.record({
    state: fc.constant('output-denied'),
    approval: fc.record({ id: words, approved: fc.constant(false), reason: words }),
  }),
);
const toolPart = merged(called, fc.record({ toolCallId: callId, input: json }), outcome, provider);

const metadata = fc.record({ metadata: json }, { requiredKeys: [] });
const asked = merged(
  fc.record({
    id: fc.uuid(),
    role: fc.constantFrom('user', 'system'),
    parts: fc.array(fc.oneof(textPart, filePart, dataPart), { minLength: 1, maxLength: 3 }),
  }),
  metadata,
);
const replied = merged(
  fc.record({
    id: fc.uuid(),
    role: fc.constant('assistant'),
    parts: fc.array(fc.oneof(step, textPart, textPart, reasoningPart, toolPart, sourcePart, filePart), {
      maxLength: 8,
    }),
  }),
  metadata,
);
const history = fc.array(fc.oneof(asked, replied), { maxLength: 6 }) as fc.Arbitrary<unknown[]> as fc.Arbitrary<UiMessage[]>; // prettier-ignore

const drafted = (messages: readonly UiMessage[]): NewMessage[] => messages.flatMap((one) => draftedUi(one));
const asSaid = (messages: readonly NewMessage[]) => messages.map((one) => ({ ...one, id: one.messageId }));
const shown = (messages: readonly NewMessage[]) => groupsOf(asSaid(messages)).map(({ ui }) => ui);
const question = draftedUi({ id: 'q', role: 'user', parts: [{ type: 'text', text: 'And now?' }] });

describe('UI messages of the AI SDK as messages', () => {
  it(`given ${RUNS} histories of UI messages, when they become messages, then they come back to the letter, and a session takes them`, () => {
    const empty = sessionDecider.evolve(sessionDecider.initialState, { type: 'SessionCreated', data: {} });
    fc.assert(
      fc.property(history, (messages) => {
        const said = drafted(messages);
        for (const message of said)
          expect(sessionEvents.MessageAppended.data.parse(message)).toEqual(message);
        expect(shown(said)).toEqual(messages);
        expect(sessionDecider.decide(new AppendMessages(said), empty).events).toHaveLength(said.length);
      }),
      { numRuns: RUNS, seed: 20_261_128 },
    );
  });

  it(`given ${RUNS} histories of UI messages, when a model is asked to go on, then no provider refuses the prompt`, () => {
    fc.assert(
      fc.property(history, (messages) => {
        const prompt = buildPrompt([...drafted(messages), ...question]);
        const { params } = toRequest(
          { model: 'm', messages: prompt },
          { systemFirst: true, usage: true, maxTokens: 'max_tokens' },
        );
        expect(promptFault(params.messages as readonly ChatMessage[])).toBeUndefined();
      }),
      { numRuns: RUNS, seed: 20_261_129 },
    );
  });

  it(`given ${RUNS} histories of UI messages, when they are read through OpenAI’s API, then they are valid items, and as items they are the same history for a model`, () => {
    fc.assert(
      fc.property(history, (messages) => {
        const said = drafted(messages);
        const items = asSaid(said).flatMap(itemsOf);
        const again = draftedItems(
          items.map((item) => InputItem.parse(item)),
          'items',
        );
        const callsOf = (list: readonly NewMessage[]) => list.flatMap((one) => one.toolCalls ?? []);
        expect(callsOf(again)).toEqual(callsOf(said));
      }),
      { numRuns: RUNS, seed: 20_261_130 },
    );
  });

  it('given histories, when they are read back, then the AI SDK finds them valid', async () => {
    for (const messages of fc.sample(history, { numRuns: 200, seed: 20_261_131 })) {
      if (messages.some(({ parts }) => parts.length === 0)) continue;
      const result = await safeValidateUIMessages({ messages: shown(drafted(messages)) });
      if (messages.length > 0) expect(result).toMatchObject({ success: true });
    }
  });

  it('given the result of a tool that a client sends on its own, when it is read back, then the part is as it was given', () => {
    fc.assert(
      fc.property(toolPart, json, (part, output) => {
        const call = {
          id: part['toolCallId'] as string,
          name: 'search',
          arguments: JSON.stringify(part['input']),
        };
        const reply = {
          id: 'r',
          role: 'assistant',
          content: '',
          status: 'complete',
          toolCalls: [call],
        } as const;
        const given = { ...part, type: 'tool-search', state: 'output-available', output };
        const result = draftedResult(given);
        const [group] = groupsOf([reply, { ...result, id: 'x' }] as never);
        expect(group?.ui.parts.at(-1)).toEqual(given);
      }),
      { numRuns: RUNS, seed: 20_261_132 },
    );
  });

  it.each([
    { messages: 0 },
    { messages: -1 },
    { messages: 1e9 },
    { messages: 'x', changes: 'y' },
    { changes: [[[]]] },
    { changes: [[[], 'no message']] },
    { changes: [[[], { id: 'x', role: 'nobody', parts: [] }]] },
    { changes: [[['parts', 0], null]] },
    { changes: [null, 1, [['a'.repeat(9)], 1, 2]] },
    { steps: 1, result: [[[], null]] },
    null,
    [],
  ])(
    'given extensions %j, which anybody may write, when a history is shown, then each message is in it once',
    (kept) => {
      const said = [
      { id: 'a', role: 'user', content: 'one', status: 'complete', extensions: { 'ai-sdk': kept, openai: kept } },
      { id: 'b', role: 'assistant', content: 'two', status: 'complete', toolCalls: [{ id: 'c', name: 'f', arguments: '{}' }], extensions: { 'ai-sdk': kept, openai: kept } },
      { id: 'c', role: 'tool', toolCallId: 'c', content: '3', status: 'complete', extensions: { 'ai-sdk': kept, openai: kept } },
    ] as never[]; // prettier-ignore
      const groups = groupsOf(said);
      expect(groups.flatMap(({ messages }) => messages)).toEqual(said);
      for (const { ui } of groups)
        expect(ui).toMatchObject({ id: expect.any(String) as string, parts: expect.any(Array) as [] });
      const items = said.flatMap(itemsOf);
      expect(items.map((item) => typeof item.type)).toEqual(['string', 'string', 'string', 'string']);
    },
  );
});
