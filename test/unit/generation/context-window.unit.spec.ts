import fc from 'fast-check';
import { fitWindow, loadTokenizer, messageTokens } from '../../../src/generation/context-window.js';
import { toRequest } from '../../../src/generation/openai-request.js';
import { buildPrompt } from '../../../src/generation/prompt.js';
import { type ChatMessage, promptFault } from '../../support/fake-openai.js';
import { type Costed, histories, pairsOf } from './histories.js';

const runs = { seed: 20_260_404, numRuns: process.env['FULL'] === '1' ? 50_000 : 2_000 };

const sum = (history: readonly Costed[]) => history.reduce((total, one) => total + one.cost, 0);
const isSystem = ({ message }: Costed) => message.role === 'system';

/** The messages of a history that a window selects. */
function seen(history: readonly Costed[], budget: number, asked: boolean): Costed[] {
  const window = fitWindow(history, budget, (one) => (one as Costed).cost, asked);
  expect(window?.upTo).toBe(history.at(-1)?.version);
  return history.filter(({ version }) =>
    window?.ranges.some(([from, to]) => from <= version && version <= to),
  );
}

/** Where a turn may begin: at a message of the user, when no call before it has its result after it. */
function beginnings(history: readonly Costed[]): number[] {
  const pairs = pairsOf(history);
  return history.flatMap(({ message }, index) => {
    const isParted = pairs.some(([call, result]) => call < index && index <= result);
    return index === 0 || (message.role === 'user' && !isParted) ? [index] : [];
  });
}

describe('the context window', () => {
  const cases = fc.tuple(histories, fc.integer({ min: -20, max: 200 }), fc.boolean());

  it('given any history and budget, when it is fitted, then system messages stay and no call is separated from its result', () => {
    fc.assert(
      fc.property(cases, ([history, budget, asked]) => {
        const kept = new Set(seen(history, budget, asked));
        expect(history.filter(isSystem).every((one) => kept.has(one))).toBe(true);
        for (const [call, result] of pairsOf(history)) {
          const answer = history[result];
          if (answer) expect(kept.has(history[call] as Costed)).toBe(kept.has(answer));
        }
      }),
      runs,
    );
  });

  it('given any history and budget, when it is fitted, then the oldest turns are left out first, and no more of them than necessary', () => {
    fc.assert(
      fc.property(cases, ([history, budget, asked]) => {
        const kept = seen(history, budget, asked);
        const starts = beginnings(history);
        const from = (start: number) => history.filter((one, index) => index >= start || isSystem(one));
        const fitting = starts.find((start) => sum(from(start)) <= budget);
        // Only the turn that is to be answered may exceed the budget.
        const expected = fitting ?? (asked ? history.length : (starts.at(-1) ?? 0));
        expect(kept).toEqual(from(expected));
      }),
      runs,
    );
  });

  it('given any history and budget, when a question follows the messages that fit, then the strictest provider accepts the prompt', () => {
    fc.assert(
      fc.property(fc.tuple(histories, fc.integer({ min: -20, max: 200 })), ([history, budget]) => {
        const question = { messageId: 'q', role: 'user', content: 'and now?', status: 'complete' } as const;
        const prompt = buildPrompt([...seen(history, budget, true).map(({ message }) => message), question]);
        const request = { model: 'm', messages: prompt };
        const { params } = toRequest(request, { systemFirst: true, usage: true, maxTokens: 'max_tokens' });
        expect(promptFault(params.messages as readonly ChatMessage[])).toBeUndefined();
      }),
      runs,
    );
  });

  it('given no history, when it is fitted, then there is no window', () => {
    expect(fitWindow([], 100, () => 1, true)).toBeUndefined();
  });

  it('given an old turn that does not fit, when the history is fitted, then the cost of older messages is not computed', () => {
    const history: Costed[] = ['a', 'b', 'c'].map((content, index) => ({
      version: index + 1,
      cost: 10,
      message: { messageId: content, role: 'user', content, status: 'complete' },
    }));
    const asked: number[] = [];
    const cost = ({ version }: { version: number }) => {
      asked.push(version);
      return 10;
    };
    expect(fitWindow(history, 15, cost, true)).toEqual({ ranges: [[3, 3]], upTo: 3 });
    expect(asked).toEqual([3, 2]);
  });
});

describe('the tokenizer', () => {
  it('given text that looks like a control token, when it is counted, then it counts as text', async () => {
    const tokens = await loadTokenizer();
    expect(tokens('<|endoftext|>')).toBeGreaterThan(1);
  });

  it.each([
    ['letters', 'a'.repeat(1_000_000)],
    ['blanks', ' '.repeat(1_000_000)],
    ['emoji', '😀'.repeat(250_000)],
  ])('given a megabyte of %s in one run, when it is counted, then counting is fast', async (_, text) => {
    const tokens = await loadTokenizer();
    const began = performance.now();
    expect(tokens(text)).toBeGreaterThan(1_000);
    expect(performance.now() - began).toBeLessThan(10_000);
  });

  it('given parts, calls and text, when a message is counted, then each of them counts', async () => {
    const tokens = await loadTokenizer();
    const text = messageTokens({ content: 'one two three' }, tokens);
    const image = { type: 'image', url: 'https://x.test/a.png' } as const;
    expect(messageTokens({ content: [{ type: 'text', text: 'one two three' }] }, tokens)).toBe(text);
    expect(messageTokens({ content: [{ type: 'text', text: 'one two three' }, image] }, tokens)).toBe(
      text + 1_000,
    );
    const toolCalls = [{ id: 'c', name: 'look', arguments: '{"at":"the sea"}' }];
    expect(messageTokens({ content: 'one two three', toolCalls }, tokens)).toBeGreaterThan(text + 5);
  });
});
