import {
  Body,
  ConflictException,
  Controller,
  Delete,
  Get,
  Logger,
  Module,
  Param,
  Patch,
  Post,
  Query,
  Res,
  type Type,
} from '@nestjs/common';
import { HttpAdapterHost, NestFactory } from '@nestjs/core';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyReply } from 'fastify';
import { z } from 'zod';
import { type AuthSettings } from '../../../src/access/authenticators.js';
import { Caller } from '../../../src/access/caller.js';
import { Public, Requires } from '../../../src/access/requirement.js';
import { CorrelationId } from '../../../src/http/correlation.js';
import { Answers } from '../../../src/http/openapi.js';
import { ApiError } from '../../../src/http/problem.js';
import { Write, type WriteContext } from '../../../src/http/preconditions.js';
import { configureApp, createHttpAdapter } from '../../../src/http/server.js';
import { addSurface, type Surface } from '../../../src/http/surfaces.js';

const NoteId = z.strictObject({
  id: z.string().regex(/^[a-z0-9-]{1,128}$/, 'must be 1 to 128 of a-z 0-9 -'),
});
const Line = z
  .strictObject({
    role: z.enum(['user', 'assistant']),
    content: z.union([z.string(), z.array(z.strictObject({ type: z.literal('text'), text: z.string() }))]),
    tags: z.record(z.string(), z.unknown()).optional(),
  })
  .meta({ id: 'Line' });
const Lines = z.union([Line, z.strictObject({ lines: z.array(Line).min(1).max(1000) })]);
const Options = z
  .strictObject({ reason: z.string().default('none') })
  .meta({ id: 'Options' })
  .optional();
const Filter = z.strictObject({
  limit: z.coerce.number().int().min(1).max(200).default(50),
  q: z.string().optional(),
});
const Note = z.object({ id: z.string(), lines: z.array(Line), options: Options }).meta({ id: 'Note' });

@Controller('v1/notes')
export class NotesController {
  @Requires('sessions:write')
  @Get()
  @Answers(200, z.object({ data: z.array(Note) }), { summary: 'Lists notes' })
  list(@Query({ schema: Filter }) filter: z.infer<typeof Filter>) {
    return filter;
  }

  @Requires('sessions:write')
  @Post(':id/lines')
  @Answers(201, Note, {
    summary: 'Adds lines',
    problems: ['session-not-found', 'version-mismatch'],
    etag: true,
  })
  @Answers(200, null, { description: 'Nothing was new.' })
  add(
    @Param({ schema: NoteId }) { id }: z.infer<typeof NoteId>,
    @Body({ schema: Lines }) body: z.infer<typeof Lines>,
    @Write() write: WriteContext,
  ) {
    return { id, body, ...write, caller: shown(write.caller) };
  }

  @Requires('sessions:write')
  @Post(':id/reset')
  @Answers(200, Note)
  reset(@Body({ schema: Options }) options: z.infer<typeof Options>) {
    return { options: options ?? 'no body' };
  }

  @Requires('sessions:write')
  @Delete(':id')
  @Answers(204, null)
  remove() {
    return undefined;
  }

  @Requires('sessions:write')
  @Patch(':id/fail/:how')
  fail(@Param('how') how: string) {
    throw (FAILURES[how]?.() ?? new Error('unknown')) as Error;
  }

  @Requires('sessions:write')
  @Get('vanished')
  vanished(@Res() reply: FastifyReply) {
    reply.callNotFound();
  }

  @Requires('sessions:write')
  @Get('stream')
  @Answers(200, null, {
    stream: { events: { note: Note, failed: 'Problem' }, example: 'id: 1\nevent: note\ndata: {}\n\n' },
  })
  stream(@Res() reply: FastifyReply) {
    reply.hijack();
    reply.raw.writeHead(200, { 'content-type': 'text/event-stream' });
    reply.raw.write('data: 1\n\n');
    throw new Error('in the middle');
  }
}

@Controller('v1/admin')
export class AdminController {
  @Requires('admin')
  @Get()
  status(@Caller() caller: Caller, @CorrelationId() correlationId: string) {
    return { caller: shown(caller), correlationId };
  }
}

@Controller('health')
export class HealthController {
  @Public()
  @Get('live')
  live() {
    return { status: 'up' };
  }
}

/** A set is nothing in JSON. */
const shown = ({ scopes, ...caller }: Caller) => ({ ...caller, operator: scopes.has('admin') });

/** Errors as other layers throw them: classes of their own that share only the shape. */
class DomainError extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly details?: object,
  ) {
    super(message);
  }
}

const FAILURES: Record<string, () => unknown> = {
  domain: () =>
    new DomainError('session-limit-reached', 'Two of two are active.', { activeSessions: 2, maxSessions: 2 }),
  busy: () => new DomainError('session-busy', 'A reply is being generated.'),
  overloaded: () => new DomainError('overloaded', 'The queue is full.'),
  lagging: () => new DomainError('projection-lagging', 'Lane 3 is behind.'),
  database: () => new DomainError('database-unavailable', 'No connection.'),
  override: () =>
    new DomainError('legal-hold', 'Held.', { status: 200, code: 'other', detail: 'other', type: 'other' }),
  'unknown-code': () => new DomainError('no-such-code', 'hidden text'),
  prototype: () => new DomainError('toString', 'hidden text'),
  system: () => Object.assign(new DomainError('not-found', 'hidden text'), { errno: -2, syscall: 'open' }),
  postgres: () => Object.assign(new DomainError('not-found', 'hidden text'), { severity: 'ERROR' }),
  plain: () => new Error('hidden text', { cause: new Error('deeper hidden text') }),
  string: () => 'hidden text',
  api: () => new ApiError('rate-limited', 'Slow down.', { headers: { 'retry-after': '7' } }),
  nest: () => new ConflictException('hidden text'),
};

@Module({ controllers: [NotesController, AdminController, HealthController] })
class FixtureModule {}

export async function startApp(
  settings: {
    auth?: AuthSettings;
    bodyLimit?: number;
    corsOrigins?: readonly string[];
    module?: Type;
    surfaces?: readonly Surface[];
  } = {},
): Promise<NestFastifyApplication> {
  const all = {
    server: {
      bodyLimit: settings.bodyLimit ?? 1_048_576,
      messageLimit: 16_777_216,
      corsOrigins: settings.corsOrigins ?? [],
    },
    auth: settings.auth ?? { mode: 'none' as const, keys: [] },
    version: '1.2.3',
  };
  Logger.overrideLogger(false);
  const app = await NestFactory.create<NestFastifyApplication>(
    settings.module ?? FixtureModule,
    createHttpAdapter(all),
    { abortOnError: false },
  );
  for (const surface of settings.surfaces ?? []) addSurface(app.get(HttpAdapterHost), surface);
  configureApp(app, all);
  await app.init();
  await app.getHttpAdapter().getInstance().ready();
  return app;
}
