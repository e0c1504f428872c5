import { Injectable } from '@nestjs/common';
import { DomainError } from '../domain/decider.js';
import { NewerEvent, type SessionEvent } from '../domain/session.events.js';
import {
  AbandonGeneration,
  AppendMessages,
  CancelGeneration,
  CreateSession,
  EraseSession,
  ExpireSession,
  ForkSession,
  type NewMessage,
  RemoveMessage,
  ResetConversation,
  RewindHistory,
  ScheduleErasure,
  type SessionCommand,
  type SessionDetails,
  StartGeneration,
} from '../domain/session.commands.js';
import { initialState, isErased, type SessionState } from '../domain/session.state.js';
import { type StreamId } from '../event-store/lane.js';
import { EventLog } from '../event-store/log.js';
import { CounterAtLimit, VersionMismatch } from '../event-store/refusals.js';
import { type Handled, StreamHandler } from '../event-store/stream-handler.js';
import { type Loaded } from '../event-store/stream-states.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { type Candidate } from '../read-models/session-candidates.js';
import { activeSessions, RoomMaker } from './active-sessions.js';
import { anyOwner, type CommandContext, type SessionAddress, type SessionRef } from './command-context.js';
import { HistoryReader, withFields } from './history-reader.js';
import { replyIdOf } from './ids.js';
import { PartialReplies } from './partial-replies.js';
import { sessionKind } from './session-kind.js';
import { TenantPolicies } from './tenant-policies.js';

export type HandledSession = Handled<SessionState, SessionEvent>;

/** The tenant has as many active sessions as it may have, and none of them could be expired. */
export class SessionLimitReached extends Error {
  override readonly name = 'SessionLimitReached';
  readonly code = 'session-limit-reached';
  constructor(readonly details: { readonly activeSessions: number; readonly maxSessions: number }) {
    super(
      `${details.activeSessions} of ${details.maxSessions} sessions are active: delete one, wait until one expires, or raise sessions.maxSessions`,
    );
  }
}

/** Most tries of one command to get a free place, when other commands compete for it. */
const TRIES = 100;

/** Counts of what happened at caps since the process was started. */
export interface CapCounts {
  /** Expired sessions that a write restored. */
  restored: number;
  /** Commands refused with `session-limit-reached`. */
  rejected: number;
  /** Sessions that expired to make room: overdue ones, and (`evicted`) the least recently used ones. */
  overdue: number;
  evicted: number;
}

