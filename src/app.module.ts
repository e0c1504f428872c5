import { randomUUID } from 'node:crypto';
import {
  type DynamicModule,
  Inject,
  Logger,
  Module,
  type OnApplicationShutdown,
  type Provider,
} from '@nestjs/common';
import { CommandBus, CqrsModule } from '@nestjs/cqrs';
import { getDataSourceToken, TypeOrmModule } from '@nestjs/typeorm';
import { type Pool } from 'pg';
import { type DataSource } from 'typeorm';
import { AuditController } from './audit/audit.controller.js';
import { Feed } from './audit/feed.js';
import { Forks } from './audit/fork.js';
import { Past } from './audit/past.js';
import { ProjectionsController } from './ops/projections.controller.js';
import { type Config } from './config.js';
import { connect, connectionConfig, createPool, DatabaseUnavailable } from './database/connection.js';
import { upcast } from './domain/session.events.js';
import { EventLog } from './event-store/log.js';
import { Leases } from './event-store/leases.js';
import { Log1770000000001 } from './event-store/migrations/0001-log.js';
import { AppendEvent1770000000009 } from './event-store/migrations/0009-append-event.js';
import { StreamState1770000000010 } from './event-store/migrations/0010-stream-state.js';
import { Past1770000000008 } from './event-store/migrations/0008-past.js';
import { Import1770000000007 } from './event-store/migrations/0007-import.js';
import { type ChatModel } from './generation/chat-model.js';
import { echoModel } from './generation/echo.chat-model.js';
import { GenerationController } from './generation/generation.controller.js';
import { Generations } from './generation/generations.js';
import { OpenAiModel } from './generation/openai.chat-model.js';
import { HealthController } from './ops/health.controller.js';
import { ContractController, KAFKA_CONTRACT } from './kafka/contract.controller.js';
import { Relay1770000000003 } from './kafka/migrations/0003-relay.js';
import { Relay, type RelayOptions } from './kafka/relay.js';
import { MetricsController } from './ops/metrics.controller.js';
import { historyProjection } from './read-models/history.projection.js';
import { Checkpoints1770000000002 } from './projection-engine/migrations/0002-checkpoints.js';
import { Rebuilds1770000000006 } from './projection-engine/migrations/0006-rebuilds.js';
import { Projector } from './projection-engine/projector.js';
import { ReadModels } from './projection-engine/strong-reads.js';
import { sessionsProjection } from './read-models/sessions.projection.js';
import { usageProjection } from './read-models/usage.projection.js';
import { RelayController } from './ops/relay.controller.js';
import { commandHandlers, SessionCommands } from './sessions/session-commands.js';
import { GenerationChunks1770000000004 } from './sessions/migrations/0004-generation-chunks.js';
import { PartialReplies } from './sessions/partial-replies.js';
import { SessionQueries } from './sessions/session-queries.js';
import { ApprovalsController } from './sessions/approvals.controller.js';
import { SessionsController } from './sessions/sessions.controller.js';
import { TenantStreams1770000000005 } from './sessions/migrations/0005-tenant-streams.js';
import { TenantPolicies } from './sessions/tenant-policies.js';
import { TenantsController } from './sessions/tenants.controller.js';
import { SweeperController } from './ops/sweeper.controller.js';
import { Sweeper } from './sweeper/sweeper.js';

/** In the order in which they are applied. */
export const migrations = [
  Log1770000000001,
  Checkpoints1770000000002,
  Relay1770000000003,
  GenerationChunks1770000000004,
  TenantStreams1770000000005,
  Rebuilds1770000000006,
  Import1770000000007,
  Past1770000000008,
  AppendEvent1770000000009,
  StreamState1770000000010,
];

/** A read model is one file and one line here. */
const projections = [sessionsProjection, historyProjection, usageProjection];

const RELAXED_POOL = Symbol('pool whose commits do not wait for the disk');
/** Keyed results are found for a day; those that are older only take room. */
const PRUNE_MS = 3_600_000;

