import { Logger } from '@nestjs/common';
import { type CommandBus } from '@nestjs/cqrs';
import { LRUCache } from 'lru-cache';
import { z } from 'zod';
import { type SessionEvent, toolCall, type ToolCall, type ToolDefinition } from '../domain/session.events.js';
import {
  AbandonGeneration,
  CompleteGeneration,
  type ContextWindow,
  FailGeneration,
  type NewMessage,
  StartGeneration,
  type SessionCommand,
} from '../domain/session.commands.js';
import { type SessionState } from '../domain/session.state.js';
import { generationLease } from '../domain/session.js';
import { DomainError } from '../domain/decider.js';
import { endOfTurn } from '../event-store/end-of-turn.js';
import { type EventLog } from '../event-store/log.js';
import { type Leases } from '../event-store/leases.js';
import { ApiError } from '../http/problem.js';
import { type SessionRecord } from '../projection-engine/projection.js';
import { newId } from '../sessions/ids.js';
import { type Chunk, type PartialReplies } from '../sessions/partial-replies.js';
import { type CommandContext, type IdempotencyKey, type SessionRef } from '../sessions/command-context.js';
import { dispatch } from '../sessions/command-handlers.js';
import { type HandledSession, type SessionCommands } from '../sessions/session-commands.js';
import { type AnswerEnd, type ChatModel, ModelError, type PromptMessage } from './chat-model.js';
import {
  definitionTokens,
  fitWindow,
  loadTokenizer,
  messageTokens,
  type VersionedMessage,
} from './context-window.js';
import { textOf } from './echo.chat-model.js';
import { type GeneratedAnswer } from './generation.schemas.js';
import { LiveReply, type ReplyEnd, type ReportedCall } from './live-reply.js';
import { buildPrompt } from './prompt.js';

export interface Ask {
  readonly message?: NewMessage | undefined;
  readonly model?: string | undefined;
  readonly instructions?: string | undefined;
  readonly tools?: ToolDefinition[] | undefined;
  /** Wait until the generation that runs has ended, instead of `session-busy`. */
  readonly queue?: boolean | undefined;
}

export interface GenerationSettings {
  readonly defaultModel: string;
  /** Tokens of a prompt; without it the whole history is given to the model. */
  readonly maxInputTokens?: number | undefined;
}

/** How long a reply that was paid for is kept trying to reach a database that is away. */
const STORE_PATIENCE_MS = 60_000;
/** How often somebody who follows a generation of another node looks again, and every how many looks at its lease. */
const FOLLOW_MS = 100;
const LOOKS_PER_LEASE = 10;
/** What arrives is shared with other nodes, and safe from this one's end, after at most this. */
const FLUSH_MS = 75;
/** How soon a node stops a model call whose generation was ended by somebody else. */
const WATCH_MS = 100;
/** Requests that may wait for their turn on one session, and for how long. */
const QUEUE_LENGTH = 16;
const QUEUE_MS = 60_000;

const serviceStopped = (): ModelError =>
  new ModelError('model-failed', 'the service was stopped before the model had answered');

type Session = SessionRef;
/** A session, and under which conditions a turn of it is asked for. */
type Addressed = SessionRef & CommandContext;

/** The generation was ended by somebody else: a cancel, a reset, a delete, or a node that thought this one dead. */
class Superseded extends Error {}

interface Running {
  readonly session: Session;
  readonly lane: number;
  readonly live: LiveReply;
  readonly controller: AbortController;
  /** Version of the session when it was last seen to be generating this. */
  version: number;
  /** Number of the last chunk. */
  chunk: number;
  /** What the table does not have yet: pieces that were numbered but not written, and text that comes after them. */
  unwritten: Chunk[];
  unshared: string;
}

/** A call of the model that is ready for when its generation has been recorded. */
interface Call {
  /** Ends it, in whatever state it is. */
  readonly controller: AbortController;
  readonly answer: Promise<AnswerEnd>;
  /** The model may be asked; its text goes to here. */
  readonly begin: (running: Running) => void;
}

/** What is read of a session while the start is appended: the model waits for one trip less. */
interface History {
  readonly historyStart: number;
  readonly version: number;
  /** Undefined when nobody will want them, or they could not be read. */
  readonly messages: Promise<VersionedMessage[] | undefined>;
}

