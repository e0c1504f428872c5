import { createHash } from 'node:crypto';
import { Body, Controller, Delete, Get, Param, Patch, Post, Query, Res } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { type FastifyReply } from 'fastify';
import { type z } from 'zod';
import {
  AppendMessages,
  ChangeSessionDetails,
  CreateSession,
  DeleteSession,
  type NewMessage,
  RemoveMessage,
  ResetConversation,
  RewindHistory,
} from '../domain/session.commands.js';
import { DomainError } from '../domain/decider.js';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { ApiError } from '../http/problem.js';
import { etag, Write, type WriteContext } from '../http/preconditions.js';
import { type CommandContext, refTo } from './command-context.js';
import { dispatch } from './command-handlers.js';
import { derivedId, newId } from './ids.js';
import { SessionQueries } from './session-queries.js';
import {
  AppendedMessages,
  AppendMessagesBody,
  ChangeSessionBody,
  ConsistencyQuery,
  CreateSessionBody,
  ListForksQuery,
  ListMessagesQuery,
  ListSessionsQuery,
  MessageList,
  messagePath,
  type NewMessageInput,
  ReasonBody,
  RewindBody,
  Session,
  SessionList,
  sessionPath,
  UsageList,
} from './session.schemas.js';

const WRITE = [
  'idempotency-key-reused',
  'version-mismatch',
  'overloaded',
  'upgrade-in-progress',
  'database-unavailable',
] as const;
export const WRITE_EXISTING = ['session-not-found', ...WRITE] as const;
export const READ_EXISTING = [
  'session-not-found',
  'projection-lagging',
  'upgrade-in-progress',
  'database-unavailable',
] as const;

/**
 * The context of a request's command. `route` and `body` tell whether a retry is the same request: an idempotency key
 * is valid for one route, and its fingerprint stands for one body.
 */
export function contextOf(write: WriteContext, route: string, body: unknown): CommandContext {
  return {
    actor: write.caller.actor,
    correlationId: write.correlationId,
    ifMatch: write.ifMatch,
    ...(write.idempotencyKey !== undefined && {
      idempotency: {
        // The keys of owners are their own: another's must find nothing.
        scope: write.caller.ownedBy === null ? route : `${route} of ${write.caller.ownedBy}`,
        key: write.idempotencyKey,
        fingerprint: createHash('sha256')
          .update(JSON.stringify(body ?? null))
          .digest('base64url'),
      },
    }),
  };
}

/** The id for a session to which the client gives none. With an idempotency key, a retry finds what the first request made. */
export function idFor(
  { caller, idempotencyKey }: WriteContext,
  route: string,
  kind: 'sess' | 'conv' = 'sess',
): string {
  if (idempotencyKey === undefined) return newId(kind);
  const { tenant, ownedBy } = caller;
  return derivedId(kind, tenant, route, idempotencyKey, ...(ownedBy === null ? [] : [ownedBy]));
}

/** A message of a request, as the event will hold it. */
export const drafted = ({ content, ...message }: NewMessageInput): NewMessage => ({
  messageId: newId('msg'),
  ...message,
  content: content ?? '',
  status: 'complete',
});

@Controller('v1/sessions')
export class SessionsController {
  constructor(
    private readonly bus: CommandBus,
    private readonly queries: SessionQueries,
  ) {}

