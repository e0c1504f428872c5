import 'reflect-metadata';
import { Logger } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { type NestFastifyApplication } from '@nestjs/platform-fastify';
import { AppModule, migrations } from './app.module.js';
import { type Config, ConfigError, loadConfig } from './config.js';
import { connect, isConnectionError } from './database/connection.js';
import { DataFolderInUseError, lockDataFolder } from './database/data-folder-lock.js';
import { type EmbeddedPostgres, startEmbeddedPostgres } from './database/embedded-postgres.js';
import { migrate } from './database/migrate.js';
import { Generations } from './generation/generations.js';
import { configureApp, createHttpAdapter } from './http/server.js';
import { version } from './version.js';

/** How long a start waits for a database that is not there yet. */
const DATABASE_PATIENCE_MS = 60_000;

/** What must be undone at the end, last first. */
const undo: (() => Promise<void>)[] = [];

async function main(): Promise<void> {
  const config = loadConfig({ env: process.env, cwd: process.cwd() });
  for (const warning of config.warnings) console.warn(warning);

  let stopping = false;
  const stop = (signal: NodeJS.Signals): void => {
    if (stopping) return;
    stopping = true;
    console.log(`${signal}: answering what is running, then stopping`);
    void end(0);
  };
  process.on('SIGINT', stop).on('SIGTERM', stop);

  const embedded = config.storage.database ? undefined : await startDatabase(config);
  const databaseUrl = embedded?.url ?? config.storage.database?.url ?? '';
  await migrateWhenThere(databaseUrl);
  // Nobody else can be using an embedded database: leases in it are those of a process that is no more.
  if (embedded) await forgetLeases(databaseUrl);

  const app = await NestFactory.create<NestFastifyApplication>(
    AppModule.create(config, databaseUrl),
    createHttpAdapter(config),
    { logger: ['warn', 'error', 'fatal'], abortOnError: false },
  );
  undo.push(async () => {
    const generations = app.get(Generations);
    const impatience = setTimeout(() => {
      generations.abortAll();
    }, config.server.shutdownGraceMs);
    await app.close();
    clearTimeout(impatience);
  });
  configureApp(app, { ...config, version });
  await app.listen(config.server.port, config.server.host);
  announce(config, await app.getUrl(), embedded);
}

async function startDatabase(config: Config): Promise<EmbeddedPostgres> {
  const { dataDir } = config.storage;
  const lock = await lockDataFolder(dataDir, { url: `http://${config.server.host}:${config.server.port}` });
  undo.push(() => lock.release());
  const embedded = await startEmbeddedPostgres({ dataDir });
  undo.push(() => embedded.stop());
  process.on('warning', (warning) => {
    new Logger('database').warn(warning.message);
  });
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
      if (!told) console.warn(`waiting for the database: ${(error as Error).message}`);
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }
}

async function forgetLeases(url: string): Promise<void> {
  const client = await connect(url, 'start');
  await client.query('delete from lease');
  await client.end();
}

function announce(config: Config, url: string, embedded: EmbeddedPostgres | undefined): void {
  const { llm, kafka, auth } = config;
  const database = embedded
    ? `embedded PostgreSQL ${embedded.serverVersion} in ${embedded.dataDir}${embedded.adopted ? ' (taken over from a service that was killed)' : ''}`
    : `PostgreSQL at ${new URL(config.storage.database?.url ?? '').host}`;
  const key = auth.mode === 'api-key' ? `-H 'Authorization: Bearer <key>' ` : '';
  const curl = `curl -s ${key}`;
  const json = `-H 'Content-Type: application/json'`;
  console.log(
    [
      `Colloquy ${version} is listening on ${url}`,
      `  database  ${database}`,
      `  model     ${llm.provider === 'echo' ? 'echo: repeats what is said; set OPENAI_API_KEY or OPENAI_BASE_URL for a real one' : `${llm.model} at ${llm.baseURL ?? 'OpenAI'}`}`,
      `  Kafka     ${kafka.brokers.length > 0 ? 'brokers are named, but nothing is published yet' : 'off: events wait in the log'}`,
      `  access    ${auth.mode === 'none' ? 'no key needed, this machine only' : `API keys: ${auth.keys.map((one) => one.name).join(', ')}`}`,
      ...(embedded?.notes ?? []).map((note) => `  note      ${note}`),
      'Try:',
      `  ${curl}${url}/v1/chat ${json} -d '{"message": "Hello", "sessionId": "first"}'`,
      `  ${curl}${url}/v1/sessions/first/messages`,
      `  ${curl}${url}/v1/sessions/first/events`,
    ].join('\n'),
  );
}

async function end(code: number): Promise<never> {
  for (const step of undo.reverse()) {
    await step().catch((error: unknown) => {
      console.error('while stopping:', error);
    });
  }
  process.exit(code);
}

function explain(error: unknown): string {
  if (error instanceof ConfigError || error instanceof DataFolderInUseError) return error.message;
  const { code, message, address, port } = error as NodeJS.ErrnoException & {
    address?: string;
    port?: number;
  };
  if (code === 'EADDRINUSE') {
    return `${address ?? ''}:${port ?? ''} is in use by another program: set PORT to another port, or 0 for any free one`;
  }
  if (isConnectionError(error)) return `the database cannot be reached: ${message}. Check DATABASE_URL.`;
  return error instanceof Error ? (error.stack ?? message) : String(error);
}

main().catch((error: unknown) => {
  console.error(explain(error));
  void end(1);
});