/**
 * Turns of conversations: message and start in one append, the model call outside of any transaction under a lease,
 * reply and end in one append. Whoever asked may go away: the turn goes on.
 */
export class Generations {
  private readonly running = new Map<string, Running>();
  /** Generations of other nodes that somebody here follows: one copy serves all of them. */
  private readonly followed = new Map<string, { readonly session: Session; readonly live: LiveReply }>();
  private readonly costs = new LRUCache<string, number>({ max: 50_000 });
  private readonly asides = new Set<AbortController>();
  private stopping = false;
  private readonly queues = new Map<string, { tail: Promise<void>; length: number }>();
  private readonly logger = new Logger('generation');
  private flushing: NodeJS.Timeout | undefined;
  private flushed: Promise<void> = Promise.resolve();
  private watching: NodeJS.Timeout | undefined;
  private readonly touched = new Set<number>();

  constructor(
    private readonly store: EventLog,
    private readonly bus: CommandBus,
    private readonly commands: SessionCommands,
    private readonly leases: Leases,
    private readonly partials: PartialReplies,
    private readonly model: ChatModel,
    private readonly settings: GenerationSettings,
  ) {
    store.wakeUp.subscribe((lanes) => {
      this.watch(lanes);
    });
  }

  /**
   * Starts a turn, or finds the one that the same key has started before.
   * @throws DomainError `session-busy`, `session-not-found`, …; what session commands throw
   */
  async start(session: SessionRef, context: CommandContext, ask: Ask): Promise<LiveReply> {
    const to = { ...session, ...context };
    return ask.queue ? this.inTurn(to, ask) : this.startNow(to, ask);
  }

  /**
   * A generation's reply, wherever it runs or ran.
   * @throws ApiError `not-found`; DomainError `session-not-found` when the session was deleted since
   */
  async follow(session: Session, generationId: string): Promise<LiveReply> {
    return this.attach(session, generationId, await this.incarnationOf(session));
  }

  /** @param incarnation that the generation must be of, unless any will do */
  private async attach(session: Session, generationId: string, incarnation?: number): Promise<LiveReply> {
    const known = this.running.get(generationId) ?? this.followed.get(generationId);
    if (known?.session.tenant === session.tenant && known.session.sessionId === session.sessionId) {
      return known.live;
    }
    const started = await this.findStart(session, generationId, incarnation);
    const live = new LiveReply(session.sessionId, generationId, started.data.model);
    const to = { ...session, actor: started.actor, correlationId: started.correlationId };
    const followed = { session, live };
    this.followed.set(generationId, followed);
    void this.copy(to, live, started.version).finally(() => {
      if (this.followed.get(generationId) === followed) this.followed.delete(generationId);
    });
    return live;
  }

  /** What a generation was given and how it ended, from the log alone. @throws ApiError `not-found` */
  async describe(session: Session, generationId: string): Promise<GenerationDescription> {
    const started = await this.findStart(session, generationId, await this.incarnationOf(session));
    const { model, instructions, tools, context } = started.data;
    const end = await this.recorded(session, generationId, started.version);
    const messages: PromptMessage[] = buildPrompt(
      (await this.messages(session, context)).map((one) => one.message),
    );
    return {
      generationId,
      sessionId: session.sessionId,
      status: end?.type ?? 'running',
      model,
      startedAt: started.time,
      prompt: { ...(instructions !== undefined && { instructions }), ...(tools && { tools }), messages },
      result: end && end.type !== 'failed' ? end.answer : null,
      error: end?.type === 'failed' && end.error instanceof ApiError ? end.error.message : null,
    };
  }

  /** Whether a request with this key has started a generation before. */
  async isKnown(tenant: string, { scope, key }: IdempotencyKey): Promise<boolean> {
    return (await this.store.keyed.find(tenant, scope, key)) !== undefined;
  }

