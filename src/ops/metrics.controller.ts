import { Controller, Get, Header } from '@nestjs/common';
import { Counter, Gauge, Registry } from 'prom-client';
import { EventLog } from '../event-store/log.js';
import { Requires } from '../access/requirement.js';
import { Relay } from '../kafka/relay.js';
import { Projector } from '../projection-engine/projector.js';
import { Sweeper } from '../sweeper/sweeper.js';

type Samples = readonly (readonly [labels: Record<string, string>, value: number])[];

/**
 * What Prometheus scrapes. Only sums over all tenants, and still for operators only: how much is going on is nobody
 * else's business. Everything is read when it is asked for; nothing is counted on the way of a request.
 */
@Controller('metrics')
export class MetricsController {
  private readonly registry = new Registry();

  constructor(store: EventLog, projector: Projector, relay: Relay, sweeper: Sweeper) {
    const totals = () => sweeper.status().totals;
    this.counter('appends_total', 'Appends asked of this node', [], () => [[{}, store.appends]]);
    this.counter(
      'sessions_swept_total',
      'Sessions that the sweeper of this node dealt with',
      ['reason'],
      () => {
        const { ttl, cap, lease, retention } = totals();
        return Object.entries({ ttl, cap, lease, retention }).map(([reason, count]) => [{ reason }, count]);
      },
    );
    this.counter('sessions_made_room_total', 'Sessions expired for another to come in', ['reason'], () => [
      [{ reason: 'overdue' }, totals().overdue],
      [{ reason: 'evicted' }, totals().evicted],
    ]);
    this.counter('sessions_restored_total', 'Expired sessions that a write brought back', [], () => [
      [{}, totals().restored],
    ]);
    this.counter('sessions_rejected_total', 'Requests refused with session-limit-reached', [], () => [
      [{}, totals().rejected],
    ]);
    this.gauge(
      'sweep_lag_seconds',
      'How long past due the last sweep found the most overdue session',
      [],
      () => [[{}, (sweeper.status().last?.lagMs ?? 0) / 1000]],
    );
    this.gauge('projection_lag_events', 'Events that a read model has not seen', ['projection'], async () =>
      (await projector.lag()).map(({ projection, behind }) => [{ projection }, behind]),
    );
    this.gauge(
      'projection_parked_sessions',
      'Sessions that a read model could not take in',
      ['projection'],
      async () => (await projector.status()).map(({ table, parked }) => [{ projection: table }, parked]),
    );
    if (relay.isOn) {
      this.gauge('relay_lag_events', 'Events that Kafka has not acknowledged', ['lane'], async () =>
        (await relay.lag()).lanes.map((behind, lane) => [{ lane: String(lane) }, behind]),
      );
      this.gauge('relay_up', 'Whether this node reaches Kafka', [], () => [
        [{}, relay.problem === undefined ? 1 : 0],
      ]);
    }
    this.counter('process_cpu_seconds_total', 'Processor time of this node', [], () => {
      const { user, system } = process.cpuUsage();
      return [[{}, (user + system) / 1e6]];
    });
    this.gauge('process_resident_memory_bytes', 'Memory of this node', [], () => [
      [{}, process.memoryUsage.rss()],
    ]);
  }

  @Requires('admin')
  @Get()
  @Header('content-type', Registry.PROMETHEUS_CONTENT_TYPE)
  metrics(): Promise<string> {
    return this.registry.metrics();
  }

  private counter(name: string, help: string, labelNames: string[], read: () => Samples): void {
    const counter: Counter = new Counter({
      name: `colloquy_${name}`,
      help,
      labelNames,
      registers: [this.registry],
      collect: () => {
        counter.reset();
        for (const [labels, value] of read()) counter.inc(labels, value);
      },
    });
  }

  private gauge(
    name: string,
    help: string,
    labelNames: string[],
    read: () => Samples | Promise<Samples>,
  ): void {
    const gauge: Gauge = new Gauge({
      name: `colloquy_${name}`,
      help,
      labelNames,
      registers: [this.registry],
      collect: async () => {
        gauge.reset();
        try {
          for (const [labels, value] of await read()) gauge.set(labels, value);
        } catch {
          // The database is away: what is known without it is told all the same.
        }
      },
    });
  }
}
