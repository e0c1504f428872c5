import {
  ChangeSessionDetails,
  CreateSession,
  DeleteSession,
  ExpireSession,
  ResetConversation,
  type SessionCommand,
} from '../../../src/domain/session.commands.js';
import { isActivity } from '../../../src/domain/session.state.js';
import { sessionEvents } from '../../../src/domain/session.events.js';
import {
  after,
  calling,
  created,
  deleted,
  event,
  expired,
  given,
  granted,
  leaseExpired,
  reset,
  resumed,
  said,
  started,
  stateAfter,
  user,
} from './given-when-then.js';

const lastActivityAt = '2026-01-01T00:00:00.000Z';
const tokens = { inputTokens: 10, outputTokens: 5, cachedTokens: 2, reasoningTokens: 1 };
const completed = event('GenerationCompleted', {
  generationId: 'g1',
  model: 'echo',
  finishReason: 'stop',
  usage: tokens,
});
const cancelled = event('GenerationCancelled', { generationId: 'g1', model: 'echo' });
/** A session with a value in every part of its state. */
const full = [
  event('SessionCreated', {
    title: 'Holidays',
    metadata: { topic: 'sea' },
    forkedFrom: { sessionId: 'bob', version: 7 },
  }),
  granted('search', 'session'),
  said(user('m1')),
  started('g1', [2, 3]),
  said(calling('m2', { c1: 'search' })),
  completed,
];
const busy = [created, said(user('m1')), started('g1', [2, 2])];

describe('creating a session', () => {
  it('begins a session, and counts it as active', () => {
    given()
      .when(new CreateSession())
      .then([created], { counters: { active: 1 } });
  });

  it('keeps its title and metadata', () => {
    const details = { title: 'Holidays', metadata: { topic: 'sea', days: [1, 2] } };
    given()
      .when(new CreateSession(details))
      .then([event('SessionCreated', details)], { counters: { active: 1 } });
    expect(stateAfter(event('SessionCreated', details))).toMatchObject({
      ...details,
      status: 'active',
      version: 1,
      incarnation: 1,
    });
  });

  it('leaves out details that were not given', () => {
    const [event] = after([], new CreateSession({ title: undefined, metadata: undefined }));
    expect(event).toStrictEqual(created);
  });

  describe('for an owner', () => {
    const ofAlice = event('SessionCreated', { owner: 'alice' });
    const refused = { field: ['owner'], code: 'invalid-request' };

    it('records whose it is, and finds it again for the same owner', () => {
      given()
        .when(new CreateSession({ owner: 'alice' }))
        .then([ofAlice], { counters: { active: 1 } });
      given(ofAlice)
        .when(new CreateSession({ owner: 'alice' }))
        .then([]);
      given(ofAlice).when(new CreateSession()).then([]);
    });

    it('keeps the owner of an id when the session was deleted', () => {
      given(ofAlice, deleted)
        .when(new CreateSession())
        .then([ofAlice], { counters: { active: 1 } });
      expect(stateAfter(ofAlice, deleted)).toMatchObject({ status: 'deleted', owner: 'alice' });
    });

    it.each([
      ['that is of another owner', [ofAlice]],
      ['that was of another owner before it was deleted', [ofAlice, deleted]],
      ['that had no owner', [created]],
      ['that had no owner before it was deleted', [created, deleted]],
    ])('refuses an id %s', (_, before) => {
      const refusal = (): unknown => after(before, new CreateSession({ owner: 'bob' }));
      expect(refusal).toThrow(expect.objectContaining(refused) as Error);
    });
  });

  it('changes nothing when the session is active', () => {
    given(created)
      .when(new CreateSession({ title: 'another' }))
      .then([]);
  });

  it('changes nothing while the session is generating', () => {
    given(...busy)
      .when(new CreateSession())
      .then([]);
  });

  it('resumes an expired session with everything it had', () => {
    given(...full, expired)
      .when(new CreateSession({ title: 'another' }))
      .then([resumed], { counters: { active: 1 } });
    expect(stateAfter(...full, expired, resumed)).toEqual({ ...stateAfter(...full), version: 8 });
  });

  it('begins a new incarnation when the session was deleted', () => {
    given(...full, deleted)
      .when(new CreateSession())
      .then([created], { counters: { active: 1 } });
  });

  it('takes nothing over from the incarnation before', () => {
    expect(stateAfter(...full, deleted, created)).toEqual({
      ...stateAfter(created),
      version: 8,
      incarnation: 2,
      historyStart: 8,
    });
  });
});