  /** A model's answer that is part of no conversation. @throws ApiError `model-failed`, `model-timeout` */
  async aside(session: Session, instructions: string, messages: readonly PromptMessage[]): Promise<string> {
    const request = { model: this.settings.defaultModel, instructions, messages };
    const controller = new AbortController();
    this.asides.add(controller);
    let text = '';
    try {
      const { signal } = controller;
      await this.model.answer(request, { signal, onText: (piece) => (text += piece) });
    } catch (error) {
      if (error instanceof ModelError)
        throw new ApiError(error.code, error.message, { details: { ...session } });
      throw error;
    } finally {
      this.asides.delete(controller);
    }
    return storable(text);
  }

  /** The messages of the present history. */
  async present(session: Session, state: SessionState): Promise<NewMessage[]> {
    const messages = await this.messages(session, [[state.historyStart + 1, state.version]]);
    return messages.map((one) => one.message);
  }

  /** Ends the model calls that still run, and begins no more; their generations fail, and their sessions go on. */
  abortAll(): void {
    this.stopping = true;
    for (const controller of [...this.asides, ...[...this.running.values()].map((one) => one.controller)]) {
      controller.abort(serviceStopped());
    }
  }

  /** When the last turn of this process has been recorded. */
  async idle(): Promise<void> {
    while (this.running.size > 0) {
      await Promise.all([...this.running.values()].map(({ live }) => live.finished()));
      await endOfTurn();
    }
    clearTimeout(this.flushing);
    clearTimeout(this.watching);
    await this.flushed;
  }

  /** Asked anew each time: it changes while a start is under way. */
  private isStopping(): boolean {
    return this.stopping;
  }

  private async startNow(to: Addressed, ask: Ask): Promise<LiveReply> {
    if (this.stopping) throw new ApiError('overloaded', 'the service is being stopped; try again');
    const generationId = newId('gen');
    const lease = generationLease(generationId);
    const model = ask.model ?? this.settings.defaultModel;
    let started: HandledSession;
    let call: Call | undefined;
    try {
      const before = await this.history(to);
      const window = await this.window(to, ask, before);
      const { instructions, tools } = ask;
      const generation = { generationId, model, instructions, tools };
      const onDecided = (events: readonly SessionEvent[], state: SessionState): void => {
        call?.controller.abort();
        call = this.prepared(to, { ...ask, model }, before, events, state);
      };
      const command = new StartGeneration(generation, ask.message, undefined, window);
      started = await this.send({ ...to, lease: this.leases.wanted(lease), onDecided }, command);
    } catch (error) {
      call?.controller.abort();
      // It may have begun for all we know; nobody works on it.
      if ((error as { code?: unknown }).code === 'database-unavailable') await this.letGo(lease);
      throw error;
    }
    if (started.duplicate) {
      call?.controller.abort();
      // Its outcome is the answer to this request, whatever became of the session since.
      return this.attach(to, (started.duplicate.reference as { generationId: string }).generationId);
    }
    if (!call) throw new Error(`${generationId} was started without having been decided`);
    this.leases.adopt(lease);
    const live = new LiveReply(to.sessionId, generationId, model);
    const running: Running = {
      session: { tenant: to.tenant, sessionId: to.sessionId },
      lane: started.lane,
      live,
      controller: call.controller,
      version: started.state.version,
      chunk: 0,
      unwritten: [],
      unshared: '',
    };
    this.running.set(generationId, running);
    if (this.isStopping()) running.controller.abort(serviceStopped());
    const unregister = this.partials.register(generationId, {
      text: () => live.text,
      ended: () => {
        running.controller.abort(new Superseded());
      },
    });
    call.begin(running);
    void this.turn(to, ask, started, running, call)
      .catch((error: unknown): ReplyEnd => {
        // Nobody may be there to hear of it.
        const { code } = error as { code?: unknown };
        if (code !== 'session-not-found' && code !== 'database-unavailable' && code !== 'overloaded') {
          this.logger.error(
            `${generationId} was not recorded`,
            error instanceof Error ? error.stack : undefined,
          );
        }
        return { type: 'failed', error };
      })
      .then(async (end) => {
        live.finish(end);
        unregister();
        this.running.delete(generationId);
        await this.letGo(lease);
        await this.flushed;
        await this.partials.drop(generationId).catch(() => undefined);
      });
    // The model is asked by the end of this turn of the event loop: what the reader is told first can wait for that.
    await endOfTurn();
    return live;
  }

