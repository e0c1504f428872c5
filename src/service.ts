import 'reflect-metadata';
import { setTimeout as sleep } from 'node:timers/promises';
import { type DynamicModule, Logger } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { type Logger as PinoLogger } from 'pino';
import { type FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import { AppModule } from './app.module.js';
import { CellDirectory } from './cells/cell-directory.js';
import { claimCell, claimFirstCell, inCellDatabase } from './cells/cell-name.js';
import { type Cell, type CellBasis, Cells, type CellSettings } from './cells/cells.js';
import { type CellConfig, type Config, ConfigError } from './config.js';
import { connect, createPool, isConnectionError } from './database/connection.js';
import { lockDataFolder } from './embedded-postgres/data-folder-lock.js';
import { type EmbeddedPostgres, startEmbeddedPostgres } from './embedded-postgres/embedded-postgres.js';
import { migrate } from './database/migrate.js';
import { checkPooler } from './database/pooler.js';
import { EventLog } from './event-store/log.js';
import { forgetLeases } from './event-store/leases.js';
import { type AnsweredRequest, RequestLines } from './http/request-log.js';
import { BackendAdapter } from './http/backend-adapter.js';
import { configureApp, configureHandlers, createHttpAdapter } from './http/server.js';
import { Unanswered } from './http/unanswered.js';
import { jsonLines, NestLog } from './logging.js';
import { checkMasterKeysOf, embeddedMasterKeys } from './master-keys.js';
import { migrations } from './migrations.js';
import { Health } from './ops/health.js';
import { Metrics } from './ops/metrics.js';
import { version } from './version.js';

/** How long a start waits for a database that is not there yet. */
const DATABASE_PATIENCE_MS = 60_000;

/** Connections that the embedded PostgreSQL takes, unless several processes need more. */
const EMBEDDED_CONNECTIONS = 200;
const SPARE_CONNECTIONS = 20;
const DIRECTORY_CONNECTIONS = 3;

export interface ServiceOptions {
  /** Where the log of the service goes. */
  readonly logger: PinoLogger;
}

export interface Service {
  readonly app: NestFastifyApplication;
  /** The database that the service runs itself, if none was named. */
  readonly embedded: EmbeddedPostgres | undefined;
  /** Takes over what the settings say of cells; everything else needs a restart. */
  reload(config: Config): Promise<void>;
  /** Answers what is running, then stops everything; the embedded database last. */
  stop(): Promise<void>;
}

/** A service that listens. */
export interface Running extends Pick<Service, 'embedded' | 'reload' | 'stop'> {
  readonly url: string;
}

/** How to undo what was begun, in the order in which it was begun. */
export type Undo = (() => Promise<void>)[];

/** Undoes what was begun, the last first. What fails at that is told to the log and keeps nothing else from being undone. */
export async function undoAll(undo: Undo): Promise<void> {
  for (const step of undo.splice(0).reverse()) {
    await step().catch((error: unknown) => {
      new Logger('service').error('while stopping', error);
    });
  }
}

/**
 * Database, schema and application; not listening yet. Of several cells the first one has to be there, the others are
 * started when they are.
 * @throws DataFolderInUseError; ConfigError when the first is another cell; whatever the database says when it cannot be
 * used
 */
export async function createService(given: Config, { logger }: ServiceOptions): Promise<Service> {
  const undo: Undo = [];
  const stop = (): Promise<void> => undoAll(undo);
  try {
    const { databaseUrl, embedded, masterKeys } = await openDatabase(given, undo);
    const config = { ...given, storage: { ...given.storage, masterKeys } };
    await claimFirstCell(databaseUrl, cellSettings(config).others);
    const traces = await startTraces(undo);
    let noMoreRequests = (): void => undefined;
    const lastRequest = new Promise<void>((resolve) => (noMoreRequests = resolve));
    const logRequest = logRequests(logger);
    const surroundings = { logger: new NestLog(logger), traces };
    const cells = new Cells({
      start: (cell) => startCell(config, cell, surroundings, lastRequest),
      onTrouble: (name, error) => {
        const what = error instanceof ConfigError ? 'cannot be used' : 'cannot be reached';
        new Logger('cells').warn(`The cell ${name} ${what} and is tried again: ${error.message}`);
      },
    });
    // A place that was given out must not be given out again after a crash: its commit waits for the disk. Connections are
    // made when there are several cells, and ended after the application, which answers until then.
    const pool = createPool(databaseUrl, 'directory', { max: DIRECTORY_CONNECTIONS });
    undo.push(() => pool.end());
    const directory = new CellDirectory(pool);
    const unanswered = new Unanswered();
    // Until there is a log, nothing waits to be written to it.
    let isBehind: EventLog['isBehind'] = () => false;
    const adapter = createHttpAdapter({
      ...config,
      onAnswered: (request) => {
        logRequest(request);
        traces?.answered(request);
      },
      isBehind: (tenant) => isBehind(tenant),
      correlationIds: traces && ((request, named) => traces.begin(request, named)),
      elsewhere: (request) => cells.elsewhere(request),
      unanswered,
    });
    const app = await createApp(AppModule.create(config, databaseUrl, cells), adapter, surroundings);
    const log = app.get(EventLog);
    isBehind = (tenant) => log.isBehind(tenant);
    undo.push(async () => {
      const fastify = app.getHttpAdapter().getInstance();
      fastify.isDraining = true;
      // Before anything is closed: model calls and streams begin until the port is closed. A start that failed has none.
      if (fastify.server.listening) await sleep(config.server.drainMs);
      // Streams of the other cells end when these begin to close, and this one closes when all streams have ended.
      const closing = cells.close();
      await app.close().finally(noMoreRequests);
      await closing;
    });
    configureApp(app, { ...config, version });
    await app.init();
    log.generations.onNew(() => {
      directory.forget();
    });
    await cells.begin(directory, basisOf(app, databaseUrl, unanswered), cellSettings(config));
    const reload = async (changed: Config): Promise<void> => {
      const settings = cellSettings(changed);
      await claimFirstCell(databaseUrl, settings.others);
      await cells.use(settings);
    };
    return { app, embedded, stop, reload };
  } catch (error) {
    await stop();
    throw error;
  }
}

const cellSettings = ({ storage: { cells, database } }: Config): CellSettings => ({
  others: cells ?? [],
  firstWeight: database?.weight ?? 1,
});

/** What all applications of a process have in common. */
interface Surroundings {
  readonly logger: NestLog;
  readonly traces: Awaited<ReturnType<typeof startTraces>>;
}

/** An application on one database. */
async function createApp(
  module: DynamicModule,
  adapter: FastifyAdapter,
  { logger, traces }: Surroundings,
): Promise<NestFastifyApplication> {
  const app = await NestFactory.create<NestFastifyApplication>(module, adapter, {
    logger,
    abortOnError: false,
  });
  traces?.listen(app.get(EventLog).telemetry);
  return app;
}

/** The application of another cell than the first, which answers what it is given. */
async function startCell(
  config: Config,
  { name, weight: _, ...database }: CellConfig,
  surroundings: Surroundings,
  lastRequest: Promise<void>,
): Promise<Cell> {
  await checkMasterKeysOf(database.url, config.storage.masterKeys);
  await migrate(database.url, migrations);
  await inCellDatabase(database.url, name, claimCell);
  if (database.pooledUrl !== undefined) await checkPooler(database.pooledUrl);
  const { cells: _others, ...storage } = config.storage;
  const own = { ...config, storage: { ...storage, database, cell: name } };
  const unanswered = new Unanswered();
  let isInUse = false;
  // One that could not be started gets no requests, and must close to be started anew.
  const adapter = new BackendAdapter(() => (isInUse ? lastRequest : undefined));
  const app = await createApp(AppModule.create(own, database.url), adapter, surroundings);
  try {
    configureHandlers(app);
    await app.init();
    const log = app.get(EventLog);
    const { handlers, answeredListeners } = adapter;
    const health = app.get(Health);
    const { registry } = app.get(Metrics);
    isInUse = true;
    return {
      ...basisOf(app, database.url, unanswered),
      backend: {
        ...{ handlers, answeredListeners, unanswered },
        isBehind: (tenant) => log.isBehind(tenant),
      },
      registry,
      isReady: () => health.isReady(),
      close: () => app.close(),
    };
  } catch (error) {
    await app.close().catch(() => undefined);
    throw error;
  }
}

const basisOf = (app: NestFastifyApplication, url: string, unanswered: Unanswered): CellBasis => ({
  absences: app.get(EventLog).absences,
  unanswered,
  // On a connection of its own: those that there are may all be waiting.
  ask: async (ms) => {
    const client = await connect(url, 'sign of life', { connectMs: ms }).catch((error: unknown) => {
      // A server that says why it takes no connection, because there are too many, lives.
      if (hasAnswered(error)) return undefined;
      throw error;
    });
    // Its end is not awaited: a server that does not answer does not say goodbye either.
    await client?.query('select 1').finally(() => void client.end().catch(() => undefined));
  },
});

/** Whether an error comes from a server that is neither starting nor stopping. */
function hasAnswered(error: unknown): boolean {
  const { severity, code } = (error ?? {}) as { severity?: unknown; code?: unknown };
  return severity !== undefined && typeof code === 'string' && !code.startsWith('57P');
}

/**
 * The database, with the schema of this code. One that the service runs itself is started.
 * @param processes how many processes will use it
 * @throws MasterKeyRefused when it was sealed under other master keys; then nothing was written
 */
export async function openDatabase(
  config: Config,
  undo: Undo,
  processes = 1,
): Promise<{
  readonly databaseUrl: string;
  readonly embedded: EmbeddedPostgres | undefined;
  readonly masterKeys: readonly string[];
}> {
  const embedded = config.storage.database ? undefined : await startDatabase(config, undo, processes);
  const databaseUrl = embedded?.url ?? config.storage.database?.url ?? '';
  const masterKeys = embedded
    ? await embeddedMasterKeys(config.storage, databaseUrl)
    : (config.storage.masterKeys ?? []);
  if (!embedded) await whenThere(() => checkMasterKeysOf(databaseUrl, masterKeys));
  await whenThere(() => migrate(databaseUrl, migrations));
  const { pooledUrl } = config.storage.database ?? {};
  if (pooledUrl !== undefined) await whenThere(() => checkPooler(pooledUrl));
  // Nobody else can be using an embedded database: leases in it are those of a process that is no more.
  if (embedded) await forgetLeases(databaseUrl);
  return { databaseUrl, embedded, masterKeys };
}

/** Traces, if the variables of OpenTelemetry name a collector. Loading them takes longer than the service takes to start. */
async function startTraces(undo: Undo) {
  if (!areTracesWanted(process.env)) return undefined;
  const { Traces } = await import('./traces.js');
  const traces = new Traces();
  undo.push(() => traces.close());
  return traces;
}

const areTracesWanted = (env: NodeJS.ProcessEnv): boolean =>
  Boolean(env['OTEL_EXPORTER_OTLP_ENDPOINT'] ?? env['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT']);

/** A line for each request; not for those by which machines look whether the service is well. */
function logRequests(logger: PinoLogger): (request: AnsweredRequest) => void {
  const write = jsonLines(logger);
  const lines = new RequestLines();
  return (request) => {
    if (request.route.startsWith('/health/') || request.route === '/metrics') return;
    write(request.status >= 500 ? 'warn' : 'info', lines.fieldsOf(request));
  };
}

async function startDatabase(config: Config, undo: Undo, processes: number): Promise<EmbeddedPostgres> {
  const { dataDir, maxConnections } = config.storage;
  const lock = await lockDataFolder(dataDir, { url: `http://${config.server.host}:${config.server.port}` });
  undo.push(() => lock.release());
  // Some more than the processes hold, for whoever looks at the database meanwhile.
  const connections = Math.max(EMBEDDED_CONNECTIONS, processes * maxConnections + SPARE_CONNECTIONS);
  const embedded = await startEmbeddedPostgres({
    dataDir,
    settings: { max_connections: String(connections) },
  });
  undo.push(() => embedded.stop());
  return embedded;
}

/** Waits for a database that cannot be reached yet. */
async function whenThere(work: () => Promise<void>): Promise<void> {
  const deadline = Date.now() + DATABASE_PATIENCE_MS;
  for (let told = false; ; told = true) {
    try {
      await work();
      return;
    } catch (error) {
      if (!isConnectionError(error) || Date.now() > deadline) throw error;
      if (!told) new Logger('database').warn(`waiting for it: ${(error as Error).message}`);
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }
}
