import { randomUUID } from 'node:crypto';
import { type Pool } from 'pg';
import { connect, createPool } from '../../../src/database/connection.js';
import { RELAXED } from '../../../src/database/server-settings.js';
import { DomainError } from '../../../src/domain/decider.js';
import { type NewMessage, type SessionCommand } from '../../../src/domain/session.commands.js';
import { type SessionState } from '../../../src/domain/session.state.js';
import { type SessionRef } from '../../../src/sessions/command-context.js';
import { withErasure } from '../../../src/sessions/session-commands.js';
import { sessionKind } from '../../../src/sessions/session-kind.js';
import * as session from '../../../src/domain/session.commands.js';
import { type SessionEvent, upcast } from '../../../src/domain/session.events.js';
import { EventLog, type EventLogOptions } from '../../../src/event-store/log.js';
import { type Leases } from '../../../src/event-store/leases.js';
import { type Handled, StreamHandler } from '../../../src/event-store/stream-handler.js';
import { type Loaded } from '../../../src/event-store/stream-states.js';
import { type SessionRecord } from '../../../src/read-models/session-record.js';
import {
  historyProjection,
  type MessageView,
  type PageOfHistory,
  readHistory,
} from '../../../src/read-models/history.projection.js';
import { type Projection } from '../../../src/projection-engine/projection.js';
import { Projector } from '../../../src/projection-engine/projector.js';
import { ReadModels, type Freshness } from '../../../src/projection-engine/strong-reads.js';
import { HistoryReader } from '../../../src/sessions/history-reader.js';
import { generationsProjection } from '../../../src/read-models/generations.projection.js';
import { searchProjection } from '../../../src/read-models/search.projection.js';
import { sessionsProjection } from '../../../src/read-models/sessions.projection.js';
import { usageProjection } from '../../../src/read-models/usage.projection.js';
import { suspend } from '../../support/suspended.js';

export const READ_MODELS: readonly Projection<SessionRecord>[] = [
  sessionsProjection,
  historyProjection,
  usageProjection,
  searchProjection,
  generationsProjection,
];
export const TENANT = 'acme';

/** The projection is applied by its code alone and not by SQL, so that changes of the code by a test take effect. */
export function byCode(projection: Projection<SessionRecord>): Projection<SessionRecord> {
  const { applyInside: _inside, ...others } = projection;
  return others;
}

export const target = (sessionId: string): SessionRef => ({ tenant: TENANT, sessionId, ownedBy: null });
let messages = 0;
export const message = (text: string, more: Partial<NewMessage> = {}): NewMessage => ({
  messageId: `m${(messages += 1)}`,
  role: 'user',
  content: text,
  status: 'complete',
  ...more,
});

/** A node as the composition root makes it, without HTTP. */
export class Node {
  readonly errors: unknown[] = [];
  readonly notices: string[] = [];
  private readonly sessions: StreamHandler<SessionState, SessionCommand, SessionEvent>;

  private constructor(
    readonly store: EventLog,
    readonly leases: Leases,
    readonly models: ReadModels,
    readonly projector: Projector,
    private readonly reads: Pool,
    private readonly pool: Pool,
  ) {
    const histories = new HistoryReader(store);
    this.sessions = new StreamHandler(store, {
      ...sessionKind,
      prepare: (command, state, { tenant, streamId }) =>
        command instanceof session.EraseSession || command instanceof session.ScheduleErasure
          ? withErasure(store, { tenant, streamId }, command, state)
          : histories.prepare({ tenant, sessionId: streamId, ownedBy: null }, command, state),
    });
  }

  /** @param projections none means that this node only reads and writes. */
  static async start(
    url: string,
    projections: readonly Projection[] = READ_MODELS,
    options: EventLogOptions = {},
  ): Promise<Node> {
    const store = await EventLog.open(url, { upcast, ...options });
    const leases = store.leases(randomUUID());
    const reads = createPool(url, 'read models');
    const models = new ReadModels(reads, store);
    const pool = createPool(url, 'projector', { max: 6, settings: RELAXED });
    const projector = new Projector({
      store,
      pool,
      leases,
      projections,
      connect: () => connect(url, 'verify'),
      onProgress: () => {
        models.advanced();
      },
      onNotice: (message) => {
        node.notices.push(message);
      },
      onError: (error) => {
        node.errors.push(error);
      },
    });
    const node = new Node(store, leases, models, projector, reads, pool);
    await projector.start();
    return node;
  }

