import {
  AbandonGeneration,
  CancelGeneration,
  CompleteGeneration,
  type ContextWindow,
  FailGeneration,
  type NewMessage,
  type PartialReply,
  ResetConversation,
  type SessionCommand,
  StartGeneration,
} from '../../../src/domain/session.commands.js';
import {
  after,
  calling,
  created,
  deleted,
  event,
  expired,
  given,
  leaseExpired,
  notRun,
  reset,
  result,
  resumed,
  said,
  started,
  stateAfter,
  user,
} from './given-when-then.js';

const generate = (
  generationId: string,
  message?: NewMessage,
  partial?: PartialReply,
  window?: ContextWindow,
) => new StartGeneration({ generationId, model: 'echo' }, message && [message], partial, window);

const usage = { inputTokens: 100, outputTokens: 20, cachedTokens: 7, reasoningTokens: 3 };
const half = { messageId: 'm9', content: 'half a' };
const kept = (generationId: string) =>
  said({ ...half, role: 'assistant', generationId, status: 'incomplete' });
const completed = (generationId: string) =>
  event('GenerationCompleted', { generationId, model: 'echo', finishReason: 'stop' });
const busy = [created, said(user('m1')), started('g1', [2, 2])];
const whenAbandoned = {
  guard: { holds: { leaseOver: 'generation:g1' }, otherwise: { refused: 'session-busy' } },
} as const;

describe('generating', () => {
  it('starts with the message, and shows the model all messages up to it', () => {
    given(created, said(user('m1')))
      .when(generate('g1', user('m2')))
      .then([said(user('m2')), started('g1', [2, 3])]);
    expect(stateAfter(created, said(user('m1')), said(user('m2')), started('g1', [2, 3]))).toMatchObject({
      generation: { id: 'g1', model: 'echo' },
      messageCount: 2,
    });
  });

  it('records the input of the model, and leaves out fields that were not given', () => {
    const asked = {
      generationId: 'g1',
      model: 'echo',
      instructions: 'be brief',
      parameters: { temperature: 0.5 },
      tools: [{ name: 'search', description: 'finds', parameters: { type: 'object' } }],
    };
    given(created)
      .when(new StartGeneration(asked, [user('m1')]))
      .then([said(user('m1')), event('GenerationStarted', { ...asked, context: [[2, 2]] })]);

    const bare = { generationId: 'g1', model: 'echo', instructions: undefined, tools: undefined };
    const last = after([created], new StartGeneration(bare, [user('m1')])).at(-1);
    expect(Object.keys(last?.data ?? {}).sort()).toEqual(['context', 'generationId', 'model']);
  });

  it('starts with several messages, and answers for the tools that were not run', () => {
    const asked = new StartGeneration({ generationId: 'g1', model: 'echo' }, [
      result('m2', 'c1'),
      calling('m3', { c3: 'mail' }),
      user('m4'),
    ]);
    given(created, said(calling('m1', { c1: 'search', c2: 'search' })))
      .when(asked)
      .then([
        said(notRun('g1.1', 'c2', 'search')),
        said(result('m2', 'c1')),
        said(calling('m3', { c3: 'mail' })),
        said(user('m4')),
        said(notRun('g1.2', 'c3', 'mail')),
        started('g1', [2, 7]),
      ]);
  });

  it('creates the session with its first messages, if it may', () => {
    const asked = new StartGeneration(
      { generationId: 'g1', model: 'echo' },
      [user('m1')],
      undefined,
      undefined,
      false,
      undefined,
      { title: 'new' },
    );
    const titled = event('SessionCreated', { title: 'new' });
    given()
      .when(asked)
      .then([titled, said(user('m1')), started('g1', [2, 2])], { counters: { active: 1 } });
    given(created, said(user('m1')), deleted)
      .when(asked)
      .then([titled, said(user('m1')), started('g1', [5, 5])], { counters: { active: 1 } });
    given(created)
      .when(asked)
      .then([said(user('m1')), started('g1', [2, 2])]);
    given()
      .when(generate('g1', user('m1')))
      .then({ refused: 'session-not-found' });
  });

  it('needs no message where there is one to answer', () => {
    given(created, said(user('m1')))
      .when(generate('g1'))
      .then([started('g1', [2, 2])]);
  });

  it('needs a message while the history is empty', () => {
    const refusal = { refused: 'invalid-request', at: 'messages' } as const;
    given(created).when(generate('g1')).then(refusal);
    given(created, expired).when(generate('g1')).then(refusal);
    given(created, said(user('m1')), reset)
      .when(generate('g1'))
      .then(refusal);
    given(created, said(user('m1')), deleted, created)
      .when(generate('g1'))
      .then(refusal);
  });

  it('is refused when there is no session', () => {
    given()
      .when(generate('g1', user('m1')))
      .then({ refused: 'session-not-found' });
    given(created, deleted)
      .when(generate('g1', user('m1')))
      .then({ refused: 'session-not-found' });
  });

  it('restores an expired session in the same append, and still shows its history', () => {
    given(created, said(user('m1')), expired)
      .when(generate('g1', user('m2')))
      .then([resumed, said(user('m2')), started('g1', [2, 5])], { counters: { active: 1 } });
    given(created, said(user('m1')), expired)
      .when(generate('g1'))
      .then([resumed, started('g1', [2, 4])], { counters: { active: 1 } });
  });

  it('shows the model nothing from before a reset', () => {
    given(created, said(user('m1')), said(user('m2')), reset)
      .when(generate('g1', user('m3')))
      .then([said(user('m3')), started('g1', [5, 5])]);
    given(created, said(user('m1')), reset, said(user('m2')))
      .when(generate('g1'))
      .then([started('g1', [4, 4])]);
  });

  it('shows the model nothing of an earlier incarnation', () => {
    given(created, said(user('m1')), deleted, created)
      .when(generate('g1', user('m2')))
      .then([said(user('m2')), started('g1', [5, 5])]);
  });
});