  /** Waits for its turn behind those of this process that came before, then for whoever generates now. */
  private async inTurn(to: Addressed, ask: Ask): Promise<LiveReply> {
    const key = `${to.tenant}/${to.sessionId}`;
    const queue = this.queues.get(key) ?? { tail: Promise.resolve(), length: 0 };
    if (queue.length >= QUEUE_LENGTH)
      throw new DomainError('session-busy', `${QUEUE_LENGTH} requests wait already`);
    this.queues.set(key, queue);
    queue.length += 1;
    const before = queue.tail;
    let next = (): void => undefined;
    queue.tail = new Promise((resolve) => (next = resolve));
    const deadline = Date.now() + QUEUE_MS;
    try {
      await before;
      for (;;) {
        const woken = this.woken(this.store.laneOf({ tenant: to.tenant, streamId: to.sessionId }), 500);
        try {
          return await this.startNow(to, ask);
        } catch (error) {
          if ((error as { code?: string }).code !== 'session-busy' || Date.now() > deadline) throw error;
          await woken.soon;
        } finally {
          woken.end();
        }
      }
    } finally {
      next();
      queue.length -= 1;
      if (queue.length === 0) this.queues.delete(key);
    }
  }

  private async turn(
    to: Addressed,
    ask: Ask,
    started: HandledSession,
    running: Running,
    call: Call,
  ): Promise<ReplyEnd> {
    const { live, controller } = running;
    const { generationId } = live;
    const begun = performance.now();
    const durationMs = (): number => Math.round(performance.now() - begun);
    // What follows is caused by the generation, and under conditions of its own.
    const next: Addressed = {
      ...to,
      causationId: generationId,
      ifMatch: undefined,
      idempotency: undefined,
    };

    let answered: AnswerEnd & { readonly toolCalls: ToolCall[] };
    try {
      const end = await call.answer;
      controller.signal.throwIfAborted();
      const finishReason = storable(end.finishReason).slice(0, 64);
      answered = { ...end, toolCalls: checkedCalls(end.toolCalls), finishReason };
    } catch (error) {
      if (error instanceof Superseded) return this.outcome(next, generationId, started.state.version);
      const failure =
        error instanceof ModelError
          ? error
          : new ModelError('model-failed', 'the model call failed', { cause: error });
      const { code } = failure;
      const message = storable(failure.message);
      const partial = live.text === '' ? undefined : { messageId: newId('msg'), content: live.text };
      const recorded = { generationId, code, message, durationMs: durationMs() };
      const done = await this.record(() => this.send(next, new FailGeneration(recorded, partial)));
      if (done.events.length === 0) return this.outcome(next, generationId, started.state.version);
      return { type: 'failed', error: problem(code, message, to, generationId) };
    }

    const { toolCalls, usage, finishReason } = answered;
    const content = live.text;
    const message = { messageId: newId('msg'), content, ...(toolCalls.length > 0 && { toolCalls }) };
    const result = { generationId, finishReason, ...(usage && { usage }), durationMs: durationMs() };
    const done = await this.record(() => this.send(next, new CompleteGeneration(result, message)));
    // Nothing was appended: somebody ended it first, or a first try was committed and its answer lost.
    if (done.events.length === 0) return this.outcome(next, generationId, started.state.version);
    const { version } = done.state;
    return {
      type: 'completed',
      version,
      answer: {
        content,
        message: {
          id: message.messageId,
          role: 'assistant',
          content,
          version: version - 1,
          createdAt: done.time,
          status: 'complete',
          ...(toolCalls.length > 0 && { toolCalls: reported(toolCalls, ask.tools, done) }),
          generationId,
        },
        usage: usage ?? null,
        finishReason,
        sessionId: to.sessionId,
        generationId,
      },
    };
  }

