import { Body, Controller, Param, Post, Res } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { type FastifyReply } from 'fastify';
import { type z } from 'zod';
import { CreateSession, type NewMessage } from '../domain/session.js';
import { Answers } from '../http/openapi.js';
import { etag, Write, type WriteContext } from '../http/preconditions.js';
import { derivedId, newId } from '../sessions/ids.js';
import { dispatch } from '../sessions/session-commands.js';
import { sessionPath } from '../sessions/session.schemas.js';
import { drafted, target } from '../sessions/sessions.controller.js';
import { ChatAnswer, ChatBody, GenerateBody, Generated } from './generation.schemas.js';
import { Generations } from './generations.js';

const PROBLEMS = [
  'session-busy',
  'session-limit-reached',
  'model-failed',
  'model-timeout',
  'idempotency-key-reused',
  'version-mismatch',
  'overloaded',
  'database-unavailable',
] as const;

@Controller('v1')
export class GenerationController {
  constructor(
    private readonly bus: CommandBus,
    private readonly generations: Generations,
  ) {}

  @Post('sessions/:id/generate')
  @Answers(200, Generated, {
    summary: 'Have the model answer',
    description: 'With `Idempotency-Key` the model is called once: a retry gets the recorded outcome.',
    etag: true,
    problems: ['session-not-found', ...PROBLEMS],
  })
  async generate(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: GenerateBody }) body: z.infer<typeof GenerateBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const to = target(write, sessionId, `POST /v1/sessions/${sessionId}/generate`, body);
    const { answer, version } = await this.generations.generate(to, {
      message: userMessage(body.message),
      model: body.model,
      instructions: body.instructions,
      tools: body.tools,
    });
    reply.header('etag', etag(version));
    return answer;
  }

  @Post('chat')
  @Answers(200, ChatAnswer, {
    summary: 'Get or create the session, then have the model answer',
    problems: PROBLEMS,
  })
  async chat(@Write() write: WriteContext, @Body({ schema: ChatBody }) body: z.infer<typeof ChatBody>) {
    const route = 'POST /v1/chat';
    const key = write.idempotencyKey;
    const { tenant } = write.caller;
    const sessionId =
      body.sessionId ?? (key === undefined ? newId('sess') : derivedId('sess', tenant, route, key));
    const { ifMatch, idempotency, ...to } = target(write, sessionId, route, body);
    const known = idempotency && (await this.generations.isKnown(tenant, idempotency));
    // A retry must not bring a session back that was deleted since.
    if (!known) await dispatch(this.bus, new CreateSession({ ...to, ifMatch }));
    const { answer } = await this.generations.generate(
      { ...to, idempotency },
      { message: userMessage(body.message) },
    );
    return { response: answer.content, sessionId };
  }
}

function userMessage(message: z.infer<typeof GenerateBody>['message']): NewMessage | undefined {
  if (message === undefined) return undefined;
  return drafted(typeof message === 'string' ? { role: 'user', content: message } : message);
}