describe('a session that does not exist', () => {
  const commands: SessionCommand[] = [
    new ChangeSessionDetails({ title: 'x' }),
    new ResetConversation(),
    new ExpireSession('ttl', lastActivityAt, 1000),
    new DeleteSession(),
  ];

  it.each(commands)('refuses $type', (command) => {
    given().when(command).then({ refused: 'session-not-found' });
  });

  it.each(commands)('refuses $type after it was deleted', (command) => {
    given(created, deleted).when(command).then({ refused: 'session-not-found' });
  });

  it('has an empty state once it is deleted', () => {
    expect(stateAfter(...full, event('SessionDetailsChanged', { legalHold: true }), deleted)).toEqual({
      ...stateAfter(),
      version: 8,
      incarnation: 1,
      status: 'deleted',
    });
  });
});

describe('changing the details', () => {
  const named = event('SessionCreated', { title: 'Holidays', metadata: { topic: 'sea' } });

  it('records what changed and nothing else', () => {
    given(named)
      .when(new ChangeSessionDetails({ title: 'Work', metadata: { topic: 'sea' }, legalHold: false }))
      .then([event('SessionDetailsChanged', { title: 'Work' })]);
  });

  it('does nothing when nothing changes', () => {
    given(named)
      .when(new ChangeSessionDetails({ title: 'Holidays', metadata: { topic: 'sea' } }))
      .then([]);
    given(named).when(new ChangeSessionDetails({})).then([]);
    given(created)
      .when(new ChangeSessionDetails({ title: null }))
      .then([]);
  });

  it('replaces metadata as a whole', () => {
    const changed = event('SessionDetailsChanged', { metadata: { mood: 'good' } });
    given(named)
      .when(new ChangeSessionDetails({ metadata: { mood: 'good' } }))
      .then([changed]);
    expect(stateAfter(named, changed)).toMatchObject({ title: 'Holidays', metadata: { mood: 'good' } });
  });

  it('removes the title with null', () => {
    const changed = event('SessionDetailsChanged', { title: null });
    given(named)
      .when(new ChangeSessionDetails({ title: null }))
      .then([changed]);
    expect(stateAfter(named, changed)).toMatchObject({ title: null, metadata: { topic: 'sea' } });
  });

  it('leaves an expired session expired', () => {
    given(named, expired)
      .when(new ChangeSessionDetails({ title: 'Work' }))
      .then([event('SessionDetailsChanged', { title: 'Work' })]);
    expect(stateAfter(named, expired, event('SessionDetailsChanged', { title: 'Work' })).status).toBe(
      'expired',
    );
  });
});

describe('resetting the conversation', () => {
  it('empties history and approvals; title, metadata, origin and usage stay', () => {
    given(...full)
      .when(new ResetConversation())
      .then([reset]);
    expect(stateAfter(...full, reset)).toEqual({
      ...stateAfter(...full),
      version: 7,
      historyStart: 7,
      messageCount: 0,
      openToolCalls: [],
      approvals: [],
    });
    expect(stateAfter(...full, reset)).toMatchObject({ title: 'Holidays', usage: tokens, incarnation: 1 });
  });

  it('records the reason', () => {
    given(created)
      .when(new ResetConversation('a new subject'))
      .then([event('ConversationReset', { reason: 'a new subject' })]);
  });

  it('fails a generation whose lease has expired and cancels a running one; the text that had arrived is kept in both cases', () => {
    const half = said(
      user('m2', { role: 'assistant', content: 'half a', generationId: 'g1', status: 'incomplete' }),
    );
    given(...busy)
      .when(new ResetConversation(undefined, { messageId: 'm2', content: 'half a' }))
      .then([half, leaseExpired('g1'), reset], {
        guard: {
          holds: { leaseOver: 'generation:g1' },
          otherwise: { events: [half, cancelled, reset] },
        },
      });
    expect(stateAfter(...busy, leaseExpired('g1'), reset)).toMatchObject({ generation: null });
    expect(stateAfter(...busy, cancelled, reset)).toMatchObject({ generation: null, messageCount: 0 });
  });

  it('leaves an expired session expired', () => {
    given(created, said(user('m1')), expired)
      .when(new ResetConversation())
      .then([reset]);
    expect(stateAfter(created, said(user('m1')), expired, reset)).toMatchObject({
      status: 'expired',
      messageCount: 0,
    });
  });
});

