import { Body, Controller, Get, Headers, Param, Post, Req, Res } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { type FastifyReply, type FastifyRequest } from 'fastify';
import { type z } from 'zod';
import { textOf } from '../domain/content.js';
import { DomainError } from '../domain/decider.js';
import { CancelGeneration, ChangeSessionDetails, type NewMessage } from '../domain/session.commands.js';
import { VersionMismatch } from '../event-store/refusals.js';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { wantsEvents } from '../http/event-stream.js';
import { Answers } from '../http/openapi.js';
import { etag, Write, type WriteContext } from '../http/preconditions.js';
import { type CommandContext, refTo, type SessionRef } from '../sessions/command-context.js';
import { dispatch } from '../sessions/command-handlers.js';
import { type HandledSession, SessionCommands } from '../sessions/session-commands.js';
import { SessionQueries } from '../sessions/session-queries.js';
import { Session, sessionPath } from '../sessions/session.schemas.js';
import { contextOf, drafted, idFor, WRITE_EXISTING } from '../sessions/sessions.controller.js';
import {
  Cancelled,
  ChatAnswer,
  ChatBody,
  GenerateBody,
  Generated,
  Generation,
  generationPath,
  replyStream,
  TitleBody,
} from './generation.schemas.js';
import { type Ask, Generations } from './generations.js';
import { parametersIn } from './parameters.js';
import { type LiveReply, type ReplyEnd } from './live-reply.js';
import { placeOf, sendEvents } from './sse.js';
import { storable } from './storable-text.js';

const PROBLEMS = [
  // Of another owner, where the session would else be created.
  'session-not-found',
  'session-busy',
  'session-limit-reached',
  'model-failed',
  'model-timeout',
  'idempotency-key-reused',
  'version-mismatch',
  'overloaded',
  'upgrade-in-progress',
  'database-unavailable',
] as const;

const TITLE_INSTRUCTIONS =
  'Give the conversation a title of at most six words, in its language. Answer with the title alone, without quotes.';
/** Number of messages at the beginning of a conversation from which its title is made. */
const TITLE_MESSAGES = 6;

@Controller('v1')
export class GenerationController {
  constructor(
    private readonly bus: CommandBus,
    private readonly commands: SessionCommands,
    private readonly queries: SessionQueries,
    private readonly generations: Generations,
  ) {}