  @Requires('sessions:write:own')
  @Post()
  @Answers(201, Session, {
    summary: 'Create a session',
    etag: true,
    problems: ['session-limit-reached', ...WRITE_EXISTING],
  })
  @Answers(200, Session, {
    description: 'The session existed; if it was expired, it is active again.',
    etag: true,
  })
  async create(
    @Write() write: WriteContext,
    @Body({ schema: CreateSessionBody }) body: z.infer<typeof CreateSessionBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const { id, ...details } = body;
    const route = 'POST /v1/sessions';
    const sessionId = id ?? idFor(write, route);
    const session = refTo(write.caller, sessionId);
    const isNew = id === undefined && write.idempotencyKey === undefined;
    const context = { ...contextOf(write, route, body), isNew };
    const done = await dispatch(this.bus, session, new CreateSession(details), context);
    const created = done.duplicate
      ? (done.duplicate.reference as { created: boolean }).created
      : done.events.some((event) => event.type === 'SessionCreated');
    const answer = this.queries.answer(session, done);
    reply.status(created ? 201 : 200).header('etag', etag(answer.version));
    if (created) reply.header('location', `/v1/sessions/${encodeURIComponent(sessionId)}`);
    return answer;
  }

  @Requires('sessions:read:own')
  @Get()
  @Answers(200, SessionList, {
    summary: 'List sessions by creation time and id',
    problems: ['invalid-cursor', 'projection-lagging', 'upgrade-in-progress', 'database-unavailable'],
  })
  list(
    @Caller() caller: Caller,
    @Query({ schema: ListSessionsQuery }) query: z.infer<typeof ListSessionsQuery>,
  ) {
    return this.queries.list(caller, query);
  }

  @Requires('sessions:read:own')
  @Get(':id')
  @Answers(200, Session, { summary: 'Get a session', etag: true, problems: READ_EXISTING })
  async get(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Query({ schema: ConsistencyQuery }) { consistency }: z.infer<typeof ConsistencyQuery>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const session = await this.queries.find(refTo(caller, sessionId), consistency);
    reply.header('etag', etag(session.version));
    return session;
  }

