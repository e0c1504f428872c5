import { type DataSource } from 'typeorm';

/** The migrations of the versions before the first release, whose files are gone. */
export const PRERELEASE_MIGRATIONS: readonly string[] = [
  'Log1770000000001',
  'Checkpoints1770000000002',
  'Relay1770000000003',
  'GenerationChunks1770000000004',
  'TenantStreams1770000000005',
  'Rebuilds1770000000006',
  'Import1770000000007',
  'Past1770000000008',
  'AppendEvent1770000000009',
  'StreamState1770000000010',
];

/** The migrations that make the tables which a database of all those has already. */
const TABLES = ['0001-log', '0008-checkpoints', '0009-relay', '0010-partial-replies'];

/**
 * Lets a database that was made before the first release go on: its tables are taken for those of today's first
 * migrations, while the functions are made anew by theirs, because they may have changed since.
 *
 * @param applied the names of the migrations that were applied to the database
 * @param nameOf the name under which a migration is recorded
 * @throws Error when only some of the old migrations were applied: their files are gone
 */
export async function adoptPrerelease(
  source: DataSource,
  applied: ReadonlySet<string>,
  nameOf: (file: string) => string,
): Promise<void> {
  const missing = PRERELEASE_MIGRATIONS.filter((name) => !applied.has(name));
  if (missing.length === PRERELEASE_MIGRATIONS.length) return;
  if (missing.length > 0) {
    throw new Error(
      `the database was made by a version of Colloquy that is too old to be upgraded (it lacks ${missing.join(', ')}). ` +
        'Export the sessions with that version (colloquy export), and import them into a new database (colloquy import).',
    );
  }
  await source.query(
    `insert into migration (timestamp, name)
     select right(name, 13)::bigint, name from unnest($1::text[]) as n (name)`,
    [TABLES.map(nameOf).filter((name) => !applied.has(name))],
  );
}
