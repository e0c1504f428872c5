import { type NewMessage } from '../../../src/domain/session.commands.js';
import { textOf } from '../../../src/domain/content.js';
import { buildPrompt } from '../../../src/generation/prompt.js';

let made = 0;
const message = (role: NewMessage['role'], content: string, more: Partial<NewMessage> = {}): NewMessage => ({
  messageId: `m${(made += 1)}`,
  role,
  content,
  status: 'complete',
  ...more,
});
const user = (content: string) => message('user', content);
const system = (content: string) => message('system', content);
const reply = (content: string) => message('assistant', content);
const cutOff = (content: string) => message('assistant', content, { status: 'incomplete' });
const calls = (...ids: string[]) =>
  message('assistant', '', { toolCalls: ids.map((id) => ({ id, name: 'look', arguments: '{}' })) });
const result = (toolCallId: string, content: string) => message('tool', content, { toolCallId });

/** A prompt in short form: roles, texts and ids of calls. */
const promptOf = (history: readonly NewMessage[]) =>
  buildPrompt(history).map(({ role, content, toolCalls, toolCallId }) => {
    if (toolCalls) return `calls ${toolCalls.map(({ id }) => id).join(' ')}`;
    return `${role}${toolCallId === undefined ? '' : ` ${toolCallId}`}: ${textOf(content)}`;
  });

describe('the prompt', () => {
  it('given results in another order and messages between, when it is built, then results follow their calls in the order of the calls', () => {
    expect(
      promptOf([
        user('q'),
        calls('a', 'b'),
        user('hurry'),
        result('b', 'B'),
        system('rule'),
        result('a', 'A'),
        reply('r'),
      ]),
    ).toEqual([
      'user: q',
      'calls a b',
      'tool a: A',
      'tool b: B',
      'user: hurry',
      'system: rule',
      'assistant: r',
    ]);
  });

  it('given ids that are used again, when it is built, then each call has the result that came after it', () => {
    expect(
      promptOf([
        user('1'),
        calls('a'),
        result('a', 'first'),
        user('2'),
        calls('a'),
        result('a', 'second'),
        user('3'),
      ]),
    ).toEqual(['user: 1', 'calls a', 'tool a: first', 'user: 2', 'calls a', 'tool a: second', 'user: 3']);
  });

  it('given a call without a result whose id is used again, when it is built, then it counts as cancelled', () => {
    expect(promptOf([calls('a'), user('q'), calls('a'), result('a', 'new'), user('q2')])).toEqual([
      'calls a',
      'tool a: cancelled',
      'user: q',
      'calls a',
      'tool a: new',
      'user: q2',
    ]);
    expect(promptOf([calls('a'), result('a', 'old'), user('q'), calls('a')]).at(-1)).toBe(
      'tool a: cancelled',
    );
  });

  it('given two calls of one message with one id, when it is built, then each has an id and a result of its own', () => {
    expect(
      promptOf([user('q'), calls('a', 'a', 'a_2'), result('a', 'first'), result('a', 'second')]),
    ).toEqual(['user: q', 'calls a a_3 a_2', 'tool a: first', 'tool a_3: second', 'tool a_2: cancelled']);
  });

  it('given a result without its call, when the prompt is built, then the result is left out', () => {
    expect(promptOf([result('gone', 'x'), user('q')])).toEqual(['user: q']);
  });

  it('given a partial reply, when it is the last message, then it is left out of the prompt', () => {
    expect(promptOf([user('q'), cutOff('half')])).toEqual(['user: q']);
    expect(promptOf([user('q'), cutOff('half'), system('rule')])).toEqual(['user: q', 'system: rule']);
  });

  it('given a partial reply that is followed by a message of the user, when the prompt is built, then it stays', () => {
    expect(promptOf([user('q'), cutOff('half'), user('go on')])).toEqual([
      'user: q',
      'assistant: half',
      'user: go on',
    ]);
  });

  it('given a partial reply and the next reply, when the prompt is built, then the question has one answer', () => {
    expect(promptOf([user('q'), cutOff('half'), cutOff('more'), reply('whole'), user('thanks')])).toEqual([
      'user: q',
      'assistant: whole',
      'user: thanks',
    ]);
  });

  it('given empty messages, when the prompt is built, then they are left out unless they call tools', () => {
    expect(promptOf([user('q'), reply(''), user('again'), calls('a'), result('a', '')])).toEqual([
      'user: q',
      'user: again',
      'calls a',
      'tool a: ',
    ]);
  });
});