describe('generating with a window on the history', () => {
  const past = ['m1', 'm2', 'm3'].map((id) => said(user(id)));

  it('shows the model what the window selects, and the new message', () => {
    given(created, ...past)
      .when(generate('g1', user('m4'), undefined, { ranges: [[2, 2]], upTo: 4 }))
      .then([
        said(user('m4')),
        event('GenerationStarted', {
          generationId: 'g1',
          model: 'echo',
          context: [
            [2, 2],
            [5, 5],
          ],
        }),
      ]);
    given(created, ...past)
      .when(generate('g1', user('m4'), undefined, { ranges: [[3, 4]], upTo: 4 }))
      .then([said(user('m4')), started('g1', [3, 5])]);
    given(created, ...past)
      .when(generate('g1', user('m4'), undefined, { ranges: [], upTo: 4 }))
      .then([said(user('m4')), started('g1', [5, 5])]);
  });

  it('shows only the window when there is no newer message', () => {
    given(created, ...past)
      .when(generate('g1', undefined, undefined, { ranges: [[4, 4]], upTo: 4 }))
      .then([started('g1', [4, 4])]);
    given(created, ...past)
      .when(generate('g1', undefined, undefined, { ranges: [[2, 3]], upTo: 4 }))
      .then([started('g1', [2, 3])]);
  });

  it('also shows what was appended after the window was made', () => {
    given(created, ...past)
      .when(generate('g1', undefined, undefined, { ranges: [[3, 3]], upTo: 3 }))
      .then([started('g1', [3, 4])]);
    given(created, ...past, said(calling('m4', { c1: 'search' })))
      .when(generate('g1', undefined, undefined, { ranges: [[3, 3]], upTo: 3 }))
      .then([said(notRun('g1.1', 'c1', 'search')), started('g1', [3, 6])]);
  });

  it('ignores a window from before a reset or delete', () => {
    const window = { ranges: [[2, 2] as const], upTo: 3 };
    given(created, ...past, reset)
      .when(generate('g1', user('m4'), undefined, window))
      .then([said(user('m4')), started('g1', [6, 6])]);
    given(created, ...past, reset)
      .when(generate('g1', user('m4'), undefined, { ...window, upTo: 5 }))
      .then([said(user('m4')), started('g1', [6, 6])]);
    given(created, ...past, deleted, created)
      .when(generate('g1', user('m4'), undefined, window))
      .then([said(user('m4')), started('g1', [7, 7])]);
  });

  it('does not modify the window', () => {
    const window: ContextWindow = { ranges: [[3, 4]], upTo: 4 };
    after([created, ...past], generate('g1', user('m4'), undefined, window));
    expect(window).toEqual({ ranges: [[3, 4]], upTo: 4 });
  });
});

