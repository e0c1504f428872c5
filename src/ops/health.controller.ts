import { Controller, Get, Inject, Req, Res } from '@nestjs/common';
import { type FastifyReply, type FastifyRequest } from 'fastify';
import { z } from 'zod';
import { Public } from '../access/requirement.js';
import { Cells } from '../cells/cells.js';
import { Answers } from '../http/openapi.js';
import { areFine, type Checks, Health } from './health.js';

const HealthAnswer = z
  .object({
    status: z.enum(['ok', 'unavailable']),
    checks: z.record(
      z.string(),
      // A degraded part does not keep requests from being served.
      z.object({
        status: z.enum(['ok', 'degraded', 'unavailable']),
        detail: z.string().optional().meta({ description: 'for operators' }),
      }),
    ),
  })
  .meta({ id: 'Health' });

@Controller('health')
export class HealthController {
  constructor(
    private readonly health: Health,
    @Inject(Cells) private readonly cells: Cells | null,
  ) {}

  /** Answers as long as the process works; a restart could not mend anything else. */
  @Public()
  @Get('live')
  @Answers(200, z.object({ status: z.literal('ok') }), { summary: 'Is the process alive?' })
  live() {
    return { status: 'ok' as const };
  }

  @Public()
  @Get('ready')
  @Answers(200, HealthAnswer, { summary: 'Can requests be served?' })
  @Answers(503, HealthAnswer, { description: 'Not now; the checks say why.' })
  async ready(
    @Req() { caller, server }: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<z.infer<typeof HealthAnswer>> {
    const checks = server.isDraining ? STOPPING : await this.withCells(await this.health.checks());
    const ready = areFine(checks);
    if (!ready) reply.status(503);
    return {
      status: ready ? 'ok' : 'unavailable',
      checks: caller?.scopes.has('admin') ? checks : withoutDetails(checks),
    };
  }

  /** With several cells, one that is away must not keep requests from the others: the node is ready if any of them is. */
  private async withCells(first: Checks): Promise<Checks> {
    if (!this.cells?.areSeveral) return first;
    const others = await this.cells.status();
    const isAny = areFine(first) || others.some(({ status }) => status === 'ok');
    const away = isAny ? ('degraded' as const) : ('unavailable' as const);
    return Object.fromEntries([
      ...Object.entries(first).map(([name, check]) => [
        name,
        check.status === 'unavailable' ? { ...check, status: away } : check,
      ]),
      ...others.map(({ name, status }) => [`cell ${name}`, { status: status === 'ok' ? status : away }]),
    ]) as Checks;
  }
}

const STOPPING: Checks = { node: { status: 'unavailable', detail: 'it is about to stop' } };
/** Only operators may see how much is going on, and the names of brokers and servers. */
const withoutDetails = (checks: Checks): Checks =>
  Object.fromEntries(Object.entries(checks).map(([name, { status }]) => [name, { status }]));