  async stop(): Promise<void> {
    await this.projector.stop();
    await this.leases.close();
    await this.reads.end();
    await this.pool.end();
    await this.store.close();
  }

  /** Neither renews the leases of the node any more nor hears of them, as if the process were suspended; all else goes on. */
  suspend(): Promise<void> {
    return suspend(this.leases);
  }

  handle(sessionId: string, command: SessionCommand): Promise<Handled<SessionState, SessionEvent>> {
    return this.sessions.handle({ tenant: TENANT, streamId: sessionId }, command, {
      actor: 'tester',
      correlationId: 'test',
      counter: () => ({ key: `active:${TENANT}`, max: 1_000_000 }),
    });
  }

  /** The present state of a session by the log. */
  load(sessionId: string): Promise<Loaded<SessionState>> {
    return this.sessions.load({ tenant: TENANT, streamId: sessionId });
  }

  /** The end of one session, for which a strong read of it waits. */
  async endOf(sessionId: string): Promise<Freshness> {
    const { lane, position } = await this.load(sessionId);
    return new Map([[lane, position]]);
  }

  private lastSeen(sessionId: string): number {
    return this.sessions.known({ tenant: TENANT, streamId: sessionId })?.state.version ?? 1;
  }

  /** Sends random commands as clients and nodes do. Commands that the rules refuse change nothing. */
  async live(
    random: (below: number) => number,
    sessionIds: readonly string[],
    commands: number,
  ): Promise<number> {
    let events = 0;
    for (let index = 0; index < commands; index += 1) {
      const sessionId = sessionIds[random(sessionIds.length)] ?? '';
      const generationId = `g-${sessionId}-${random(3)}`;
      const usage = { inputTokens: random(100), outputTokens: random(50), cachedTokens: random(9) };
      const command = [
        () => new session.CreateSession({ title: `title ${index}`, metadata: { index } }),
        () => new session.AppendMessages([message(`one ${index}`), message(`two ${index}`)]),
        // Of the last messages, some are of this session.
        () => new session.RemoveMessage(`m${messages - random(8)}`),
        () => new session.RewindHistory(Math.max(1, this.lastSeen(sessionId) - random(6))),
        () => new session.AppendMessages([message(`one ${index}`)]),
        () => new session.StartGeneration({ generationId, model: `model-${random(2)}` }, [message('ask')]),
        () =>
          new session.CompleteGeneration(
            { generationId, finishReason: 'stop', usage, durationMs: 5 },
            { messageId: `r${index}`, content: 'reply' },
          ),
        () => new session.FailGeneration({ generationId, code: 'model-failed', message: 'no', usage }),
        () => new session.CancelGeneration({ messageId: `c${index}`, content: 'part' }, { usage }),
        () => new session.ChangeSessionDetails({ title: index % 2 ? null : 'other', metadata: { index } }),
        () => new session.ResetConversation(),
        () => new session.ExpireSession('ttl', '2026-11-22T10:00:00.000Z'),
        () => (random(3) ? new session.AppendMessages([message('more')]) : new session.DeleteSession()),
      ][random(13)]?.();
      try {
        if (command) events += (await this.handle(sessionId, command)).events.length;
      } catch (error) {
        if (!(error instanceof DomainError)) throw error;
      }
    }
    return events;
  }
}

/** A page of a history, with its messages taken from the text. */
export async function historyPage(
  models: ReadModels,
  freshness: Freshness,
  session: Pick<PageOfHistory, 'tenant' | 'sessionId' | 'incarnation'>,
  page: Omit<PageOfHistory, 'tenant' | 'sessionId' | 'incarnation'>,
): Promise<{ start: number; messages: MessageView[] } | undefined> {
  const found = await readHistory(models, freshness, { ...session, ...page });
  return found && { start: found.start, messages: JSON.parse(found.messages) as MessageView[] };
}
