import { type SessionEvent } from '../../../src/domain/session.events.js';
import * as session from '../../../src/domain/session.commands.js';
import { type TestDatabase } from '../../support/database.js';

/** Expects a promise to reject with an error that would be answered with this code. */
export const expectProblemCode = (promise: Promise<unknown>, code: string): Promise<void> =>
  expect(promise).rejects.toMatchObject({ code });

type Random = (below: number) => number;

const message = (content: string, more: Partial<session.NewMessage> = {}): session.NewMessage => ({
  messageId: 'm',
  role: 'user',
  content,
  status: 'complete',
  ...more,
});

/**
 * Any command that a client or a node may send. There are few ids, so that commands concern the same things again and
 * again.
 */
export function anyCommand(random: Random, round: number): session.SessionCommand {
  const generationId = `g${random(2)}`;
  const call = `c${random(2)}`;
  const tool = random(2) ? 'search' : 'mail';
  const usage = { inputTokens: random(100), outputTokens: random(50), cachedTokens: random(9) };
  const calling = { role: 'assistant' as const, toolCalls: [{ id: call, name: tool, arguments: '{}' }] };
  const commands = [
    () => new session.CreateSession({ title: `title ${round}`, metadata: { round } }),
    () => new session.CreateSession(),
    () => new session.AppendMessages([message('one'), message('two', { messageId: `m${random(3)}` })]),
    () => new session.AppendMessages([message('one')]),
    () => new session.AppendMessages([message('call', calling)]),
    () => new session.AppendMessages([message('result', { role: 'tool', toolCallId: call })]),
    () => new session.AppendMessages([message('result', { role: 'tool', toolCallId: call })]),
    () => new session.StartGeneration({ generationId, model: `model-${random(2)}` }, [message('ask')]),
    () =>
      new session.CompleteGeneration(
        { generationId, finishReason: 'stop', usage, durationMs: 5 },
        { messageId: `r${round}`, content: 'reply' },
      ),
    () => new session.FailGeneration({ generationId, code: 'model-failed', message: 'no', usage }),
    () => new session.CancelGeneration({ messageId: `c${round}`, content: 'part' }, { usage }),
    () => new session.GrantToolApproval({ tool, scope: random(2) ? 'once' : 'session' }),
    () => new session.RevokeToolApproval(tool),
    () => new session.ChangeSessionDetails({ title: random(2) ? null : 'other', metadata: { round } }),
    () => new session.RemoveMessage(['m', `m${random(3)}`, `r${random(round + 1)}`][random(3)] ?? ''),
    () => new session.RewindHistory(1 + random(2 * round + 2)),
    () =>
      new session.StartGeneration({ generationId, model: 'model-0' }, undefined, undefined, undefined, true),
    () => new session.ResetConversation(),
    () => new session.ExpireSession('ttl', '2026-11-22T10:00:00.000Z'),
    () => new session.DeleteSession(),
    () => new session.DeleteSession(),
    () => new session.ScheduleErasure('2999-01-01T00:00:00.000Z', undefined, { eraseAfter: 1 + random(2) }),
    () => new session.ScheduleErasure('2999-01-01T00:00:00.000Z', undefined, { eraseAfter: 1 + random(2) }),
    () => new session.CancelErasure(undefined, random(2) ? 'request' : 'policy'),
    () => new session.CancelErasure(undefined, random(2) ? 'request' : 'policy'),
  ];
  const make = commands[round === 0 ? 0 : random(commands.length)];
  if (!make) throw new Error('there is none');
  return make();
}

/** An event as the table holds it. */
export type Logged = SessionEvent & {
  readonly version: number;
  readonly incarnation: number;
  readonly time: string;
};

export async function eventsOf(db: TestDatabase, sessionId: string): Promise<Logged[]> {
  const rows = await db.query<Logged & { time: Date }>(
    `select type, data, version, incarnation, time from event
     where tenant = 'default' and stream_id = $1 order by version`,
    [sessionId],
  );
  return rows.map((row) => ({ ...row, time: row.time.toISOString() }));
}
