import { mapStoredMessagesToChatMessages } from '@langchain/core/messages';
import { protocol } from '@openai/agents';
import { safeValidateUIMessages } from 'ai';
import fc from 'fast-check';
import { groupsOf } from '../../../src/ai-sdk/ui-messages.js';
import { AGENTS_FORM } from '../../../src/client/agents-session.js';
import { LANGCHAIN_FORM } from '../../../src/client/langchain-history.js';
import { shown } from '../../../src/client/stored-form.js';
import { changesBetween, withChanges } from '../../../src/domain/json-changes.js';
import { type NewMessage } from '../../../src/domain/session.commands.js';
import { sessionEvents } from '../../../src/domain/session.events.js';
import { toRequest } from '../../../src/generation/openai-request.js';
import { buildPrompt } from '../../../src/generation/prompt.js';
import { draftedItems, itemsOf } from '../../../src/openai/items.js';
import { InputItem } from '../../../src/openai/items.schemas.js';
import { type ChatMessage, promptFault } from '../../support/fake-openai.js';
import { sized } from '../../support/heavy.js';
import { itemHistories, json } from '../../support/openai-items.js';

const RUNS = sized(10_000, 10_000, 500);

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
      fc.property(itemHistories, (items) => {
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
      fc.property(itemHistories, fc.boolean(), (items, systemFirst) => {
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

  it('given histories of items, when they are read through the other protocols, then each finds them valid', async () => {
    for (const items of fc.sample(itemHistories, { numRuns: 200, seed: 20_261_131 })) {
      const messages = drafted(items).map((one) => ({ ...one, id: one.messageId }));
      const ui = groupsOf(messages).map((group) => group.ui);
      // It takes neither no messages nor one without parts.
      if (ui.length > 0 && ui.every(({ parts }) => parts.length > 0))
        expect((await safeValidateUIMessages({ messages: ui })) as object).toMatchObject({ success: true });
      const chain = messages.map((message) => shown(LANGCHAIN_FORM, message));
      expect(mapStoredMessagesToChatMessages(chain as never)).toHaveLength(messages.length);
      const agents = messages.map((message) => shown(AGENTS_FORM, message));
      expect(agents.filter((item) => !protocol.ModelItem.safeParse(item).success)).toEqual([]);
    }
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
