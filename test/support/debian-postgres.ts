import { execFile } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { chmod, chown, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describeUnless, freePort } from './programs.js';

const INSTALLED = '/usr/lib/postgresql';
const NOBODY = 65_534;
const asNobody = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {};

/** The newest PostgreSQL of the system, which has the client programs that the embedded one lacks. */
function programs(): string | undefined {
  const versions = existsSync(INSTALLED) ? readdirSync(INSTALLED).sort((a, b) => Number(b) - Number(a)) : [];
  return versions
    .map((version) => join(INSTALLED, version, 'bin'))
    .find((bin) => existsSync(join(bin, 'initdb')));
}

/** Declares tests that need a PostgreSQL of the system; with REQUIRE_PROGRAMS=1 they fail without it. */
export function describeWithPostgres(name: string, tests: () => void): void {
  const missing = programs() === undefined ? `there is none in ${INSTALLED}` : undefined;
  describeUnless(missing, { what: 'PostgreSQL', variable: 'REQUIRE_PROGRAMS' }, name, tests);
}

/** Servers of one test file, in a temporary folder. They run as nobody where this process is root, since they refuse root. */
export interface PostgresHome {
  readonly folder: string;
  /** Makes the data of a new server, and starts it. */
  create(name: string): Promise<PostgresServer>;
  /** Starts a server on data that is there. */
  start(dataDir: string): Promise<PostgresServer>;
  /** Runs commands in the folder as whoever the servers run as, with PostgreSQL's programs in the PATH. */
  run(commands: string, env?: Readonly<Record<string, string>>): Promise<string>;
  end(): Promise<void>;
}

export interface PostgresServer {
  readonly dataDir: string;
  urlOf(database: string): string;
  restart(): Promise<void>;
  /** At once, as in a crash. */
  stop(): Promise<void>;
}

export async function postgresHome(): Promise<PostgresHome> {
  const bin = programs() ?? '';
  const folder = await mkdtemp(join(tmpdir(), 'colloquy-postgres-'));
  await chmod(folder, 0o755);
  if (asNobody.uid !== undefined) await chown(folder, NOBODY, NOBODY);
  const running = new Set<PostgresServer>();
  const run: PostgresHome['run'] = async (commands, env = {}) => {
    const { stdout } = await promisify(execFile)('bash', ['-euc', commands], {
      cwd: folder,
      env: { PATH: `${bin}:${process.env['PATH'] ?? ''}`, LC_ALL: 'C.UTF-8', ...env },
      ...asNobody,
    });
    return stdout;
  };
  const start: PostgresHome['start'] = async (dataDir) => {
    const port = await freePort();
    const options = `-p ${port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=100`;
    // Its output goes to the log; pg_ctl would otherwise hold the pipe open for as long as the server runs.
    const up = `pg_ctl start -w -t 60 -D ${dataDir} -l ${dataDir}.log -o "${options}" >/dev/null`;
    const down = `pg_ctl stop -w -m immediate -D ${dataDir} >/dev/null`;
    await run(up).catch(async (error: unknown) => {
      throw new Error(await run(`cat ${dataDir}.log`), { cause: error });
    });
    const server: PostgresServer = {
      dataDir,
      urlOf: (database) => `postgres://colloquy@127.0.0.1:${port}/${database}`,
      restart: async () => {
        await run(`pg_ctl stop -w -m fast -D ${dataDir} >/dev/null`);
        await run(up);
      },
      stop: async () => {
        if (running.delete(server)) await run(down);
      },
    };
    running.add(server);
    return server;
  };
  return {
    folder,
    start,
    run,
    create: async (name) => {
      const dataDir = join(folder, name);
      await mkdir(dataDir, { mode: 0o700 });
      if (asNobody.uid !== undefined) await chown(dataDir, NOBODY, NOBODY);
      await run(`initdb -D ${dataDir} -U colloquy --auth=trust --encoding=UTF8 --locale=C.UTF-8 >/dev/null`);
      return start(dataDir);
    },
    end: async () => {
      for (const server of [...running]) await server.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
