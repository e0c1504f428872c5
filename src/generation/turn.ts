import { setTimeout as pause } from 'node:timers/promises';
import { type CommandBus } from '@nestjs/cqrs';
import { CompleteGeneration, FailGeneration } from '../domain/session.commands.js';
import { type ToolCall, type ToolDefinition } from '../domain/session.events.js';
import { type CommandContext, type SessionRef } from '../sessions/command-context.js';
import { dispatch } from '../sessions/command-handlers.js';
import { replyIdOf } from '../sessions/ids.js';
import { type HandledSession } from '../sessions/session-commands.js';
import { type AnswerEnd, ModelError } from './chat-model.js';
import { isTemporaryOutage, modelProblem, Superseded } from './generation.errors.js';
import { type ReplyEnd } from './live-reply.js';
import { type ReplyFollower } from './reply-follower.js';
import { contentOf } from './reply-content.js';
import { type RunningGeneration } from './running-generation.js';
import { storable } from './storable-text.js';
import { checkedCalls, reportedCalls } from './tool-calls.js';

/**
 * Milliseconds to keep trying to record the end of a generation while the database is unavailable, and the pause
 * between two attempts.
 */
const RECORD_LIMIT_MS = 60_000;
const RECORD_RETRY_MS = 250;

/** A generation that has been started, and what it was started with. */
export interface StartedTurn {
  readonly session: SessionRef;
  readonly context: CommandContext;
  readonly tools: readonly ToolDefinition[] | undefined;
  /** Version of the session at which the generation started. */
  readonly version: number;
  readonly running: RunningGeneration;
  readonly answer: Promise<AnswerEnd>;
}

type CheckedEnd = AnswerEnd & { readonly toolCalls: ToolCall[] };

/** Waits for the model's answer and records it: from `GenerationStarted` to completed, failed or cancelled. */
export class TurnRecorder {
  constructor(
    private readonly bus: CommandBus,
    private readonly follower: ReplyFollower,
  ) {}

  /** @throws what the commands that end a generation throw, when the end could not be recorded */
  async end(turn: StartedTurn): Promise<ReplyEnd> {
    const startedAt = performance.now();
    const durationMs = (): number => Math.round(performance.now() - startedAt);
    let answered: CheckedEnd;
    try {
      const end = await turn.answer;
      turn.running.controller.signal.throwIfAborted();
      const finishReason = storable(end.finishReason).slice(0, 64);
      answered = { ...end, toolCalls: checkedCalls(end.toolCalls), finishReason };
    } catch (error) {
      return error instanceof Superseded ? this.recordedEnd(turn) : this.fail(turn, error, durationMs());
    }
    return this.complete(turn, answered, durationMs());
  }

  private async fail(turn: StartedTurn, error: unknown, durationMs: number): Promise<ReplyEnd> {
    const { generationId, text, reasoning } = turn.running.reply;
    const failure =
      error instanceof ModelError
        ? error
        : new ModelError('model-failed', 'the model call failed', { cause: error });
    const { code } = failure;
    const message = storable(failure.message);
    const partial =
      text + reasoning === ''
        ? undefined
        : { messageId: replyIdOf(generationId), content: contentOf(text, reasoning) };
    const result = { generationId, code, message, durationMs };
    const done = await this.record(turn, () => new FailGeneration(result, partial));
    if (done.events.length === 0) return this.recordedEnd(turn);
    const problem = modelProblem(code, message, turn.session, generationId);
    return { type: 'failed', error: problem, version: done.state.version };
  }

  private async complete(turn: StartedTurn, answered: CheckedEnd, durationMs: number): Promise<ReplyEnd> {
    const { toolCalls, usage, finishReason } = answered;
    const { generationId, text, reasoning } = turn.running.reply;
    const content = contentOf(text, reasoning, answered);
    const message = {
      messageId: replyIdOf(generationId),
      content,
      ...(toolCalls.length > 0 && { toolCalls }),
    };
    const result = { generationId, finishReason, ...(usage && { usage }), durationMs };
    const done = await this.record(turn, () => new CompleteGeneration(result, message));
    if (done.events.length === 0) return this.recordedEnd(turn);
    const { version } = done.state;
    return {
      type: 'completed',
      version,
      answer: {
        content: text,
        message: {
          id: message.messageId,
          role: 'assistant',
          content,
          version: version - 1,
          createdAt: done.time,
          status: 'complete',
          ...(toolCalls.length > 0 && { toolCalls: reportedCalls(toolCalls, turn.tools, done) }),
          generationId,
        },
        usage: usage ?? null,
        finishReason,
        sessionId: turn.session.sessionId,
        generationId,
      },
    };
  }

  /**
   * Reads the end of the generation from the log. It is used when this node's command appended nothing: something else
   * ended the generation first, or an earlier attempt was committed and its answer was lost.
   */
  private recordedEnd(turn: StartedTurn): Promise<ReplyEnd> {
    const { session, version, tools, running } = turn;
    const { generationId } = running.reply;
    return this.follower.endOf(session, causedBy(turn), { generationId, version, tools });
  }

  /**
   * Records the end of a generation, also across a short outage of the database: a reply has cost money, and a failure
   * that is not recorded would leave its session busy.
   */
  private async record(
    turn: StartedTurn,
    command: () => CompleteGeneration | FailGeneration,
  ): Promise<HandledSession> {
    const deadline = Date.now() + RECORD_LIMIT_MS;
    for (;;) {
      try {
        return await dispatch(this.bus, turn.session, command(), causedBy(turn));
      } catch (error) {
        if (!isTemporaryOutage(error) || Date.now() > deadline) throw error;
        await pause(RECORD_RETRY_MS);
      }
    }
  }
}

/**
 * The context of the commands that end a generation. The generation causes them, and the `If-Match` and idempotency key
 * of the request were for its start alone.
 */
const causedBy = ({ context, running }: StartedTurn): CommandContext => ({
  ...context,
  causationId: running.reply.generationId,
  ifMatch: undefined,
  idempotency: undefined,
});