describe('generating with tool calls in history that have no result', () => {
  const called = [created, said(user('m1')), said(calling('m2', { c1: 'search', c2: 'mail' }))];

  it('answers them as cancelled before the message of the user', () => {
    given(...called)
      .when(generate('g1', user('m3')))
      .then([
        said(notRun('g1.1', 'c1', 'search')),
        said(notRun('g1.2', 'c2', 'mail')),
        said(user('m3')),
        started('g1', [2, 6]),
      ]);
  });

  it('answers them when no message is given', () => {
    given(...called, said(result('m3', 'c1')))
      .when(generate('g1'))
      .then([said(notRun('g1.1', 'c2', 'mail')), started('g1', [2, 5])]);
  });

  it('answers them in an expired session too', () => {
    given(...called, expired)
      .when(generate('g1'))
      .then(
        [
          resumed,
          said(notRun('g1.1', 'c1', 'search')),
          said(notRun('g1.2', 'c2', 'mail')),
          started('g1', [2, 7]),
        ],
        { counters: { active: 1 } },
      );
  });

  it('takes a result that is given as the message as the answer to its own call', () => {
    given(...called)
      .when(generate('g1', result('m3', 'c2')))
      .then([said(notRun('g1.1', 'c1', 'search')), said(result('m3', 'c2')), started('g1', [2, 5])]);
    given(created, said(calling('m1', { c1: 'search' })))
      .when(generate('g1', result('m2', 'c1')))
      .then([said(result('m2', 'c1')), started('g1', [2, 3])]);
  });

  it('takes such a result as the answer to the last call only when two calls share an id', () => {
    const twice = {
      ...calling('m2', {}),
      toolCalls: ['search', 'mail'].map((name) => ({ id: 'c1', name, arguments: '{}' })),
    };
    const past = [...busy, said({ ...twice, generationId: 'g1' }), completed('g1')];
    given(...past)
      .when(generate('g2', result('m3', 'c1')))
      .then([said(notRun('g2.1', 'c1', 'search')), said(result('m3', 'c1')), started('g2', [2, 7])]);
    expect(stateAfter(...after(past, generate('g2', result('m3', 'c1')))).openToolCalls).toEqual([]);
  });

  it('refuses a result that answers no call', () => {
    given(...called)
      .when(generate('g1', result('m3', 'c9')))
      .then({ refused: 'invalid-request', at: 'messages.0.toolCallId' });
  });

  it('refuses a message that itself calls tools, because the model could not be called with it', () => {
    given(created)
      .when(generate('g1', calling('m1', { c1: 'search' })))
      .then({ refused: 'invalid-request', at: 'messages.0.toolCalls' });
  });

  it('leaves no call open', () => {
    for (const message of [undefined, user('m3'), result('m3', 'c1')]) {
      expect(stateAfter(...after(called, generate('g1', message))).openToolCalls).toEqual([]);
    }
  });

  it('ignores calls from before a reset', () => {
    given(...called, reset)
      .when(generate('g1', user('m3')))
      .then([said(user('m3')), started('g1', [5, 5])]);
  });
});

describe('generating while a generation is recorded', () => {
  it('is refused as busy, unless the lease of the recorded one has expired: then that one fails in the same append', () => {
    given(...busy)
      .when(generate('g2', user('m2')))
      .then([leaseExpired('g1'), said(user('m2')), started('g2', [2, 5])], whenAbandoned);
    expect(stateAfter(...after(busy, generate('g2', user('m2'))))).toMatchObject({
      generation: { id: 'g2' },
    });
  });

  it('keeps the text that had arrived of the abandoned one, and shows it to the model', () => {
    given(...busy)
      .when(generate('g2', user('m2'), half))
      .then([kept('g1'), leaseExpired('g1'), said(user('m2')), started('g2', [2, 6])], whenAbandoned);
  });

  it('needs no message in this case', () => {
    given(...busy)
      .when(generate('g2'))
      .then([leaseExpired('g1'), started('g2', [2, 4])], whenAbandoned);
  });

  it('answers open tool calls after the failure', () => {
    given(...busy, said(calling('m2', { c1: 'search' })))
      .when(generate('g2', user('m3')))
      .then(
        [leaseExpired('g1'), said(notRun('g2.1', 'c1', 'search')), said(user('m3')), started('g2', [2, 7])],
        whenAbandoned,
      );
  });

  it('is also refused as busy for the id of the recorded one', () => {
    given(...busy)
      .when(generate('g1', user('m2')))
      .then([leaseExpired('g1'), said(user('m2')), started('g1', [2, 5])], whenAbandoned);
  });

  it('is not affected by one that has ended', () => {
    given(...busy, completed('g1'))
      .when(generate('g2', user('m2')))
      .then([said(user('m2')), started('g2', [2, 5])]);
  });
});

