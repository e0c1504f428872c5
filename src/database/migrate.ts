import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { DataSource, type MigrationInterface } from 'typeorm';
import { clientOf, connect, isNotPermitted } from './connection.js';
import { hostsOf } from './hosts.js';
import { adoptPrerelease, PRERELEASE_MIGRATIONS } from './prerelease.js';

/** A numbered file of SQL that is never edited once it was released. */
export interface Migration {
  /** Path of the file, from the folder of the sources: `feature/migrations/0001-what-it-does.sql`. */
  readonly file: string;
  /** SHA-256 of the file, 64 hex digits. */
  readonly sha256: string;
}

/** The folder of the sources, or of what was compiled from them. */
const SOURCES = join(__dirname, '..');

/** Any number that nothing else locks: it serialises first starts. */
const MIGRATION_LOCK = 7300;

const OLDEST_SERVER = 15;

/**
 * Brings the schema up to date. Safe to call from any number of processes at once: one migrates, the others wait.
 *
 * @param migrations all migrations, in the order of their numbers
 * @throws Error when the server is too old, when a newer version of the service made the schema or a version did that
 *   cannot be upgraded, or when a migration is not what was released or not what was applied; nothing has changed then
 */
export async function migrate(url: string, migrations: readonly Migration[]): Promise<void> {
  const loaded = migrations.map(load);
  const guard = await connect(url, 'migrations', { statementMs: 600_000 });
  try {
    const { rows } = await guard.query<{ version: string }>('show server_version_num');
    const major = Math.floor(Number(Object.values(rows[0] ?? {})[0]) / 10_000);
    if (major < OLDEST_SERVER)
      throw new Error(`PostgreSQL ${major} is too old: ${OLDEST_SERVER} or newer is needed`);

    // Those that wait here may wait as long as a migration takes.
    await guard.query('set lock_timeout = 0');
    await guard.query('select pg_advisory_lock($1)', [MIGRATION_LOCK]);
    const source = await new DataSource({
      type: 'postgres',
      url: hostsOf(url).url,
      // Without the limits of other connections: a migration takes as long as it takes.
      extra: { Client: clientOf(url) },
      migrations: loaded.map(({ run }) => run),
      migrationsTableName: 'migration',
      applicationName: 'colloquy migrations',
      poolSize: 1,
    }).initialize();
    try {
      const applied = await readApplied(source);
      checkApplied(applied, loaded);
      const checked = new Set(applied.filter(({ sha256 }) => sha256 !== null).map(({ name }) => name));
      // A role that may only use the schema can start the service when there is nothing to be done.
      if (loaded.every(({ name }) => checked.has(name))) return;
      await adoptPrerelease(source, new Set(applied.map(({ name }) => name)), nameOf);
      await source.runMigrations({ transaction: 'all' });
      await recordChecksums(source, loaded);
    } catch (error) {
      if (!isNotPermitted(error)) throw error;
      throw new Error(
        `the database needs migrations that this role may not make (${(error as Error).message}): run colloquy migrate as the owner of its tables, and colloquy grant for this role`,
        { cause: error },
      );
    } finally {
      await source.destroy();
    }
  } finally {
    await guard.end();
  }
}

/** TypeORM orders migrations by the time stamp at the end of their names; ours are ordered by their numbers. */
const nameOf = (file: string): string => {
  const name = basename(file, '.sql');
  return `${name}-${1_780_000_000_000 + Number.parseInt(name, 10)}`;
};

interface LoadedMigration extends Migration {
  readonly name: string;
  readonly run: new () => MigrationInterface;
}

function load({ file, sha256 }: Migration): LoadedMigration {
  const name = nameOf(file);
  const sql = readFileSync(join(SOURCES, file), 'utf8');
  // With an edited file this database would come to differ from all others of its version.
  if (createHash('sha256').update(sql).digest('hex') !== sha256)
    throw new Error(`the migration ${file} is not the file that was released: install Colloquy anew`);
  return {
    file,
    sha256,
    name,
    run: class implements MigrationInterface {
      readonly name = name;

      async up(runner: { query(sql: string): Promise<unknown> }): Promise<void> {
        await runner.query(sql);
      }

      down(): Promise<void> {
        return Promise.reject(new Error('a migration is never taken back'));
      }
    },
  };
}

interface AppliedMigration {
  readonly name: string;
  /** Null for migrations of early versions, which recorded no checksums. */
  readonly sha256: string | null;
}

async function readApplied(source: DataSource): Promise<AppliedMigration[]> {
  const [found] = await source.query<[{ exists: boolean }]>(
    `select to_regclass('migration') is not null as exists`,
  );
  if (!found.exists) return [];
  // The column is read by way of JSON because databases of early versions lack it.
  return source.query(`select name, to_jsonb(m) ->> 'sha256' as sha256 from migration m order by id`);
}

/** @throws Error when a newer version made the schema, or a migration is not the one that was applied */
function checkApplied(applied: readonly AppliedMigration[], migrations: readonly LoadedMigration[]): void {
  const known = new Map(migrations.map((migration) => [migration.name, migration]));
  for (const { name, sha256 } of applied) {
    if (PRERELEASE_MIGRATIONS.includes(name)) continue;
    const migration = known.get(name);
    if (!migration) {
      throw new Error(
        `the database was migrated by a newer version of Colloquy (${name}): start that version`,
      );
    }
    if (sha256 !== null && sha256 !== migration.sha256) {
      throw new Error(
        `the database was migrated by another ${migration.file} than this version has: its schema is unknown. ` +
          'Export the sessions with the version that made it (colloquy export), and import them into a new database.',
      );
    }
  }
}

async function recordChecksums(source: DataSource, migrations: readonly LoadedMigration[]): Promise<void> {
  await source.query('alter table migration add column if not exists sha256 text');
  await source.query(
    `update migration m set sha256 = f.sha256 from unnest($1::text[], $2::text[]) as f (name, sha256)
     where m.name = f.name and m.sha256 is null`,
    [migrations.map(({ name }) => name), migrations.map(({ sha256 }) => sha256)],
  );
}
