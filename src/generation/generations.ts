import { type CommandBus } from '@nestjs/cqrs';
import { z } from 'zod';
import { toolCall, type ToolDefinition } from '../domain/session.events.js';
import {
  AbandonGeneration,
  type CommandTarget,
  CompleteGeneration,
  FailGeneration,
  generationLease,
  type IdempotencyKey,
  type NewMessage,
  StartGeneration,
} from '../domain/session.js';
import { DomainError } from '../domain/decider.js';
import { type EventStore } from '../event-store/event-store.js';
import { type Leases } from '../event-store/leases.js';
import { ApiError } from '../http/problem.js';
import { type SessionRecord } from '../projections/projection.js';
import { newId } from '../sessions/ids.js';
import { dispatch, type HandledSession } from '../sessions/session-commands.js';
import { type ChatModel, ModelError, type ModelReply } from './chat-model.js';
import { textOf } from './echo.chat-model.js';
import { type GeneratedAnswer } from './generation.schemas.js';
import { buildPrompt } from './prompt.js';

export interface Ask {
  readonly message?: NewMessage | undefined;
  readonly model?: string | undefined;
  readonly instructions?: string | undefined;
  readonly tools?: ToolDefinition[] | undefined;
}

/** An answer, and the version that it left the session at. */
export interface Outcome {
  readonly answer: GeneratedAnswer;
  readonly version: number;
}

/** How long a reply that was paid for is kept trying to reach a database that is away. */
const STORE_PATIENCE_MS = 60_000;
/** How often somebody who waits for another's generation looks again without being told. */
const LOOK_MS = 500;

const SERVICE_STOPPED = 'the service was stopped before the model answered';

type Session = Pick<CommandTarget, 'tenant' | 'sessionId'>;

/**
 * Turns: message and start in one append, the model call outside of any transaction under a lease, reply and end in
 * one append. Whoever asked may go away: the turn goes on.
 */
export class Generations {
  private readonly running = new Map<string, AbortController>();

  constructor(
    private readonly store: EventStore,
    private readonly bus: CommandBus,
    private readonly leases: Leases,
    private readonly model: ChatModel,
    private readonly defaultModel: string,
  ) {}

  /**
   * @throws ApiError `model-failed`, `model-timeout`; DomainError; what session commands throw
   */
  async generate(to: CommandTarget, ask: Ask): Promise<Outcome> {
    const generationId = newId('gen');
    const lease = generationLease(generationId);
    // Before the append: a generation whose lease is missing counts as over.
    await this.leases.take([lease]);
    let started: HandledSession;
    try {
      started = await dispatch(
        this.bus,
        new StartGeneration(
          to,
          {
            generationId,
            model: ask.model ?? this.defaultModel,
            instructions: ask.instructions,
            tools: ask.tools,
          },
          ask.message,
        ),
      );
    } catch (error) {
      await this.letGo(lease);
      throw error;
    }
    const { duplicate } = started;
    if (duplicate) {
      await this.letGo(lease);
      const first = (duplicate.reference as { generationId: string }).generationId;
      return this.attach(to, first, duplicate.version);
    }
    try {
      return await this.turn(to, generationId, ask, started);
    } finally {
      this.running.delete(generationId);
      await this.letGo(lease);
    }
  }

  /** Whether a request with this key has started a generation before. */
  async isKnown(tenant: string, { scope, key }: IdempotencyKey): Promise<boolean> {
    return (await this.store.findKeyed(tenant, scope, key)) !== undefined;
  }

  /** Ends the model calls that still run; their generations fail, and their sessions go on. */
  abortAll(): void {
    for (const controller of this.running.values())
      controller.abort(new ModelError('model-failed', SERVICE_STOPPED));
  }

