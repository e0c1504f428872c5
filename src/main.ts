import { Logger } from '@nestjs/common';
import { type Config, ConfigError, loadConfig } from './config.js';
import { isConnectionError } from './database/connection.js';
import { DataFolderInUseError } from './embedded-postgres/data-folder-lock.js';
import { type EmbeddedPostgres } from './embedded-postgres/embedded-postgres.js';
import { createService, type Service } from './service.js';
import { version } from './version.js';

let starting: Promise<Service> | undefined;
let stopping = false;

async function main(): Promise<void> {
  const config = loadConfig({ env: process.env, cwd: process.cwd() });
  for (const warning of config.warnings) console.warn(warning);
  process.on('SIGINT', stop).on('SIGTERM', stop);
  process.on('warning', (warning) => {
    new Logger('process').warn(warning.message);
  });

  starting = createService(config);
  const { app, embedded } = await starting;
  await app.listen(config.server.port, config.server.host);
  announce(config, await app.getUrl(), embedded);
}

function stop(signal: NodeJS.Signals): void {
  if (stopping) return;
  stopping = true;
  console.log(`${signal}: answering what is running, then stopping`);
  void end(0);
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
      `  Kafka     ${kafka.brokers.length > 0 ? `events go to the topic ${kafka.topic} at ${kafka.brokers.join(', ')}` : 'off: events wait in the log'}`,
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
  // A start that fails has cleaned up after itself.
  const service = await starting?.catch(() => undefined);
  await service?.stop();
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