/** The composition root: what is made of what. The database must be migrated. */
@Module({})
export class AppModule implements OnApplicationShutdown {
  private readonly pruning: NodeJS.Timeout;

  constructor(
    private readonly store: EventLog,
    private readonly projector: Projector,
    private readonly leases: Leases,
    private readonly generations: Generations,
    private readonly policies: TenantPolicies,
    private readonly sweeper: Sweeper,
    private readonly relay: Relay,
    partials: PartialReplies,
    @Inject(RELAXED_POOL) private readonly relaxed: { readonly pool: Pool },
  ) {
    const prune = (): void => {
      // Housekeeping: what fails now is done in an hour.
      store.keyed.prune().catch(() => undefined);
      partials.prune().catch(() => undefined);
    };
    prune();
    this.pruning = setInterval(prune, PRUNE_MS);
    this.pruning.unref();
  }

  static create(config: Config, databaseUrl: string): DynamicModule {
    const logger = new Logger('projector');
    const reported = new Set<string>();
    const providers: Provider[] = [
      {
        provide: EventLog,
        useFactory: () => EventLog.open(databaseUrl, { upcast }),
      },
      {
        provide: Leases,
        useFactory: (store: EventLog) => store.leases(randomUUID()),
        inject: [EventLog],
      },
      {
        provide: ReadModels,
        useFactory: (source: DataSource, store: EventLog) => new ReadModels(source, store),
        inject: [getDataSourceToken(), EventLog],
      },
      {
        provide: RELAXED_POOL,
        // What a crash of the database takes back, rows and checkpoint alike, is simply projected again.
        useFactory: () => ({
          pool: createPool(databaseUrl, 'relaxed', { max: 10, settings: '-c synchronous_commit=off' }),
        }),
      },
      {
        provide: Projector,
        useFactory: async (
          store: EventLog,
          leases: Leases,
          models: ReadModels,
          { pool }: { readonly pool: Pool },
        ) => {
          const projector = new Projector({
            store,
            pool,
            leases,
            projections,
            connect: () => connect(databaseUrl, 'verify', { query_timeout: 3_600_000 }),
            onProgress: () => {
              models.advanced();
              reported.clear();
            },
            onNotice: (message) => {
              logger.warn(message);
            },
            // Once until it goes on again: a database that is away must not flood the log.
            onError: (error, projection) => {
              if (!reported.has(projection)) logger.error(`${projection} cannot go on for now`, error);
              reported.add(projection);
            },
          });
          await projector.start();
          return projector;
        },
        inject: [EventLog, Leases, ReadModels, RELAXED_POOL],
      },
      {
        provide: Relay,
        useFactory: (store: EventLog, leases: Leases, { pool }: { readonly pool: Pool }) => {
          const relay = new Relay(store, pool, leases, relayOptions(config.kafka));
          // Without brokers events wait in the log, and nothing of the Kafka client is loaded.
          if (config.kafka.brokers.length > 0) relay.start();
          return relay;
        },
        inject: [EventLog, Leases, RELAXED_POOL],
      },
      {
        provide: KAFKA_CONTRACT,
        useValue: config.kafka,
      },
      {
        provide: TenantPolicies,
        useFactory: async (store: EventLog) => {
          const policies = new TenantPolicies(store, config.sessions, config.tenants);
          await policies.start();
          return policies;
        },
        inject: [EventLog],
      },
      {
        provide: SessionCommands,
        useFactory: (
          store: EventLog,
          models: ReadModels,
          policies: TenantPolicies,
          partials: PartialReplies,
        ) => new SessionCommands(store, models, policies, partials),
        inject: [EventLog, ReadModels, TenantPolicies, PartialReplies],
      },
      {
        provide: PartialReplies,
        useFactory: ({ pool }: { readonly pool: Pool }) => new PartialReplies(pool),
        inject: [RELAXED_POOL],
      },
      {
        provide: SessionQueries,
        useFactory: (
          store: EventLog,
          models: ReadModels,
          commands: SessionCommands,
          policies: TenantPolicies,
        ) => new SessionQueries(store, models, commands, policies),
        inject: [EventLog, ReadModels, SessionCommands, TenantPolicies],
      },
      {
        provide: Feed,
        useFactory: (store: EventLog) => new Feed(store),
        inject: [EventLog],
      },
      {
        provide: Past,
        useFactory: (
          store: EventLog,
          models: ReadModels,
          commands: SessionCommands,
          queries: SessionQueries,
        ) => new Past(store, models, commands, queries),
        inject: [EventLog, ReadModels, SessionCommands, SessionQueries],
      },
      {
        provide: Forks,
        useFactory: (store: EventLog, commands: SessionCommands, queries: SessionQueries) =>
          new Forks(store, commands, queries),
        inject: [EventLog, SessionCommands, SessionQueries],
      },
      {
        provide: Sweeper,
        useFactory: async (
          store: EventLog,
          models: ReadModels,
          policies: TenantPolicies,
          commands: SessionCommands,
          leases: Leases,
        ) => {
          const sweeper = new Sweeper({
            store,
            models,
            policies,
            commands,
            leases,
            deleteAfter: config.sessions.deleteAfter,
            onError: (error) => {
              // The next sweep tries again; that the database is away is told by everything else.
              if (!(error instanceof DatabaseUnavailable))
                new Logger('sweeper').error('a sweep failed', error);
            },
          });
          await sweeper.start();
          return sweeper;
        },
        // After the projector, which makes the tables that it reads.
        inject: [EventLog, ReadModels, TenantPolicies, SessionCommands, Leases, Projector],
      },
      ...commandHandlers,
      {
        provide: Generations,
        useFactory: (
          store: EventLog,
          bus: CommandBus,
          commands: SessionCommands,
          leases: Leases,
          partials: PartialReplies,
        ) =>
          new Generations(store, bus, commands, leases, partials, chatModel(config.llm), {
            defaultModel: config.llm.model,
            maxInputTokens: config.llm.maxInputTokens,
          }),
        inject: [EventLog, CommandBus, SessionCommands, Leases, PartialReplies],
      },
    ];
    return {
      module: AppModule,
      imports: [
        CqrsModule.forRoot(),
        TypeOrmModule.forRoot({
          type: 'postgres',
          url: databaseUrl,
          // Migrated before; the schema is never derived from entities, of which there are none.
          synchronize: false,
          retryAttempts: 0,
          extra: connectionConfig(databaseUrl, 'read models'),
        }),
      ],
      controllers: [
        SessionsController,
        ApprovalsController,
        AuditController,
        GenerationController,
        HealthController,
        MetricsController,
        ContractController,
        RelayController,
        TenantsController,
        SweeperController,
        ProjectionsController,
      ],
      providers,
    };
  }

  /** After the last request was answered. */
  async onApplicationShutdown(): Promise<void> {
    clearInterval(this.pruning);
    await this.relay.stop();
    await this.generations.idle();
    await this.sweeper.stop();
    this.policies.stop();
    await this.projector.stop();
    await this.leases.close();
    await this.relaxed.pool.end();
    await this.store.close();
  }
}

function chatModel(llm: Config['llm']): ChatModel {
  return llm.provider === 'echo' ? echoModel : new OpenAiModel(llm);
}

function relayOptions(kafka: Config['kafka']): RelayOptions {
  const logger = new Logger('relay');
  return {
    ...kafka,
    kafka,
    onTrouble: ({ message }, forGood) => {
      if (forGood) logger.error(`nothing is published to Kafka any more: ${message}`);
      else logger.warn(`nothing is published to Kafka for now, events wait in the log: ${message}`);
    },
    onRecovered: () => {
      logger.warn('events are published to Kafka again');
    },
  };
}
