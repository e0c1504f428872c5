import { once } from 'node:events';
import { constants } from 'node:fs';
import { type FileHandle, open, readFile, rename, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from './account.js';
import { endLeftoverServer } from './leftover-server.js';
import { type Place } from './place.js';
import { withClient } from './sign-in.js';
import { endServer, IMMEDIATE_SHUTDOWN, type SupervisedServer, superviseServer } from './supervisor.js';

/**
 * Milliseconds after which a started server must answer. Crash recovery replays up to max_wal_size, which takes minutes
 * on a slow disk.
 */
const READY_LIMIT_MS = 300_000;
/** Size from which the log of the server is rotated at a start. One old log is kept. */
const LOG_LIMIT_BYTES = 10 * 1024 * 1024;

/** The default settings. Those of the caller override them. */
const SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '127.0.0.1',
  // Socket paths are limited to 107 bytes, which a deep data folder exceeds.
  unix_socket_directories: '',
  max_connections: '200',
  shared_buffers: '128MB',
  timezone: 'UTC',
  log_timezone: 'UTC',
  log_checkpoints: 'off',
  // By default the server logs the text of a failing statement, and with it what people wrote.
  log_min_error_statement: 'panic',
};

export interface RunningServer {
  readonly process: SupervisedServer;
  readonly port: number;
  /** e.g. `18.4` */
  readonly version: string;
}

/** What the server is started with, at its first start and at each restart. */
export interface Start {
  readonly place: Place;
  readonly password: string;
  /** As in `postgresql.conf`; they override the defaults. */
  readonly settings: Readonly<Record<string, string>>;
}

/** Starts the server on a free port that the system chooses. */
export async function startOnFreePort(start: Start): Promise<RunningServer> {
  const never = new AbortController().signal;
  for (let attempt = 1; ; attempt += 1) {
    const port = await freePort();
    try {
      return await startServer(start, port, never);
    } catch (error) {
      // Another program may have taken the port meanwhile, or children of a killed server may still be ending.
      if (attempt === 5) throw error;
      await sleep(100 * 2 ** attempt);
    }
  }
}

/**
 * Starts the server and waits until it answers. On failure nothing is left running.
 * @throws Error with the end of the server's log
 */
export async function startServer(start: Start, port: number, signal: AbortSignal): Promise<RunningServer> {
  const { place, settings } = start;
  await endLeftoverServer(place.cluster);
  const options = Object.entries({ ...SETTINGS, ...settings, port: String(port) });
  const command = [
    join(place.binaries, 'bin', 'postgres'),
    '-D',
    place.cluster,
    ...options.flatMap(([name, value]) => ['-c', `${name}=${value}`]),
  ];
  const logFile = join(place.home, 'server.log');
  const log = await openLog(logFile, place);
  const logStart = (await log.stat()).size;
  const process = superviseServer(command, log, place.account);
  await log.close();
  try {
    return { process, port, version: await untilReady(start, port, process, signal) };
  } catch (error) {
    await endServer(process, IMMEDIATE_SHUTDOWN);
    const output = (await readFile(logFile)).subarray(logStart).toString('utf8').trim().slice(-2000);
    throw new Error(
      `PostgreSQL did not start: ${messageOf(error)}.${output && `\n${output}`}\n(Its log: ${logFile})`,
      { cause: error },
    );
  }
}

async function openLog(file: string, { account }: Place): Promise<FileHandle> {
  if (((await stat(file).catch(() => undefined))?.size ?? 0) > LOG_LIMIT_BYTES) {
    await rename(file, `${file}.1`);
  }
  const { O_WRONLY, O_APPEND, O_CREAT, O_NOFOLLOW } = constants;
  // As root, this process writes into a folder of another user. A symlink that this user put there must not redirect
  // the write.
  const log = await open(file, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0o600);
  if (account) await log.chown(account.uid, account.gid);
  return log;
}

/** Resolves to the version of the server once it answers and serves the right data. */
async function untilReady(
  { place, password }: Start,
  port: number,
  process: SupervisedServer,
  signal: AbortSignal,
): Promise<string> {
  const retryable = new Set(['ECONNREFUSED', 'ECONNRESET', '57P03', '53300']);
  const deadline = performance.now() + READY_LIMIT_MS;
  for (;;) {
    signal.throwIfAborted();
    // Checked first: once this server has ended, whatever answers at the port is another program.
    if (process.hasEnded()) throw new Error(`it ended (${await process.ended})`);
    try {
      const { folder, version } = await withClient(port, password, async (client) => {
        const answer = await client.query<{ folder: string; version: string }>(
          `SELECT current_setting('data_directory') AS folder, current_setting('server_version') AS version`,
        );
        return answer.rows[0] ?? { folder: '', version: '' };
      });
      if (folder === place.cluster) return version;
      throw new Error(`another database (${folder}) answers at its port`);
    } catch (error) {
      const code = (error as { code?: unknown }).code;
      const isRetryable = typeof code === 'string' && retryable.has(code);
      if (performance.now() > deadline || !(isRetryable || messageOf(error).includes('timeout'))) throw error;
    }
    await sleep(25);
  }
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const address = probe.address();
  probe.close();
  await once(probe, 'close');
  if (address === null || typeof address === 'string') throw new Error('The system gave no port.');
  return address.port;
}
