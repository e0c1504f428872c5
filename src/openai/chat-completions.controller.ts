import { Body, Controller, Inject, Post, Res } from '@nestjs/common';
import { type FastifyReply } from 'fastify';
import { Limits } from '../access/limits.js';
import { Requires } from '../access/requirement.js';
import { type Config, SETTINGS } from '../config.js';
import { ModelError } from '../generation/chat-model.js';
import { Generations } from '../generation/generations.js';
import { buildPrompt } from '../generation/prompt.js';
import { type Provider, PROVIDER } from '../generation/provider.js';
import { Answers } from '../http/openapi.js';
import { Write, type WriteContext } from '../http/preconditions.js';
import { ApiError } from '../http/problem.js';
import { contextOf } from '../sessions/sessions.controller.js';
import { askedOfChat } from './chat-asked.js';
import { completionOf, sendCompletion, wantsUsage } from './chat-completion-view.js';
import { ChatCompletion, ChatCompletionBody } from './chat-completions.schemas.js';
import { goneOf } from './client-gone.js';
import { RecordedChat } from './recorded-chat.js';
import { OPENAI_PREFIX, sessionOf } from './wire.js';

/** The chat completions API. What is not recorded goes on to the provider as it is. */
@Controller(`${OPENAI_PREFIX}/chat/completions`)
export class ChatCompletionsController {
  constructor(
    private readonly generations: Generations,
    private readonly recorded: RecordedChat,
    private readonly limits: Limits,
    @Inject(PROVIDER) private readonly provider: Provider | null,
    @Inject(SETTINGS) private readonly settings: Config,
  ) {}

  @Requires('generate:own', 'messages')
  @Post()
  @Answers(200, ChatCompletion, {
    summary: 'Have the model answer; with `store: true` and `metadata.session_id` the turn is recorded',
    stream: true,
    problems: [
      'session-not-found',
      'session-busy',
      'session-limit-reached',
      'idempotency-key-reused',
      'model-failed',
      'model-timeout',
      'overloaded',
      'upgrade-in-progress',
      'database-unavailable',
    ],
  })
  async create(
    @Write() write: WriteContext,
    @Body({ schema: ChatCompletionBody }) body: ChatCompletionBody,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const sessionId = body.store ? body.metadata?.session_id : undefined;
    const gone = goneOf(reply);
    if (sessionId === undefined && this.provider) {
      const leave = await this.limits.enter('generations', write.caller);
      if (reply.raw.destroyed) leave();
      else reply.raw.once('close', leave);
      return this.forward(this.provider, body, gone, reply);
    }
    const asked = askedOfChat(body);
    const live =
      sessionId === undefined
        ? await this.generations.answer(
            write.caller,
            { ...asked, messages: buildPrompt(asked.messages) },
            gone,
          )
        : await this.recorded.start(
            sessionOf(write.caller, sessionId),
            contextOf(write, `POST /openai/v1/chat/completions`, body),
            asked,
          );
    if (body.stream) return sendCompletion(reply, live, { withUsage: wantsUsage(body['stream_options']) });
    const end = await live.finished();
    if (end.type === 'failed') throw end.error;
    return completionOf(live, end);
  }

  private async forward(
    provider: Provider,
    body: ChatCompletionBody,
    gone: AbortSignal,
    reply: FastifyReply,
  ): Promise<unknown> {
    const model = body.model ?? this.settings.llm.model;
    const answer = await provider.forward({ ...body, model }, gone).catch((error: unknown) => {
      throw error instanceof ModelError ? new ApiError(error.code, error.message) : error;
    });
    reply.status(answer.status).type(answer.contentType);
    return answer.body;
  }
}
