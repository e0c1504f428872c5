import { ForkSession } from '../../../src/domain/session.commands.js';
import {
  calling,
  created,
  deleted,
  event,
  expired,
  given,
  granted,
  result,
  said,
  stateAfter,
  user,
} from './given-when-then.js';

const from = { sessionId: 'bob', version: 12 };
const origin = (messageId: string) => ({
  origin: { sessionId: 'bob', messageId, createdAt: '2026-01-01T00:00:00.000Z' },
});
const messages = [
  user('n1', origin('m1')),
  { ...calling('n2', { c1: 'search', c2: 'search' }), ...origin('m2') },
  result('n3', 'c1', origin('m3')),
];
const forked = [event('SessionCreated', { forkedFrom: from }), ...messages.map(said)];
const counters = { active: 1 };

describe('forking a session', () => {
  it('creates a session with a copy of the history, which names its source', () => {
    given().when(new ForkSession(from, messages)).then(forked, { counters });
    expect(stateAfter(...forked)).toMatchObject({
      status: 'active',
      incarnation: 1,
      forkedFrom: from,
      messageCount: 3,
      openToolCalls: [{ id: 'c2', name: 'search' }],
      generation: null,
    });
  });

  it('inherits no approvals, and starts its own usage', () => {
    const { approvals, usage } = stateAfter(...forked);
    expect(approvals).toEqual([]);
    expect(usage).toEqual(stateAfter(created).usage);
  });

  it('takes title and metadata as given', () => {
    given()
      .when(new ForkSession(from, [], { title: 'Another way', metadata: { topic: 'sea' } }))
      .then(
        [
          event('SessionCreated', {
            title: 'Another way',
            metadata: { topic: 'sea' },
            forkedFrom: from,
          }),
        ],
        { counters },
      );
  });

  it('begins a new incarnation where a session was deleted', () => {
    given(created, granted('search'), said(user('m1')), deleted)
      .when(new ForkSession(from, messages))
      .then(forked, { counters });
    expect(stateAfter(created, granted('search'), said(user('m1')), deleted, ...forked)).toMatchObject({
      incarnation: 2,
      messageCount: 3,
      historyStart: 5,
      approvals: [],
    });
  });

  it('is refused when the id is that of an existing session', () => {
    const refusal = { refused: 'invalid-request', at: 'id' } as const;
    given(created).when(new ForkSession(from, messages)).then(refusal);
    given(created, expired).when(new ForkSession(from, messages)).then(refusal);
  });

  it('is refused when the id is that of a fork of another session or version', () => {
    const refusal = { refused: 'invalid-request', at: 'id' } as const;
    given(...forked)
      .when(new ForkSession({ ...from, version: 11 }, messages))
      .then(refusal);
    given(...forked)
      .when(new ForkSession({ ...from, sessionId: 'carol' }, messages))
      .then(refusal);
  });

  it('does nothing when the same fork is made again', () => {
    given(...forked)
      .when(new ForkSession(from, messages))
      .then([]);
    given(...forked, said(user('m9')))
      .when(new ForkSession(from, messages))
      .then([]);
  });

  it('makes the same fork again after it was deleted', () => {
    given(...forked, deleted)
      .when(new ForkSession(from, messages))
      .then(forked, { counters });
  });
});
