import { isNativeError } from 'node:util/types';
import { Client, type ClientBase, type ClientConfig, Pool, type PoolConfig, TypeOverrides } from 'pg';
import { hostsOf } from './hosts.js';
import { PrimaryClient } from './primary-client.js';
import { EVERY_SESSION, optionsOf, type ServerSettings } from './server-settings.js';
import { UnpreparedClient } from './unprepared-client.js';

const DISK_FULL = '53100';
const QUERY_CANCELED = '57014';
const LOCK_NOT_AVAILABLE = '55P03';
const UNDEFINED_TABLE = '42P01';
const INSUFFICIENT_PRIVILEGE = '42501';

const codeOf = (error: unknown): unknown => (error as { code?: unknown } | null)?.code;

/** Whether the database has no room for what it was given. */
export const isDiskFull = (error: unknown): boolean => codeOf(error) === DISK_FULL;

/** Whether a lock was not to be had within the `lock_timeout`. */
export const isLockTimeout = (error: unknown): boolean => codeOf(error) === LOCK_NOT_AVAILABLE;

/** Whether a statement named a table that is not there. */
export const isUndefinedTable = (error: unknown): boolean => codeOf(error) === UNDEFINED_TABLE;

/** Whether the role of the connection may not do what it was told to. */
export const isNotPermitted = (error: unknown): boolean => codeOf(error) === INSUFFICIENT_PRIVILEGE;

/**
 * The database cannot do what it was asked for now; the request may be tried again. The message tells what is known.
 */
export class DatabaseUnavailable extends Error {
  override readonly name = 'DatabaseUnavailable';
  readonly code = 'database-unavailable';
  constructor(cause: unknown) {
    super(explanationOf(cause), { cause });
  }
}

function explanationOf(cause: unknown): string {
  const { code, message = '' } = (cause ?? {}) as { code?: unknown; message?: string };
  if (isDiskFull(cause)) {
    return 'the disk of the database is full: nothing can be written until an operator has made room on it';
  }
  if (code === QUERY_CANCELED || /Query read timeout/i.test(message)) {
    return 'the database did not answer in time; try again';
  }
  // The error of a pool whose connections are all in use for as long as a query waits for one.
  if (message === 'timeout exceeded when trying to connect') {
    return 'no connection to the database became free in time; try again';
  }
  return 'the database cannot be reached at the moment; try again';
}

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

/** A statement that takes longer has been given up by whoever asked for it. */
const STATEMENT_MS = 15_000;
/** The server ends a statement so much earlier than its client, so that the client hears of it and stays connected. */
const TIMEOUT_MARGIN_MS = 500;
const CONNECT_MS = 3_000;

const limitedTo = (statementMs: number): ServerSettings => ({
  statement_timeout: String(Math.max(statementMs - TIMEOUT_MARGIN_MS, 1)),
});

/** The limit of a statement, unless another one is given. */
export const STATEMENT_SETTINGS = limitedTo(STATEMENT_MS);

export interface ConnectionOptions {
  /** More server settings; not with `throughPooler`. */
  readonly settings?: ServerSettings | undefined;
  /** Whether the URL leads through a pooler in transaction mode, whose sessions have settings already. */
  readonly throughPooler?: boolean | undefined;
  /** Whether the server may be a standby. Otherwise a connection to one fails, as if there were none. */
  readonly standby?: boolean | undefined;
  /**
   * How long a statement may take; 15 s unless given. The server stops working on it by then, and a server that does
   * not answer at all is as good as gone: whoever waits must get an answer.
   */
  readonly statementMs?: number | undefined;
  /** How long connecting may take; 3 s unless given. */
  readonly connectMs?: number | undefined;
}

export function connectionConfig(
  url: string,
  name: string,
  { settings, throughPooler, statementMs = STATEMENT_MS, connectMs = CONNECT_MS }: ConnectionOptions = {},
): ClientConfig {
  return {
    connectionString: hostsOf(url).url,
    application_name: `colloquy ${name}`,
    ...(!throughPooler && {
      options: optionsOf({ ...EVERY_SESSION, ...limitedTo(statementMs), ...settings }),
    }),
    types: typeParsers,
    connectionTimeoutMillis: connectMs,
    keepAlive: true,
    query_timeout: statementMs,
  };
}

/**
 * Whether a connection keeps the process alive, as it does unless told otherwise. A connection that waits for work, or
 * for notifications, must not: nothing would ever end a program that has done all it wanted.
 */
export function keepsProcessAlive(client: Client, isKept: boolean): void {
  // They are missing from the types.
  const { connection } = client as unknown as { connection: { ref(): void; unref(): void } };
  if (isKept) connection.ref();
  else connection.unref();
}

/**
 * Ends a connection. Whoever waits for the end gets it, even if the connection did not keep the process alive: a process
 * that has nothing else to do would end before, in the middle of its own shutdown.
 */
export async function endConnection(client: Client): Promise<void> {
  keepsProcessAlive(client, true);
  await client.end();
}

/** As the driver wants it; it is missing from the types. */
const verifyBy =
  (prepare: (client: ClientBase) => Promise<void>) =>
  (client: ClientBase, done: (error?: Error) => void): void => {
    prepare(client).then(
      () => {
        done();
      },
      (error: unknown) => {
        done(error as Error);
      },
    );
  };

/** The kind of connection that these options ask for. */
export function clientOf(
  url: string,
  { throughPooler, standby }: ConnectionOptions = {},
): new (config?: ClientConfig) => Client {
  if (throughPooler) return UnpreparedClient;
  if (standby) return Client;
  const { hosts } = hostsOf(url);
  return class extends PrimaryClient {
    constructor(config: ClientConfig = {}) {
      super(config, hosts.length > 1 ? hosts : []);
    }
  };
}

export interface PoolOptions extends ConnectionOptions {
  /** Connections at the same time; 10 unless given. */
  readonly max?: number | undefined;
  /** Run on each new connection before it is used; a failure ends the connection, and fails whoever waits for it. */
  readonly prepare?: ((client: ClientBase) => Promise<void>) | undefined;
}

export const poolConfig = (
  url: string,
  name: string,
  { max = 10, prepare, ...options }: PoolOptions = {},
): PoolConfig => ({
  ...connectionConfig(url, name, options),
  max,
  // Longer than the periods of a quiet log and of sweeps, which would otherwise open new ones each time.
  idleTimeoutMillis: 75_000,
  // A program that uses the library may end by having nothing more to do: idle connections do not hold it up.
  allowExitOnIdle: true,
  Client: clientOf(url, options),
  ...(prepare && { verify: verifyBy(prepare) }),
});

export function createPool(url: string, name: string, options: PoolOptions = {}): Pool {
  const pool = new Pool(poolConfig(url, name, options));
  // A connection that breaks is replaced by the next query. Without listeners it would end the process: the pool's
  // covers idle ones, the other those that are lent out.
  pool.on('error', () => undefined);
  pool.on('connect', (client) => {
    client.on('error', () => undefined);
  });
  return pool;
}

/** @throws whatever `pg` throws when the server cannot be reached. */
export async function connect(url: string, name: string, options: ConnectionOptions = {}): Promise<Client> {
  const client = new (clientOf(url, options))(connectionConfig(url, name, options));
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

// Connection lost, server ends or starts, disk full, too many connections, statement or transaction ended by a
// time-out, server takes no writes any more.
const UNAVAILABLE_STATES = /^(08...|57P0[123]|57014|53[13]00|25P03|25006)$/;
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

/** Whether an error means that the database did not answer for now, so that the outcome of a command may be unknown. */
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
