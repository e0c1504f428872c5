import { Logger } from '@nestjs/common';
import { boundedCache } from '../bounded-cache.js';
import { type CommandBus } from '@nestjs/cqrs';
import { type NewMessage, type SessionDetails, StartGeneration } from '../domain/session.commands.js';
import { type Json, type ToolDefinition } from '../domain/session.events.js';
import { generationLease } from '../domain/session.js';
import { exists, type SessionState } from '../domain/session.state.js';
import { endOfTurn } from '../event-store/end-of-turn.js';
import { type Leases } from '../event-store/leases.js';
import { type EventLog } from '../event-store/log.js';
import { isStorable } from '../http/json-body.js';
import { KeyReused } from '../event-store/refusals.js';
import { ApiError } from '../http/problem.js';
import {
  anyOwner,
  type CommandContext,
  type IdempotencyKey,
  type Reach,
  refTo,
  type SessionRef,
} from '../sessions/command-context.js';
import {
  findGeneration,
  type GenerationPlace,
  latestGenerations,
} from '../read-models/generations.projection.js';
import { type ReadModels } from '../projection-engine/strong-reads.js';
import { dispatch } from '../sessions/command-handlers.js';
import { type VersionedMessage } from '../sessions/history-reader.js';
import { newId, thoughtsOf } from '../sessions/ids.js';
import { type PartialReplies } from '../sessions/partial-replies.js';
import { endOf } from '../sessions/session-queries.js';
import { type HandledSession, type SessionCommands } from '../sessions/session-commands.js';
import { type Caller } from '../access/caller.js';
import { type Leave, type Limits } from '../access/limits.js';
import { type ChatModel, type ModelRequest, type PromptMessage } from './chat-model.js';
import {
  codeOf,
  generationNotFound,
  isTemporaryOutage,
  serviceStopped,
  sessionNotFound,
  Superseded,
} from './generation.errors.js';
import { type GeneratedAnswer } from './generation.schemas.js';
import { type GenerationParameters } from './parameters.js';
import { History } from './history.js';
import { LiveReply, type ReplyEnd } from './live-reply.js';
import { prepareCall, type PreparedCall } from './prepared-call.js';
import { buildPrompt } from './prompt.js';
import { RecordedReplies, type RecordedStart, shownError } from './recorded-replies.js';
import { ReplyFollower } from './reply-follower.js';
import { ReplySharing } from './reply-sharing.js';
import { type RunningGeneration } from './running-generation.js';
import { SingleAnswers } from './single-answers.js';
import { SupersededWatch } from './superseded-watch.js';
import { type StartedTurn, TurnRecorder } from './turn.js';
import { TurnQueue } from './turn-queue.js';

export interface Ask {
  /** Join the history first. */
  readonly messages?: readonly NewMessage[] | undefined;
  readonly model?: string | undefined;
  readonly instructions?: string | undefined;
  readonly tools?: ToolDefinition[] | undefined;
  readonly parameters?: GenerationParameters | undefined;
  /** Whether the last reply leaves the history first, so that the message before it is answered again. */
  readonly regenerate?: boolean | undefined;
  /** What the session is created with if there is none. */
  readonly create?: SessionDetails | undefined;
  readonly extensions?: NewMessage['extensions'] | undefined;
  /** Wait until the running generation has ended, instead of failing with `session-busy`. */
  readonly queue?: boolean | undefined;
}

export interface GenerationSettings {
  readonly defaultModel: string;
  /** Most tokens of a prompt. Without it the model gets the whole history. */
  readonly maxInputTokens?: number | undefined;
}

const KNOWN_PLACES = 10_000;
const placeKey = (tenant: string, generationId: string): string => `${tenant}/${generationId}`;

/** A generation as the log has it. */
export interface RecordedGeneration {
  readonly session: SessionRef;
  readonly start: RecordedStart;
  /** Undefined while it runs. */
  readonly end: ReplyEnd | undefined;
  /** Whether its reply was taken out of the history. */
  readonly isRemoved: boolean;
}

/**
 * Turns of conversations. The message and the start of the generation are one append; the model is called outside of
 * any transaction, under a lease; the reply and the end of the generation are one append. A turn goes on when the
 * client that asked for it disconnects.
 */
export class Generations {
  private readonly running = new Map<string, RunningGeneration>();
  /** Turns that have not ended yet, including the release of their leases. */
  private readonly turns = new Set<Promise<void>>();
  private readonly single: SingleAnswers;
  /** Generations that this process has started lately, so that their read model is not asked. */
  private readonly places = boundedCache<string, GenerationPlace>(KNOWN_PLACES);
  private readonly history: History;
  private readonly recorded: RecordedReplies;
  private readonly follower: ReplyFollower;
  private readonly recorder: TurnRecorder;
  private readonly queue: TurnQueue;
  private readonly sharing: ReplySharing;
  private readonly watch: SupersededWatch;
  private readonly logger = new Logger('generation');
  private stopping = false;

