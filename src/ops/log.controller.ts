import { Controller, Get } from '@nestjs/common';
import { z } from 'zod';
import { Requires } from '../access/requirement.js';
import { EventLog } from '../event-store/log.js';
import { Answers } from '../http/openapi.js';

const whole = z.int().nonnegative();
const LogGenerationList = z
  .object({
    data: z.array(
      z.object({
        generation: whole,
        since: z.iso.datetime(),
        server: z.string().meta({ description: 'names the server on which it began' }),
        ends: z.array(whole).meta({
          description:
            'by lane: the last position that is what it was before. Empty for the first generation',
        }),
        lost: z
          .array(z.object({ lane: whole, from: whole, to: whole }))
          .meta({ description: 'positions of events that nodes had appended and that were gone' }),
      }),
    ),
  })
  .meta({ id: 'LogGenerationList' });

@Controller('v1/admin/log')
export class LogController {
  constructor(private readonly log: EventLog) {}

  @Requires('admin')
  @Get('generations')
  @Answers(200, LogGenerationList, {
    summary: 'The generations of the log: when it was set back, by a failover or restore, and what was gone',
    problems: ['database-unavailable'],
  })
  async generations(): Promise<z.infer<typeof LogGenerationList>> {
    const records = await this.log.generationRecords();
    return { data: records.map((record) => ({ ...record, lost: [...record.lost], ends: [...record.ends] })) };
  }
}
