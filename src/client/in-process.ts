import { Readable } from 'node:stream';
import { type FastifyInstance } from 'fastify';
import { loadConfig } from '../config.js';
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
  // Nobody else can reach it, so it needs no keys.
  const { COLLOQUY_API_KEYS: _keys, HOST: _host, ...env } = process.env;
  const { database, ...stored } = storage ?? {};
  const config = loadConfig({
    env,
    cwd: process.cwd(),
    overrides: {
      ...(llm && { llm }),
      ...(sessions && { sessions }),
      // A URL from an environment variable that is not set means none.
      ...(storage && { storage: { ...stored, ...(database?.url !== undefined && { database }) } }),
      auth: { mode: 'none', keys: [] },
      server: { host: '127.0.0.1' },
    },
  });
  for (const warning of config.warnings) warn(warning);
  const service = await createService(config);
  await service.app.init();
  const fastify = service.app.getHttpAdapter().getInstance() as unknown as FastifyInstance;
  await fastify.ready();

  const fetch: Fetch = async (path, { method, headers, body, signal }) => {
    signal?.throwIfAborted();
    const response = await fastify.inject({
      method: method as 'GET',
      url: path,
      headers: headers as Record<string, string>,
      payloadAsStream: true,
      ...(typeof body === 'string' && { payload: body }),
      ...(signal && { signal }),
    });
    const empty = response.statusCode === 204;
    return new Response(empty ? null : (Readable.toWeb(response.stream()) as ReadableStream), {
      status: response.statusCode,
      headers: response.headers as Record<string, string>,
    });
  };
  return { fetch, stop: () => service.stop() };
}