  @Requires('generate:own', 'messages')
  @Post('sessions/:id/generate')
  @Answers(200, Generated, {
    summary: 'Have the model answer; with `Accept: text/event-stream` as it arrives',
    description: 'With `Idempotency-Key` the model is called once: a retry gets the recorded outcome.',
    etag: true,
    stream: replyStream,
    problems: PROBLEMS,
  })
  async generate(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: GenerateBody }) body: z.infer<typeof GenerateBody>,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const { message, onBusy, model, instructions, tools, regenerate } = body;
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `POST /v1/sessions/${sessionId}/generate`, body);
    const live = await this.start(session, context, {
      ...{ model, instructions, tools, regenerate },
      parameters: parametersIn(body),
      messages: userMessages(message),
      queue: onBusy === 'queue',
    });
    if (wantsEvents(request)) return sendEvents(reply, live);
    const { answer, version } = await endOf(live);
    reply.header('etag', etag(version));
    return answer;
  }

  @Requires('generate:own')
  @Post('chat')
  @Answers(200, ChatAnswer, {
    summary: 'Get or create the session, then have the model answer',
    stream: replyStream,
    problems: PROBLEMS,
  })
  async chat(
    @Write() write: WriteContext,
    @Body({ schema: ChatBody }) body: z.infer<typeof ChatBody>,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const route = 'POST /v1/chat';
    const sessionId = body.sessionId ?? idFor(write, route);
    const session = refTo(write.caller, sessionId);
    const isNew = body.sessionId === undefined && write.idempotencyKey === undefined;
    const context = { ...contextOf(write, route, body), isNew };
    const live = await this.start(session, context, {
      messages: userMessages(body.message),
      parameters: parametersIn(body),
      create: {},
    });
    if (wantsEvents(request)) return sendEvents(reply, live);
    return { response: (await endOf(live)).answer.content, sessionId };
  }

  @Requires('generate:own')
  @Post('sessions/:id/cancel')
  @Answers(200, Cancelled, {
    summary: 'End the generation that runs, if any; what has arrived is kept',
    problems: WRITE_EXISTING,
  })
  async cancel(@Write() write: WriteContext, @Param('id', { schema: sessionPath }) sessionId: string) {
    const route = `POST /v1/sessions/${sessionId}/cancel`;
    const session = refTo(write.caller, sessionId);
    const done = await dispatch(this.bus, session, new CancelGeneration(), contextOf(write, route, null));
    return { cancelled: done.duplicate !== undefined || done.events.length > 0 };
  }

  @Requires('sessions:read:own')
  @Get('sessions/:id/generations/:generationId')
  @Answers(200, Generation, {
    summary: 'What the model was given, to the letter, and how it ended',
    problems: [
      'session-not-found',
      'not-found',
      'session-erased',
      'upgrade-in-progress',
      'database-unavailable',
    ],
  })
  describe(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Param('generationId', { schema: generationPath }) generationId: string,
  ) {
    return this.generations.describe(refTo(caller, sessionId), generationId);
  }

  @Requires('sessions:read:own')
  @Get('sessions/:id/generations/:generationId/stream')
  @Answers(200, null, {
    summary: 'Follow a generation from `Last-Event-ID` on, or from its beginning',
    stream: replyStream,
    problems: ['session-not-found', 'not-found', 'upgrade-in-progress', 'database-unavailable'],
  })
  async follow(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Param('generationId', { schema: generationPath }) generationId: string,
    @Headers('last-event-id') lastEventId: string | undefined,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<void> {
    const live = await this.generations.follow(refTo(caller, sessionId), generationId);
    await sendEvents(reply, live, placeOf(lastEventId));
  }

  @Requires('generate:own')
  @Post('sessions/:id/title')
  @Answers(200, Session, {
    summary: 'Have the model make a title, unless there is one',
    etag: true,
    problems: ['model-failed', 'model-timeout', ...WRITE_EXISTING],
  })
  async title(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: TitleBody }) { overwrite }: z.infer<typeof TitleBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `POST /v1/sessions/${sessionId}/title`, { overwrite });
    const { state } = await this.commands.load(session);
    const known =
      context.idempotency && (await this.generations.isKnown(session.tenant, context.idempotency));
    const wanted = !known && (overwrite || state.title === null) && state.messageCount > 0;
    const details = wanted ? await this.makeTitle(write.caller, session) : {};
    const answer = this.queries.answer(session, await this.setTitle(session, context, details, overwrite));
    reply.header('etag', etag(answer.version));
    return answer;
  }

  /** A request has one message at most, so the pointers of its faults have no index. */
  private start(session: SessionRef, context: CommandContext, ask: Ask): Promise<LiveReply> {
    return this.generations.start(session, context, ask).catch((error: unknown) => {
      throw error instanceof DomainError
        ? error.withField(([_messages, _index, ...field]) => ['message', ...field])
        : error;
    });
  }

  /** Sets the title, unless somebody set one while the model was working. */
  private async setTitle(
    session: SessionRef,
    context: CommandContext,
    details: { title?: string },
    overwrite: boolean,
  ): Promise<HandledSession> {
    if (overwrite || context.ifMatch !== undefined)
      return dispatch(this.bus, session, new ChangeSessionDetails(details), context);
    for (;;) {
      const { state } = await this.commands.load(session);
      const given = state.title === null ? details : {};
      try {
        const command = new ChangeSessionDetails(given);
        return await dispatch(this.bus, session, command, { ...context, ifMatch: [state.version] });
      } catch (error) {
        if (!(error instanceof VersionMismatch)) throw error;
      }
    }
  }

  private async makeTitle(caller: Caller, session: SessionRef): Promise<{ title?: string }> {
    const { state } = await this.commands.load(session);
    const history = await this.generations.presentMessages(session, state);
    const excerpt = history
      .filter(({ role }) => role === 'user' || role === 'assistant')
      .slice(0, TITLE_MESSAGES)
      .map(({ role, content }) => `${role}: ${textOf(content)}`)
      .join('\n');
    const live = await this.generations.answer(caller, {
      instructions: TITLE_INSTRUCTIONS,
      messages: [{ role: 'user', content: excerpt }],
    });
    const answer = (await endOf(live)).answer.content;
    // The cut may leave half of a surrogate pair, which `storable` replaces.
    const title = storable((answer.trim().split('\n')[0] ?? '').trim().slice(0, 300));
    return title ? { title } : {};
  }
}

function userMessages(message: z.infer<typeof GenerateBody>['message']): NewMessage[] {
  if (message === undefined) return [];
  return [drafted(typeof message === 'string' ? { role: 'user', content: message } : message)];
}

async function endOf(live: LiveReply): Promise<Exclude<ReplyEnd, { type: 'failed' }>> {
  const end = await live.finished();
  if (end.type === 'failed') throw end.error;
  return end;
}
