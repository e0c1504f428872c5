import { Body, Controller, Delete, Get, Param, Post, Query, Res } from '@nestjs/common';
import { type FastifyReply } from 'fastify';
import { type z } from 'zod';
import { decodeCursor, encodeCursor } from '../http/cursor.js';
import { Answers } from '../http/openapi.js';
import { ApiError } from '../http/problem.js';
import { Caller } from './caller.js';
import { KeyStore } from './key-store.js';
import {
  type ApiKey,
  CreatedKey,
  KeyCursor,
  KeyList,
  keyPath,
  ListKeysQuery,
  NewKey,
} from './keys.schemas.js';
import { Requires } from './requirement.js';

/** Keys that are kept in the database. Those of the settings are not among them. */
@Controller('v1/admin/keys')
export class KeysController {
  constructor(private readonly store: KeyStore) {}

  @Requires('admin')
  @Post()
  @Answers(201, CreatedKey, {
    summary: 'Create an API key',
    problems: ['name-taken', 'database-unavailable'],
  })
  async create(
    @Caller() { actor }: Caller,
    @Body({ schema: NewKey }) key: NewKey,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    reply.header('cache-control', 'no-store');
    return this.store.create(key, actor);
  }

  @Requires('admin')
  @Get()
  @Answers(200, KeyList, {
    summary: 'List API keys by creation time, those that were revoked or have run out as well',
    problems: ['invalid-cursor', 'database-unavailable'],
  })
  async list(@Query({ schema: ListKeysQuery }) query: z.infer<typeof ListKeysQuery>) {
    const { limit, cursor, ...asked } = query;
    const scope = JSON.stringify(['keys', asked.tenant ?? null]);
    const after = cursor === undefined ? undefined : decodeCursor(scope, cursor, KeyCursor);
    const found = await this.store.list({ ...asked, after, limit: limit + 1 });
    const data = found.slice(0, limit);
    return { data, nextCursor: found.length > limit ? cursorOf(scope, data.at(-1)) : null };
  }

  @Requires('admin')
  @Delete(':id')
  @Answers(204, null, {
    summary: 'Revoke an API key; all nodes refuse it within five seconds',
    problems: ['not-found', 'database-unavailable'],
  })
  async revoke(@Caller() { actor }: Caller, @Param('id', { schema: keyPath }) id: string): Promise<void> {
    if (!(await this.store.revoke(id, actor))) throw new ApiError('not-found', 'There is no such key.');
  }
}

const cursorOf = (scope: string, last: ApiKey | undefined): string | null =>
  last ? encodeCursor(scope, { createdAt: last.createdAt, id: last.id }) : null;
