import { Body, Controller, Get, Headers, Param, Post, Query, Req, Res } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { type FastifyReply, type FastifyRequest } from 'fastify';
import { type z } from 'zod';
import { type FeedFilter } from '../event-store/feed-reader.js';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { EventStream, wantsEvents } from '../http/event-stream.js';
import { Answers } from '../http/openapi.js';
import { etag, Write, type WriteContext } from '../http/preconditions.js';
import { ApiError } from '../http/problem.js';
import { dispatch } from '../sessions/command-handlers.js';
import { SessionCommands } from '../sessions/session-commands.js';
import { SessionQueries } from '../sessions/session-queries.js';
import { MAX_VERSION, Session, sessionPath } from '../sessions/session.schemas.js';
import { contextOf, idFor, WRITE_EXISTING } from '../sessions/sessions.controller.js';
import {
  Diff,
  DiffQuery,
  Feed as FeedPage,
  FeedQuery,
  ForkBody,
  State,
  StateQuery,
  Trail,
  TrailQuery,
} from './audit.schemas.js';
import { Feed, type Step } from './feed.js';
import { Forks } from './fork.js';
import { Past } from './past.js';
import { refTo } from '../sessions/command-context.js';

const READ = [
  'session-not-found',
  'session-erased',
  'projection-lagging',
  'upgrade-in-progress',
  'database-unavailable',
] as const;

/** The events and past states of sessions, and forks. */
@Controller('v1')
export class AuditController {
  constructor(
    private readonly bus: CommandBus,
    private readonly feed: Feed,
    private readonly past: Past,
    private readonly forks: Forks,
    private readonly commands: SessionCommands,
    private readonly queries: SessionQueries,
  ) {}

  @Requires('audit:read')
  @Get('events')
  @Answers(200, FeedPage, {
    summary: 'Read all events of the tenant; with `Accept: text/event-stream` as they happen',
    description:
      'Per session by version, across sessions by time. Streams begin after `Last-Event-ID`, else after `after`.',
    stream: true,
    problems: ['invalid-cursor', 'position-gone', 'upgrade-in-progress', 'database-unavailable'],
  })
  async events(
    @Caller() { tenant }: Caller,
    @Query({ schema: FeedQuery }) { after, limit, session, ...query }: z.infer<typeof FeedQuery>,
    @Headers('last-event-id') lastEventId: string | undefined,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const filter = { ...filterOf(query), streamId: session };
    if (!wantsEvents(request)) return this.feed.page(tenant, { after, limit, filter });
    const place = await this.feed.placeOf(tenant, lastEventId ?? after);
    return stream(reply, (gone) => this.feed.follow(tenant, place, filter, gone));
  }

  @Requires('audit:read:own')
  @Get('sessions/:id/events')
  @Answers(200, Trail, {
    summary: 'Read the audit trail of a session: all incarnations, also when it is deleted',
    description: 'With `Accept: text/event-stream` as it happens; the id of an event is its version.',
    stream: true,
    problems: [
      'invalid-cursor',
      'position-gone',
      'session-not-found',
      'upgrade-in-progress',
      'database-unavailable',
    ],
  })
  async trail(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Query({ schema: TrailQuery }) { after, limit, ...query }: z.infer<typeof TrailQuery>,
    @Headers('last-event-id') lastEventId: string | undefined,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const session = await this.commands.reached(refTo(caller, sessionId));
    const filter = filterOf(query);
    const behind = (version: number): number => Math.max(version, session.after);
    if (!wantsEvents(request))
      return { data: await this.feed.trail(session, { after: behind(after), limit, filter }) };
    const from = behind(lastEventId === undefined ? after : versionOf(lastEventId));
    await this.feed.mustReach(session, from);
    return stream(reply, (gone) => this.feed.followSession(session, from, filter, gone));
  }

  @Requires('audit:read:own')
  @Get('sessions/:id/state')
  @Answers(200, State, {
    summary: 'What a session was at a version or time, without its messages',
    etag: true,
    problems: ['session-not-found', 'session-erased', 'upgrade-in-progress', 'database-unavailable'],
  })
  async state(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Query({ schema: StateQuery }) query: z.infer<typeof StateQuery>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const state = await this.past.state(refTo(caller, sessionId), query);
    reply.header('etag', etag(state.version));
    return state;
  }

  @Requires('audit:read:own')
  @Get('sessions/:id/diff')
  @Answers(200, Diff, { summary: 'What changed between two versions or times', problems: READ })
  diff(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Query({ schema: DiffQuery }) query: z.infer<typeof DiffQuery>,
  ) {
    return this.past.diff(refTo(caller, sessionId), query);
  }

  @Requires('sessions:write:own')
  @Post('sessions/:id/fork')
  @Answers(201, Session, {
    summary: 'Make a session whose history is a copy of this one up to a version or time',
    description:
      'Title and metadata are those of then; approvals are not inherited. `If-Match` is about the source.',
    etag: true,
    problems: ['session-limit-reached', 'session-erased', ...WRITE_EXISTING],
  })
  @Answers(200, Session, { description: 'The same fork existed under the id that was given.', etag: true })
  async fork(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: ForkBody }) body: z.infer<typeof ForkBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const { ifMatch } = write;
    const route = `POST /v1/sessions/${sessionId}/fork`;
    const id = body.id ?? idFor(write, route);
    const fork = refTo(write.caller, id);
    const context = contextOf({ ...write, ifMatch: undefined }, route, body);
    const source = refTo(write.caller, sessionId);
    const command = await this.forks.command(source, context.idempotency, body.at, ifMatch);
    const done = await dispatch(this.bus, fork, command, context);
    const created = done.duplicate !== undefined || done.events.length > 0;
    const session = this.queries.answer(fork, done);
    reply.status(created ? 201 : 200).header('etag', etag(session.version));
    if (created) reply.header('location', `/v1/sessions/${encodeURIComponent(id)}`);
    return session;
  }
}

const filterOf = ({
  type,
  ...filter
}: {
  type?: string[] | undefined;
  actor?: string | undefined;
  from?: string | undefined;
  to?: string | undefined;
}): FeedFilter => ({ ...filter, types: type });

function versionOf(lastEventId: string): number {
  const version = /^\d{1,10}$/.test(lastEventId) ? Number(lastEventId) : MAX_VERSION;
  if (version >= MAX_VERSION) {
    throw new ApiError('invalid-cursor', 'Last-Event-ID is no version of an event.');
  }
  return version;
}

async function stream(
  reply: FastifyReply,
  follow: (gone: AbortSignal) => AsyncIterable<Step>,
): Promise<void> {
  const events = await EventStream.open(reply);
  try {
    for await (const { id, event } of follow(events.gone)) {
      if (event) await events.send({ id, event: event.type, data: event });
      else events.passed(id);
      if (events.gone.aborted) return;
    }
  } finally {
    events.end();
  }
}