describe('expiring a session', () => {
  const counters = { active: -1 };

  it('happens only if the session is idle for long enough at the append, and reduces the number of active sessions', () => {
    given(created)
      .when(new ExpireSession('ttl', lastActivityAt, 3_600_000))
      .then([expired], { counters, guard: { holds: { idleFor: 3_600_000 }, otherwise: { events: [] } } });
  });

  it.each(['cap', 'import'] as const)('needs no idle time for the reason %s', (reason) => {
    given(created)
      .when(new ExpireSession(reason, lastActivityAt))
      .then([event('SessionExpired', { reason, lastActivityAt })], { counters });
  });

  it('checks an idle time of 0 like any other', () => {
    given(created)
      .when(new ExpireSession('cap', lastActivityAt, 0))
      .then([event('SessionExpired', { reason: 'cap', lastActivityAt })], {
        counters,
        guard: { holds: { idleFor: 0 }, otherwise: { events: [] } },
      });
  });

  it('does not happen while the session is generating', () => {
    given(...busy)
      .when(new ExpireSession('ttl', lastActivityAt, 1000))
      .then([]);
    given(...busy)
      .when(new ExpireSession('cap', lastActivityAt))
      .then([]);
  });

  it('does not happen twice', () => {
    given(created, expired)
      .when(new ExpireSession('ttl', lastActivityAt, 1000))
      .then([]);
  });

  it('keeps everything that the session held', () => {
    expect(stateAfter(...full, expired)).toEqual({ ...stateAfter(...full), version: 7, status: 'expired' });
  });
});

describe('deleting a session', () => {
  it('reduces the number of active sessions for an active one', () => {
    given(created)
      .when(new DeleteSession('asked by the user'))
      .then([event('SessionDeleted', { reason: 'asked by the user' })], { counters: { active: -1 } });
  });

  it('leaves the number of active sessions unchanged for an expired one', () => {
    given(created, expired).when(new DeleteSession()).then([deleted]);
  });

  it('cancels the generation in the same append', () => {
    given(...busy)
      .when(new DeleteSession())
      .then([cancelled, deleted], { counters: { active: -1 } });
    expect(stateAfter(...busy, cancelled, deleted).generation).toBeNull();
  });

  it('is refused under legal hold until the hold is lifted', () => {
    const held = event('SessionDetailsChanged', { legalHold: true });
    const lifted = event('SessionDetailsChanged', { legalHold: false });
    given(created)
      .when(new ChangeSessionDetails({ legalHold: true }))
      .then([held]);
    given(created, held).when(new DeleteSession()).then({ refused: 'legal-hold' });
    given(created, held, reset).when(new DeleteSession()).then({ refused: 'legal-hold' });
    given(created, held, expired).when(new DeleteSession()).then({ refused: 'legal-hold' });
    given(created, held)
      .when(new ChangeSessionDetails({ legalHold: false }))
      .then([lifted]);
    given(created, held, lifted)
      .when(new DeleteSession())
      .then([deleted], { counters: { active: -1 } });
  });
});

describe('activity', () => {
  it('is every event but the expiry and what is planned about the session', () => {
    expect(Object.keys(sessionEvents).filter((type) => !isActivity({ type }))).toEqual([
      'SessionExpired',
      'ErasureScheduled',
      'ErasureCancelled',
    ]);
  });
});
