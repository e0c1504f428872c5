import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cpuSeconds } from './process.mjs';
import { product } from './product.mjs';

const { startEmbeddedPostgres } = product('dist/embedded-postgres/embedded-postgres.js');
const { connect } = product('dist/database/connection.js');
const { migrate } = product('dist/database/migrate.js');

/**
 * Starts a PostgreSQL with the settings of the service, in a temporary folder that is removed when it stops.
 * @returns `database(name)` creates a migrated database and resolves to its URL; `emptyDatabase(name)` creates one
 * without a schema; `disk`, where `diskMb` was given, fills what is left of its disk, and frees it again.
 * @param diskMb the server gets a disk of its own, so many megabytes of memory, which only root can make
 * @param connections how many the server takes
 */
export async function startServer({ diskMb, connections } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'colloquy-bench-'));
  if (diskMb) execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${diskMb}m`, 'tmpfs', folder]);
  // When this process is root, PostgreSQL runs as another user, who must be able to reach its data.
  chmodSync(folder, 0o755);
  const remove = () => {
    if (diskMb) execFileSync('umount', [folder]);
    rmSync(folder, { recursive: true, force: true });
  };
  const ballast = join(folder, 'ballast');
  const settings = {
    ...(diskMb && { max_wal_size: '96MB', min_wal_size: '64MB' }),
    ...(connections && { max_connections: String(connections) }),
  };
  const server = await startEmbeddedPostgres({ dataDir: folder, settings }).catch((error) => {
    remove();
    throw error;
  });
  const emptyDatabase = async (name) => {
    const admin = await connect(server.url, 'bench');
    await admin.query(`create database ${name}`);
    await admin.end();
    const url = new URL(server.url);
    url.pathname = `/${name}`;
    return url.href;
  };
  return {
    version: server.serverVersion,
    /** Of the server's first process. */
    pid: Number(readFileSync(join(server.dataDir, 'postmaster.pid'), 'utf8').split('\n')[0]),
    disk: diskMb && {
      fill: () => spawnSync('dd', ['if=/dev/zero', `of=${ballast}`, 'bs=64k']),
      free: () => rmSync(ballast, { force: true }),
    },
    emptyDatabase,
    database: async (name) => {
      const url = await emptyDatabase(name);
      await migrate(url, product('dist/migrations.js').migrations);
      return url;
    },
    stop: async () => {
      await server.stop();
      remove();
    },
  };
}

/** Seconds of processor time that the server's processes for its clients have used, without the one that asks. */
export async function databaseSeconds(url) {
  const client = await connect(url, 'bench');
  const { rows } = await client.query(
    `select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()`,
  );
  await client.end();
  return rows.reduce((sum, { pid }) => sum + (cpuSeconds(pid) ?? 0), 0);
}

/** Number of events that the read model which is furthest behind has not applied. */
export async function lag(database) {
  const { rows } = await database.query(`
    select max(behind) as behind from (
      select sum(e.position - c.position) as behind
      from projection_checkpoint c join lane_ends() e using (lane) group by c.projection
    ) l`);
  return Number(rows[0].behind);
}

/** A connection with the service's settings. */
export { connect };
