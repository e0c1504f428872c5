import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, chmod, constants, mkdtemp, readFile, statfs } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type * as embedded from '../../src/embedded-postgres/embedded-postgres.js';
// Without `.js`: Jest loads this file outside the module mapping that finds the `.ts`.
import { setTeardown } from './global-teardown';

/**
 * Provides one PostgreSQL for the whole run: the one of TEST_DATABASE_URL or DATABASE_URL, else an embedded one. Tests
 * create their databases through the admin URL in COLLOQUY_TEST_ADMIN_URL.
 */
export default async function globalSetup(): Promise<void> {
  const given = process.env['TEST_DATABASE_URL'] ?? process.env['DATABASE_URL'];
  if (given !== undefined && given !== '') {
    process.env['COLLOQUY_TEST_ADMIN_URL'] = given;
    return;
  }
  const folder = await mkdtemp(join(await scratchFolder(), 'colloquy-test-'));
  // When this process is root, the server runs as another user, who must be able to enter the folder.
  await chmod(folder, 0o755);
  // Jest's own loader for this file does not find a `.ts` by the name of a `.js`; Node's, with the hook, does.
  const load = createRequire(__filename);
  load('./typescript-hook.cjs');
  const { startEmbeddedPostgres } = load(
    '../../src/embedded-postgres/embedded-postgres.ts',
  ) as typeof embedded;
  // No test cuts the power of this server, so data need not be flushed to the disk.
  // Two files at a time may have six applications each, of which each may use 30 connections.
  const settings = { fsync: 'off', full_page_writes: 'off', max_connections: '500' };
  const postgres = await startEmbeddedPostgres({ dataDir: folder, settings });
  process.env['COLLOQUY_TEST_ADMIN_URL'] = postgres.url;

  // The server ends when this process ends, even by kill -9. The pipe then closes as well, and the janitor removes the
  // folder once the server is gone.
  const script = `cat >/dev/null
    n=100; while test -e "$1" && test $n -gt 0; do sleep 0.1; n=$((n - 1)); done
    rm -rf "$2"`;
  const janitor = spawn('sh', ['-c', script, 'sh', join(postgres.dataDir, 'postmaster.pid'), folder], {
    cwd: '/',
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  janitor.unref();
  setTeardown(async () => {
    await postgres.stop();
    const log = await readFile(join(dirname(postgres.dataDir), 'server.log'), 'utf8');
    janitor.ref();
    janitor.stdin.end();
    await once(janitor, 'exit');
    // The service always takes locks in the same order, so no test may have caused a deadlock.
    const deadlocks = log.split('\n').filter((line) => line.includes('deadlock detected'));
    if (deadlocks.length > 0)
      throw new Error(`the server's log tells of deadlocks:\n${deadlocks.join('\n')}`);
  });
}

const MEMORY_FOLDER = '/dev/shm';
/** The data of a whole run is a few hundred MiB; the rest is left to the processes. */
const MEMORY_NEEDED = 2 * 2 ** 30;

/**
 * A folder in memory, where there is room for one. Each test has a database of its own, which is 450 files, and to
 * create them takes seven times as long on a disk.
 */
async function scratchFolder(): Promise<string> {
  try {
    await access(MEMORY_FOLDER, constants.W_OK);
    const { bavail, bsize } = await statfs(MEMORY_FOLDER);
    if (Math.min(bavail * bsize, process.availableMemory()) >= MEMORY_NEEDED) return MEMORY_FOLDER;
  } catch {
    // There is no such folder on this system.
  }
  return tmpdir();
}
