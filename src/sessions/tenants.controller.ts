import { Body, Controller, Get, Param, Put, Res } from '@nestjs/common';
import { type FastifyReply } from 'fastify';
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { TENANT_ID } from '../domain/tenant.js';
import { EventLog } from '../event-store/log.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { etag, Write, type WriteContext } from '../http/preconditions.js';
import { activeSessions } from './active-sessions.js';
import { TenantPolicies, type TenantSettings } from './tenant-policies.js';

const tenantPath = z
  .string()
  .regex(TENANT_ID, 'must be 1 to 63 of a-z 0-9 _ - and begin with a letter or digit');

// The same bounds as in the settings file. With a longer time to live, the expiry of a session would exceed the range
// of dates.
const maxSessions = z.int().min(1).max(1_000_000_000);
const sessionTTL = z
  .int()
  .min(1)
  .max(100 * 365 * 24 * 3_600_000);
const capPolicy = z.enum(['reject', 'evict']);

const ChangeTenantBody = z.strictObject({
  maxSessions: maxSessions.nullable().optional(),
  sessionTTL: sessionTTL.nullable().optional(),
  capPolicy: capPolicy.nullable().optional(),
});

const Tenant = z
  .object({
    id: tenantPath,
    version: z.int().nonnegative().meta({ description: 'of its own settings; 0 if there never were any' }),
    effective: z
      .object({ maxSessions: z.int(), sessionTTL: z.int(), capPolicy })
      .meta({ description: 'what holds: own settings over the settings file over the defaults' }),
    own: z
      .object({ maxSessions: z.int(), sessionTTL: z.int(), capPolicy })
      .partial()
      .meta({ description: 'what was set here' }),
    activeSessions: z.int().nonnegative(),
  })
  .meta({ id: 'Tenant' });

@Controller('v1/admin/tenants')
export class TenantsController {
  constructor(
    private readonly policies: TenantPolicies,
    private readonly store: EventLog,
  ) {}

  @Requires('admin')
  @Get(':id')
  @Answers(200, Tenant, {
    summary: 'What holds for a tenant, and what of it is its own',
    etag: true,
    problems: ['database-unavailable'],
  })
  async get(
    @Param('id', { schema: tenantPath }) id: string,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    return this.present(id, await this.policies.read(id), reply);
  }

  @Requires('admin')
  @Put(':id')
  @Answers(200, Tenant, {
    summary: 'Change settings of a tenant; null takes one back, one that is not given stays',
    etag: true,
    problems: ['idempotency-key-reused', 'version-mismatch', 'overloaded', 'database-unavailable'],
  })
  async change(
    @Write() { caller, correlationId, ifMatch, idempotencyKey }: WriteContext,
    @Param('id', { schema: tenantPath }) id: string,
    @Body({ schema: ChangeTenantBody }) body: z.infer<typeof ChangeTenantBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const settings = await this.policies.change(id, body, {
      actor: caller.actor,
      correlationId,
      ifMatch,
      key:
        idempotencyKey === undefined
          ? undefined
          : {
              scope: `PUT /v1/admin/tenants/${id}`,
              key: idempotencyKey,
              fingerprint: createHash('sha256').update(JSON.stringify(body)).digest('base64url'),
              reference: () => null,
            },
    });
    return this.present(id, settings, reply);
  }

  private async present(id: string, settings: TenantSettings, reply: FastifyReply) {
    reply.header('etag', etag(settings.version));
    return { id, ...settings, activeSessions: await this.store.counters.value(activeSessions(id)) };
  }
}
