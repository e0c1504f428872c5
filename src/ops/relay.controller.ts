import { Controller, Get } from '@nestjs/common';
import { z } from 'zod';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { Relay } from '../kafka/relay.js';

const events = z.int().nonnegative();
const RelayStatus = z
  .object({
    isOn: z.boolean().meta({ description: 'brokers are named; without, events wait in the log' }),
    problem: z
      .string()
      .nullable()
      .meta({ description: 'why nothing is published at the moment, on this node' }),
    behind: events.meta({ description: 'events of the log that the brokers have not acknowledged' }),
    lanes: z.array(z.object({ lane: events, behind: events })),
  })
  .meta({ id: 'RelayStatus' });

@Controller('v1/admin/relay')
export class RelayController {
  constructor(private readonly relay: Relay) {}

  @Requires('admin')
  @Get()
  @Answers(200, RelayStatus, {
    summary: 'How far Kafka is behind the log, over all nodes',
    problems: ['database-unavailable'],
  })
  async status(): Promise<z.infer<typeof RelayStatus>> {
    const { behind, lanes } = await this.relay.lag();
    return {
      isOn: this.relay.isOn,
      problem: (this.relay.isOn && this.relay.problem) || null,
      behind,
      lanes: lanes.map((one, lane) => ({ lane, behind: one })),
    };
  }
}
