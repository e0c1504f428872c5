import 'reflect-metadata';
import { Logger } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { type Logger as PinoLogger } from 'pino';
import { type NestFastifyApplication } from '@nestjs/platform-fastify';
import { AppModule } from './app.module.js';
import { type Config } from './config.js';
import { isConnectionError } from './database/connection.js';
import { lockDataFolder } from './embedded-postgres/data-folder-lock.js';
import { type EmbeddedPostgres, startEmbeddedPostgres } from './embedded-postgres/embedded-postgres.js';
import { migrate } from './database/migrate.js';
import { forgetLeases } from './event-store/leases.js';
import { type AnsweredRequest } from './http/request-log.js';
import { configureApp, createHttpAdapter } from './http/server.js';
import { NestLog } from './logging.js';
import { migrations } from './migrations.js';
import { version } from './version.js';

/** How long a start waits for a database that is not there yet. */
const DATABASE_PATIENCE_MS = 60_000;

export interface ServiceOptions {
  /** Where the log of the service goes. */
  readonly logger: PinoLogger;
}

export interface Service {
  readonly app: NestFastifyApplication;
  /** The database that the service runs itself, if none was named. */
  readonly embedded: EmbeddedPostgres | undefined;
  /** Answers what is running, then stops everything; the embedded database last. */
  stop(): Promise<void>;
}

/**
 * Database, schema and application; not listening yet.
 * @throws DataFolderInUseError; whatever the database says when it cannot be used
 */
export async function createService(config: Config, { logger }: ServiceOptions): Promise<Service> {
  const undo: (() => Promise<void>)[] = [];
  const stop = async (): Promise<void> => {
    for (const step of undo.splice(0).reverse()) {
      await step().catch((error: unknown) => {
        new Logger('service').error('while stopping', error);
      });
    }
  };
  try {
    const embedded = config.storage.database ? undefined : await startDatabase(config, undo);
    const databaseUrl = embedded?.url ?? config.storage.database?.url ?? '';
    await migrateWhenThere(databaseUrl);
    // Nobody else can be using an embedded database: leases in it are those of a process that is no more.
    if (embedded) await forgetLeases(databaseUrl);

    const app = await NestFactory.create<NestFastifyApplication>(
      AppModule.create(config, databaseUrl),
      createHttpAdapter({ ...config, onAnswered: logRequests(logger) }),
      { logger: new NestLog(logger), abortOnError: false },
    );
    undo.push(() => app.close());
    configureApp(app, { ...config, version });
    await app.init();
    return { app, embedded, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** A line for each request; not for those by which machines look whether the service is well. */
function logRequests(logger: PinoLogger): (request: AnsweredRequest) => void {
  return (request) => {
    if (request.route.startsWith('/health/') || request.route === '/metrics') return;
    const level = request.status >= 500 ? 'warn' : 'info';
    logger[level](request, `${request.method} ${request.route} ${request.status}`);
  };
}

async function startDatabase(config: Config, undo: (() => Promise<void>)[]): Promise<EmbeddedPostgres> {
  const { dataDir } = config.storage;
  const lock = await lockDataFolder(dataDir, { url: `http://${config.server.host}:${config.server.port}` });
  undo.push(() => lock.release());
  const embedded = await startEmbeddedPostgres({ dataDir });
  undo.push(() => embedded.stop());
  return embedded;
}

async function migrateWhenThere(url: string): Promise<void> {
  const deadline = Date.now() + DATABASE_PATIENCE_MS;
  for (let told = false; ; told = true) {
    try {
      await migrate(url, migrations);
      return;
    } catch (error) {
      if (!isConnectionError(error) || Date.now() > deadline) throw error;
      if (!told) new Logger('database').warn(`waiting for it: ${(error as Error).message}`);
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }
}
