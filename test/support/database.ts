import { createHash, randomUUID } from 'node:crypto';
import { Client } from 'pg';
import { migrate } from '../../src/database/migrate.js';
import { migrations } from '../../src/migrations.js';
import { expectCountersMatchLog } from './recount.js';

const TEMPLATE_PREFIX = 'colloquy_template_';
/** Number of an advisory lock that nothing else in the admin database uses. */
const TEMPLATE_LOCK = 7399;

/** A database that belongs to one test or test file. */
export interface TestDatabase {
  readonly url: string;
  /** Runs one statement on a connection that belongs to the test, and gives its rows. */
  query<Row = Record<string, unknown>>(sql: string, params?: readonly unknown[]): Promise<Row[]>;
  /**
   * Sets the clock of this database, which is the only clock that the service uses, ahead by `offsetMs` milliseconds
   * from now on.
   */
  setClock(clock: { readonly offsetMs: number }): Promise<void>;
  /** Ends every connection to the database and removes it. */
  drop(): Promise<void>;
}

/** The URL of this run's PostgreSQL server. */
export function adminUrl(): string {
  const url = process.env['COLLOQUY_TEST_ADMIN_URL'];
  if (url === undefined) throw new Error('there is no test server: global-setup.ts did not run');
  return url;
}

export const urlOf = (database: string): string => {
  const url = new URL(adminUrl());
  url.pathname = `/${database}`;
  return url.href;
};

/** Creates a migrated database, cloned from a template that is made once per schema. Workers wait for each other. */
export async function createTestDatabase(): Promise<TestDatabase> {
  const name = `colloquy_test_${randomUUID().replaceAll('-', '')}`;
  await asAdmin(async (admin) => {
    // The server refuses to clone a database while another connection clones it or is connected to it.
    await admin.query('select pg_advisory_lock($1)', [TEMPLATE_LOCK]);
    // Copying the files takes a quarter of the time that writing them to the server's log takes.
    await admin.query(`create database ${name} template ${await ensureTemplate(admin)} strategy file_copy`);
  });
  return open(name);
}

/** Creates a database without any schema. */
export async function createEmptyDatabase(): Promise<TestDatabase> {
  const name = `colloquy_test_${randomUUID().replaceAll('-', '')}`;
  await asAdmin((admin) => admin.query(`create database ${name}`));
  return open(name);
}

async function ensureTemplate(admin: Client): Promise<string> {
  const name = TEMPLATE_PREFIX + schemaHash();
  const { rows } = await admin.query<{ datname: string }>(
    'select datname from pg_database where starts_with(datname, $1)',
    [TEMPLATE_PREFIX],
  );
  if (rows.some(({ datname }) => datname === name)) return name;
  // A server that outlives the run keeps one template, not one per change of the schema.
  for (const { datname } of rows) await admin.query(`drop database ${datname} with (force)`);
  // The template has another name until it is complete, so that a run which is killed in between leaves no incomplete
  // template.
  const unfinished = `${TEMPLATE_PREFIX}unfinished`;
  await admin.query(`create database ${unfinished}`);
  await migrate(urlOf(unfinished), migrations);
  await admin.query(`alter database ${unfinished} rename to ${name}`);
  return name;
}

function schemaHash(): string {
  const hash = createHash('sha256');
  for (const { file, sha256 } of migrations) hash.update(file).update(sha256);
  return hash.digest('hex').slice(0, 16);
}

async function open(name: string): Promise<TestDatabase> {
  const url = urlOf(name);
  // The name marks the connection as that of the test, because some tests end the connections of the service by their
  // names.
  const client = new Client({ connectionString: url, application_name: 'test', options: '-c TimeZone=UTC' });
  client.on('error', () => undefined);
  await client.connect();
  // There is one connection, so that its settings and locks last, and it runs one statement at a time.
  let turn: Promise<unknown> = Promise.resolve();
  const query = async <Row>(sql: string, params: readonly unknown[] = []): Promise<Row[]> => {
    const result = turn.then(() => client.query(sql, [...params]));
    turn = result.catch(() => undefined);
    return (await result).rows as Row[];
  };
  return {
    url,
    query,
    setClock: async ({ offsetMs }) => {
      await client.query(
        `create or replace function colloquy_now() returns timestamptz language sql volatile as
         $$ select date_trunc('milliseconds', clock_timestamp() + ${Math.trunc(offsetMs)} * interval '1 millisecond') $$`,
      );
    },
    drop: async () => {
      try {
        // Whatever a suite tests, its counters must be right in the end.
        await expectCountersMatchLog({ query });
      } finally {
        await client.end();
        await asAdmin((admin) => admin.query(`drop database if exists ${name} with (force)`));
      }
    },
  };
}

export async function asAdmin(work: (admin: Client) => Promise<unknown>): Promise<void> {
  const admin = new Client({ connectionString: adminUrl(), application_name: 'test admin' });
  await admin.connect();
  try {
    await work(admin);
  } finally {
    await admin.end();
  }
}