  private async turn(
    to: CommandTarget,
    generationId: string,
    ask: Ask,
    started: HandledSession,
  ): Promise<Outcome> {
    const begun = performance.now();
    const controller = new AbortController();
    this.running.set(generationId, controller);
    // What follows is caused by the generation, and under conditions of its own.
    const next: CommandTarget = {
      ...to,
      causationId: generationId,
      ifMatch: undefined,
      idempotency: undefined,
    };
    const durationMs = () => Math.round(performance.now() - begun);

    let reply: ModelReply;
    try {
      const messages = await this.history(to, started.state.historyStart + 1, started.state.version);
      reply = checked(
        await this.model.complete(
          {
            model: ask.model ?? this.defaultModel,
            instructions: ask.instructions,
            messages: buildPrompt(messages),
            tools: ask.tools,
          },
          controller.signal,
        ),
      );
    } catch (error) {
      const failure =
        error instanceof ModelError
          ? error
          : new ModelError('model-failed', 'the model call failed', { cause: error });
      const { code, message } = failure;
      const failed = new FailGeneration(next, { generationId, code, message, durationMs: durationMs() });
      await this.record(() => dispatch(this.bus, failed));
      throw problem(code, message, to, generationId);
    }

    const { content, toolCalls, usage, finishReason } = reply;
    const message = { messageId: newId('msg'), content, ...(toolCalls && { toolCalls }) };
    const result = { generationId, finishReason, ...(usage && { usage }), durationMs: durationMs() };
    const done = await this.record(() => dispatch(this.bus, new CompleteGeneration(next, result, message)));
    // Nothing was appended: a reset, a delete or a take-over came first, or a first try whose answer was lost.
    if (done.events.length === 0) return this.attach(to, generationId, started.state.version);
    const { version } = done.state;
    return {
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
          ...(toolCalls && { toolCalls }),
          generationId,
        },
        usage: usage ?? null,
        finishReason,
        sessionId: to.sessionId,
        generationId,
      },
    };
  }

  private async history(session: Session, from: number, to: number): Promise<NewMessage[]> {
    const stream = { tenant: session.tenant, streamId: session.sessionId };
    const messages: NewMessage[] = [];
    for await (const event of this.store.streamEvents(stream, { from, to, types: ['MessageAppended'] })) {
      messages.push(event.data as NewMessage);
    }
    return messages;
  }

  /** The recorded outcome of a generation, waiting for it while it runs, on whichever node. */
  private async attach(to: CommandTarget, generationId: string, from: number): Promise<Outcome> {
    const stream = { tenant: to.tenant, streamId: to.sessionId };
    const lane = this.store.laneOf(stream);
    for (;;) {
      // Subscribed before the look, so that an end recorded meanwhile is not missed.
      let wake = (): void => undefined;
      const woken = new Promise<void>((resolve) => (wake = resolve));
      const unsubscribe = this.store.wakeUp.subscribe((lanes) => {
        if ([...lanes].includes(lane)) wake();
      });
      const timer = setTimeout(wake, LOOK_MS);
      try {
        const outcome = await this.recorded(to, generationId, from);
        if (outcome) return outcome;
        if ((await this.leases.standing([generationLease(generationId)])).size === 0) {
          await this.abandon(to, generationId);
          continue;
        }
        await woken;
      } finally {
        clearTimeout(timer);
        unsubscribe();
      }
    }
  }

  private async abandon(to: CommandTarget, generationId: string): Promise<void> {
    const target = { ...to, causationId: generationId, ifMatch: undefined, idempotency: undefined };
    await dispatch(this.bus, new AbandonGeneration(target, generationId)).catch((error: unknown) => {
      // Deleted meanwhile, or somebody took it over: either way the log says how it ended.
      if (!(error instanceof DomainError)) throw error;
    });
  }

  private async recorded(session: Session, generationId: string, from: number): Promise<Outcome | undefined> {
    const stream = { tenant: session.tenant, streamId: session.sessionId };
    let reply: (SessionRecord & { type: 'MessageAppended' }) | undefined;
    const types = [
      'MessageAppended',
      'GenerationCompleted',
      'GenerationFailed',
      'GenerationCancelled',
      'SessionDeleted',
    ];
    for await (const recorded of this.store.streamEvents(stream, { from, types })) {
      const event = recorded as SessionRecord;
      if (event.type === 'SessionDeleted')
        throw new DomainError('session-not-found', 'the session was deleted');
      if (event.type === 'MessageAppended') {
        if (event.data.generationId === generationId) reply = event;
        continue;
      }
      if (!('generationId' in event.data) || event.data.generationId !== generationId) continue;
      if (event.type === 'GenerationFailed') {
        const code = event.data.code === 'model-timeout' ? 'model-timeout' : 'model-failed';
        throw problem(code, event.data.message, session, generationId);
      }
      if (event.type !== 'GenerationCompleted' && event.type !== 'GenerationCancelled') continue;
      const { messageId, ...message } = reply?.data ?? { messageId: '' };
      return {
        version: event.version,
        answer: {
          content: reply ? textOf(reply.data.content) : '',
          message: reply
            ? ({
                id: messageId,
                ...message,
                version: reply.version,
                createdAt: reply.time,
              } as GeneratedAnswer['message'])
            : null,
          usage: event.data.usage ?? null,
          finishReason: event.type === 'GenerationCancelled' ? 'cancelled' : event.data.finishReason,
          sessionId: session.sessionId,
          generationId,
        },
      };
    }
    return undefined;
  }

  /** A reply costs money, and a failure must free the session: both outlast a short absence of the database. */
  private async record(write: () => Promise<HandledSession>): Promise<HandledSession> {
    const deadline = Date.now() + STORE_PATIENCE_MS;
    for (;;) {
      try {
        return await write();
      } catch (error) {
        const { code } = error as { code?: string };
        if (code === 'session-not-found') throw error;
        if ((code !== 'database-unavailable' && code !== 'overloaded') || Date.now() > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
    }
  }

  private async letGo(lease: string): Promise<void> {
    // A lease that cannot be released runs out by itself.
    await this.leases.release([lease]).catch(() => undefined);
  }
}

const replyToolCalls = z.array(toolCall).max(128).optional();

/** @throws ModelError when the reply holds what an event cannot. */
function checked(reply: ModelReply): ModelReply {
  const toolCalls = replyToolCalls.safeParse(reply.toolCalls);
  const ids = reply.toolCalls?.map((call) => call.id) ?? [];
  if (!toolCalls.success || new Set(ids).size !== ids.length) {
    throw new ModelError('model-failed', 'the model sent tool calls that cannot be used');
  }
  return {
    ...reply,
    content: storable(reply.content),
    toolCalls: reply.toolCalls?.map((call) => ({ ...call, arguments: storable(call.arguments) })),
  };
}

/** PostgreSQL stores neither U+0000 nor half of a surrogate pair, which a model may cut in two. */
const storable = (text: string): string => Buffer.from(text).toString().replaceAll('\0', '');

function problem(
  code: 'model-failed' | 'model-timeout',
  message: string,
  { sessionId }: Pick<CommandTarget, 'sessionId'>,
  generationId: string,
): ApiError {
  return new ApiError(code, message, { details: { sessionId, generationId } });
}
