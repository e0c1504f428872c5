import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, relative } from 'node:path';
import { type Migration, migrate } from '../../../src/database/migrate.js';
import { EventLog } from '../../../src/event-store/log.js';
import { LEASE_MS } from '../../../src/event-store/leases.js';
import { migrations } from '../../../src/migrations.js';
import { createEmptyDatabase, type TestDatabase } from '../../support/database.js';
import { startProxy } from '../../support/tcp-proxy.js';

const PRERELEASE = join(__dirname, '../../fixtures/databases/0.1.0.sql');

let db: TestDatabase;
beforeEach(async () => {
  db = await createEmptyDatabase();
});
afterEach(async () => {
  await db.drop();
});

const tables = () =>
  db.query(`select relname::text from pg_class where relnamespace = 'public'::regnamespace order by 1`);

it('given an empty database, when 20 nodes start at once, then it is migrated once', async () => {
  await Promise.all(Array.from({ length: 20 }, () => migrate(db.url, migrations)));

  expect(await db.query(`select left(name, -14) as name, sha256 from migration order by id`)).toEqual(
    migrations.map(({ file, sha256 }) => ({ name: basename(file, '.sql'), sha256 })),
  );
  expect(await db.query('select lanes from log_settings')).toEqual([{ lanes: 16 }]);
}, 60_000);

it('given a migrated database, when a node starts, then nothing changes', async () => {
  await migrate(db.url, migrations);
  const before = [await db.query('select * from log_settings'), await tables()];

  await migrate(db.url, migrations);

  expect([await db.query('select * from log_settings'), await tables()]).toEqual(before);
});

/** Everything in which the schemas of two databases can differ. */
const schema = () =>
  db.query(`
    select 'column' as kind, table_name || '.' || column_name as name,
           concat_ws(' ', data_type, collation_name, is_nullable, column_default) as definition
    from information_schema.columns where table_schema = 'public'
    union all
    select 'table', relname, concat_ws(' ', relkind, reloptions::text, coalesce(relacl, acldefault('r', relowner))::text)
    from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'S')
    union all
    select 'index', indexname, indexdef from pg_indexes where schemaname = 'public'
    union all
    -- Servers name what is not null each in their own way.
    select 'constraint', conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid)
    from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n'
    union all
    select 'function', oid::regprocedure::text, pg_get_functiondef(oid)
    from pg_proc where pronamespace = 'public'::regnamespace
    union all
    select 'trigger', tgrelid::regclass || ' ' || tgname, tgenabled::text || ' ' || pg_get_triggerdef(oid)
    from pg_trigger where not tgisinternal
    order by 1, 2`);

async function restorePrerelease(): Promise<void> {
  await db.query(readFileSync(PRERELEASE, 'utf8'));
  // The dump sets an empty search path.
  await db.query('set search_path to public');
  // Tables of read models come and go with the versions of their code, not with migrations.
  for (const { projection } of await db.query<{ projection: string }>(
    'select distinct projection from projection_checkpoint',
  ))
    await db.query(`drop table ${projection}`);
}

it('given a database that the version before the first release made, when it is migrated, then its schema is that of a new one and its events are there', async () => {
  await migrate(db.url, migrations);
  const fresh = await schema();
  await db.drop();
  db = await createEmptyDatabase();
  await restorePrerelease();
  const events = await db.query('select * from event order by lane, position');
  expect(events.length).toBeGreaterThan(50);

  await migrate(db.url, migrations);
  await migrate(db.url, migrations);

  expect(await schema()).toEqual(fresh);
  expect(await db.query('select * from event order by lane, position')).toEqual(events);
});

it('given a database of an older version that lacks some migrations, when it is migrated, then it is refused with advice and left unchanged', async () => {
  await restorePrerelease();
  await db.query(`delete from migration where name like 'StreamState%'`);
  const before = await schema();

  await expect(migrate(db.url, migrations)).rejects.toThrow(/too old .*colloquy export.*colloquy import/);

  expect(await schema()).toEqual(before);
});