/** Carries out the commands on sessions, and keeps tenants within their caps. */
@Injectable()
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
    const histories = new HistoryReader(store);
    this.streams = new StreamHandler(store, {
      ...sessionKind,
      weigh: (command) => ('messages' in command ? weightOf(command.messages) : 0),
      // Most commands append messages, and need nothing.
      prepare: (command, state, { tenant, streamId }) =>
        command instanceof AppendMessages && command.replaceLast === 0
          ? command
          : command instanceof EraseSession || isRequest(command)
            ? withErasure(store, { tenant, streamId }, command, state)
            : this.withPartial(command, state).then((one) =>
                histories.prepare(anyOwner({ tenant, sessionId: streamId }), one, state),
              ),
    });
    const by = { actor: 'system:sessions', correlationId: 'session-cap' };
    this.room = new RoomMaker(store, models, policies, async (candidate, reason, idleFor) => {
      const isGone = await this.expire(candidate, reason, by, idleFor);
      if (isGone) this.counts[reason === 'ttl' ? 'overdue' : 'evicted'] += 1;
      return isGone;
    });
  }

  /**
   * The session as the log has it now; its `status` tells whether it exists. To whoever does not reach it, it never
   * existed.
   */
  load(session: SessionRef): Promise<Loaded<SessionState>> {
    return this.streams.load(streamOf(session)).then((loaded) => asSeenBy(session, loaded));
  }

  /**
   * The address of a session that is read by itself, without its state, and the version behind which it may be read: of
   * what was erased nobody knows whose it was.
   * @throws DomainError `session-not-found` for one that is out of reach
   */
  async reached(session: SessionRef): Promise<SessionAddress & { readonly after: number }> {
    const { tenant, sessionId } = session;
    if (session.ownedBy === null) return { tenant, sessionId, after: 0 };
    const { state } = await this.load(session);
    if (state.version === 0 || isErased(state)) throw notFound();
    return { tenant, sessionId, after: state.erasedUpTo ?? 0 };
  }

  /** The session as this process saw it last, if it did. */
  known(session: SessionRef): Loaded<SessionState> | undefined {
    const known = this.streams.known(streamOf(session));
    return known && asSeenBy(session, known);
  }

  /** The session as this process saw it last, or else as the log has it. */
  async lastKnown(session: SessionRef): Promise<Loaded<SessionState>> {
    return this.known(session) ?? this.load(session);
  }

  /** The state of a session at a version that it has reached. */
  stateAt(session: SessionRef, version: number): Promise<SessionState> {
    return this.streams
      .stateAt(streamOf(session), version)
      .then((state) => (isSeenBy(session, state) ? state : initialState));
  }

  /**
   * @throws DomainError, SessionLimitReached, VersionMismatch, KeyReused, Overloaded, DatabaseUnavailable
   */
  async handle(
    session: SessionRef,
    command: SessionCommand,
    context: CommandContext,
  ): Promise<HandledSession> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.append(session, command, context);
      } catch (error) {
        if (!(error instanceof CounterAtLimit)) throw error;
        if (attempt < TRIES && (await this.room.request(session.tenant, attempt > 1))) continue;
        this.counts.rejected += 1;
        const activeNow = await this.store.counters.value(error.key);
        // The counter may have fallen since the refusal; the error must not say that there was a free place.
        const details = { activeSessions: Math.max(activeNow, error.max), maxSessions: error.max };
        throw new SessionLimitReached(details);
      }
    }
  }

  /**
   * Expires a session if it is still at the version that was seen, and has been idle for as long as required.
   * @returns whether this call expired it
   */
  async expire(
    { tenant, sessionId, version, lastActivityAt }: Candidate,
    reason: 'ttl' | 'cap',
    by: Pick<CommandContext, 'actor' | 'correlationId'>,
    idleFor?: number,
  ): Promise<boolean> {
    const command = new ExpireSession(reason, lastActivityAt, idleFor);
    const happened = await this.housekeep({ tenant, sessionId }, command, { ...by, ifMatch: [version] });
    return happened.length > 0;
  }

  /**
   * Carries out a command of the service itself. It does nothing when the command is out of date, or when only nodes of
   * a newer version can read the session.
   * @returns what happened
   */
  async housekeep(
    session: SessionAddress,
    command: SessionCommand,
    context: CommandContext,
  ): Promise<readonly SessionEvent[]> {
    try {
      return (await this.append(anyOwner(session), command, context)).events;
    } catch (error) {
      if (error instanceof VersionMismatch || error instanceof DomainError) return [];
      if (error instanceof NewerEvent) return [];
      throw error;
    }
  }

  /** Loads many sessions at once, so that the commands on them that follow need not load them one by one. */
  preload(sessions: readonly SessionAddress[]): Promise<void> {
    return this.streams.preload(sessions.map(streamOf));
  }

  private async append(
    session: SessionRef,
    command: SessionCommand,
    { idempotency, onDecided, ...context }: CommandContext,
  ): Promise<HandledSession> {
    const { tenant } = session;
    let erasedReply: string | undefined;
    const handled = await this.streams.handle(streamOf(session), owned(session, command), {
      ...context,
      admit: (state) => {
        if (isSeenBy(session, state)) return;
        // As with a session that there never was.
        throw context.ifMatch === undefined ? notFound() : new VersionMismatch(0);
      },
      decided:
        command instanceof EraseSession
          ? (events, before) => {
              if (events.some(({ type }) => type === 'SessionErased')) erasedReply = before.generation?.id;
            }
          : onDecided,
      key: idempotency && {
        ...idempotency,
        reference: (events) => ({
          created: events.some((event) => event.type === 'SessionCreated'),
          ...(command instanceof AppendMessages && {
            messageIds: command.messages.map((message) => message.messageId),
          }),
          ...(command instanceof StartGeneration && { generationId: command.generation.generationId }),
        }),
      },
      counter: () => ({ key: activeSessions(tenant), max: this.policies.of(tenant).maxSessions }),
    });
    if (handled.events[0]?.type === 'SessionResumed') this.counts.restored += 1;
    const ended = handled.events.find(
      (event) => event.type === 'GenerationFailed' || event.type === 'GenerationCancelled',
    );
    const endedReply = erasedReply ?? ended?.data.generationId;
    // Text that is not deleted here, because of an error, is pruned after a day.
    if (endedReply !== undefined) {
      this.partials
        .drop(endedReply)
        .catch(this.store.telemetry.failed('the removal of the pieces of a reply that has ended'));
    }
    return handled;
  }

  /** Adds the partial reply to a command that ends a generation, so that it is kept. */
  private async withPartial(command: SessionCommand, { generation }: SessionState): Promise<SessionCommand> {
    const ends =
      command instanceof StartGeneration ||
      command instanceof AppendMessages ||
      command instanceof RemoveMessage ||
      command instanceof RewindHistory ||
      command instanceof ResetConversation ||
      command instanceof CancelGeneration ||
      command instanceof AbandonGeneration;
    // If the state is too old to show the generation, the append is refused and this runs again with a newer state.
    if (!generation || !ends || command.partial) return command;
    const content = await this.partials.read(generation.id);
    if (content === undefined) return command;
    const partial = { messageId: replyIdOf(generation.id), content, generationId: generation.id };
    return withFields(command, { partial });
  }
}

