import { Controller, Get, Post, Query } from '@nestjs/common';
import { z } from 'zod';
import { sessionId } from '../domain/session.events.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { Sweeper } from '../sweeper/sweeper.js';

const count = z.int().nonnegative();
const sweepCounts = {
  ttl: count,
  cap: count,
  lease: count,
  retention: count,
  schedule: count,
  erasure: count,
};
const notSealed = count.meta({
  description: 'sessions that were due to be erased and cannot be, because a part of them is stored in plain',
});
const SweepReport = z
  .object({
    found: z.object(sweepCounts),
    swept: z.object(sweepCounts),
    notSealed,
    lagMs: count.meta({ description: 'how long the session that waited longest had been due' }),
    durationMs: count,
  })
  .meta({ id: 'SweepReport' });

const SweepStatus = z
  .object({
    intervalMs: count,
    lanes: count.meta({ description: 'lanes that this node sweeps' }),
    lacksMasterKey: z.boolean().meta({
      description:
        'true: `eraseAfter` is set, and nothing can be erased, because the service has no master key',
    }),
    last: SweepReport.nullable(),
    totals: z
      .object({ ...sweepCounts, notSealed, restored: count, rejected: count, overdue: count, evicted: count })
      .meta({ description: 'of this node since it was started' }),
    dryRun: z
      .object({
        actions: z.array(
          z.object({
            tenant: z.string(),
            sessionId,
            action: z.enum([
              'expire',
              'fail-generation',
              'delete',
              'schedule-erasure',
              'call-off-erasure',
              'erase',
            ]),
            reason: z.enum(['ttl', 'cap', 'lease', 'retention', 'schedule', 'erasure']),
            lastActivityAt: z.iso.datetime(),
            at: z.iso
              .datetime()
              .optional()
              .meta({ description: 'when it is to be erased, of an erasure that is scheduled' }),
            why: z.string(),
          }),
        ),
        isComplete: z.boolean().meta({ description: 'false: there are more than `limit`' }),
      })
      .optional()
      .meta({ description: 'what a sweep of all lanes would do now' }),
  })
  .meta({ id: 'SweepStatus' });

const SweepQuery = z.strictObject({
  dryRun: z.enum(['true', 'false']).default('false'),
  limit: z.coerce.number().int().min(1).max(10_000).default(1_000),
});

@Controller('v1/admin/sweep')
export class SweeperController {
  constructor(private readonly sweeper: Sweeper) {}

  @Requires('admin')
  @Get()
  @Answers(200, SweepStatus, {
    summary: 'What the sweeper has done, and with dryRun=true what it would do now and why',
    problems: ['database-unavailable'],
  })
  async status(
    @Query({ schema: SweepQuery }) { dryRun, limit }: z.infer<typeof SweepQuery>,
  ): Promise<z.infer<typeof SweepStatus>> {
    const status = this.sweeper.status();
    return dryRun === 'true' ? { ...status, dryRun: await this.sweeper.dryRun(limit) } : status;
  }

  @Requires('admin')
  @Post()
  @Answers(200, SweepReport, {
    summary: 'Sweep all lanes now',
    problems: ['overloaded', 'database-unavailable'],
  })
  sweep(): Promise<z.infer<typeof SweepReport>> {
    return this.sweeper.sweep('all');
  }
}