  /**
   * A call of the model for a start that is about to be appended. It is made ready meanwhile, up to a connection on which
   * the request can leave; it does when it begins, and never if it is aborted before.
   */
  private prepared(
    to: Addressed,
    { model, instructions, tools }: Ask & { readonly model: string },
    before: History,
    events: readonly SessionEvent[],
    state: SessionState,
  ): Call {
    const controller = new AbortController();
    const { signal } = controller;
    let begin: Call['begin'] = () => undefined;
    let running: Running | undefined;
    const when = new Promise<void>((resolve, reject) => {
      begin = (recorded) => {
        running = recorded;
        resolve();
      };
      signal.addEventListener('abort', () => {
        reject(signal.reason as Error);
      });
    });
    const ask = async (): Promise<AnswerEnd> => {
      // The append goes first.
      await endOfTurn();
      const seen = await this.seen(to, before, events, state, when);
      const messages = buildPrompt(seen.map((one) => one.message));
      const text = new StorableText();
      const onText = (piece: string): void => {
        // What comes after an end has no place in what is kept.
        if (running && !signal.aborted) this.arrived(running, text.add(piece));
      };
      const end = await this.model.answer({ model, instructions, messages, tools }, { signal, onText, when });
      if (running) this.arrived(running, text.end());
      return end;
    };
    const answer = ask();
    // Of a call that never began nobody wants to hear.
    for (const promise of [when, answer]) promise.catch(() => undefined);
    return { controller, answer, begin };
  }

  private arrived(running: Running, text: string): void {
    if (text === '') return;
    running.live.append(text);
    running.unshared += text;
    this.shareSoon();
  }

  private shareSoon(): void {
    this.flushing ??= setTimeout(() => {
      // One write after the other: whoever reads a chunk must find those before it.
      this.flushed = this.share().finally(() => {
        this.flushing = undefined;
        if ([...this.running.values()].some(hasUnshared)) this.shareSoon();
      });
    }, FLUSH_MS);
  }

  private async share(): Promise<void> {
    const sharing = [...this.running.values()].filter(hasUnshared);
    for (const running of sharing) {
      if (running.unshared === '') continue;
      running.chunk += 1;
      running.unwritten.push({
        generation: running.live.generationId,
        number: running.chunk,
        text: running.unshared,
      });
      running.unshared = '';
    }
    const chunks = sharing.flatMap((running) => running.unwritten);
    if (chunks.length === 0) return;
    try {
      await this.partials.write(chunks);
      for (const running of sharing) running.unwritten = [];
    } catch {
      // Written or not, nobody knows: the same chunks are sent again, and others see them later.
    }
  }

  /** Looks, now and then, whether somebody ended a generation that runs here. */
  private watch(lanes: Iterable<number>): void {
    if (this.running.size === 0) return;
    for (const lane of lanes) this.touched.add(lane);
    this.watching ??= setTimeout(() => {
      this.watching = undefined;
      this.stopSuperseded().catch(() => undefined); // the next wake-up looks again
    }, WATCH_MS);
  }

  private async stopSuperseded(): Promise<void> {
    const lanes = new Set(this.touched);
    this.touched.clear();
    const suspects = [...this.running.values()].filter(({ lane }) => lanes.has(lane));
    const ends = await this.store.streams.versions(
      suspects.map(({ session }) => ({ tenant: session.tenant, streamId: session.sessionId })),
    );
    // Side by side: a session that cannot be read keeps no other from being looked at.
    await Promise.all(
      suspects.map(async (running, index) => {
        if (ends[index] === running.version) return;
        const { state } = await this.commands.load(running.session);
        running.version = state.version;
        if (state.generation?.id !== running.live.generationId) running.controller.abort(new Superseded());
      }),
    );
  }

  /** Follows a generation of another node, or one that has ended, into `live`. */
  private async copy(to: Addressed, live: LiveReply, from: number): Promise<void> {
    let chunk = 0;
    let deadline = Date.now() + STORE_PATIENCE_MS;
    for (let look = 0; ; look += 1) {
      const woken = this.woken(this.store.laneOf({ tenant: to.tenant, streamId: to.sessionId }), FOLLOW_MS);
      try {
        const end = await this.recorded(to, live.generationId, from);
        if (end) {
          live.finish(end);
          return;
        }
        for (const { number, text } of await this.partials.readAfter(live.generationId, chunk)) {
          chunk = number;
          live.append(text);
        }
        const lease = generationLease(live.generationId);
        if (look % LOOKS_PER_LEASE === 0 && (await this.leases.standing([lease])).size === 0) {
          await this.abandon(to, live.generationId);
        } else await woken.soon;
        deadline = Date.now() + STORE_PATIENCE_MS;
      } catch (error) {
        const isAway = (error as { code?: unknown }).code === 'database-unavailable';
        if (!isAway || Date.now() > deadline) {
          live.finish({ type: 'failed', error });
          return;
        }
        await woken.soon;
      } finally {
        woken.end();
      }
    }
  }

