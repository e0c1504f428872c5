import { Body, Controller, Delete, Get, Param, Post, Query, Res } from '@nestjs/common';
import { type FastifyReply } from 'fastify';
import { z } from 'zod';
import { moment } from '../domain/session.events.js';
import { TENANT_ID } from '../domain/tenant.js';
import { decodeCursor, encodeCursor } from '../http/cursor.js';
import { Answers } from '../http/openapi.js';
import { ApiError } from '../http/problem.js';
import { ALL_TENANTS, Caller, SCOPES } from './caller.js';
import { type ApiKey, KEY_NAME, KeyStore } from './key-store.js';
import { Requires } from './requirement.js';

const tenant = z
  .union([z.literal(ALL_TENANTS), z.string().regex(TENANT_ID)], {
    error:
      'must be a tenant id (1 to 63 of a-z 0-9 _ -, beginning with a letter or digit) or * for an operator',
  })
  .meta({ description: 'the one tenant that the key reaches, or `*` for the key of an operator' });
const keyName = z
  .string()
  .regex(KEY_NAME, 'must be 1 to 64 letters, digits or ._@-')
  .meta({ description: 'the actor of what its holder does' });
const scopes = z.array(z.enum(SCOPES)).min(1).max(SCOPES.length);
const time = z.iso.datetime();

const Key = z
  .object({
    id: z.string(),
    tenant,
    name: keyName,
    scopes,
    createdAt: time,
    createdBy: z.string(),
    expiresAt: time.nullable(),
    revokedAt: time.nullable(),
  })
  .meta({ id: 'ApiKey' });
const CreatedKey = Key.extend({
  key: z.string().meta({ description: 'what its holder presents; it is shown this once' }),
}).meta({ id: 'CreatedApiKey' });
const KeyList = z.object({ data: z.array(Key), nextCursor: z.string().nullable() });

const CreateKeyBody = z.strictObject({
  tenant,
  name: keyName,
  scopes: scopes.optional().meta({ description: 'all but `admin` unless given; all for an operator' }),
  expiresAt: moment.optional(),
});

const ListKeysQuery = z.strictObject({
  tenant: tenant.optional(),
  limit: z.coerce.number().int().min(1).max(200).default(50),
  cursor: z.string().min(1).max(2048).optional(),
});
const KeyCursor = z.strictObject({ createdAt: moment, id: z.string() });
const keyPath = z.string().min(1).max(64);

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
    @Body({ schema: CreateKeyBody }) body: z.infer<typeof CreateKeyBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    reply.header('cache-control', 'no-store');
    return this.store.create({ ...body, by: actor });
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
