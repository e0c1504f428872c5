import { setTimeout as sleep } from 'node:timers/promises';
import { Inject, Injectable, type OnApplicationBootstrap, type OnModuleInit } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import {
  type Aggregator,
  AggregatorRegistry,
  collectDefaultMetrics,
  Counter,
  Gauge,
  Histogram,
  Registry,
} from 'prom-client';
import { Limits } from '../access/limits.js';
import { Cells } from '../cells/cells.js';
import { type Config, FIRST_CELL, SETTINGS } from '../config.js';
import { RelaxedPool } from '../database/relaxed-pool.js';
import { EventLog } from '../event-store/log.js';
import { answeredListenersOf } from '../http/request-log.js';
import { Relay } from '../kafka/relay.js';
import { Notary } from '../proof/notary.js';
import { Projector } from '../projection-engine/projector.js';
import { isOneOfSeveral, metricsOfAll } from '../sibling-processes.js';
import { Sweeper } from '../sweeper/sweeper.js';

type Samples = readonly (readonly [labels: Record<string, string>, value: number])[];

/** Buckets in seconds, from a fraction of an append to a whole streamed reply. */
const SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
/** A cell whose metrics take longer is left out. */
const PATIENCE_MS = 2_000;
const SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/**
 * The metrics that Prometheus scrapes: sums over all tenants of this node, or of all processes that share its port.
 * Telemetry is counted when it is emitted;
 * values that can be looked up are read at the scrape. Names begin with `colloquy_`, and times are in seconds.
 */
@Injectable()
export class Metrics implements OnModuleInit, OnApplicationBootstrap {
  /** Of all cells of this process. */
  private static readonly registries: Registry[] = [];
  readonly registry = new Registry();

  constructor(
    private readonly host: HttpAdapterHost,
    private readonly store: EventLog,
    private readonly projector: Projector,
    private readonly relay: Relay,
    private readonly sweeper: Sweeper,
    private readonly notary: Notary,
    private readonly relaxed: RelaxedPool,
    private readonly limits: Limits,
    @Inject(Cells) private readonly cells: Cells | null,
    @Inject(SETTINGS) private readonly settings: Config,
  ) {}

  get contentType(): string {
    return this.registry.contentType;
  }

  /** All metrics, in the text format of Prometheus. */
  text(): Promise<string> {
    if (isOneOfSeveral()) return metricsOfAll();
    return this.cells?.areSeveral ? this.ofCells(this.cells) : this.registry.metrics();
  }

  /** Those of all cells, each with its name as a label; without those of a cell that does not answer in time. */
  private async ofCells(cells: Cells): Promise<string> {
    const registries = [this.registry, ...[...cells.others().values()].map(({ registry }) => registry)];
    const answers = await Promise.all(
      registries.map((registry) =>
        Promise.race([registry.getMetricsAsJSON(), sleep(PATIENCE_MS, [], { ref: false })]),
      ),
    );
    return AggregatorRegistry.aggregate(answers).metrics();
  }

  /** Begins to count before the first request. */
  onModuleInit(): void {
    const { cell } = this.settings.storage;
    if (cell !== undefined) this.registry.setDefaultLabels({ cell });
    this.cells?.whenSeveral(() => {
      this.registry.setDefaultLabels({ cell: FIRST_CELL });
    });
    if (isOneOfSeveral()) {
      Metrics.registries.push(this.registry);
      AggregatorRegistry.setRegistries(Metrics.registries);
      // Answers the first process when it asks for the metrics of this one.
      new AggregatorRegistry();
    }
    // Of the process, which has one first cell.
    if (cell === undefined) {
      collectDefaultMetrics({
        register: this.registry,
        prefix: 'colloquy_',
        // With the default of 10 ms, an idle service would wake up a hundred times a second for it.
        eventLoopMonitoringPrecision: 100,
      });
    }
    this.ofRequests();
    this.ofLimits();
    this.ofAppends();
    this.ofModels();
    this.ofFollowers();
    this.ofFailures();
    this.ofPools();
    this.ofSweeper();
    this.ofReadModels();
    this.ofNotary();
  }

  /** The relay, if there are brokers, has been started by now. */
  onApplicationBootstrap(): void {
    if (this.relay.isOn) this.ofRelay();
  }

