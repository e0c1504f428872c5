import { type Provider, type Type } from '@nestjs/common';
import { CommandHandler, type CommandBus } from '@nestjs/cqrs';
import { DomainError } from '../domain/decider.js';
import { NewerEvent, sessionEvents, type SessionEvent } from '../domain/session.events.js';
import {
  AbandonGeneration,
  AppendMessages,
  CancelGeneration,
  ChangeSessionDetails,
  type CommandTarget,
  CompleteGeneration,
  CreateSession,
  DeleteSession,
  ExpireSession,
  FailGeneration,
  ForkSession,
  GrantToolApproval,
  isActivity,
  type PartialReply,
  ResetConversation,
  RevokeToolApproval,
  type SessionCommand,
  sessionDecider,
  type SessionState,
  StartGeneration,
  STATE_VERSION,
} from '../domain/session.js';
import { type EventLog } from '../event-store/log.js';
import {
  CounterAtLimit,
  type Handled,
  type Loaded,
  StreamHandler,
  VersionMismatch,
} from '../event-store/stream-handler.js';
import { type ReadModels } from '../projection-engine/strong-reads.js';
import { type Candidate } from '../read-models/session-candidates.js';
import { activeSessions, RoomMaker } from './active-sessions.js';
import { newId } from './ids.js';
import { type PartialReplies } from './partial-replies.js';
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

/** Tries of one command to get a place that others are after too. */
const TRIES = 100;

/** What happened at the caps since the process began. */
export interface CapCounts {
  /** Sessions that came back by a write. */
  restored: number;
  /** Commands refused with `session-limit-reached`. */
  rejected: number;
  /** Sessions that left so that another could come in: overdue ones, and the least recently used ones. */
  overdue: number;
  evicted: number;
}

/** Takes every command on a session to its stream, within the tenant's cap. */
export class SessionCommands {
  readonly counts: CapCounts = { restored: 0, rejected: 0, overdue: 0, evicted: 0 };
  private readonly streams: StreamHandler<SessionState, SessionCommand, SessionEvent>;
  private readonly room: RoomMaker;

  constructor(
    private readonly store: EventLog,
    models: ReadModels,
    private readonly policies: TenantPolicies,
    private readonly partials: PartialReplies,
  ) {
    this.streams = new StreamHandler(store, {
      decider: sessionDecider,
      stateVersion: STATE_VERSION,
      schemaVersion: (type) => sessionEvents[type].version,
      isActivity,
      incarnation: (state) => state.incarnation,
      prepare: (command, state) => this.withPartial(command, state),
    });
    const by = { actor: 'system:sessions', correlationId: 'session-cap' };
    this.room = new RoomMaker(store, models, policies, async (candidate, reason, idleFor) => {
      const isGone = await this.expire(candidate, reason, by, idleFor);
      if (isGone) this.counts[reason === 'ttl' ? 'overdue' : 'evicted'] += 1;
      return isGone;
    });
  }

  /** The session as the log has it now; `status` tells whether there is one. */
  load(tenant: string, sessionId: string): Promise<Loaded<SessionState>> {
    return this.streams.load({ tenant, streamId: sessionId });
  }

  /** The session as it was when it was last seen here, else as the log has it. */
  async lastKnown(tenant: string, sessionId: string): Promise<Loaded<SessionState>> {
    return this.streams.known({ tenant, streamId: sessionId }) ?? this.load(tenant, sessionId);
  }

  /** The state that a session had at a version which it has reached. */
  stateAt(tenant: string, sessionId: string, version: number): Promise<SessionState> {
    return this.streams.stateAt({ tenant, streamId: sessionId }, version);
  }

  /**
   * @throws DomainError, SessionLimitReached, VersionMismatch, KeyReused, Overloaded, DatabaseUnavailable
   */
  async handle(command: SessionCommand): Promise<HandledSession> {
    const { tenant } = command.to;
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.append(command);
      } catch (error) {
        if (!(error instanceof CounterAtLimit)) throw error;
        if (attempt < TRIES && (await this.room.request(tenant, attempt > 1))) continue;
        this.counts.rejected += 1;
        const activeNow = await this.store.counters.value(error.key);
        // A place that became free a moment ago is no reason to say that there was one.
        const details = { activeSessions: Math.max(activeNow, error.max), maxSessions: error.max };
        throw new SessionLimitReached(details);
      }
    }
  }

  /**
   * Makes a session leave the active set if it still is at the version that was seen, and idle as long as is said.
   * @returns whether it left by this
   */
  async expire(
    { tenant, sessionId, version, lastActivityAt }: Candidate,
    reason: 'ttl' | 'cap',
    by: Pick<CommandTarget, 'actor' | 'correlationId'>,
    idleFor?: number,
  ): Promise<boolean> {
    const to = { ...by, tenant, sessionId, ifMatch: [version] };
    return this.housekeep(new ExpireSession(to, reason, lastActivityAt, idleFor));
  }

  /**
   * A command that nobody waits for: one that is out of date by now does nothing, nor does one on a session that only
   * nodes of a newer version can read.
   */
  async housekeep(command: SessionCommand): Promise<boolean> {
    try {
      return (await this.append(command)).events.length > 0;
    } catch (error) {
      if (error instanceof VersionMismatch || error instanceof DomainError) return false;
      if (error instanceof NewerEvent) return false;
      throw error;
    }
  }

  /** Loads many sessions at once, so that commands on them which follow need no load of their own. */
  preload(sessions: readonly Pick<Candidate, 'tenant' | 'sessionId'>[]): Promise<void> {
    return this.streams.preload(sessions.map(({ tenant, sessionId }) => ({ tenant, streamId: sessionId })));
  }

  private async append(command: SessionCommand): Promise<HandledSession> {
    const { to } = command;
    const handled = await this.streams.handle({ tenant: to.tenant, streamId: to.sessionId }, command, {
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
      ...(command instanceof StartGeneration && { lease: command.lease, decided: command.decided }),
      counter: () => ({ key: activeSessions(to.tenant), max: this.policies.of(to.tenant).maxSessions }),
    });
    if (handled.events[0]?.type === 'SessionResumed') this.counts.restored += 1;
    const ended = handled.events.find(
      (event) => event.type === 'GenerationFailed' || event.type === 'GenerationCancelled',
    );
    // What a drop misses is pruned in a day.
    if (ended) void this.partials.drop(ended.data.generationId).catch(() => undefined);
    return handled;
  }

  /** A command that ends a generation keeps what had arrived of its reply. */
  private async withPartial(command: SessionCommand, { generation }: SessionState): Promise<SessionCommand> {
    const ends =
      command instanceof StartGeneration ||
      command instanceof ResetConversation ||
      command instanceof CancelGeneration ||
      command instanceof AbandonGeneration;
    // A state that is too old to know of a generation is refused by the append, and this is asked again with a newer one.
    if (!generation || !ends || command.partial) return command;
    const content = await this.partials.read(generation.id);
    if (content === '') return command;
    const partial: PartialReply = { messageId: newId('msg'), content, generationId: generation.id };
    return Object.assign(Object.create(Object.getPrototypeOf(command) as object) as object, command, {
      partial,
    });
  }
}

const commands = [
  CreateSession,
  ForkSession,
  ChangeSessionDetails,
  AppendMessages,
  ResetConversation,
  DeleteSession,
  StartGeneration,
  CompleteGeneration,
  FailGeneration,
  CancelGeneration,
  AbandonGeneration,
  GrantToolApproval,
  RevokeToolApproval,
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
