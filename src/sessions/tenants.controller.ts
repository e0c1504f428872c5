import { Body, Controller, Get, Param, Put, Query, Res } from '@nestjs/common';
import { type FastifyReply } from 'fastify';
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { TENANT_ID } from '../domain/tenant.js';
import { EventLog } from '../event-store/log.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { etag, Write, type WriteContext } from '../http/preconditions.js';
import { ApiError } from '../http/problem.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { retentionPreview } from '../read-models/erasure-candidates.js';
import { activeSessions } from './active-sessions.js';
import { TenantPolicies, type TenantSettings } from './tenant-policies.js';

const tenantPath = z
  .string()
  .regex(TENANT_ID, 'must be 1 to 63 of a-z 0-9 _ - and begin with a letter or digit');

// The same bounds as in the settings file. With a longer time to live, the expiry of a session would exceed the range
// of dates.
const maxSessions = z.int().min(1).max(1_000_000_000);
const duration = z
  .int()
  .min(1)
  .max(100 * 365 * 24 * 3_600_000);
const capPolicy = z.enum(['reject', 'evict']);

const ChangeTenantBody = z.strictObject({
  maxSessions: maxSessions.nullable().optional(),
  sessionTTL: duration.nullable().optional(),
  capPolicy: capPolicy.nullable().optional(),
  deleteAfter: duration.nullable().optional().meta({
    description: 'milliseconds after its expiry after which a session is deleted',
  }),
  eraseAfter: duration.nullable().optional().meta({
    description: 'milliseconds after its deletion or expiry after which a session is erased',
  }),
});

const ChangeTenantQuery = z.strictObject({
  dryRun: z.enum(['true', 'false']).default('false').meta({
    description: 'true: changes nothing, and says what the change would lead to',
  }),
});

const retention = { deleteAfter: z.int().optional(), eraseAfter: z.int().optional() };
const count = z.int().nonnegative();

const Tenant = z
  .object({
    id: tenantPath,
    version: z.int().nonnegative().meta({ description: 'of its own settings; 0 if there never were any' }),
    effective: z
      .object({ maxSessions: z.int(), sessionTTL: z.int(), capPolicy, ...retention })
      .meta({ description: 'what holds: own settings over the settings file over the defaults' }),
    own: z
      .object({ maxSessions: z.int(), sessionTTL: z.int(), capPolicy, ...retention })
      .partial()
      .meta({ description: 'what was set here' }),
    activeSessions: count,
    dryRun: z
      .object({ delete: count, scheduleErasure: count, callOffErasure: count })
      .optional()
      .meta({ description: 'how many sessions the next sweep would deal with by these settings' }),
  })
  .meta({ id: 'Tenant' });

@Controller('v1/admin/tenants')
export class TenantsController {
  constructor(
    private readonly policies: TenantPolicies,
    private readonly store: EventLog,
    private readonly models: ReadModels,
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
    description: 'With dryRun=true nothing is changed, and the answer is what it would be.',
    etag: true,
    problems: [
      'not-sealed',
      'idempotency-key-reused',
      'version-mismatch',
      'overloaded',
      'projection-lagging',
      'database-unavailable',
    ],
  })
  async change(
    @Write() { caller, correlationId, ifMatch, idempotencyKey }: WriteContext,
    @Param('id', { schema: tenantPath }) id: string,
    @Body({ schema: ChangeTenantBody }) body: z.infer<typeof ChangeTenantBody>,
    @Query({ schema: ChangeTenantQuery }) { dryRun }: z.infer<typeof ChangeTenantQuery>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    if (typeof body.eraseAfter === 'number' && !this.store.isSealed) {
      throw new ApiError(
        'not-sealed',
        'The service has no master key, so what is stored cannot be erased: give it one before you set eraseAfter.',
      );
    }
    if (dryRun === 'true') {
      const settings = await this.policies.preview(id, body);
      const preview = await retentionPreview(this.models, id, settings.effective);
      return { ...(await this.present(id, settings, reply)), dryRun: preview };
    }
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