describe('completing a generation', () => {
  const complete = (generationId: string) =>
    new CompleteGeneration(
      { generationId, finishReason: 'stop', usage, durationMs: 1200 },
      { messageId: 'm2', content: 'yes' },
    );
  const reply = said(user('m2', { role: 'assistant', content: 'yes', generationId: 'g1' }));
  const end = event('GenerationCompleted', {
    generationId: 'g1',
    model: 'echo',
    finishReason: 'stop',
    usage,
    durationMs: 1200,
  });

  it('stores the reply and the end, with the model of the start', () => {
    given(created, said(user('m1')), started('g1', [2, 2], 'small-1'))
      .when(complete('g1'))
      .then([reply, event('GenerationCompleted', { ...end.data, model: 'small-1' })]);
    expect(stateAfter(...busy, reply, end)).toMatchObject({ generation: null, messageCount: 2, usage });
  });

  it('stores the reply after messages that were appended meanwhile', () => {
    given(...busy, said(user('m3')))
      .when(complete('g1'))
      .then([reply, end]);
  });

  it('makes the tool calls of the reply wait for results', () => {
    const { toolCalls } = calling('m2', { c1: 'search' });
    const command = new CompleteGeneration(
      { generationId: 'g1', finishReason: 'tool_calls' },
      { messageId: 'm2', content: '', toolCalls },
    );
    given(...busy)
      .when(command)
      .then([
        said(user('m2', { role: 'assistant', content: '', toolCalls, generationId: 'g1' })),
        event('GenerationCompleted', { generationId: 'g1', model: 'echo', finishReason: 'tool_calls' }),
      ]);
    expect(stateAfter(...after(busy, command)).openToolCalls).toEqual([{ id: 'c1', name: 'search' }]);
  });

  it('leaves out fields that the reply does not have', () => {
    const command = new CompleteGeneration(
      { generationId: 'g1', finishReason: 'stop' },
      { messageId: 'm2', content: 'yes', toolCalls: undefined },
    );
    expect(Object.keys(after(busy, command).at(-2)?.data ?? {})).not.toContain('toolCalls');
  });

  it('drops the reply when its generation is not the running one', () => {
    given(...busy)
      .when(complete('g2'))
      .then([]);
    given(...busy, completed('g1'))
      .when(complete('g1'))
      .then([]);
    given(...after(busy, generate('g2', user('m3'))))
      .when(complete('g1'))
      .then([]);
  });

  it('stores nothing of a reply that arrives after the session was deleted', () => {
    const cancelled = event('GenerationCancelled', { generationId: 'g1', model: 'echo' });
    given(...busy, cancelled, deleted)
      .when(complete('g1'))
      .then({ refused: 'session-not-found' });
    given(...busy, cancelled, deleted, created)
      .when(complete('g1'))
      .then([]);
  });
});

describe('failing a generation', () => {
  const failure = { generationId: 'g1', code: 'model-failed', message: 'it broke', usage, durationMs: 5 };
  const failed = event('GenerationFailed', { ...failure, model: 'echo' });

  it('records the end', () => {
    given(...busy)
      .when(new FailGeneration(failure))
      .then([failed]);
    expect(stateAfter(...busy, failed)).toMatchObject({ generation: null, messageCount: 1, usage });
  });

  it('keeps what had arrived as an incomplete message', () => {
    given(...busy)
      .when(new FailGeneration(failure, half))
      .then([kept('g1'), failed]);
  });

  it('is dropped when the generation is not the current one', () => {
    given(...busy)
      .when(new FailGeneration({ ...failure, generationId: 'g2' }, half))
      .then([]);
    given(...busy, completed('g1'))
      .when(new FailGeneration(failure, half))
      .then([]);
  });
});