  @Requires('sessions:write:own')
  @Patch(':id')
  @Answers(200, Session, {
    summary: 'Change title or metadata; a field that is given replaces the old value',
    etag: true,
    problems: WRITE_EXISTING,
  })
  async change(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: ChangeSessionBody }) body: z.infer<typeof ChangeSessionBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    if (body.legalHold !== undefined && !write.caller.scopes.has('admin')) {
      throw new ApiError('forbidden', 'A legal hold needs the API key of an operator.');
    }
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `PATCH /v1/sessions/${sessionId}`, body);
    const done = await dispatch(this.bus, session, new ChangeSessionDetails(body), context);
    const answer = this.queries.answer(session, done);
    reply.header('etag', etag(answer.version));
    return answer;
  }

  @Requires('sessions:write:own')
  @Delete(':id')
  @Answers(204, null, {
    summary: 'Delete a session; its audit trail stays',
    problems: ['legal-hold', ...WRITE_EXISTING],
  })
  async delete(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: ReasonBody }) body: z.infer<typeof ReasonBody>,
  ): Promise<void> {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `DELETE /v1/sessions/${sessionId}`, body);
    await dispatch(this.bus, session, new DeleteSession(body.reason), context);
  }

  @Requires('sessions:write:own')
  @Post(':id/reset')
  @Answers(200, Session, {
    summary: 'Empty the history and the tool approvals; title and usage stay',
    etag: true,
    problems: WRITE_EXISTING,
  })
  async reset(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: ReasonBody }) body: z.infer<typeof ReasonBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `POST /v1/sessions/${sessionId}/reset`, body);
    const done = await dispatch(this.bus, session, new ResetConversation(body.reason), context);
    const answer = this.queries.answer(session, done);
    reply.header('etag', etag(answer.version));
    return answer;
  }

  @Requires('sessions:write:own', 'messages')
  @Post(':id/messages')
  @Answers(201, AppendedMessages, {
    summary: 'Append one message, or up to 1000 in one piece',
    etag: true,
    problems: ['session-limit-reached', 'session-busy', ...WRITE_EXISTING],
  })
  async append(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: AppendMessagesBody }) body: z.infer<typeof AppendMessagesBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `POST /v1/sessions/${sessionId}/messages`, body);
    const single = !('messages' in body);
    const messages = (single ? [body] : body.messages).map(drafted);
    const command = new AppendMessages(messages, single ? 0 : body.replaceLast);
    const done = await dispatch(this.bus, session, command, context).catch((error: unknown) => {
      // The client sent a single message, so the pointers of its faults have no index.
      throw single && error instanceof DomainError
        ? error.withField(([_messages, _index, ...field]) => field)
        : error;
    });
    const { duplicate } = done;
    const messageIds = duplicate
      ? (duplicate.reference as { messageIds: string[] }).messageIds
      : messages.map((message) => message.messageId);
    const version = duplicate?.version ?? done.state.version;
    reply.header('etag', etag(version));
    return {
      messages: messageIds.map((messageId, index) => ({
        messageId,
        version: version - messageIds.length + index + 1,
      })),
      version,
      position: duplicate ? await this.queries.positionAt(session, version) : this.queries.positionOf(done),
    };
  }

  @Requires('sessions:write:own')
  @Delete(':id/messages/:messageId')
  @Answers(204, null, {
    summary: 'Take a message out of the history; a tool call and its results go together',
    description: 'The log keeps it, and `at=` shows it.',
    etag: true,
    problems: ['session-busy', 'not-found', ...WRITE_EXISTING],
  })
  async removeMessage(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Param('messageId', { schema: messagePath }) messageId: string,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<void> {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `DELETE /v1/sessions/${sessionId}/messages/${messageId}`, null);
    const done = await dispatch(this.bus, session, new RemoveMessage(messageId), context);
    reply.header('etag', etag(done.duplicate?.version ?? done.state.version));
  }

  @Requires('sessions:write:own')
  @Post(':id/rewind')
  @Answers(200, Session, {
    summary: 'Take all messages after a version out of the history',
    description: 'The log keeps them, and `at=` shows them.',
    etag: true,
    problems: ['session-busy', ...WRITE_EXISTING],
  })
  async rewind(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: RewindBody }) body: z.infer<typeof RewindBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `POST /v1/sessions/${sessionId}/rewind`, body);
    const command = new RewindHistory(body.toVersion, body.reason);
    const answer = this.queries.answer(session, await dispatch(this.bus, session, command, context));
    reply.header('etag', etag(answer.version));
    return answer;
  }

  @Requires('sessions:read:own')
  @Get(':id/messages')
  @Answers(200, MessageList, {
    summary: 'Read the messages, oldest first unless order=desc',
    etag: true,
    problems: ['invalid-cursor', 'cursor-expired', 'session-erased', ...READ_EXISTING],
  })
  async messages(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Query({ schema: ListMessagesQuery }) query: z.infer<typeof ListMessagesQuery>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const { messages, nextCursor, version } = await this.queries.messages(refTo(caller, sessionId), query);
    reply.header('etag', etag(version)).type('application/json; charset=utf-8');
    // The messages are text already: reading it, only to write it anew, would take most of the time of this answer.
    return `{"data":${messages},"nextCursor":${JSON.stringify(nextCursor)},"version":${version}}`;
  }

  @Requires('sessions:read:own')
  @Get(':id/usage')
  @Answers(200, UsageList, { summary: 'Tokens by model and day (UTC)', problems: READ_EXISTING })
  async usage(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Query({ schema: ConsistencyQuery }) { consistency }: z.infer<typeof ConsistencyQuery>,
  ) {
    return { data: await this.queries.usage(refTo(caller, sessionId), consistency) };
  }

  @Requires('sessions:read:own')
  @Get(':id/forks')
  @Answers(200, SessionList, {
    summary: 'List the sessions that were forked from this one, by creation time and id',
    problems: ['invalid-cursor', ...READ_EXISTING],
  })
  forks(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Query({ schema: ListForksQuery }) query: z.infer<typeof ListForksQuery>,
  ) {
    return this.queries.forks(refTo(caller, sessionId), query);
  }
}
