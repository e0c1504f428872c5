import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
// Without `.js`: Jest loads this file outside the module mapping that finds the `.ts`.
import { startEmbeddedPostgres } from '../../src/embedded-postgres/embedded-postgres';
import { setTeardown } from './global-teardown';

/**
 * One PostgreSQL for the whole run: the one of TEST_DATABASE_URL or DATABASE_URL, else an embedded one. Tests make
 * their databases with the admin URL in COLLOQUY_TEST_ADMIN_URL.
 */
export default async function globalSetup(): Promise<void> {
  const given = process.env['TEST_DATABASE_URL'] ?? process.env['DATABASE_URL'];
  if (given !== undefined && given !== '') {
    process.env['COLLOQUY_TEST_ADMIN_URL'] = given;
    return;
  }
  const folder = await mkdtemp(join(tmpdir(), 'colloquy-test-'));
  // As root the server runs as another user, who has to get in.
  await chmod(folder, 0o755);
  const postgres = await startEmbeddedPostgres({ dataDir: folder });
  process.env['COLLOQUY_TEST_ADMIN_URL'] = postgres.url;

  // However this process dies, even by kill -9, the pipe then closes, and the janitor ends what is left.
  const script = 'cat >/dev/null; test -e "$1" && kill -INT "$(head -n 1 "$1")" && sleep 5; rm -rf "$2"';
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
    // Locks are taken in one order everywhere: whatever a test was about, the server has never had to break a tie.
    const deadlocks = log.split('\n').filter((line) => line.includes('deadlock detected'));
    if (deadlocks.length > 0)
      throw new Error(`the server's log tells of deadlocks:\n${deadlocks.join('\n')}`);
  });
}
