import { type Logger as PinoLogger } from 'pino';
import { type Config, ConfigError, loadConfig } from './config.js';
import { isConnectionError } from './database/connection.js';
import { hostsOf } from './database/hosts.js';
import { PoolerNotReady } from './database/pooler.js';
import { DataFolderInUseError } from './embedded-postgres/data-folder-lock.js';
import { MasterKeyRefused } from './event-store/sealing/master-keys.js';
import { createLogger, flushLog } from './logging.js';
import { ProcessEnded, processesOf, startProcesses } from './processes.js';
import { createService, type Running } from './service.js';
import { isOneOfSeveral, tellListening } from './sibling-processes.js';
import { version } from './version.js';

let starting: Promise<Running> | undefined;
let logger: PinoLogger | undefined;
let stopping = false;

async function main(): Promise<void> {
  const config = loadConfig({ env: process.env, cwd: process.cwd() });
  const log = (logger = createLogger(config.server.logLevel));
  if (!isOneOfSeveral()) for (const warning of config.warnings) log.warn(warning);
  process.on('SIGINT', stop).on('SIGTERM', stop);
  // On a terminal it says that the terminal is gone.
  if (!process.stdout.isTTY) process.on('SIGHUP', () => void reload(log));
  process.on('warning', (warning) => {
    log.warn(warning.message);
  });

  const processes = isOneOfSeveral() ? 1 : processesOf(config);
  starting = processes > 1 ? startProcesses(config, processes, log) : serve(config, log);
  const { url, embedded } = await starting;
  if (isOneOfSeveral()) tellListening(url);
  else announce(log, config, { url, embedded, processes });
}

/** The service in this process. */
async function serve(config: Config, log: PinoLogger): Promise<Running> {
  const service = await createService(config, { logger: log });
  const { app, embedded } = service;
  const stopService = (): Promise<void> => service.stop();
  try {
    await app.listen(config.server.port, config.server.host);
  } catch (error) {
    await stopService();
    throw error;
  }
  return {
    url: await app.getUrl(),
    embedded,
    stop: stopService,
    reload: (changed) => service.reload(changed),
  };
}

/** Reads the settings again. What cannot be used is told, and nothing changes. */
async function reload(log: PinoLogger): Promise<void> {
  const service = await starting?.catch(() => undefined);
  if (!service || stopping) return;
  try {
    await service.reload(loadConfig({ env: process.env, cwd: process.cwd() }));
    log.info('SIGHUP: the cells of the settings are in use');
  } catch (error) {
    log.error(`SIGHUP: ${explain(error)}`);
  }
}

function stop(signal: NodeJS.Signals): void {
  if (stopping) return;
  stopping = true;
  logger?.info(`${signal}: answering what is running, then stopping`);
  void end(0);
}

/** What runs here and how to try it: a page of text on a terminal, else one line of the log, whatever its level. */
function announce(
  log: PinoLogger,
  config: Config,
  { url, embedded, processes }: Pick<Running, 'url' | 'embedded'> & { readonly processes: number },
): void {
  const { llm, kafka, auth, server } = config;
  const facts = {
    console: `${url}/console`,
    database: embedded
      ? `embedded PostgreSQL ${embedded.serverVersion} in ${embedded.dataDir}`
      : `PostgreSQL at ${hostsOf(config.storage.database?.url ?? '')
          .hosts.map(({ host, port }) => `${host}:${port}`)
          .join(', ')}`,
    model:
      llm.provider === 'echo'
        ? 'echo: repeats what is said; set OPENAI_API_KEY or OPENAI_BASE_URL for a real one'
        : `${llm.model} at ${llm.baseURL ?? 'OpenAI'}`,
    Kafka:
      kafka.brokers.length > 0
        ? `events go to the topic ${kafka.topic} at ${kafka.brokers.join(', ')}`
        : 'off: events wait in the log',
    access:
      auth.mode === 'none'
        ? 'no key needed, this machine only'
        : [
            'API keys of the database',
            ...(auth.keys.length > 0
              ? [`of the settings: ${auth.keys.map((one) => one.name).join(', ')}`]
              : []),
            ...(auth.jwt ? [`tokens of ${auth.jwt.issuer}`] : []),
          ].join('; '),
    ...(processes > 1 && { processes: `${processes} share the port` }),
  };
  const notes = embedded?.notes ?? [];
  const title = `Colloquy ${version} is listening on ${url}`;
  const curl = `curl -s ${auth.mode === 'api-key' ? `-H 'Authorization: Bearer <key>' ` : ''}`;
  const json = `-H 'Content-Type: application/json'`;
  const examples = [
    `${curl}${url}/v1/chat ${json} -d '{"message": "Hello", "sessionId": "first"}'`,
    `${curl}${url}/v1/sessions/first/messages`,
    `${curl}${url}/v1/sessions/first/events`,
  ];
  if (!process.stdout.isTTY) {
    if (server.logLevel === 'silent') return;
    log.child({}, { level: 'info' }).info({ url, ...facts, notes, try: examples }, title);
    return;
  }
  const lines = [...Object.entries(facts), ...notes.map((note) => ['note', note] as const)];
  console.log(
    [
      title,
      ...lines.map(([name, fact]) => `  ${name.padEnd(9)} ${fact}`),
      'Try:',
      ...examples.map((example) => `  ${example}`),
    ].join('\n'),
  );
}

async function end(code: number): Promise<never> {
  // A start that fails has cleaned up after itself.
  // Once the port is closed nothing but this keeps the process alive until everything has stopped.
  const alive = setInterval(() => undefined, 2 ** 31 - 1);
  const service = await starting?.catch(() => undefined);
  await service?.stop();
  clearInterval(alive);
  if (logger) flushLog(logger);
  process.exit(code);
}

function explain(error: unknown): string {
  const isPlain = [ConfigError, DataFolderInUseError, MasterKeyRefused, PoolerNotReady, ProcessEnded].some(
    (kind) => error instanceof kind,
  );
  if (isPlain) return (error as Error).message;
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
  // Ctrl-C during the start goes to all processes: that some have ended is then no failure.
  if (stopping) return;
  console.error(explain(error));
  void end(1);
});
