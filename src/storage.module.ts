import { randomUUID } from 'node:crypto';
import {
  type DynamicModule,
  Inject,
  Logger,
  Module,
  type OnApplicationShutdown,
  type OnModuleInit,
} from '@nestjs/common';
import { TypeOrmModule } from '@nestjs/typeorm';
import { DataSource } from 'typeorm';
import { Cells } from './cells/cells.js';
import { type Config, SETTINGS } from './config.js';
import { shareConnections } from './database/connection-shares.js';
import { poolConfig } from './database/connection.js';
import { hostsOf } from './database/hosts.js';
import { RedisLink } from './database/redis-link.js';
import { RelaxedPool } from './database/relaxed-pool.js';
import { PLANS_BY_INDEX } from './database/server-settings.js';
import { upcast } from './domain/session.events.js';
import { EventLog } from './event-store/log.js';
import { Leases } from './event-store/leases.js';
import { NodeList } from './event-store/node-list.js';
import { repeat } from './housekeeping.js';
import { openLog } from './open-log.js';
import { version } from './version.js';

/** Where the database is, for those who need a connection of their own. */
export const DATABASE_URL = Symbol('URL of the database');

/** Keyed results are found for a day, and leases of dead nodes are of no use: what is older only takes room. */
const PRUNE_MS = 3_600_000;

/**
 * The settings, the connections and the log, for all other modules. It is global, so that it is made before them and
 * closed after them. The database must be migrated.
 */
@Module({})
export class StorageModule implements OnModuleInit, OnApplicationShutdown {
  private readonly logger = new Logger('log');
  private stopPruning = (): void => undefined;
  private stopAnnouncing = (): void => undefined;

  constructor(
    private readonly store: EventLog,
    private readonly leases: Leases,
    private readonly nodes: NodeList,
    private readonly relaxed: RelaxedPool,
    @Inject(RedisLink) private readonly redis: RedisLink | null,
  ) {}

  static for(config: Config, url: string, cells?: Cells): DynamicModule {
    const shares = shareConnections(config.storage.maxConnections);
    const { pooledUrl } = config.storage.database ?? {};
    return {
      module: StorageModule,
      global: true,
      imports: [
        TypeOrmModule.forRoot({
          type: 'postgres',
          url: hostsOf(pooledUrl ?? url).url,
          // Migrated before; the schema is never derived from entities, of which there are none.
          synchronize: false,
          retryAttempts: 0,
          poolSize: shares.readModels,
          extra: poolConfig(pooledUrl ?? url, 'read models', {
            settings: PLANS_BY_INDEX,
            throughPooler: pooledUrl !== undefined,
            max: shares.readModels,
          }),
        }),
      ],
      providers: [
        { provide: SETTINGS, useValue: config },
        { provide: DATABASE_URL, useValue: url },
        { provide: Cells, useValue: cells ?? null },
        { provide: RelaxedPool, useFactory: () => new RelaxedPool(url, shares.relaxed) },
        {
          provide: EventLog,
          // After the other connections, and it closes them if it cannot be opened: what has no application yet is closed by
          // nobody else, and a cell that is away is tried again and again.
          useFactory: (readModels: DataSource) =>
            openLog(
              { url, masterKeys: config.storage.masterKeys ?? [], cipher: config.storage.cipher },
              { upcast, connections: shares.log, pooledUrl },
            ).catch(async (error: unknown) => {
              await readModels.destroy();
              throw error;
            }),
          inject: [DataSource],
        },
        {
          provide: RedisLink,
          useFactory: ({ telemetry }: EventLog) =>
            config.storage.redis
              ? new RedisLink(config.storage.redis.url, telemetry.failed('the use of Redis'))
              : null,
          inject: [EventLog],
        },
        {
          provide: Leases,
          useFactory: (store: EventLog) => store.leases(randomUUID()),
          inject: [EventLog],
        },
        {
          provide: NodeList,
          useFactory: (store: EventLog, leases: Leases) => store.nodes(leases, version),
          inject: [EventLog, Leases],
        },
      ],
      exports: [SETTINGS, DATABASE_URL, Cells, RelaxedPool, RedisLink, EventLog, Leases, NodeList],
    };
  }

  onModuleInit(): void {
    this.stopAnnouncing = repeat(
      PRUNE_MS,
      () => this.nodes.announce(),
      (error) => {
        this.logger.warn(
          'This node could not be put on the list of nodes, where operators miss it; it is tried again in an hour.',
          error,
        );
      },
    );
    this.stopPruning = repeat(
      PRUNE_MS,
      async () => {
        await this.store.keyed.prune();
        await this.leases.prune();
        await this.nodes.prune();
      },
      (error) => {
        this.logger.warn(
          'Old rows of the log’s tables could not be pruned; it is tried again in an hour.',
          error,
        );
      },
    );
  }

  async onApplicationShutdown(): Promise<void> {
    this.stopAnnouncing();
    this.stopPruning();
    // Each is closed whatever becomes of the others; the leases go back through the log's connections.
    const results = [
      ...(await Promise.allSettled([
        this.nodes.leave(),
        this.leases.close(),
        this.relaxed.close(),
        this.redis?.close(),
      ])),
      ...(await Promise.allSettled([this.store.close()])),
    ];
    for (const result of results) if (result.status === 'rejected') this.logger.error(result.reason);
  }
}
