import { Controller, Get, Req, Res } from '@nestjs/common';
import { type FastifyReply, type FastifyRequest } from 'fastify';
import { z } from 'zod';
import { Public } from '../access/requirement.js';
import { EventLog } from '../event-store/log.js';
import { Answers } from '../http/openapi.js';
import { Relay } from '../kafka/relay.js';
import { BEHIND_AT_MOST, Projector } from '../projection-engine/projector.js';

const Health = z
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

type Checks = z.infer<typeof Health>['checks'];

/** A database that has not answered for this long counts as unavailable. */
const PATIENCE_MS = 1_500;
/** Checks are answered from memory for this long, so that nobody can make the service run queries by asking often. */
const FRESH_MS = 1_000;

@Controller('health')
export class HealthController {
  private looking: Promise<Checks> | undefined;
  private seen: { readonly checks: Checks; readonly at: number } | undefined;

  constructor(
    private readonly store: EventLog,
    private readonly projector: Projector,
    private readonly relay: Relay,
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
  @Answers(200, Health, { summary: 'Can requests be served?' })
  @Answers(503, Health, { description: 'Not now; the checks say why.' })
  async ready(
    @Req() { caller, server }: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<z.infer<typeof Health>> {
    const checks = server.isDraining ? STOPPING : await this.checks();
    const ready = Object.values(checks).every((check) => check.status !== 'unavailable');
    if (!ready) reply.status(503);
    return {
      status: ready ? 'ok' : 'unavailable',
      checks: caller?.scopes.has('admin') ? checks : withoutDetails(checks),
    };
  }

  private async checks(): Promise<Checks> {
    if (this.seen && performance.now() - this.seen.at < FRESH_MS) return this.seen.checks;
    this.looking ??= this.look().finally(() => {
      this.looking = undefined;
    });
    const checks = await within(PATIENCE_MS, this.looking, SILENT);
    this.seen = { checks, at: performance.now() };
    return checks;
  }

  private async look(): Promise<Checks> {
    const checks: Checks = {};
    try {
      await this.store.now();
      checks['database'] = { status: 'ok' };
      for (const { projection, behind } of await this.projector.lag()) {
        checks[`projection ${projection}`] =
          behind <= BEHIND_AT_MOST
            ? { status: 'ok' }
            : { status: 'unavailable', detail: `${behind} events behind the log` };
      }
      if (this.relay.isOn) checks['kafka'] = await this.kafka();
    } catch (error) {
      checks['database'] = { status: 'unavailable', detail: (error as Error).message };
    }
    return checks;
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

const STOPPING: Checks = { node: { status: 'unavailable', detail: 'it is about to stop' } };
const SILENT: Checks = { database: { status: 'unavailable', detail: `no answer within ${PATIENCE_MS} ms` } };

/** Only operators may see how much is going on, and the names of brokers and servers. */
const withoutDetails = (checks: Checks): Checks =>
  Object.fromEntries(Object.entries(checks).map(([name, { status }]) => [name, { status }]));

async function within<T>(ms: number, answer: Promise<T>, otherwise: T): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<T>((resolve) => {
    timer = setTimeout(resolve, ms, otherwise);
  });
  return Promise.race([answer, late]).finally(() => {
    clearTimeout(timer);
  });
}