  private ofRequests(): void {
    const durations = this.histogram(
      'http_request_duration_seconds',
      'From the headers of a request to its answer',
      {
        labelNames: ['method', 'route', 'status'],
      },
    );
    answeredListenersOf(this.host)?.push(({ method, route, status, ms }) => {
      durations.observe({ method, route, status: String(status) }, ms / 1000);
    });
  }

  private ofLimits(): void {
    this.counter('rate_limited_total', 'Requests refused with rate-limited', ['limit'], () =>
      Object.entries(this.limits.refused).map(([limit, count]) => [{ limit }, count] as const),
    );
  }

  private ofAppends(): void {
    const { telemetry } = this.store;
    this.counter('appends_total', 'Appends asked of this node', [], () => [[{}, this.store.appends]]);
    const waits = this.histogram('append_wait_seconds', 'How long appends waited for their batch');
    const commits = this.histogram('append_commit_seconds', 'How long commits took');
    const batches = this.histogram('append_batch_size', 'Appends of a commit', { buckets: SIZES });
    const outcomes = this.counting('append_outcomes_total', 'How appends ended', ['outcome']);
    const overloads = this.counting('overloaded_total', 'Turned away since too much waits', ['what']);
    const conflicts = this.counting('append_conflicts_total', 'Commands decided again after a conflict', []);
    telemetry.on('appended', ({ outcome, waitMs }) => {
      waits.observe(waitMs / 1000);
      outcomes.inc({ outcome });
    });
    telemetry.on('batch', ({ appends, commitMs }) => {
      batches.observe(appends);
      commits.observe(commitMs / 1000);
    });
    telemetry.on('overloaded', ({ what }) => {
      overloads.inc({ what });
    });
    telemetry.on('conflict', () => {
      conflicts.inc();
    });
  }

  private ofModels(): void {
    const calls = this.histogram('model_call_seconds', 'How long calls of models took', {
      labelNames: ['model', 'outcome'],
    });
    const first = this.histogram('model_first_text_seconds', 'Until the first piece of text', {
      labelNames: ['model'],
    });
    const tokens = this.counting('model_tokens_total', 'Tokens as the provider counts them', [
      'model',
      'kind',
    ]);
    this.store.telemetry.on(
      'modelCalled',
      ({ model, outcome, ms, firstTextMs, inputTokens, outputTokens }) => {
        calls.observe({ model, outcome }, ms / 1000);
        if (firstTextMs !== undefined) first.observe({ model }, firstTextMs / 1000);
        tokens.inc({ model, kind: 'input' }, inputTokens);
        tokens.inc({ model, kind: 'output' }, outputTokens);
      },
    );
  }

  /** What those that follow the log have done. */
  private ofFollowers(): void {
    const { telemetry } = this.store;
    const projected = this.counting('projected_events_total', 'Events that read models applied', [
      'projection',
    ]);
    const parked = this.counting('parkings_total', 'Sessions that read models could not take in', [
      'projection',
    ]);
    const replicas = this.counting('replica_reads_total', 'Reads for which a replica was asked', ['outcome']);
    const published = this.counting('published_events_total', 'Events that the brokers acknowledged', []);
    telemetry.on('projected', ({ projection, events }) => {
      projected.inc({ projection }, events);
    });
    telemetry.on('parked', ({ projection }) => {
      parked.inc({ projection });
    });
    telemetry.on('replicaRead', ({ outcome }) => {
      replicas.inc({ outcome });
    });
    telemetry.on('published', ({ events }) => {
      published.inc(events);
    });
  }

  private ofFailures(): void {
    const { telemetry } = this.store;
    const failures = this.counting('failures_total', 'What failed without anybody waiting for it', ['what']);
    const leases = this.counting('leases_lost_total', 'Leases that this node held and lost', []);
    const lost = this.counting(
      'events_lost_total',
      'Events that this node had appended and that were gone after a failover or restore',
      [],
    );
    this.gauge('log_generation', 'How often the log has become another one, from 1', [], 'max', () => [
      [{}, this.store.generations.current],
    ]);
    telemetry.on('newGeneration', (begun) => {
      lost.inc(begun.lost);
    });
    telemetry.on('failed', ({ what }) => {
      failures.inc({ what });
    });
    telemetry.on('leaseLost', () => {
      leases.inc();
    });
  }

