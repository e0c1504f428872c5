import { execFile } from 'node:child_process';
import { appendFile, chmod, cp, mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { Client } from 'pg';
import {
  type EmbeddedPostgres,
  startEmbeddedPostgres,
} from '../../src/embedded-postgres/embedded-postgres.js';

/** A server of its own with a streaming replica, both without flushes to the disk. */
export interface Replicated {
  /** URL of the database on the server. */
  readonly url: string;
  readonly replicaUrl: string;
  /** Runs a statement on the server, or on the replica. */
  query(where: 'server' | 'replica', sql: string): Promise<Record<string, unknown>[]>;
  /** Waits until the replica has what is on the server now. */
  inStep(): Promise<void>;
  stopReplica(): Promise<void>;
  /** URL with both hosts. */
  readonly bothUrl: string;
  /** What the server commits from now on does not reach the replica. */
  detach(): Promise<void>;
  /** Makes the replica the server, after the server itself has stopped, if that still runs. */
  failOver(options?: { readonly stopServer?: boolean }): Promise<void>;
  end(): Promise<void>;
}

const SETTINGS = { fsync: 'off', full_page_writes: 'off', wal_keep_size: '256MB' };

export async function startReplicated(): Promise<Replicated> {
  const folder = await mkdtemp(join(tmpdir(), 'colloquy-replica-'));
  // When this process is root, the servers run as another user, who must be able to enter the folder.
  await chmod(folder, 0o755);
  const server = await startEmbeddedPostgres({ dataDir: join(folder, 'server'), settings: SETTINGS });
  const copy = await copyOf(server, join(folder, 'replica'));
  const { hostname, port, username, password } = new URL(server.url);
  // In a file, and not on the command line: there it could not be changed.
  await appendFile(
    join(copy, 'postgres', 'data', 'postgresql.auto.conf'),
    `primary_conninfo = 'host=${hostname} port=${port} user=${username} password=${password}'\n`,
  );
  const replica = await startEmbeddedPostgres({ dataDir: copy, settings: SETTINGS });
  const query: Replicated['query'] = async (where, sql) => {
    const client = new Client({ connectionString: (where === 'server' ? server : replica).url });
    await client.connect();
    return client.query<Record<string, unknown>>(sql).then(
      async ({ rows }) => {
        await client.end();
        return rows;
      },
      async (error: unknown) => {
        await client.end();
        throw error;
      },
    );
  };
  return {
    url: server.url,
    replicaUrl: replica.url,
    query,
    inStep: async () => {
      const [row] = await query('server', 'select pg_current_wal_lsn()::text as place');
      for (;;) {
        const sql = `select pg_last_wal_replay_lsn() >= '${String(row?.['place'])}'::pg_lsn as reached`;
        if ((await query('replica', sql))[0]?.['reached'] === true) return;
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    },
    stopReplica: () => replica.stop(),
    bothUrl: server.url.replace(/@([^/]+)/, `@$1,127.0.0.1:${new URL(replica.url).port}`),
    detach: async () => {
      await query('replica', `alter system set primary_conninfo = ''`);
      await query('replica', 'select pg_reload_conf()');
      for (;;) {
        const [row] = await query('replica', 'select count(*)::int as receivers from pg_stat_wal_receiver');
        if (row?.['receivers'] === 0) return;
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    },
    failOver: async ({ stopServer = true } = {}) => {
      if (stopServer) await server.stop();
      await query('replica', 'select pg_promote()');
    },
    end: async () => {
      await replica.stop();
      await server.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** What `pg_basebackup` does, which is not among the binaries: a copy of the files between two marks in the log. */
async function copyOf(server: EmbeddedPostgres, to: string): Promise<string> {
  const client = new Client({ connectionString: server.url });
  await client.connect();
  try {
    await client.query(`select pg_backup_start('replica', true)`);
    const home = dirname(server.dataDir);
    const data = join(to, 'postgres', 'data');
    await mkdir(join(to, 'postgres'), { recursive: true });
    await cp(join(home, 'password'), join(to, 'postgres', 'password'));
    await cp(server.dataDir, data, {
      recursive: true,
      filter: (source) => !/\/postmaster\.(pid|opts)$/.test(source),
    });
    const { rows } = await client.query<{ labelfile: string }>('select labelfile from pg_backup_stop(false)');
    await writeFile(join(data, 'backup_label'), rows[0]?.labelfile ?? '');
    await writeFile(join(data, 'standby.signal'), '');
    await ownedAs(server.dataDir, join(to, 'postgres'));
    return to;
  } finally {
    await client.end();
  }
}

/** Gives a folder to the owner of another one: as root, this process copies files that then belong to root. */
async function ownedAs(model: string, folder: string): Promise<void> {
  const { uid, gid } = await stat(model);
  await promisify(execFile)('chown', ['-R', `${uid}:${gid}`, folder]);
  await promisify(execFile)('chmod', ['700', join(folder, 'data')]);
}
