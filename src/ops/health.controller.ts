import { Controller, Get, Res } from '@nestjs/common';
import { type FastifyReply } from 'fastify';
import { z } from 'zod';
import { Answers } from '../http/openapi.js';
import { EventLog } from '../event-store/log.js';
import { Relay } from '../kafka/relay.js';
import { BEHIND_AT_MOST, Projector } from '../projection-engine/projector.js';

const Health = z
  .object({
    status: z.enum(['ok', 'unavailable']),
    checks: z.record(
      z.string(),
      // What is degraded does not keep requests from being served.
      z.object({ status: z.enum(['ok', 'degraded', 'unavailable']), detail: z.string().optional() }),
    ),
  })
  .meta({ id: 'Health' });

type Checks = z.infer<typeof Health>['checks'];

@Controller('health')
export class HealthController {
  constructor(
    private readonly store: EventLog,
    private readonly projector: Projector,
    private readonly relay: Relay,
  ) {}

  /** The process answers: all that a restart could mend. */
  @Get('live')
  @Answers(200, z.object({ status: z.literal('ok') }), { summary: 'Is the process alive?' })
  live() {
    return { status: 'ok' as const };
  }

  @Get('ready')
  @Answers(200, Health, { summary: 'Can requests be served?' })
  @Answers(503, Health, { description: 'Not now; the checks say why.' })
  async ready(@Res({ passthrough: true }) reply: FastifyReply): Promise<z.infer<typeof Health>> {
    const checks: Checks = {};
    try {
      await this.store.now();
      checks.database = { status: 'ok' };
      for (const { projection, behind } of await this.projector.lag()) {
        checks[`projection ${projection}`] =
          behind <= BEHIND_AT_MOST
            ? { status: 'ok' }
            : { status: 'unavailable', detail: `${behind} events behind the log` };
      }
      if (this.relay.isOn) checks.kafka = await this.kafka();
    } catch {
      checks.database = { status: 'unavailable', detail: 'cannot be reached' };
    }
    const ready = Object.values(checks).every((check) => check.status !== 'unavailable');
    if (!ready) reply.status(503);
    return { status: ready ? 'ok' : 'unavailable', checks };
  }

  private async kafka(): Promise<Checks[string]> {
    const { problem } = this.relay;
    const { behind } = await this.relay.lag();
    const detail = [...(problem === undefined ? [] : [problem]), `${behind} events behind the log`].join(
      '; ',
    );
    return { status: problem === undefined ? 'ok' : 'degraded', detail };
  }
}
