import { Controller, Get, Query } from '@nestjs/common';
import { type z } from 'zod';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { SessionQueries } from './session-queries.js';
import { TenantUsage, TenantUsageQuery } from './session.schemas.js';

@Controller('v1/usage')
export class UsageController {
  constructor(private readonly queries: SessionQueries) {}

  @Requires('sessions:read:own')
  @Get()
  @Answers(200, TenantUsage, {
    summary: 'Tokens of all sessions, by model and day (UTC) or owner',
    problems: ['projection-lagging', 'upgrade-in-progress', 'database-unavailable'],
  })
  usage(
    @Caller() caller: Caller,
    @Query({ schema: TenantUsageQuery }) query: z.infer<typeof TenantUsageQuery>,
  ) {
    return this.queries.usageOf(caller, query);
  }
}