  private ofPools(): void {
    const pools = { log: this.store.pool, relaxed: this.relaxed.pool };
    this.gauge('pool_connections', 'Connections to the database', ['pool', 'state'], 'sum', () =>
      Object.entries(pools).flatMap(([pool, { idleCount, totalCount }]) => [
        [{ pool, state: 'idle' }, idleCount] as const,
        [{ pool, state: 'busy' }, totalCount - idleCount] as const,
      ]),
    );
    this.gauge('pool_waiting', 'Queries that wait for a connection', ['pool'], 'sum', () =>
      Object.entries(pools).map(([pool, { waitingCount }]) => [{ pool }, waitingCount] as const),
    );
  }

  private ofSweeper(): void {
    const totals = () => this.sweeper.status().totals;
    this.counter(
      'sessions_swept_total',
      'Sessions that the sweeper of this node dealt with',
      ['reason'],
      () => {
        const { ttl, cap, lease, retention, schedule, erasure, notSealed } = totals();
        const counts = { ttl, cap, lease, retention, schedule, erasure, 'not-sealed': notSealed };
        return Object.entries(counts).map(([reason, count]) => [{ reason }, count]);
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
      'max',
      () => [[{}, (this.sweeper.status().last?.lagMs ?? 0) / 1000]],
    );
  }

  private ofReadModels(): void {
    this.gauge(
      'projection_lag_events',
      'Events that a read model has not seen',
      ['projection'],
      'max',
      async () =>
        (await this.projector.lag()).map(({ projection, behind }) => [{ projection }, behind] as const),
    );
    this.gauge(
      'projection_lag_seconds',
      'Age of the oldest event that a read model has not seen',
      ['projection'],
      'max',
      async () =>
        (await this.projector.lagSeconds()).map(
          ({ projection, seconds }) => [{ projection }, seconds] as const,
        ),
    );
    this.gauge(
      'projection_parked_sessions',
      'Sessions that a read model could not take in',
      ['projection'],
      'max',
      async () =>
        (await this.projector.status()).map(({ table, parked }) => [{ projection: table }, parked] as const),
    );
  }

  private ofNotary(): void {
    this.gauge(
      'notary_lag_events',
      'Events that no tree of the notary has taken in',
      ['lane'],
      'max',
      async () => (await this.notary.lag()).map((behind, lane) => [{ lane: String(lane) }, behind] as const),
    );
  }

  private ofRelay(): void {
    this.gauge('relay_lag_events', 'Events that Kafka has not acknowledged', ['lane'], 'max', async () =>
      (await this.relay.lag()).lanes.map((behind, lane) => [{ lane: String(lane) }, behind] as const),
    );
    this.gauge(
      'relay_lag_seconds',
      'Age of the oldest event that Kafka has not acknowledged',
      [],
      'max',
      async () => [[{}, await this.relay.lagSeconds()]],
    );
    this.gauge('relay_up', 'Whether this node reaches Kafka', [], 'min', () => [
      [{}, this.relay.problem === undefined ? 1 : 0],
    ]);
  }

  private histogram(
    name: string,
    help: string,
    {
      labelNames = [],
      buckets = SECONDS,
    }: { readonly labelNames?: string[]; readonly buckets?: number[] } = {},
  ): Histogram {
    return new Histogram({ name: `colloquy_${name}`, help, labelNames, buckets, registers: [this.registry] });
  }

  /** A counter that counts from now on. */
  private counting(name: string, help: string, labelNames: string[]): Counter {
    return new Counter({ name: `colloquy_${name}`, help, labelNames, registers: [this.registry] });
  }

  /** A counter that is kept elsewhere and read at the scrape. */
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

  /** @param aggregator how the values of several processes become one */
  private gauge(
    name: string,
    help: string,
    labelNames: string[],
    aggregator: Aggregator,
    read: () => Samples | Promise<Samples>,
  ): void {
    const gauge: Gauge = new Gauge({
      name: `colloquy_${name}`,
      help,
      labelNames,
      aggregator,
      registers: [this.registry],
      collect: async () => {
        gauge.reset();
        try {
          for (const [labels, value] of await read()) gauge.set(labels, value);
        } catch (error) {
          // Without the database, the metrics that need none are still served.
          this.store.telemetry.emit('failed', { what: `reading the metric ${name}`, error });
        }
      },
    });
  }
}
