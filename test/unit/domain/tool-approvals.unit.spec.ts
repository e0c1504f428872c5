import { type SessionEvent } from '../../../src/domain/session.events.js';
import {
  AppendMessages,
  GrantToolApproval,
  RevokeToolApproval,
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
  granted,
  reset,
  result,
  resumed,
  said,
  stateAfter,
  user,
} from './given-when-then.js';

const approvals = (...events: readonly SessionEvent[]) => stateAfter(...events).approvals;
const grant = (tool: string, scope: 'once' | 'session' = 'once') => new GrantToolApproval({ tool, scope });

describe('granting a tool approval', () => {
  it('records tool and scope', () => {
    given(created)
      .when(grant('search', 'session'))
      .then([granted('search', 'session')]);
    expect(approvals(created, granted('search', 'session'))).toEqual([{ tool: 'search', scope: 'session' }]);
  });

  it('records when the approval expires, and is refused if it has expired by the time of the append', () => {
    const approval = { tool: 'search', scope: 'once', expiresAt: '2026-01-01T00:00:00Z' } as const;
    given(created)
      .when(new GrantToolApproval(approval))
      .then([event('ToolApprovalGranted', approval)], {
        guard: {
          holds: { before: approval.expiresAt },
          otherwise: { refused: 'invalid-request', at: 'expiresAt' },
        },
      });
    expect(approvals(created, event('ToolApprovalGranted', approval))).toEqual([approval]);
  });

  it('replaces the approval of the same tool', () => {
    given(created, granted('search', 'once', { expiresAt: '2026-01-01T00:00:00Z' }))
      .when(grant('search', 'session'))
      .then([granted('search', 'session')]);
    expect(approvals(created, granted('search'), granted('mail'), granted('search', 'session'))).toEqual([
      { tool: 'mail', scope: 'once' },
      { tool: 'search', scope: 'session' },
    ]);
  });

  it('is refused where there is no session', () => {
    given().when(grant('search')).then({ refused: 'session-not-found' });
    given(created, deleted).when(grant('search')).then({ refused: 'session-not-found' });
  });

  it('leaves an expired session expired', () => {
    given(created, expired)
      .when(grant('search'))
      .then([granted('search')]);
    expect(stateAfter(created, expired, granted('search')).status).toBe('expired');
  });

  it('is refused beyond 100 tools, but may still replace an approval', () => {
    const tools = Array.from({ length: 100 }, (_, index) => granted(`tool-${index}`));
    given(created, ...tools.slice(1))
      .when(grant('another'))
      .then([granted('another')]);
    given(created, ...tools)
      .when(grant('another'))
      .then({ refused: 'invalid-request' });
    given(created, ...tools)
      .when(grant('tool-50', 'session'))
      .then([granted('tool-50', 'session')]);
    expect(approvals(created, ...tools, granted('tool-50', 'session'))).toHaveLength(100);
  });
});

describe('revoking a tool approval', () => {
  it('removes the approval', () => {
    const revoked = event('ToolApprovalRevoked', { tool: 'search' });
    given(created, granted('search', 'session'), granted('mail'))
      .when(new RevokeToolApproval('search'))
      .then([revoked]);
    expect(approvals(created, granted('search', 'session'), granted('mail'), revoked)).toEqual([
      { tool: 'mail', scope: 'once' },
    ]);
  });

  it('does nothing when there is no approval', () => {
    given(created, granted('mail')).when(new RevokeToolApproval('search')).then([]);
  });

  it('is refused where there is no session', () => {
    given().when(new RevokeToolApproval('search')).then({ refused: 'session-not-found' });
    given(created, deleted).when(new RevokeToolApproval('search')).then({ refused: 'session-not-found' });
  });
});

describe('using a tool approval', () => {
  const called = [created, granted('search'), granted('mail'), said(calling('m1', { c1: 'search' }))];

  it('uses up "once" with the next result of that tool, of that tool only', () => {
    expect(approvals(...called)).toHaveLength(2);
    expect(approvals(...called, said(result('m2', 'c1')))).toEqual([{ tool: 'mail', scope: 'once' }]);
  });

  it('depends on the tool that was called, whatever name the result has', () => {
    expect(approvals(...called, said(result('m2', 'c1', { name: 'mail' })))).toEqual([
      { tool: 'mail', scope: 'once' },
    ]);
  });

  it('keeps "once" when the call is only answered as cancelled: the tool never ran', () => {
    const generated = after(called, new StartGeneration({ generationId: 'g1', model: 'echo' }));
    expect(stateAfter(...generated).openToolCalls).toEqual([]);
    expect(approvals(...generated)).toHaveLength(2);
  });

  it('uses up "once" with a result given as the message of a generate', () => {
    const generate = new StartGeneration({ generationId: 'g1', model: 'echo' }, [result('m2', 'c1')]);
    expect(approvals(...after(called, generate))).toEqual([{ tool: 'mail', scope: 'once' }]);
  });

  it('keeps "session" through any number of results', () => {
    const past = [created, granted('search', 'session')];
    const messages = [calling('m1', { c1: 'search' }), result('m2', 'c1'), calling('m3', { c1: 'search' })];
    expect(approvals(...after(past, new AppendMessages(messages)), said(result('m4', 'c1')))).toEqual([
      { tool: 'search', scope: 'session' },
    ]);
  });

  it('uses up an approval that was granted after the call', () => {
    expect(
      approvals(created, said(calling('m1', { c1: 'search' })), granted('search'), said(result('m2', 'c1'))),
    ).toEqual([]);
  });
});

describe('the end of all tool approvals', () => {
  const past = [created, granted('search'), granted('mail', 'session')];

  it('comes with a reset', () => {
    expect(approvals(...past, reset)).toEqual([]);
  });

  it('comes with a delete, and a new incarnation has none', () => {
    expect(approvals(...past, deleted)).toEqual([]);
    expect(approvals(...past, deleted, created)).toEqual([]);
  });

  it('does not come with expiry, resuming or messages', () => {
    expect(approvals(...past, expired, resumed, said(user('m1')))).toHaveLength(2);
  });
});
