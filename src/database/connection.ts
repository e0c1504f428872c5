import { isNativeError } from 'node:util/types';
import { Client, type ClientConfig, Pool, type PoolConfig, TypeOverrides } from 'pg';

/** The database cannot be reached or went away; the request may be tried again. */
export class DatabaseUnavailable extends Error {
  override readonly name = 'DatabaseUnavailable';
  readonly code = 'database-unavailable';
  constructor(cause: unknown) {
    super('the database cannot be reached at the moment; try again', { cause });
  }
}

/**
 * Settings of every connection.
 * A process that was stopped between BEGIN and COMMIT would keep its row locks: the server ends such a transaction
 * before any lease of that process has run out, so that whoever takes over is not held up.
 */
const SESSION_SETTINGS = '-c TimeZone=UTC -c idle_in_transaction_session_timeout=5000 -c lock_timeout=10000';

const TIMESTAMPTZ = 1184;
const BIGINT = 20;
const MILLISECONDS = '2026-11-22 10:00:00.123+00'.length;

/** `2026-11-22 10:00:00.5+00` → `2026-11-22T10:00:00.500Z`; the connection's time zone is UTC. */
export function rfc3339(text: string): string {
  // Nine of ten have all three digits, and there are several in every row.
  if (text.length === MILLISECONDS) return `${text.slice(0, 10)}T${text.slice(11, -3)}Z`;
  const [seconds = '', fraction = ''] = text.slice(11, -3).split('.');
  return `${text.slice(0, 10)}T${seconds}.${fraction.slice(0, 3).padEnd(3, '0')}Z`;
}

/** Times as RFC 3339 text and bigint as number: positions stay far below 2^53. */
const typeParsers = new TypeOverrides();
typeParsers.setTypeParser(TIMESTAMPTZ, rfc3339);
typeParsers.setTypeParser(BIGINT, Number);

export function connectionConfig(url: string, name: string, settings = ''): ClientConfig {
  return {
    connectionString: url,
    application_name: `colloquy ${name}`,
    options: `${SESSION_SETTINGS} ${settings}`,
    types: typeParsers,
    connectionTimeoutMillis: 3_000,
    keepAlive: true,
    // A server that stopped answering is as good as gone; whoever waits must get an answer.
    query_timeout: 15_000,
  };
}

/**
 * @param options.settings more server settings, e.g. `-c synchronous_commit=off` for what can be made again.
 */
export function createPool(
  url: string,
  name: string,
  options: { max?: number; settings?: string } = {},
): Pool {
  const config: PoolConfig = connectionConfig(url, name, options.settings);
  const pool = new Pool({ ...config, max: options.max ?? 10 });
  // A connection that breaks is replaced by the next query. Without listeners it would end the process: the pool's
  // covers idle ones, the other those that are lent out.
  pool.on('error', () => undefined);
  pool.on('connect', (client) => {
    client.on('error', () => undefined);
  });
  return pool;
}

/**
 * @param options.settings more server settings; the rest is for `pg`.
 * @throws whatever `pg` throws when the server cannot be reached.
 */
export async function connect(
  url: string,
  name: string,
  { settings, ...overrides }: ClientConfig & { settings?: string } = {},
): Promise<Client> {
  const client = new Client({ ...connectionConfig(url, name, settings), ...overrides });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

const UNAVAILABLE_STATES = /^(08...|57P0[123]|53300|25P03)$/;
const UNAVAILABLE_SYSTEM = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'ENOTFOUND',
  'EHOSTUNREACH',
]);
const UNAVAILABLE_MESSAGES =
  /Connection terminated|connection error|not queryable|Query read timeout|timeout exceeded when trying to connect|timeout expired|Client was closed/i;

/** Whether an error means that the connection is gone or was never there, so that a command's outcome is unknown. */
export function isConnectionError(error: unknown): boolean {
  // Not `instanceof`: a socket's error may come from another realm, as it does under Jest.
  if (!isNativeError(error)) return false;
  const { code } = error as { code?: unknown };
  if (typeof code === 'string' && (UNAVAILABLE_STATES.test(code) || UNAVAILABLE_SYSTEM.has(code)))
    return true;
  return UNAVAILABLE_MESSAGES.test(error.message);
}

/** Runs a query; a lost connection becomes `DatabaseUnavailable`, every other error stays what it is. */
export async function available<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw isConnectionError(error) ? new DatabaseUnavailable(error) : error;
  }
}
