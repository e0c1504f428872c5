import {
  Inject,
  Injectable,
  Logger,
  Module,
  type OnApplicationShutdown,
  type OnModuleInit,
} from '@nestjs/common';
import { InjectDataSource } from '@nestjs/typeorm';
import { type Pool } from 'pg';
import { DataSource } from 'typeorm';
import { type PostgresDriver } from 'typeorm/driver/postgres/PostgresDriver.js';
import { type Config, SETTINGS } from '../config.js';
import { shareConnections } from '../database/connection-shares.js';
import { connect, createPool } from '../database/connection.js';
import { RelaxedPool } from '../database/relaxed-pool.js';
import { PLANS_BY_INDEX } from '../database/server-settings.js';
import { EventLog } from '../event-store/log.js';
import { Leases } from '../event-store/leases.js';
import { Projector } from '../projection-engine/projector.js';
import { Replicas } from '../projection-engine/replicas.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { DATABASE_URL } from '../storage.module.js';
import { projections } from './projections.js';

/** A verification folds the whole log anew. */
const VERIFY_LIMIT_MS = 3_600_000;

/** Somebody waits for the answer, which the server can give as well. */
const REPLICA_CONNECT_MS = 1_000;

@Injectable()
class StrongReads extends ReadModels implements OnApplicationShutdown {
  constructor(
    @InjectDataSource() source: DataSource,
    store: EventLog,
    @Inject(SETTINGS) { storage }: Config,
  ) {
    // TypeORM itself prepares no statements, and planning a small read anew costs more than the read.
    const pool = (source.driver as PostgresDriver).master as Pool;
    const { readModels: max } = shareConnections(storage.maxConnections);
    const pools = (storage.database?.replicas ?? []).map((url) =>
      createPool(url, 'read models', {
        settings: PLANS_BY_INDEX,
        max,
        connectMs: REPLICA_CONNECT_MS,
        standby: true,
      }),
    );
    super(pool, store, pools.length > 0 ? new Replicas(store, pools) : undefined);
  }

  async onApplicationShutdown(): Promise<void> {
    await this.replicas?.close();
  }
}

/** The projector of this node: it follows the log from the start of the application to its end. */
@Injectable()
class NodeProjector extends Projector implements OnModuleInit, OnApplicationShutdown {
  constructor(
    store: EventLog,
    leases: Leases,
    models: ReadModels,
    { pool }: RelaxedPool,
    @Inject(DATABASE_URL) url: string,
  ) {
    const logger = new Logger('projector');
    const reported = new Set<string>();
    super({
      store,
      pool,
      leases,
      projections,
      connect: () => connect(url, 'verify', { statementMs: VERIFY_LIMIT_MS }),
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
  }

  onModuleInit(): Promise<void> {
    return this.start();
  }

  onApplicationShutdown(): Promise<void> {
    return this.stop();
  }
}

/** What follows from the log, for queries. */
@Module({
  providers: [
    { provide: ReadModels, useClass: StrongReads },
    { provide: Projector, useClass: NodeProjector },
  ],
  exports: [ReadModels, Projector],
})
export class ReadModelsModule {}
