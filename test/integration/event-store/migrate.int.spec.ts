import { type MigrationInterface, type QueryRunner } from 'typeorm';
import { migrate } from '../../../src/database/migrate.js';
import { EventLog } from '../../../src/event-store/log.js';
import { laneOf } from '../../../src/event-store/lane.js';
import { LEASE_MS } from '../../../src/event-store/leases.js';
import { allMigrations, createEmptyDatabase, type TestDatabase } from '../../support/database.js';
import { startProxy } from '../../support/tcp-proxy.js';
import { by, tallies } from './fixture.js';

let db: TestDatabase;
let migrations: Awaited<ReturnType<typeof allMigrations>>;
beforeAll(async () => {
  migrations = await allMigrations();
});
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

  expect(await db.query('select name from migration order by id')).toEqual(
    migrations.map((migration) => ({ name: migration.name })),
  );
  expect(await db.query('select lanes from log_settings')).toEqual([{ lanes: 16 }]);
}, 60_000);

it('given a migrated database, when a node starts, then nothing changes', async () => {
  await migrate(db.url, migrations);
  const before = [await db.query('select * from log_settings'), await tables()];

  await migrate(db.url, migrations);

  expect([await db.query('select * from log_settings'), await tables()]).toEqual(before);
});

it('given a database from before the events alone told where a stream ends, when it is migrated, then its streams go on and what old nodes call is gone', async () => {
  await migrate(
    db.url,
    migrations.slice(
      0,
      migrations.findIndex(({ name }) => name.startsWith('StreamState')),
    ),
  );
  await db.query(`create function append_one(smallint) returns void language sql as 'select'`);
  const lane = laneOf({ tenant: 'acme', streamId: 'old' }, 16);
  await db.query(
    `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                        correlation_id, data)
     select $1, n, 'acme', 'old', n, 1, gen_random_uuid(), 'Added', 1, '2026-01-01', 'old', 'old', '{"number": 5}'
     from generate_series(1, 3) as n`,
    [lane],
  );
  await db.query(
    `insert into stream values ('acme', 'old', $1, 3, 1, 3, '2026-01-01', '2026-01-01', '2026-01-01',
                                '{"version": 3, "sum": 15, "digest": 0}', 1)`,
    [lane],
  );

  await migrate(db.url, migrations);

  const store = await EventLog.open(db.url);
  try {
    const { state } = await tallies(store).handle({ tenant: 'acme', streamId: 'old' }, { numbers: [7] }, by);
    expect(state).toMatchObject({ version: 4, sum: 22 });
  } finally {
    await store.close();
  }
  expect(await db.query(`select proname from pg_proc where proname = 'append_one'`)).toEqual([]);
});

it('given a schema of a newer version, when an older one starts, then it is refused and changes nothing', async () => {
  await migrate(db.url, migrations);
  await db.query(`delete from migration where name = $1`, [migrations.at(-1)?.name]);
  await db.query(`insert into migration (timestamp, name) values (9000000000000, 'Later9000000000000')`);
  const before = await tables();

  await expect(migrate(db.url, migrations)).rejects.toThrow(/newer version.*Later9000000000000/);

  expect(await tables()).toEqual(before);
});

it('given a migration that fails, when it is tried, then nothing of it and of those before it stays', async () => {
  class Broken9000000000001 implements MigrationInterface {
    readonly name = 'Broken9000000000001';
    async up(runner: QueryRunner): Promise<void> {
      await runner.query('create table half_done (id int)');
      await runner.query('select 1 / 0');
    }
    down(): Promise<void> {
      return Promise.resolve();
    }
  }

  // TypeORM tells of it on the console, too.
  const output = jest.spyOn(console, 'log').mockReturnValue();
  await expect(migrate(db.url, [...migrations, Broken9000000000001])).rejects.toThrow(/division by zero/);
  output.mockRestore();
  expect(await db.query(`select to_regclass('half_done') as half, to_regclass('event') as event`)).toEqual([
    { half: null, event: null },
  ]);

  await migrate(db.url, migrations);
  expect(await db.query('select count(*)::int from migration')).toEqual([{ count: migrations.length }]);
});

it('given PostgreSQL 14, when a node starts, then it says what it needs and changes nothing', async () => {
  const before = await tables();
  // A server of this age is not at hand; one that says it is, is.
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

it('given the settings of the service, when it connects, then a stopped transaction of it ends before its lease', async () => {
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
