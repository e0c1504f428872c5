import { DataSource, type MigrationInterface } from 'typeorm';
import { connect } from './connection.js';

type Migration = new () => MigrationInterface;

/** Any number that nothing else locks: it serialises first starts. */
const MIGRATION_LOCK = 7300;

const OLDEST_SERVER = 15;

/**
 * Brings the schema up to date. Safe to call from any number of processes at once: one migrates, the others wait.
 * @throws Error when the server is too old, or its schema was made by a newer version of the service.
 */
export async function migrate(url: string, migrations: readonly Migration[]): Promise<void> {
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
      url,
      migrations: [...migrations],
      migrationsTableName: 'migration',
      applicationName: 'colloquy migrations',
      poolSize: 1,
    }).initialize();
    try {
      await refuseNewerSchema(source, migrations);
      await source.runMigrations({ transaction: 'all' });
    } finally {
      await source.destroy();
    }
  } finally {
    await guard.end();
  }
}

async function refuseNewerSchema(source: DataSource, migrations: readonly Migration[]): Promise<void> {
  const [found] = await source.query<[{ exists: boolean }]>(
    `select to_regclass('migration') is not null as exists`,
  );
  if (!found.exists) return;
  const known = new Set(migrations.map((migration) => new migration().name ?? migration.name));
  const applied = await source.query<{ name: string }[]>('select name from migration order by id');
  const unknown = applied.find(({ name }) => !known.has(name));
  if (unknown) {
    throw new Error(
      `the database was migrated by a newer version of Colloquy (${unknown.name}): start that version`,
    );
  }
}