describe('cancelling a generation', () => {
  const cancelled = event('GenerationCancelled', { generationId: 'g1', model: 'echo' });

  it('ends the running one, and keeps the text that had arrived as an incomplete message', () => {
    given(...busy)
      .when(new CancelGeneration())
      .then([cancelled]);
    given(...busy)
      .when(new CancelGeneration(half, { usage, durationMs: 5 }))
      .then([kept('g1'), event('GenerationCancelled', { ...cancelled.data, usage, durationMs: 5 })]);
    expect(stateAfter(...busy, kept('g1'), cancelled)).toMatchObject({ generation: null, messageCount: 2 });
  });

  it('does and stores nothing when none is running', () => {
    given(created).when(new CancelGeneration()).then([]);
    given(...busy, completed('g1'))
      .when(new CancelGeneration(half))
      .then([]);
  });

  it('ends the generation that it names', () => {
    given(...busy)
      .when(new CancelGeneration(half, {}, 'g1'))
      .then([kept('g1'), cancelled]);
  });

  it('does nothing when the generation that it names is not the running one', () => {
    given(...after(busy, generate('g2', user('m3'))))
      .when(new CancelGeneration(half, { usage }, 'g1'))
      .then([]);
    given(...busy, completed('g1'))
      .when(new CancelGeneration(half, {}, 'g1'))
      .then([]);
  });
});

describe('abandoning a generation', () => {
  it('fails the generation if its lease has expired, and is refused as busy otherwise', () => {
    given(...busy)
      .when(new AbandonGeneration('g1'))
      .then([leaseExpired('g1')], whenAbandoned);
  });

  it('keeps what had arrived as an incomplete message', () => {
    given(...busy)
      .when(new AbandonGeneration('g1', half))
      .then([kept('g1'), leaseExpired('g1')], whenAbandoned);
  });

  it('does nothing when the generation is not the current one', () => {
    given(...busy)
      .when(new AbandonGeneration('g2', half))
      .then([]);
    given(...busy, completed('g1'))
      .when(new AbandonGeneration('g1', half))
      .then([]);
  });
});

describe('the end of a generation where there is no session', () => {
  const commands: SessionCommand[] = [
    new CompleteGeneration({ generationId: 'g1', finishReason: 'stop' }, { messageId: 'm1', content: '' }),
    new FailGeneration({ generationId: 'g1', code: 'model-failed', message: 'it broke' }, half),
    new CancelGeneration(half),
    new AbandonGeneration('g1', half),
  ];

  it.each(commands)('$type is refused', (command) => {
    given().when(command).then({ refused: 'session-not-found' });
    given(created, deleted).when(command).then({ refused: 'session-not-found' });
  });
});

describe('the text that had arrived of a generation', () => {
  const own = { ...half, generationId: 'g1' };
  const other = { ...half, generationId: 'g0' };
  const failure = { generationId: 'g1', code: 'model-failed', message: 'it broke' };
  const commands = (partial: PartialReply): SessionCommand[] => [
    new StartGeneration({ generationId: 'g2', model: 'echo' }, undefined, partial),
    new FailGeneration(failure, partial),
    new CancelGeneration(partial),
    new AbandonGeneration('g1', partial),
    new ResetConversation(undefined, partial),
  ];

  it.each(commands(own))('is kept by $type when it belongs to that generation', (command) => {
    expect(after(busy, command)[busy.length]).toEqual(kept('g1'));
  });

  it.each(commands(other))(
    'is left out by $type when it belongs to another generation, and the command takes effect',
    (command) => {
      const types = after(busy, command).map(({ type }) => type);
      expect(types).not.toHaveLength(busy.length);
      expect(types.filter((type) => type === 'MessageAppended')).toHaveLength(1);
    },
  );
});

describe('usage', () => {
  const ends = [
    event('GenerationCompleted', { generationId: 'g1', model: 'a', finishReason: 'stop', usage }),
    event('GenerationFailed', {
      generationId: 'g2',
      model: 'b',
      code: 'model-failed',
      message: 'it broke',
      usage: { inputTokens: 1, outputTokens: 2 },
    }),
    event('GenerationCancelled', {
      generationId: 'g3',
      model: 'a',
      usage: { inputTokens: 10, outputTokens: 0, reasoningTokens: 4 },
    }),
    event('GenerationCancelled', { generationId: 'g4', model: 'a' }),
  ];
  const total = { inputTokens: 111, outputTokens: 22, cachedTokens: 7, reasoningTokens: 7 };

  it('is summed over every end of a generation', () => {
    expect(stateAfter(created, ...ends).usage).toEqual(total);
  });

  it('is kept through reset and expiry, and starts at zero with a new incarnation', () => {
    expect(stateAfter(created, ...ends, reset, expired, resumed).usage).toEqual(total);
    expect(stateAfter(created, ...ends, deleted, created).usage).toEqual(stateAfter(created).usage);
  });
});
