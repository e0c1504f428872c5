import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

type Program = 'pgbouncer' | 'redis-server' | 'promtool';

/** Debian keeps servers outside of the PATH of users. */
const FOLDERS = [...(process.env['PATH'] ?? '').split(':'), '/usr/sbin', '/usr/local/sbin'];
const NOBODY = 65_534;
const START_LIMIT_MS = 10_000;

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

export const find = (program: Program): string | undefined =>
  FOLDERS.map((folder) => join(folder, program)).find((file) => existsSync(file));

/**
 * Declares tests that need something of the machine. Without it they are skipped with a message, or fail if an environment
 * variable is set to 1.
 *
 * @param missing why it is not there; undefined: it is
 */
export function describeUnless(
  missing: string | undefined,
  { what, variable }: { readonly what: string; readonly variable: string },
  name: string,
  tests: () => void,
): void {
  if (missing === undefined) describe(name, tests);
  else if (process.env[variable] === '1') {
    it(`${name}: needs ${what}`, () => {
      throw new Error(`${variable}=1, and there is no ${what}: ${missing}`);
    });
  } else {
    process.stderr.write(`\nSKIPPED, FOR WANT OF ${what}: ${name} (${missing})\n`);
    describe.skip(name, tests);
  }
}

/** Declares tests that need a program of the system; with REQUIRE_PROGRAMS=1 they fail without it. */
export function describeWith(program: Program, name: string, tests: () => void): void {
  const missing = find(program) === undefined ? 'it is not installed' : undefined;
  describeUnless(missing, { what: program, variable: 'REQUIRE_PROGRAMS' }, name, tests);
}

export interface RunningProgram {
  readonly port: number;
  /** Ends it in the way of `kill -9`; it can be started again on the same port. */
  kill9(): Promise<void>;
  /** Starts it again after `kill9`. */
  start(): Promise<void>;
  /** Stops it where it stands, until `resume`. */
  suspend(): void;
  resume(): void;
  /** Ends it and removes its folder. */
  end(): Promise<void>;
}

export async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as AddressInfo;
  probe.close();
  return port;
}

/** @param prepare writes what the program needs into its folder, and returns its arguments */
async function run(
  program: Program,
  prepare: (folder: string, port: number) => Promise<string[]>,
): Promise<RunningProgram> {
  const folder = await mkdtemp(join(tmpdir(), `colloquy-${program}-`));
  await chmod(folder, 0o755);
  const port = await freePort();
  const args = await prepare(folder, port);
  let child: ChildProcess;
  const start = async (): Promise<void> => {
    // PgBouncer refuses to run as root.
    const asNobody = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {};
    child = spawn(find(program) ?? program, args, {
      cwd: '/',
      stdio: ['ignore', 'ignore', 'pipe'],
      ...asNobody,
    });
    running.add(child);
    let output = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (output += text));
    child.once('exit', () => running.delete(child));
    await listens(port, child).catch((error: unknown) => {
      throw new Error(`${program} does not listen: ${output}`, { cause: error });
    });
  };
  const kill9 = async (): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exit = once(child, 'exit');
    child.kill('SIGKILL');
    await exit;
  };
  await start();
  return {
    port,
    start,
    kill9,
    suspend: () => child.kill('SIGSTOP'),
    resume: () => child.kill('SIGCONT'),
    end: async () => {
      await kill9();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function listens(port: number, child: ChildProcess): Promise<void> {
  const deadline = Date.now() + START_LIMIT_MS;
  for (;;) {
    const socket = connect(port, '127.0.0.1');
    const isConnected = await once(socket, 'connect').then(
      () => true,
      () => false,
    );
    socket.destroy();
    if (isConnected) return;
    if (child.exitCode !== null) throw new Error(`it ended with ${child.exitCode}`);
    if (Date.now() > deadline) throw new Error('the time is over');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Redis without a file: what it holds is gone when it is killed. */
export const startRedis = (): Promise<RunningProgram> =>
  run('redis-server', (folder, port) =>
    Promise.resolve([
      ...['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', folder],
    ]),
  );

/**
 * PgBouncer in transaction mode with two connections to a database.
 *
 * @param connectQuery what each of its sessions does first
 */
export const startPgBouncer = (databaseUrl: string, connectQuery: string): Promise<RunningProgram> =>
  run('pgbouncer', async (folder, port) => {
    const { hostname, port: serverPort, username, password, pathname } = new URL(databaseUrl);
    const users = join(folder, 'users');
    await writeFile(users, `"${username}" "${decodeURIComponent(password)}"\n`, { mode: 0o644 });
    const settings = join(folder, 'pgbouncer.ini');
    await writeFile(
      settings,
      `[databases]
${pathname.slice(1)} = host=${hostname} port=${serverPort} connect_query='${connectQuery}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${users}
pool_mode = transaction
default_pool_size = 2
max_client_conn = 500
`,
      { mode: 0o644 },
    );
    return [settings];
  });

/** A URL that leads to the same database through another port of this machine. */
export function through(port: number, databaseUrl: string): string {
  const url = new URL(databaseUrl);
  url.host = `127.0.0.1:${port}`;
  return url.href;
}