it('given a migration that was edited after its release, when a node starts, then both the changed file and a database with another checksum are refused', async () => {
  await migrate(db.url, migrations);
  const [first, ...others] = migrations;
  if (!first) throw new Error('there are no migrations');

  const edited = { ...first, sha256: '0'.repeat(64) };
  await expect(migrate(db.url, [edited, ...others])).rejects.toThrow(/0001-log.sql is not the file/);
  await db.query(`update migration set sha256 = $1 where name like '0001-%'`, [edited.sha256]);
  await expect(migrate(db.url, migrations)).rejects.toThrow(/another .*0001-log.sql.*colloquy export/);
});

it('given a schema of a newer version, when an older node starts, then it is refused and changes nothing', async () => {
  await migrate(db.url, migrations);
  await db.query(`insert into migration (timestamp, name) values (9000000000000, 'Later9000000000000')`);
  const before = await tables();

  await expect(migrate(db.url, migrations)).rejects.toThrow(/newer version.*Later9000000000000/);

  expect(await tables()).toEqual(before);
});

async function migrationOf(folder: string, name: string, sql: string): Promise<Migration> {
  const path = join(folder, name);
  await writeFile(path, sql);
  return {
    file: relative(join(__dirname, '../../../src'), path),
    sha256: createHash('sha256').update(sql).digest('hex'),
  };
}

it('given a migration that fails, when it is run, then it and those before it in the same run are rolled back', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'colloquy-migrations-'));
  const broken = await migrationOf(
    folder,
    '0999-broken.sql',
    'create table half_done (id int); select 1 / 0;',
  );

  // TypeORM also prints the error on the console.
  const output = jest.spyOn(console, 'log').mockReturnValue();
  await expect(migrate(db.url, [...migrations, broken])).rejects.toThrow(/division by zero/);
  output.mockRestore();
  await rm(folder, { recursive: true });
  expect(await db.query(`select to_regclass('half_done') as half, to_regclass('event') as event`)).toEqual([
    { half: null, event: null },
  ]);

  await migrate(db.url, migrations);
  expect(await db.query('select count(*)::int from migration')).toEqual([{ count: migrations.length }]);
});

it('given PostgreSQL 14, when a node starts, then it names the required version and changes nothing', async () => {
  const before = await tables();
  // No server of this version is available here, so a proxy changes the version that the server reports.
  const [version] = await db.query<{ server_version_num: string }>('show server_version_num');
  const own = version?.server_version_num ?? '';
  const proxy = await startProxy(db.url, (answer) =>
    Buffer.from(answer.toString('latin1').replaceAll(own, '140020'), 'latin1'),
  );
  try {
    await expect(migrate(proxy.url, migrations)).rejects.toThrow('PostgreSQL 14 is too old: 15 or newer');
  } finally {
    await proxy.close();
  }
  expect(await tables()).toEqual(before);
});

it('given no server, or a database that was not migrated, when a node opens the log, then it says so', async () => {
  await expect(EventLog.open(db.url)).rejects.toThrow(/log_settings/);
  await expect(EventLog.open('postgres://postgres@127.0.0.1:1/none')).rejects.toMatchObject({
    code: 'database-unavailable',
  });
});

it('given the settings of the service, when it connects, then the server ends its idle transactions before its leases expire', async () => {
  await migrate(db.url, migrations);
  const store = await EventLog.open(db.url);
  try {
    const { rows } = await store.pool.query<{ ms: number }>(
      `select setting::int as ms from pg_settings where name = 'idle_in_transaction_session_timeout'`,
    );
    expect(rows).toHaveLength(1);
    expect(rows[0]?.ms).toBeGreaterThan(0);
    expect(rows[0]?.ms).toBeLessThan(LEASE_MS);
    const commit = await store.pool.query('show synchronous_commit');
    expect(commit.rows).toEqual([{ synchronous_commit: 'on' }]);
  } finally {
    await store.close();
  }
});
