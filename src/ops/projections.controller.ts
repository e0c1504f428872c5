import { Body, Controller, Get, Param, Post } from '@nestjs/common';
import { z } from 'zod';
import { sessionId } from '../domain/session.events.js';
import { TENANT_ID } from '../domain/tenant.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { ApiError } from '../http/problem.js';
import { type Projection } from '../projection-engine/projection.js';
import { Projector } from '../projection-engine/projector.js';

const count = z.int().nonnegative();
const time = z.iso.datetime();
const projectionName = z.string().regex(/^[a-z]{1,40}$/, 'must be the name of a projection');
const tenant = z.string().regex(TENANT_ID, 'must be a tenant id');

const ProjectionAnswer = z
  .object({
    name: projectionName,
    table: z.string(),
    version: count,
    status: z
      .enum(['live', 'building'])
      .meta({ description: 'building: so far behind the log that this node is not ready' }),
    behind: count.meta({ description: 'events of the log that the read model has not seen yet' }),
    parked: count.meta({ description: 'sessions that it could not take in' }),
    rebuild: z
      .object({
        processed: count.meta({ description: 'events that the new table has seen' }),
        total: count.meta({ description: 'events in the log by now' }),
        startedAt: time,
      })
      .nullable(),
  })
  .meta({ id: 'Projection' });

const Verification = z
  .object({
    name: projectionName,
    ok: z.boolean(),
    rows: count.meta({ description: 'of the read model, without sessions that are left out' }),
    hash: z.string().meta({ description: 'of all columns of these rows' }),
    expectedRows: count,
    expectedHash: z.string(),
    parked: count.meta({ description: 'sessions left out: parked, or not to be folded at all' }),
    firstDifference: z
      .object({ tenant, sessionId })
      .nullable()
      .meta({ description: 'the first session that differs, by tenant and id' }),
  })
  .meta({ id: 'Verification' });

const ParkedSession = z
  .object({
    projection: projectionName,
    tenant,
    sessionId,
    version: count.meta({ description: 'of the first event that the read model lacks' }),
    error: z.string(),
    parkedAt: time,
  })
  .meta({ id: 'ParkedSession' });

const ParkedBody = z.strictObject({ projection: projectionName, tenant, sessionId });
const Resumed = z.object({
  parked: ParkedSession.nullable().meta({ description: 'how it is parked now; null: it is not any more' }),
});

@Controller('v1/admin')
export class ProjectionsController {
  constructor(private readonly projector: Projector) {}

  @Requires('admin')
  @Get('projections')
  @Answers(200, z.object({ data: z.array(ProjectionAnswer) }), {
    summary: 'The read models: how far they are, what is parked, and rebuilds that are under way',
    problems: ['database-unavailable'],
  })
  async list(): Promise<{ data: z.infer<typeof ProjectionAnswer>[] }> {
    return { data: await this.projector.status() };
  }

  @Requires('admin')
  @Post('projections/prune')
  @Answers(200, z.object({ dropped: z.array(z.string()) }), {
    summary: 'Drop the tables of versions that no node uses; those of a node that fell silent a minute later',
    problems: ['database-unavailable'],
  })
  async prune(): Promise<{ dropped: string[] }> {
    return { dropped: await this.projector.prune() };
  }

  @Requires('admin')
  @Post('projections/:name/rebuild')
  @Answers(202, ProjectionAnswer, {
    summary: 'Build a read model anew from the log beside the one that serves, then put it in its place',
    description: 'Begun, or under way already.',
    problems: ['not-found', 'database-unavailable'],
  })
  async rebuild(
    @Param('name', { schema: projectionName }) name: string,
  ): Promise<z.infer<typeof ProjectionAnswer>> {
    const projection = this.named(name);
    await this.projector.rebuild(projection);
    const status = (await this.projector.status()).find((one) => one.name === name);
    if (!status) throw new Error(`there is no status of ${name}`);
    return status;
  }

  @Requires('admin')
  @Post('projections/:name/verify')
  @Answers(200, Verification, {
    summary: 'Compare a read model with a fresh fold of the whole log; takes as long as a rebuild',
    problems: ['not-found', 'database-unavailable'],
  })
  async verify(
    @Param('name', { schema: projectionName }) name: string,
  ): Promise<z.infer<typeof Verification>> {
    return this.projector.verify(this.named(name));
  }

  @Requires('admin')
  @Get('parked')
  @Answers(200, z.object({ data: z.array(ParkedSession) }), {
    summary: 'Sessions that a read model could not take in, and why',
    problems: ['database-unavailable'],
  })
  async parked(): Promise<{ data: z.infer<typeof ParkedSession>[] }> {
    return { data: await this.projector.parked() };
  }

  @Requires('admin')
  @Post('parked/retry')
  @Answers(200, Resumed, {
    summary: 'Take a parked session in, from the event that it was parked at',
    problems: ['not-found', 'overloaded', 'database-unavailable'],
  })
  retry(@Body({ schema: ParkedBody }) body: z.infer<typeof ParkedBody>): Promise<z.infer<typeof Resumed>> {
    return this.resume(body, 'parked');
  }

  @Requires('admin')
  @Post('parked/skip')
  @Answers(200, Resumed, {
    summary: 'Take a parked session in, without the event that it was parked at',
    problems: ['not-found', 'overloaded', 'database-unavailable'],
  })
  skip(@Body({ schema: ParkedBody }) body: z.infer<typeof ParkedBody>): Promise<z.infer<typeof Resumed>> {
    return this.resume(body, 'next');
  }

  private async resume(
    { projection, ...session }: z.infer<typeof ParkedBody>,
    from: 'parked' | 'next',
  ): Promise<z.infer<typeof Resumed>> {
    const resumed = await this.projector.resume(this.named(projection), session, from);
    if (!resumed) throw new ApiError('not-found', `${projection} has not parked such a session`);
    return resumed;
  }

  private named(name: string): Projection {
    const projection = this.projector.find(name);
    if (!projection) throw new ApiError('not-found', `there is no projection ${name}`);
    return projection;
  }
}
