import { Readable } from 'node:stream';
import { loadConfig } from '../config.js';
import { createLogger } from '../logging.js';
import { createService } from '../service.js';
import { type Fetch } from './connection.js';

/** The settings of a service, as in its settings file. */
interface Settings {
  readonly llm?: object;
  readonly sessions?: object;
  readonly storage?: { readonly database?: { readonly url?: string | undefined } };
}

/** Runs the service in this process, without opening a port: requests go to it by function call. */
export async function startInProcess(
  { llm, sessions, storage }: Settings,
  warn: (warning: string) => void,
): Promise<{ fetch: Fetch; stop: () => Promise<void> }> {
  // Nobody else can reach the service, so it needs no keys.
  const { COLLOQUY_API_KEYS: _keys, HOST: _host, ...env } = process.env;
  const { database, ...stored } = storage ?? {};
  const config = loadConfig({
    env,
    cwd: process.cwd(),
    overrides: {
      ...(llm && { llm }),
      ...(sessions && { sessions }),
      // An undefined URL, e.g. of an environment variable that is not set, counts as missing.
      ...(storage && { storage: { ...stored, ...(database?.url !== undefined && { database }) } }),
      auth: { mode: 'none', keys: [] },
      server: { host: '127.0.0.1' },
    },
  });
  for (const warning of config.warnings) warn(warning);
  // Idle parts of the service let the process end; a start does not.
  const started = keepAlive();
  // A library must not write into its host's standard output: only warnings are logged, to standard error.
  const logger = createLogger(process.env['LOG_LEVEL'] ? config.server.logLevel : 'warn', 2);
  const service = await createService(config, { logger }).finally(started);
  const fastify = service.app.getHttpAdapter().getInstance();
  await fastify.ready();

  const fetch: Fetch = async (path, { method, headers, body, signal }) => {
    signal?.throwIfAborted();
    const ended = keepAlive();
    const injected = fastify.inject({
      method: method as 'GET',
      url: path,
      headers: headers as Record<string, string>,
      payloadAsStream: true,
      ...(typeof body === 'string' && { payload: body }),
    });
    const response = await (signal ? unlessAborted(injected, signal) : injected).catch((error: unknown) => {
      ended();
      throw error;
    });
    const stream = response.stream();
    // When the caller stops reading, the service must see a client that disconnected; nothing else tells it.
    stream.once('close', () => {
      ended();
      response.raw.res.destroy();
    });
    signal?.addEventListener('abort', () => stream.destroy(signal.reason as Error), { once: true });
    const empty = response.statusCode === 204;
    // Nobody reads an empty body, and an unread stream would never end.
    if (empty) stream.resume();
    return new Response(empty ? null : (Readable.toWeb(stream) as ReadableStream), {
      status: response.statusCode,
      headers: response.headers as Record<string, string>,
    });
  };
  return { fetch, stop: () => service.stop().finally(keepAlive()) };
}

/** Keeps the process alive until the returned function is called, because somebody waits for a result. */
function keepAlive(): () => void {
  const timer = setInterval(() => undefined, 2 ** 31 - 1);
  return () => {
    clearInterval(timer);
  };
}

/** Rejects when the signal aborts. The signal of the injection itself does not end the wait for an answer. */
async function unlessAborted<T extends { stream(): Readable }>(
  answer: Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  let leave = (): void => undefined;
  const gone = new Promise<never>((_, reject) => {
    leave = () => {
      reject(signal.reason as Error);
    };
    signal.addEventListener('abort', leave, { once: true });
  });
  try {
    return await Promise.race([answer, gone]);
  } catch (error) {
    // The answer may still come later, when nobody waits for it.
    answer.then(
      (late) =>
        late
          .stream()
          .on('error', () => undefined)
          .destroy(),
      () => undefined,
    );
    throw error;
  } finally {
    signal.removeEventListener('abort', leave);
  }
}
