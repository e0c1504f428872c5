import { newId, replyIdOf } from '../sessions/ids.js';
import { ApiError } from '../http/problem.js';
import { type ChatModel, ModelError, type ModelRequest } from './chat-model.js';
import { serviceStopped } from './generation.errors.js';
import { LiveReply, type ReplyEnd } from './live-reply.js';
import { contentOf } from './reply-content.js';
import { storable, StorableText } from './storable-text.js';
import { checkedCalls } from './tool-calls.js';

/** Answers of the model outside of any session, of which nothing is recorded. */
export class SingleAnswers {
  private readonly running = new Set<AbortController>();
  private isStopping = false;

  constructor(private readonly model: ChatModel) {}

  /** @param gone aborts the call when nobody waits for the answer any more */
  answer(request: ModelRequest, gone?: AbortSignal): LiveReply {
    const reply = new LiveReply('', newId('gen'), request.model, new Date().toISOString());
    const controller = new AbortController();
    this.running.add(controller);
    if (this.isStopping) controller.abort(serviceStopped());
    const signal = gone ? AbortSignal.any([controller.signal, gone]) : controller.signal;
    void this.carryOut(request, reply, signal)
      .catch((error: unknown): ReplyEnd => ({ type: 'failed', error: problemOf(error) }))
      .then((end) => {
        this.running.delete(controller);
        reply.finish(end);
      });
    return reply;
  }

  /** Aborts all calls and begins no more. */
  abortAll(): void {
    this.isStopping = true;
    for (const controller of this.running) controller.abort(serviceStopped());
  }

  private async carryOut(request: ModelRequest, reply: LiveReply, signal: AbortSignal): Promise<ReplyEnd> {
    const text = new StorableText();
    const thoughts = new StorableText();
    const end = await this.model.answer(request, {
      signal,
      onText: (piece) => {
        if (!signal.aborted) reply.append(text.add(piece));
      },
      onReasoning: (piece) => {
        if (!signal.aborted) reply.think(thoughts.add(piece));
      },
    });
    reply.append(text.end());
    const toolCalls = checkedCalls(end.toolCalls);
    const { generationId, sessionId } = reply;
    return {
      type: 'completed',
      version: 0,
      answer: {
        content: reply.text,
        message: {
          id: replyIdOf(generationId),
          role: 'assistant',
          content: contentOf(reply.text, reply.reasoning, end),
          version: 0,
          createdAt: new Date().toISOString(),
          status: 'complete',
          ...(toolCalls.length > 0 && { toolCalls }),
          generationId,
        },
        usage: end.usage ?? null,
        finishReason: storable(end.finishReason).slice(0, 64),
        sessionId,
        generationId,
      },
    };
  }
}

const problemOf = (error: unknown): unknown =>
  error instanceof ModelError ? new ApiError(error.code, error.message) : error;
