import { type SessionEvent } from '../../../src/domain/session.events.js';
import * as session from '../../../src/domain/session.js';
import { type TestDatabase } from '../../support/database.js';
import { to } from '../sweeper/fixture.js';

/** Holds a promise to an error that would be answered with this code. */
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

/** Any command that a client or a node may give. Few ids, so that they meet each other again and again. */
export function anyCommand(random: Random, sessionId: string, round: number): session.SessionCommand {
  const target = to(sessionId);
  const generationId = `g${random(2)}`;
  const call = `c${random(2)}`;
  const tool = random(2) ? 'search' : 'mail';
  const usage = { inputTokens: random(100), outputTokens: random(50), cachedTokens: random(9) };
  const calling = { role: 'assistant' as const, toolCalls: [{ id: call, name: tool, arguments: '{}' }] };
  const commands = [
    () => new session.CreateSession(target, { title: `title ${round}`, metadata: { round } }),
    () => new session.CreateSession(target),
    () => new session.AppendMessages(target, [message('one'), message('two')]),
    () => new session.AppendMessages(target, [message('one')]),
    () => new session.AppendMessages(target, [message('call', calling)]),
    () => new session.AppendMessages(target, [message('result', { role: 'tool', toolCallId: call })]),
    () => new session.AppendMessages(target, [message('result', { role: 'tool', toolCallId: call })]),
    () => new session.StartGeneration(target, { generationId, model: `model-${random(2)}` }, message('ask')),
    () =>
      new session.CompleteGeneration(
        target,
        { generationId, finishReason: 'stop', usage, durationMs: 5 },
        { messageId: `r${round}`, content: 'reply' },
      ),
    () => new session.FailGeneration(target, { generationId, code: 'model-failed', message: 'no', usage }),
    () => new session.CancelGeneration(target, { messageId: `c${round}`, content: 'part' }, { usage }),
    () => new session.GrantToolApproval(target, { tool, scope: random(2) ? 'once' : 'session' }),
    () => new session.RevokeToolApproval(target, tool),
    () =>
      new session.ChangeSessionDetails(target, { title: random(2) ? null : 'other', metadata: { round } }),
    () => new session.ResetConversation(target),
    () => new session.ExpireSession(target, 'ttl', '2026-11-22T10:00:00.000Z'),
    () => new session.DeleteSession(target),
    () => new session.DeleteSession(target),
  ];
  const make = commands[round === 0 ? 0 : random(commands.length)];
  if (!make) throw new Error('there is none');
  return make();
}

/** An event as the table has it. */
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
