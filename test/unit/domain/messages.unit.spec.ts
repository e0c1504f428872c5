import { AppendMessages } from '../../../src/domain/session.commands.js';
import {
  calling,
  created,
  deleted,
  event,
  expired,
  given,
  reset,
  result,
  resumed,
  said,
  started,
  stateAfter,
  user,
} from './given-when-then.js';

const append = (...messages: Parameters<typeof said>[0][]) => new AppendMessages(messages);

describe('appending messages', () => {
  it('stores the messages unchanged, in their order', () => {
    const image = user('m2', { content: [{ type: 'image', url: 'https://example.com/a.png' }], name: 'Al' });
    given(created)
      .when(append(user('m1'), image, user('m3', { role: 'system' })))
      .then([said(user('m1')), said(image), said(user('m3', { role: 'system' }))]);
    expect(stateAfter(created, said(user('m1')), said(image))).toMatchObject({ version: 3, messageCount: 2 });
  });

  it('restores an expired session in the same append', () => {
    given(created, said(user('m1')), expired)
      .when(append(user('m2')))
      .then([resumed, said(user('m2'))], { counters: { active: 1 } });
    expect(stateAfter(created, said(user('m1')), expired, resumed, said(user('m2')))).toMatchObject({
      status: 'active',
      messageCount: 2,
    });
  });

  it('is refused where there is no session', () => {
    given()
      .when(append(user('m1')))
      .then({ refused: 'session-not-found' });
    given(created, deleted)
      .when(append(user('m1')))
      .then({ refused: 'session-not-found' });
  });

  it('is allowed while a reply is generated', () => {
    given(created, said(user('m1')), started('g1', [2, 2]))
      .when(append(user('m2')))
      .then([said(user('m2'))]);
  });
});

describe('results of tool calls', () => {
  const called = [created, said(calling('m1', { c1: 'search', c2: 'mail' }))];

  it('answer their calls, which then wait for no result', () => {
    given(...called)
      .when(append(result('m2', 'c2')))
      .then([said(result('m2', 'c2'))]);
    expect(stateAfter(...called).openToolCalls).toEqual([
      { id: 'c1', name: 'search' },
      { id: 'c2', name: 'mail' },
    ]);
    expect(stateAfter(...called, said(result('m2', 'c2'))).openToolCalls).toEqual([
      { id: 'c1', name: 'search' },
    ]);
  });

  it('may be appended together with the calls', () => {
    const messages = [calling('m1', { c1: 'search' }), result('m2', 'c1'), user('m3')];
    given(created)
      .when(append(...messages))
      .then(messages.map(said));
    expect(stateAfter(created, ...messages.map(said))).toMatchObject({ openToolCalls: [], messageCount: 3 });
  });

  it('are refused before their call', () => {
    given(created)
      .when(append(result('m1', 'c1'), calling('m2', { c1: 'search' })))
      .then({ refused: 'invalid-request', at: 'messages.0.toolCallId' });
  });

  it('are refused when they answer no call', () => {
    const refusal = { refused: 'invalid-request', at: 'messages.1.toolCallId' } as const;
    given(...called)
      .when(append(user('m2'), result('m3', 'c9')))
      .then(refusal);
    given(...called)
      .when(append(user('m2'), user('m3', { role: 'tool' })))
      .then(refusal);
  });

  it('are refused the second time', () => {
    given(...called, said(result('m2', 'c1')))
      .when(append(result('m3', 'c1')))
      .then({ refused: 'invalid-request', at: 'messages.0.toolCallId' });
    given(...called)
      .when(append(result('m2', 'c1'), result('m3', 'c1')))
      .then({ refused: 'invalid-request', at: 'messages.1.toolCallId' });
  });

  it('are refused for calls from before a reset or a delete', () => {
    const refusal = { refused: 'invalid-request', at: 'messages.0.toolCallId' } as const;
    given(...called, reset)
      .when(append(result('m2', 'c1')))
      .then(refusal);
    given(...called, deleted, created)
      .when(append(result('m2', 'c1')))
      .then(refusal);
  });

  it('are accepted after the session expired in between', () => {
    given(...called, expired)
      .when(append(result('m2', 'c1')))
      .then([resumed, said(result('m2', 'c1'))], { counters: { active: 1 } });
  });

  it('answer one call each when a model gave two calls of a reply one id', () => {
    const twice = {
      ...calling('m2', {}),
      toolCalls: ['search', 'mail'].map((name) => ({ id: 'c1', name, arguments: '{}' })),
    };
    const past = [
      created,
      said(user('m1')),
      started('g1', [2, 2]),
      said(twice),
      event('GenerationCompleted', { generationId: 'g1', model: 'echo', finishReason: 'tool_calls' }),
    ];
    given(...past)
      .when(append(result('m3', 'c1'), result('m4', 'c1')))
      .then([said(result('m3', 'c1')), said(result('m4', 'c1'))]);
    given(...past)
      .when(append(result('m3', 'c1'), result('m4', 'c1'), result('m5', 'c1')))
      .then({ refused: 'invalid-request', at: 'messages.2.toolCallId' });
    expect(stateAfter(...past, said(result('m3', 'c1'))).openToolCalls).toEqual([{ id: 'c1', name: 'mail' }]);
  });
});

describe('ids of tool calls', () => {
  const called = [created, said(calling('m1', { c1: 'search' }))];
  const inUse = (at: string) => ({ refused: 'invalid-request', at }) as const;

  it('are refused while a call of that id is open', () => {
    given(...called)
      .when(append(calling('m2', { c2: 'search', c1: 'mail' })))
      .then(inUse('messages.0.toolCalls.1.id'));
    given(created)
      .when(append(calling('m1', { c1: 'search' }), calling('m2', { c1: 'search' })))
      .then(inUse('messages.1.toolCalls.0.id'));
    const [call] = calling('m1', { c1: 'search' }).toolCalls ?? [];
    given(created)
      .when(append(user('m1', { role: 'assistant', toolCalls: [call, call].filter((one) => !!one) })))
      .then(inUse('messages.0.toolCalls.1.id'));
  });

  it('can be used again once the call has its result', () => {
    given(...called, said(result('m2', 'c1')))
      .when(append(calling('m3', { c1: 'mail' })))
      .then([said(calling('m3', { c1: 'mail' }))]);
    given(...called)
      .when(append(result('m2', 'c1'), calling('m3', { c1: 'mail' })))
      .then([said(result('m2', 'c1')), said(calling('m3', { c1: 'mail' }))]);
  });

  it('can be used again after a reset', () => {
    given(...called, reset)
      .when(append(calling('m2', { c1: 'mail' })))
      .then([said(calling('m2', { c1: 'mail' }))]);
  });

  it('are refused when more than 512 calls would wait for a result', () => {
    const many = (message: number) =>
      calling(
        `m${message}`,
        Object.fromEntries(Array.from({ length: 128 }, (_, call) => [`c${message}.${call}`, 'search'])),
      );
    given(created, ...[1, 2, 3].map((message) => said(many(message))))
      .when(append(many(4)))
      .then([said(many(4))]);
    given(created, ...[1, 2, 3, 4].map((message) => said(many(message))))
      .when(append(user('m5'), calling('m6', { c: 'search' })))
      .then({ refused: 'invalid-request', at: 'messages.1.toolCalls' });
  });
});
