import fc from 'fast-check';
import { type NewMessage } from '../../../src/domain/session.commands.js';
import { type VersionedMessage } from '../../../src/sessions/history-reader.js';

/** A message of a history; `cost` is its number of tokens in these tests. */
export type Costed = VersionedMessage & { readonly cost: number };

const record = <T>(fields: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
  fc.record(fields, { noNullPrototype: true });

/** For each message: its cost, and the number of other events before it. */
const sizes = fc.array(record({ cost: fc.nat(20), gap: fc.nat(2) }), { minLength: 64, maxLength: 64 });
/** Messages between a call and its result, which are appended while a tool runs. */
const meanwhile = fc.constantFrom('nothing', 'nothing', 'user', 'system');
/** The tool calls of a model before it answers a question. */
const step = record({ calls: fc.integer({ min: 1, max: 3 }), swapped: fc.boolean(), meanwhile });
const turn = record({
  system: fc.constantFrom(false, false, false, true),
  steps: fc.array(step, { maxLength: 2 }),
  reply: fc.constantFrom('complete', 'complete', 'incomplete', 'none'),
});
/** In the last turn, a tool may not have answered yet. */
const open = fc.boolean();

/**
 * Histories as they occur in sessions: questions, tool calls and their results (in any order, with messages between
 * them), and replies that are complete, partial or missing. Ids of calls are used again in later turns, and versions
 * have gaps where other events are.
 */
export const histories: fc.Arbitrary<Costed[]> = fc
  .tuple(fc.array(turn, { maxLength: 6 }), open, sizes)
  .map(([turns, isOpen, sizesOf]) => {
    const history: Costed[] = [];
    let version = 0;
    const add = (
      message: Omit<NewMessage, 'messageId' | 'status'>,
      status: NewMessage['status'] = 'complete',
    ) => {
      const { cost, gap } = sizesOf[history.length] ?? { cost: 1, gap: 0 };
      version += 1 + gap;
      history.push({
        version,
        cost,
        message: { messageId: `m${version}`, status, ...message },
      });
    };
    for (const [index, { system, steps, reply }] of turns.entries()) {
      if (system) add({ role: 'system', content: `rule ${index}` });
      add({ role: 'user', content: `question ${index}` });
      for (const [at, { calls, swapped, meanwhile: said }] of steps.entries()) {
        const ids = Array.from({ length: calls }, (_, n) => `call-${at}-${n}`);
        const toolCalls = ids.map((id) => ({ id, name: 'look', arguments: `"${index}"` }));
        add({ role: 'assistant', content: '', toolCalls });
        if (said !== 'nothing') add({ role: said, content: `meanwhile ${index}` });
        if (isOpen && index === turns.length - 1 && at === steps.length - 1) return history;
        for (const id of swapped ? ids.toReversed() : ids) {
          add({ role: 'tool', content: `${id} of ${index}`, toolCallId: id });
        }
      }
      if (reply !== 'none') add({ role: 'assistant', content: `answer ${index}` }, reply);
    }
    return history;
  });

/** Index of the message of each call → index of the message of its result; Infinity when there is no result. */
export function pairsOf(history: readonly Costed[]): [call: number, result: number][] {
  return history.flatMap(({ message }, call) =>
    (message.toolCalls ?? []).map(({ id }): [number, number] => {
      const result = history.findIndex((one, index) => index > call && one.message.toolCallId === id);
      return [call, result < 0 ? Infinity : result];
    }),
  );
}
