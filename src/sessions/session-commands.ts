import { type Provider, type Type } from '@nestjs/common';
import { CommandHandler, type CommandBus } from '@nestjs/cqrs';
import { sessionEvents, type SessionEvent } from '../domain/session.events.js';
import {
  AbandonGeneration,
  AppendMessages,
  CancelGeneration,
  ChangeSessionDetails,
  CompleteGeneration,
  CreateSession,
  DeleteSession,
  ExpireSession,
  FailGeneration,
  isActivity,
  ResetConversation,
  type SessionCommand,
  sessionDecider,
  type SessionState,
  StartGeneration,
  STATE_VERSION,
} from '../domain/session.js';
import { type EventStore } from '../event-store/event-store.js';
import { CounterAtLimit, type Handled, type Loaded, StreamHandler } from '../event-store/stream-handler.js';
import { idleSessions } from '../projections/sessions.projection.js';
import { type ReadModels } from '../projections/read-models.js';
import { type TenantPolicies } from './tenant-policies.js';

export type HandledSession = Handled<SessionState, SessionEvent>;

/** The tenant has as many active sessions as it may, and none could be made to leave. */
export class SessionLimitReached extends Error {
  override readonly name = 'SessionLimitReached';
  readonly code = 'session-limit-reached';
  constructor(readonly details: { readonly activeSessions: number; readonly maxSessions: number }) {
    super(
      `${details.activeSessions} of ${details.maxSessions} sessions are active: delete one, wait until one expires, or raise sessions.maxSessions`,
    );
  }
}

/** Sessions looked at in one try to make room. */
const CANDIDATES = 32;

/** Takes every command on a session to its stream, within the tenant's cap. */
export class SessionCommands {
  private readonly streams: StreamHandler<SessionState, SessionCommand, SessionEvent>;

  constructor(
    private readonly store: EventStore,
    private readonly models: ReadModels,
    private readonly policies: TenantPolicies,
  ) {
    this.streams = new StreamHandler(store, {
      decider: sessionDecider,
      stateVersion: STATE_VERSION,
      schemaVersion: (type) => sessionEvents[type].version,
      isActivity,
      incarnation: (state) => state.incarnation,
    });
  }

  /** The session as the log has it now; `status` tells whether there is one. */
  load(tenant: string, sessionId: string): Promise<Loaded<SessionState>> {
    return this.streams.load({ tenant, streamId: sessionId });
  }

  /**
   * @throws DomainError, SessionLimitReached, VersionMismatch, KeyReused, Overloaded, DatabaseUnavailable
   */
  async handle(command: SessionCommand): Promise<HandledSession> {
    for (;;) {
      try {
        return await this.append(command);
      } catch (error) {
        if (!(error instanceof CounterAtLimit)) throw error;
        if (!(await this.makeRoom(command.to.tenant))) {
          throw new SessionLimitReached({
            activeSessions: await this.store.counterValue(error.key),
            maxSessions: error.max,
          });
        }
      }
    }
  }

  private append(command: SessionCommand): Promise<HandledSession> {
    const { to } = command;
    return this.streams.handle({ tenant: to.tenant, streamId: to.sessionId }, command, {
      actor: to.actor,
      correlationId: to.correlationId,
      causationId: to.causationId,
      ifMatch: to.ifMatch,
      key: to.idempotency && {
        ...to.idempotency,
        reference: (events) => ({
          created: events.some((event) => event.type === 'SessionCreated'),
          ...(command instanceof AppendMessages && {
            messageIds: command.messages.map((message) => message.messageId),
          }),
          ...(command instanceof StartGeneration && { generationId: command.generation.generationId }),
        }),
      },
      counter: () => ({ key: `active:${to.tenant}`, max: this.policies.of(to.tenant).maxSessions }),
    });
  }

  /**
   * At the cap: sessions that are overdue leave first, by ordinary commands of their own; under `evict` then the
   * least recently used one. Whoever is in use by now stays: the decision is made on the log.
   * @returns whether any left.
   */
  private async makeRoom(tenant: string): Promise<boolean> {
    const { sessionTTL, capPolicy } = this.policies.of(tenant);
    const overdue = await idleSessions(this.models, tenant, { ttl: sessionTTL, limit: CANDIDATES });
    if (await this.expire(tenant, overdue, 'ttl', sessionTTL, overdue.length)) return true;
    if (capPolicy === 'reject') return false;
    const idlest = await idleSessions(this.models, tenant, { limit: CANDIDATES });
    return this.expire(tenant, idlest, 'cap', undefined, 1);
  }

  private async expire(
    tenant: string,
    candidates: readonly { readonly sessionId: string; readonly lastActivityAt: string }[],
    reason: 'ttl' | 'cap',
    idleFor: number | undefined,
    enough: number,
  ): Promise<boolean> {
    let left = 0;
    for (const { sessionId, lastActivityAt } of candidates) {
      const to = { tenant, sessionId, actor: 'system:sessions', correlationId: `room-${tenant}` };
      const { events } = await this.append(new ExpireSession(to, reason, lastActivityAt, idleFor));
      // One that somebody else expired does not count as room made.
      if (events.length > 0) left += 1;
      if (left >= enough) break;
    }
    return left > 0;
  }
}

const commands = [
  CreateSession,
  ChangeSessionDetails,
  AppendMessages,
  ResetConversation,
  DeleteSession,
  StartGeneration,
  CompleteGeneration,
  FailGeneration,
  CancelGeneration,
  AbandonGeneration,
];

/** One handler serves every command: what differs is in the rules. */
export const commandHandlers: Provider[] = commands.map((command) => {
  class Handler {
    constructor(private readonly sessions: SessionCommands) {}
    execute(given: SessionCommand): Promise<HandledSession> {
      return this.sessions.handle(given);
    }
  }
  Object.defineProperty(Handler, 'name', { value: `${command.name}Handler` });
  CommandHandler(command as Type)(Handler);
  return {
    provide: Handler,
    useFactory: (sessions: SessionCommands) => new Handler(sessions),
    inject: [SessionCommands],
  };
});

/** Nest's bus with the one result that all session commands have. */
export const dispatch = (bus: CommandBus, command: SessionCommand): Promise<HandledSession> =>
  bus.execute(command);