  /** The recorded end of a generation that is no longer current. */
  private async outcome(to: Addressed, generationId: string, from: number): Promise<ReplyEnd> {
    const live = new LiveReply(to.sessionId, generationId, '');
    void this.copy(to, live, from);
    return live.finished();
  }

  private async abandon(to: Addressed, generationId: string): Promise<void> {
    const target = { ...to, causationId: generationId, ifMatch: undefined, idempotency: undefined };
    await this.send(target, new AbandonGeneration(generationId)).catch((error: unknown) => {
      // Deleted meanwhile, or somebody took it over: either way the log says how it ended.
      if (!(error instanceof DomainError)) throw error;
    });
  }

  /** @throws DomainError `session-not-found` */
  private async incarnationOf(session: Session): Promise<number> {
    const { state } = await this.commands.load(session);
    if (state.status === 'active' || state.status === 'expired') return state.incarnation;
    throw sessionNotFound();
  }

  private async findStart(
    { tenant, sessionId }: Session,
    generationId: string,
    incarnation?: number,
  ): Promise<SessionRecord & { type: 'GenerationStarted' }> {
    const stream = { tenant, streamId: sessionId };
    for await (const recorded of this.store.streams.events(stream, { types: ['GenerationStarted'] })) {
      const event = recorded as SessionRecord & { type: 'GenerationStarted' };
      if (event.data.generationId !== generationId) continue;
      // What a deleted session held is gone for all but the audit trail.
      if (incarnation !== undefined && event.incarnation !== incarnation) break;
      return event;
    }
    throw new ApiError('not-found', 'there is no such generation in this session');
  }

  private async recorded(
    session: Session,
    generationId: string,
    from: number,
  ): Promise<ReplyEnd | undefined> {
    const stream = { tenant: session.tenant, streamId: session.sessionId };
    let reply: (SessionRecord & { type: 'MessageAppended' }) | undefined;
    let started: (SessionRecord & { type: 'GenerationStarted' }) | undefined;
    let end: (SessionRecord & { type: 'GenerationCompleted' | 'GenerationCancelled' }) | undefined;
    for await (const recorded of this.store.streams.events(stream, { from, types: OUTCOME_EVENTS })) {
      const event = recorded as SessionRecord;
      const isSameAppend = end?.version === event.version - 1 && end.correlationId === event.correlationId;
      // It was the deletion that ended it.
      if (end?.type === 'GenerationCancelled' && event.type === 'SessionDeleted' && isSameAppend) {
        return { type: 'failed', error: sessionNotFound() };
      }
      if (!('generationId' in event.data) || event.data.generationId !== generationId) continue;
      if (event.type === 'MessageAppended') reply = event;
      if (event.type === 'GenerationStarted') started = event;
      if (event.type === 'GenerationFailed') {
        const code = event.data.code === 'model-timeout' ? 'model-timeout' : 'model-failed';
        const error = problem(code, event.data.message, session, generationId);
        return { type: 'failed', error, content: reply && textOf(reply.data.content) };
      }
      if (event.type === 'GenerationCompleted' || event.type === 'GenerationCancelled') end = event;
    }
    if (!end) return undefined;
    return {
      type: end.type === 'GenerationCompleted' ? 'completed' : 'cancelled',
      version: end.version,
      answer: {
        content: reply ? textOf(reply.data.content) : '',
        message: reply ? await this.viewOf(session, reply, started) : null,
        usage: end.data.usage ?? null,
        finishReason: end.type === 'GenerationCancelled' ? 'cancelled' : end.data.finishReason,
        sessionId: session.sessionId,
        generationId,
      },
    };
  }

