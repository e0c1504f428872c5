import { Controller, Get } from '@nestjs/common';
import { z } from 'zod';
import { Requires } from '../access/requirement.js';
import { NodeList } from '../event-store/node-list.js';
import { Answers } from '../http/openapi.js';

const NodeListAnswer = z
  .object({
    data: z.array(
      z.object({
        id: z.uuid(),
        host: z.string(),
        pid: z.int().nonnegative(),
        version: z.string().meta({ description: 'of the service' }),
        startedAt: z.iso.datetime(),
        seenAt: z.iso.datetime().nullable().meta({
          description: 'when it last renewed its leases; null: not yet',
        }),
        status: z.enum(['ok', 'away']).meta({
          description: 'away: its leases ran out; it is dead, suspended, or cut off from the database',
        }),
        isAnswering: z.boolean().meta({ description: 'it is the one that answers this request' }),
        lanes: z
          .record(z.string(), z.array(z.int().nonnegative()))
          .meta({ description: 'by kind of work: the lanes that it has taken' }),
      }),
    ),
  })
  .meta({ id: 'NodeList' });

@Controller('v1/admin/nodes')
export class NodesController {
  constructor(private readonly nodes: NodeList) {}

  @Requires('admin')
  @Get()
  @Answers(200, NodeListAnswer, {
    summary: 'The processes of the service, whether they live, and which lanes each one works on',
    problems: ['database-unavailable'],
  })
  async list(): Promise<z.infer<typeof NodeListAnswer>> {
    const nodes = await this.nodes.all();
    return {
      data: nodes.map(({ isThere, lanes, ...node }) => ({
        ...node,
        status: isThere ? ('ok' as const) : ('away' as const),
        isAnswering: node.id === this.nodes.self,
        lanes: Object.fromEntries([...lanes].map(([work, some]) => [work, [...some]])),
      })),
    };
  }
}