  constructor(
    private readonly log: EventLog,
    private readonly bus: CommandBus,
    private readonly commands: SessionCommands,
    private readonly leases: Leases,
    private readonly partials: PartialReplies,
    private readonly models: ReadModels,
    private readonly model: ChatModel,
    private readonly limits: Pick<Limits, 'enter'>,
    private readonly settings: GenerationSettings,
  ) {
    this.history = new History(log, commands, settings.maxInputTokens);
    this.recorded = new RecordedReplies(log, commands);
    this.follower = new ReplyFollower(log, bus, leases, partials, this.recorded);
    this.recorder = new TurnRecorder(bus, this.follower);
    this.queue = new TurnQueue(log);
    this.sharing = new ReplySharing(partials, log.telemetry);
    this.watch = new SupersededWatch(log, commands);
    this.single = new SingleAnswers(model);
  }

  /**
   * Starts a turn, or finds the one that a request with the same key started before.
   * @throws DomainError `session-busy`, `session-not-found`, …; what session commands throw
   */
  async start(session: SessionRef, context: CommandContext, ask: Ask): Promise<LiveReply> {
    const start = (): Promise<LiveReply> => this.startNow(session, context, ask);
    return ask.queue ? this.queue.take(session, start) : start();
  }

  /**
   * The reply of a generation, on whichever node it runs or ran.
   * @throws ApiError `not-found`; DomainError `session-not-found` when the session was deleted since
   */
  async follow(session: SessionRef, generationId: string): Promise<LiveReply> {
    const incarnation = await this.incarnationOf(session);
    const known = this.known(session, generationId);
    if (known) return known;
    return this.follower.follow(session, await this.recorded.findStart(session, generationId, incarnation));
  }

  /**
   * A generation by its id alone, from whichever session it is of.
   * @throws ApiError `not-found`; ProjectionLagging
   */
  async find(reach: Reach, generationId: string): Promise<RecordedGeneration> {
    const { tenant } = reach;
    // The database would refuse to look for it.
    if (!isStorable(generationId)) throw generationNotFound();
    const place =
      this.places.get(placeKey(tenant, generationId)) ??
      (await findGeneration(this.models, await this.models.ends(), tenant, generationId));
    if (!place) throw generationNotFound();
    const session = refTo(reach, place.sessionId);
    const incarnation = await this.incarnationOf(session).catch((error: unknown) => {
      throw codeOf(error) === 'session-not-found' ? generationNotFound() : error;
    });
    const start = await this.recorded.startAt(session, generationId, place.version);
    if (start.incarnation !== incarnation) throw generationNotFound();
    const { tools } = start.data;
    const end =
      this.running.get(generationId)?.reply.end ??
      (await this.recorded.search(session, { generationId, version: place.version, tools })());
    const isRemoved =
      end !== undefined && (await this.recorded.isRemoved(session, generationId, end.version));
    return { session, start, end, isRemoved };
  }

  /**
   * The reply of the generation that a request with this key has started before, in whichever session.
   * @throws KeyReused when that was another request
   */
  async startedBefore(reach: Reach, key: IdempotencyKey): Promise<LiveReply | undefined> {
    const known = await this.log.keyed.find(reach.tenant, key.scope, key.key);
    if (!known) return undefined;
    if (known.fingerprint !== key.fingerprint) throw new KeyReused();
    const { generationId } = known.reference as { generationId: string };
    const { session } = await this.find(reach, generationId);
    return this.follow(session, generationId);
  }

  /** Whether no generation was started behind one in its session. */
  async isLatest({ session, start }: RecordedGeneration): Promise<boolean> {
    const [latest] = await this.latest(session);
    return latest?.version === start.version;
  }

  /** Whether a generation is the only one of its session. */
  async isOnlyOne({ session }: RecordedGeneration): Promise<boolean> {
    return (await this.latest(session)).length === 1;
  }

  /** The messages that the model was given in a generation. */
  async messagesOf({ session, start }: RecordedGeneration): Promise<VersionedMessage[]> {
    return this.history.messages(session, start.data.context, start.version);
  }