  private async viewOf(
    session: Session,
    {
      version,
      time,
      data: { messageId, toolCalls, ...message },
    }: SessionRecord & { type: 'MessageAppended' },
    started: (SessionRecord & { type: 'GenerationStarted' }) | undefined,
  ): Promise<GeneratedAnswer['message']> {
    const view = { id: messageId, ...message, version, createdAt: time };
    if (!toolCalls) return view;
    const loaded = await this.commands.load(session);
    return {
      ...view,
      toolCalls: reported(toolCalls, started?.data.tools, loaded),
    };
  }

  /** The messages in ranges of versions, in their order. */
  private async messages(
    { tenant, sessionId }: Session,
    ranges: readonly (readonly [number, number])[],
  ): Promise<VersionedMessage[]> {
    const messages: VersionedMessage[] = [];
    for (const [from, to] of ranges) {
      const range = { from, to, types: ['MessageAppended'] };
      for await (const event of this.store.streams.events({ tenant, streamId: sessionId }, range)) {
        messages.push({ version: event.version, message: event.data as NewMessage });
      }
    }
    return messages;
  }

  private async history(to: Addressed): Promise<History> {
    // If it has changed since, `seen` reads anew, and a window shows what came later anyway.
    const { state } = await this.commands.lastKnown(to);
    const { historyStart, version } = state;
    // Of a session that is busy, or not there, nobody will want it.
    const isWanted = (state.status === 'active' || state.status === 'expired') && !state.generation;
    if (!isWanted) return { historyStart, version, messages: Promise.resolve(undefined) };
    if (state.messageCount === 0) return { historyStart, version, messages: Promise.resolve([]) };
    // Beside the append, which goes first, unless it has to wait for the messages.
    const turn = this.settings.maxInputTokens === undefined ? endOfTurn() : Promise.resolve();
    const messages = turn.then(() => this.messages(to, [[historyStart + 1, version]]));
    return { historyStart, version, messages: messages.catch(() => undefined) };
  }

  /**
   * The messages that a generation is to see whose start is about to be appended: those read ahead, unless they are out
   * of date; then they are read when it has been recorded.
   */
  private async seen(
    to: Addressed,
    before: History,
    events: readonly SessionEvent[],
    { version, historyStart }: SessionState,
    recorded: Promise<unknown>,
  ): Promise<VersionedMessage[]> {
    const start = events.at(-1);
    const context = start?.type === 'GenerationStarted' ? start.data.context : [];
    const isCurrent = before.version === version && before.historyStart === historyStart;
    const ahead = isCurrent ? await before.messages : undefined;
    if (!ahead) {
      await recorded;
      return this.messages(to, context);
    }
    const own = events.flatMap((event, index) =>
      event.type === 'MessageAppended' ? [{ version: version + 1 + index, message: event.data }] : [],
    );
    return [...ahead, ...own].filter(({ version }) =>
      context.some(([from, last]) => from <= version && version <= last),
    );
  }

  private async window(to: Addressed, ask: Ask, before: History): Promise<ContextWindow | undefined> {
    const { maxInputTokens } = this.settings;
    if (maxInputTokens === undefined) return undefined;
    const { historyStart, version } = before;
    const [tokens, ahead] = await Promise.all([loadTokenizer(), before.messages]);
    const history = ahead ?? (await this.messages(to, [[historyStart + 1, version]]));
    const fixed =
      (ask.message ? messageTokens(ask.message, tokens) : 0) +
      (ask.instructions === undefined ? 0 : messageTokens({ content: ask.instructions }, tokens)) +
      definitionTokens(ask.tools, tokens);
    // What is recorded does not change, and neither does its cost.
    const cost = ({ version, message }: VersionedMessage): number => {
      const key = `${to.tenant}/${to.sessionId}/${version}`;
      const known = this.costs.get(key) ?? messageTokens(message, tokens);
      this.costs.set(key, known);
      return known;
    };
    // A tool's result or a system message belongs to the turn that is there already.
    return fitWindow(history, maxInputTokens - fixed, cost, ask.message?.role === 'user');
  }

