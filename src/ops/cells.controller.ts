import { Controller, Get, Inject } from '@nestjs/common';
import { z } from 'zod';
import { Requires } from '../access/requirement.js';
import { Cells } from '../cells/cells.js';
import { FIRST_CELL } from '../config.js';
import { Answers } from '../http/openapi.js';
import { Health } from './health.js';

const CellList = z
  .object({
    data: z.array(
      z.object({
        name: z.string(),
        weight: z.int().nonnegative().meta({ description: 'its part of the tenants that are new' }),
        tenants: z.int().nonnegative().meta({
          description:
            'that live there; of the first cell without those that were there before there were cells',
        }),
        status: z.enum(['ok', 'unavailable']).meta({ description: 'as this node sees it' }),
      }),
    ),
  })
  .meta({ id: 'CellList' });

@Controller('v1/admin/cells')
export class CellsController {
  constructor(
    @Inject(Cells) private readonly cells: Cells | null,
    private readonly health: Health,
  ) {}

  @Requires('admin')
  @Get()
  @Answers(200, CellList, {
    summary: 'The cells, and how many tenants live in each; the first one has the directory',
    problems: ['database-unavailable'],
  })
  async list(): Promise<z.infer<typeof CellList>> {
    const [tenants, others, isReady] = await Promise.all([
      this.cells?.tenants(),
      this.cells?.status(),
      this.health.isReady(),
    ]);
    const first = {
      name: FIRST_CELL,
      weight: this.cells?.firstWeight ?? 1,
      status: isReady ? ('ok' as const) : ('unavailable' as const),
    };
    return {
      data: [first, ...(others ?? [])].map((cell) => ({ ...cell, tenants: tenants?.get(cell.name) ?? 0 })),
    };
  }
}