  /** The input of a generation and how the generation ended, read from the log alone. @throws ApiError `not-found` */
  async describe(session: SessionRef, generationId: string): Promise<GenerationDescription> {
    const incarnation = await this.incarnationOf(session);
    const { data, time, version } = await this.recorded.findStart(session, generationId, incarnation);
    const { model, instructions, tools, parameters, context } = data;
    const end = await this.recorded.search(session, { generationId, version, tools })();
    const seen = await this.history.messages(session, context, version);
    const messages = buildPrompt(seen.map((one) => one.message));
    return {
      generationId,
      sessionId: session.sessionId,
      status: end?.type ?? 'running',
      model,
      startedAt: time,
      prompt: {
        ...(instructions !== undefined && { instructions }),
        ...(tools && { tools }),
        ...(parameters && { parameters }),
        messages,
      },
      result: end && end.type !== 'failed' ? end.answer : null,
      error: shownError(end),
    };
  }

  /** Whether a request with this key has started a generation before. */
  async isKnown(tenant: string, { scope, key }: IdempotencyKey): Promise<boolean> {
    return (await this.log.keyed.find(tenant, scope, key)) !== undefined;
  }

  /**
   * Has the model answer outside of any session: nothing of it is recorded.
   * @param by who asks for it, and has a limit
   * @param gone aborts the call when nobody waits for the answer any more
   */
  async answer(
    by: Pick<Caller, 'tenant' | 'actor'>,
    request: Omit<ModelRequest, 'model'> & { readonly model?: string | undefined },
    gone?: AbortSignal,
  ): Promise<LiveReply> {
    const leave = await this.limits.enter('generations', by);
    const model = request.model ?? this.settings.defaultModel;
    const live = this.single.answer({ ...request, model }, gone);
    void live.finished().then(leave);
    return live;
  }

  /** The messages of the present history, with their versions. */
  presentVersions(session: SessionRef, state: SessionState): Promise<VersionedMessage[]> {
    return this.history.messages(session, [[state.historyStart + 1, state.version]], state.version);
  }

  /** The messages of the present history. */
  async presentMessages(session: SessionRef, state: SessionState): Promise<NewMessage[]> {
    return (await this.presentVersions(session, state)).map((one) => one.message);
  }

  /** Aborts all running model calls and begins no more. Their generations fail, and their sessions stay usable. */
  abortAll(): void {
    this.stopping = true;
    const running = [...this.running.values()].map((one) => one.controller);
    this.single.abortAll();
    for (const controller of running) controller.abort(serviceStopped());
  }

  /** Resolves when the last turn of this process is recorded and its lease is released. */
  async idle(): Promise<void> {
    while (this.turns.size > 0) await Promise.all(this.turns);
    this.watch.close();
    await this.sharing.close();
  }

  /** A method and not a field, because the value may change during a start and TypeScript would not expect that. */
  private isStopping(): boolean {
    return this.stopping;
  }

  private async startNow(session: SessionRef, context: CommandContext, ask: Ask): Promise<LiveReply> {
    if (this.stopping) throw new ApiError('overloaded', 'the service is being stopped; try again');
    const leave = await this.limits.enter('generations', { tenant: session.tenant, actor: context.actor });
    const generationId = newId('gen');
    const lease = generationLease(generationId);
    const { messages, instructions, tools, parameters, extensions } = ask;
    const model = ask.model ?? this.settings.defaultModel;
    const { correlationId } = context;
    const asked = { model, instructions, tools, parameters, correlationId };
    let started: HandledSession;
    let call: PreparedCall | undefined;
    try {
      const ahead = await this.history.readAhead(session, {
        isNew: context.isNew,
        mayCreate: ask.create !== undefined,
      });
      const window = await this.history.window(session, ask, ahead);
      const command = new StartGeneration(
        {
          generationId,
          model,
          instructions,
          tools,
          parameters: parameters as Record<string, Json> | undefined,
          extensions,
        },
        messages,
        undefined,
        window,
        ask.regenerate,
        undefined,
        ask.create,
      );
      started = await dispatch(this.bus, session, command, {
        ...context,
        lease: this.leases.wanted(lease),
        onDecided: (events, before) => {
          // The command was decided again, so a call that was prepared for the decision before is useless.
          call?.controller.abort();
          call = prepareCall(this.model, asked, (recorded) =>
            this.history.seenBy(session, ahead, events, before, recorded),
          );
        },
      });
    } catch (error) {
      leave();
      call?.controller.abort();
      // The append may have been committed although its answer was lost, and no node works on that generation. Its
      // lease is released; otherwise the session would stay busy until the lease expires.
      if (codeOf(error) === 'database-unavailable') await this.release(lease);
      throw error;
    }
    if (started.duplicate) {
      leave();
      call?.controller.abort();
      return this.attach(session, started.duplicate);
    }
    if (!call) throw new Error(`${generationId} was started without having been decided`);
    this.leases.adopt(lease);
    this.places.set(placeKey(session.tenant, generationId), {
      sessionId: session.sessionId,
      version: started.state.version,
    });
    const reply = new LiveReply(session.sessionId, generationId, model, started.time, started.state.version);
    const running = {
      session: anyOwner(session),
      lane: started.lane,
      reply,
      controller: call.controller,
    };
    const { version } = started.state;
    const turn = { session: running.session, context, tools, version, running, answer: call.answer };
    this.work(turn, lease, leave);
    const { incarnation } = started.state;
    const owner = { tenant: session.tenant, sessionId: session.sessionId, incarnation, version };
    call.begin({
      text: (text) => {
        if (text === '') return;
        reply.append(text);
        this.sharing.add(generationId, text, owner);
      },
      reasoning: (text) => {
        if (text === '') return;
        reply.think(text);
        this.sharing.add(thoughtsOf(generationId), text, owner);
      },
    });
    // The request to the model is sent by the end of this turn of the event loop, before the first event for the
    // reader.
    await endOfTurn();
    return reply;
  }