  private woken(lane: number, ms: number): { soon: Promise<void>; end: () => void } {
    let wake = (): void => undefined;
    const soon = new Promise<void>((resolve) => (wake = resolve));
    const unsubscribe = this.store.wakeUp.subscribe((lanes) => {
      for (const one of lanes) if (one === lane) wake();
    });
    const timer = setTimeout(wake, ms);
    return {
      soon,
      end: () => {
        unsubscribe();
        clearTimeout(timer);
      },
    };
  }

  /** A reply costs money, and a failure must free the session: both outlast a short absence of the database. */
  private async record(write: () => Promise<HandledSession>): Promise<HandledSession> {
    const deadline = Date.now() + STORE_PATIENCE_MS;
    for (;;) {
      try {
        return await write();
      } catch (error) {
        const { code } = error as { code?: string };
        if ((code !== 'database-unavailable' && code !== 'overloaded') || Date.now() > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
    }
  }

  private send(
    { tenant, sessionId, ...context }: Addressed,
    command: SessionCommand,
  ): Promise<HandledSession> {
    return dispatch(this.bus, { tenant, sessionId }, command, context);
  }

  private async letGo(lease: string): Promise<void> {
    // A lease that cannot be released runs out by itself.
    await this.leases.release([lease]).catch(() => undefined);
  }
}

const OUTCOME_EVENTS = [
  'MessageAppended',
  'GenerationStarted',
  'GenerationCompleted',
  'GenerationFailed',
  'GenerationCancelled',
  'SessionDeleted',
];

export interface GenerationDescription {
  readonly generationId: string;
  readonly sessionId: string;
  readonly status: 'running' | ReplyEnd['type'];
  readonly model: string;
  readonly startedAt: string;
  readonly prompt: {
    readonly instructions?: string;
    readonly tools?: readonly ToolDefinition[];
    readonly messages: readonly PromptMessage[];
  };
  readonly result: GeneratedAnswer | null;
  readonly error: string | null;
}

const replyToolCalls = z.array(toolCall).max(128);

/** @throws ModelError when the calls cannot be recorded. */
function checkedCalls(calls: readonly ToolCall[]): ToolCall[] {
  const clean = calls.map(({ id, name, arguments: text }) => ({
    id: storable(id),
    name,
    arguments: storable(text),
  }));
  if (
    !replyToolCalls.safeParse(clean).success ||
    new Set(clean.map((call) => call.id)).size !== clean.length
  ) {
    throw new ModelError('model-failed', 'the model sent tool calls that cannot be used');
  }
  return clean;
}

/** Tool calls with what the session's approvals say of them. */
function reported(
  calls: readonly ToolCall[],
  tools: readonly ToolDefinition[] | undefined,
  { state, time }: { readonly state: SessionState; readonly time: string },
): ReportedCall[] {
  return calls.map((call) => {
    if (tools?.find((tool) => tool.name === call.name)?.approval !== 'required') return call;
    const approval = state.approvals.find((one) => one.tool === call.name);
    const stands =
      approval && (approval.expiresAt === undefined || Date.parse(approval.expiresAt) > Date.parse(time));
    return { ...call, approval: stands ? 'granted' : 'required' };
  });
}

const hasUnshared = ({ unwritten, unshared }: Running): boolean => unwritten.length > 0 || unshared !== '';

const sessionNotFound = (): DomainError => new DomainError('session-not-found', 'there is no such session');

/** PostgreSQL stores neither U+0000 nor half of a surrogate pair. */
export const storable = (text: string): string => text.toWellFormed().replaceAll('\0', '');

/** Text in pieces, each of them storable: a pair that is cut in two is put together again. */
class StorableText {
  private half = '';

  add(text: string): string {
    const whole = this.half + text;
    const cut = /[\uD800-\uDBFF]$/.test(whole);
    this.half = cut ? whole.slice(-1) : '';
    return storable(cut ? whole.slice(0, -1) : whole);
  }

  end(): string {
    const rest = storable(this.half);
    this.half = '';
    return rest;
  }
}

function problem(
  code: 'model-failed' | 'model-timeout',
  message: string,
  { sessionId }: Pick<Addressed, 'sessionId'>,
  generationId: string,
): ApiError {
  return new ApiError(code, message, { details: { sessionId, generationId } });
}
