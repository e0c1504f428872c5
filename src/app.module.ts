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
import { type Config } from './config.js';
import { connectionConfig, createPool } from './database/connection.js';
import { upcast } from './domain/session.events.js';
import { EventStore } from './event-store/event-store.js';
import { Leases } from './event-store/leases.js';
import { Log1770000000001 } from './event-store/migrations/0001-log.js';
import { type ChatModel } from './generation/chat-model.js';
import { echoModel } from './generation/echo.chat-model.js';
import { GenerationController } from './generation/generation.controller.js';
import { Generations } from './generation/generations.js';
import { OpenAiModel } from './generation/openai.chat-model.js';
import { HealthController } from './health.controller.js';
import { historyProjection } from './projections/history.projection.js';
import { Checkpoints1770000000002 } from './projections/migrations/0002-checkpoints.js';
import { Projector } from './projections/projector.js';
import { ReadModels } from './projections/read-models.js';
import { sessionsProjection } from './projections/sessions.projection.js';
import { usageProjection } from './projections/usage.projection.js';
import { commandHandlers, SessionCommands } from './sessions/session-commands.js';
import { SessionQueries } from './sessions/session-queries.js';
import { SessionsController } from './sessions/sessions.controller.js';
import { TenantPolicies } from './sessions/tenant-policies.js';

/** In the order in which they are applied. */
export const migrations = [Log1770000000001, Checkpoints1770000000002];

/** A read model is one file and one line here. */
const projections = [sessionsProjection, historyProjection, usageProjection];

const PROJECTOR_POOL = Symbol('pool of the projector');
/** Keyed results are found for a day; those that are older only take room. */
const PRUNE_MS = 3_600_000;

/** The composition root: what is made of what. The database must be migrated. */
@Module({})
export class AppModule implements OnApplicationShutdown {
  private readonly pruning: NodeJS.Timeout;

  constructor(
    private readonly store: EventStore,
    private readonly projector: Projector,
    private readonly leases: Leases,
    @Inject(PROJECTOR_POOL) private readonly projectorPool: { readonly pool: Pool },
  ) {
    this.pruning = setInterval(() => {
      // Housekeeping: what fails now is done in an hour.
      store.pruneKeyed().catch(() => undefined);
    }, PRUNE_MS);
    this.pruning.unref();
  }

  static create(config: Config, databaseUrl: string): DynamicModule {
    const logger = new Logger('projector');
    const reported = new Set<string>();
    const providers: Provider[] = [
      {
        provide: EventStore,
        useFactory: () => EventStore.open(databaseUrl, { upcast }),
      },
      {
        provide: Leases,
        useFactory: (store: EventStore) => new Leases(store.pool, randomUUID()),
        inject: [EventStore],
      },
      {
        provide: ReadModels,
        useFactory: (source: DataSource, store: EventStore) => new ReadModels(source, store),
        inject: [getDataSourceToken(), EventStore],
      },
      {
        provide: PROJECTOR_POOL,
        // What a crash of the database takes back, rows and checkpoint alike, is simply projected again.
        useFactory: () => ({
          pool: createPool(databaseUrl, 'projector', { max: 6, settings: '-c synchronous_commit=off' }),
        }),
      },
      {
        provide: Projector,
        useFactory: async (
          store: EventStore,
          leases: Leases,
          models: ReadModels,
          { pool }: { readonly pool: Pool },
        ) => {
          const projector = new Projector(
            store,
            pool,
            leases,
            projections,
            () => {
              models.advanced();
              reported.clear();
            },
            // Once until it goes on again: a database that is away must not flood the log.
            (error, projection) => {
              if (!reported.has(projection)) logger.error(`${projection} cannot go on for now`, error);
              reported.add(projection);
            },
          );
          await projector.start();
          return projector;
        },
        inject: [EventStore, Leases, ReadModels, PROJECTOR_POOL],
      },
      {
        provide: TenantPolicies,
        useFactory: () => new TenantPolicies(config.sessions, config.tenants),
      },
      {
        provide: SessionCommands,
        useFactory: (store: EventStore, models: ReadModels, policies: TenantPolicies) =>
          new SessionCommands(store, models, policies),
        inject: [EventStore, ReadModels, TenantPolicies],
      },
      {
        provide: SessionQueries,
        useFactory: (
          store: EventStore,
          models: ReadModels,
          commands: SessionCommands,
          policies: TenantPolicies,
        ) => new SessionQueries(store, models, commands, policies),
        inject: [EventStore, ReadModels, SessionCommands, TenantPolicies],
      },
      ...commandHandlers,
      {
        provide: Generations,
        useFactory: (store: EventStore, bus: CommandBus, leases: Leases) =>
          new Generations(store, bus, leases, chatModel(config.llm), config.llm.model),
        inject: [EventStore, CommandBus, Leases],
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
      controllers: [SessionsController, GenerationController, HealthController],
      providers,
    };
  }

  /** After the last request was answered. */
  async onApplicationShutdown(): Promise<void> {
    clearInterval(this.pruning);
    await this.projector.stop();
    await this.leases.close();
    await this.projectorPool.pool.end();
    await this.store.close();
  }
}

function chatModel(llm: Config['llm']): ChatModel {
  return llm.provider === 'echo' ? echoModel : new OpenAiModel(llm);
}