  private async latest(session: SessionRef): Promise<GenerationPlace[]> {
    const end = endOf(await this.commands.load(session));
    return latestGenerations(this.models, end, session.tenant, session.sessionId);
  }

  /** Answers a retry with the outcome of the first request with its key, whatever happened to the session since. */
  private async attach(
    session: SessionRef,
    { reference, version }: NonNullable<HandledSession['duplicate']>,
  ): Promise<LiveReply> {
    const { generationId } = reference as { generationId: string };
    const known = this.known(session, generationId);
    if (known) return known;
    // The start is the last event of its append, so the append's version is that of the start.
    return this.follower.follow(session, await this.recorded.startAt(session, generationId, version));
  }

  /** Carries a turn out in the background, up to the release of its lease. */
  private work(turn: StartedTurn, lease: string, leave: Leave): void {
    const { running, version } = turn;
    const { reply, controller } = running;
    const { generationId } = reply;
    this.running.set(generationId, running);
    if (this.isStopping()) controller.abort(serviceStopped());
    const unwatch = this.watch.watch(running, version);
    const unregister = this.partials.register(generationId, {
      text: () => reply.text,
      reasoning: () => reply.reasoning,
      ended: () => {
        controller.abort(new Superseded());
      },
    });
    const turnEnd = this.recorder
      .end(turn)
      .catch((error: unknown): ReplyEnd => {
        this.report(generationId, error);
        return { type: 'failed', error };
      })
      .then(async (end) => {
        leave();
        reply.finish(end);
        unregister();
        unwatch();
        this.running.delete(generationId);
        await this.release(lease);
        await this.sharing.drop(generationId);
      })
      .finally(() => this.turns.delete(turnEnd));
    this.turns.add(turnEnd);
  }

  /**
   * Logs that the end of a turn could not be recorded. The error that the reply ends with is not enough, because its
   * reader may have disconnected.
   */
  private report(generationId: string, error: unknown): void {
    // A session that was deleted during the turn cannot record its end, which is not an error.
    if (codeOf(error) === 'session-not-found') return;
    if (isTemporaryOutage(error))
      this.log.telemetry.emit('failed', { what: 'recording the end of a generation', error });
    else
      this.logger.error(`${generationId} was not recorded`, error instanceof Error ? error.stack : undefined);
  }

  private known(session: SessionRef, generationId: string): LiveReply | undefined {
    const running = this.running.get(generationId);
    const isOfSession =
      running?.session.tenant === session.tenant && running.session.sessionId === session.sessionId;
    return isOfSession ? running.reply : this.follower.find(session, generationId);
  }

  /** @throws DomainError `session-not-found` */
  private async incarnationOf(session: SessionRef): Promise<number> {
    const { state } = await this.commands.load(session);
    if (exists(state)) return state.incarnation;
    throw sessionNotFound();
  }

  private async release(lease: string): Promise<void> {
    // A lease that cannot be released expires by itself, and its session is busy until then.
    await this.leases
      .release([lease])
      .catch(this.log.telemetry.failed('the release of the lease of a generation'));
  }
}

export interface GenerationDescription {
  readonly generationId: string;
  readonly sessionId: string;
  readonly status: 'running' | ReplyEnd['type'];
  readonly model: string;
  readonly startedAt: string;
  readonly prompt: {
    readonly instructions?: string;
    readonly tools?: readonly ToolDefinition[];
    readonly parameters?: Readonly<Record<string, Json>>;
    readonly messages: readonly PromptMessage[];
  };
  readonly result: GeneratedAnswer | null;
  readonly error: string | null;
}