/** An id that was never used is free for everybody, and one that was erased. One that was used keeps its owner. */
const isSeenBy = ({ ownedBy }: SessionRef, state: SessionState): boolean =>
  ownedBy === null || state.version === 0 || isErased(state) || state.owner === ownedBy;

const asSeenBy = <L extends Loaded<SessionState>>(session: SessionRef, loaded: L): L =>
  isSeenBy(session, loaded.state) ? loaded : { ...loaded, state: initialState };

/** Whoever reaches the sessions of one owner alone creates them for that owner. */
function owned({ ownedBy: owner }: SessionRef, command: SessionCommand): SessionCommand {
  if (owner === null) return command;
  const named = detailsOf(command)?.owner;
  if (named !== undefined && named !== owner) {
    throw new DomainError('invalid-request', 'the token is for the sessions of another owner', {
      field: ['owner'],
      detail: `must be ${owner}, or left out`,
    });
  }
  if (command instanceof CreateSession || command instanceof ForkSession)
    return withFields(command, { details: { ...command.details, owner } });
  if (command instanceof StartGeneration && command.create)
    return withFields(command, { create: { ...command.create, owner } });
  return command;
}

/** Adds to an erasure, or to the request for one, what is there to be erased, unless the state is a guess that the log has not reached. */
export async function withErasure(
  store: EventLog,
  stream: StreamId,
  command: EraseSession | ScheduleErasure,
  { version, erasedUpTo = 0 }: SessionState,
): Promise<SessionCommand> {
  const { end, ...erasure } = await store.streams.keysOf(stream, erasedUpTo, version);
  return end < version ? command : withFields(command, { erasure });
}

/** Whether somebody schedules an erasure, who is told at once when it is not possible. */
const isRequest = (command: SessionCommand): command is ScheduleErasure =>
  command instanceof ScheduleErasure && command.policy === undefined;

/** What a command may create a session with. */
function detailsOf(command: SessionCommand): SessionDetails | undefined {
  if (command instanceof CreateSession || command instanceof ForkSession) return command.details;
  return command instanceof StartGeneration ? command.create : undefined;
}

export const notFound = (): DomainError => new DomainError('session-not-found', 'there is no such session');

/** The approximate size of messages in bytes; only the order of magnitude matters. */
function weightOf(messages: readonly NewMessage[]): number {
  let bytes = 0;
  for (const { content, toolCalls } of messages) {
    if (typeof content === 'string') bytes += content.length;
    else bytes += JSON.stringify(content).length;
    for (const call of toolCalls ?? []) bytes += call.arguments.length;
  }
  return bytes;
}

const streamOf = ({ tenant, sessionId }: SessionAddress) => ({ tenant, streamId: sessionId });
