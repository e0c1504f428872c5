import { createHash, randomUUID } from 'node:crypto';
import { Client } from 'pg';
import { migrate } from '../../src/database/migrate.js';
import { migrations } from '../../src/migrations.js';
import { expectCountersMatchLog } from './recount.js';

const TEMPLATE_PREFIX = 'colloquy_template_';
/** Any number that nothing else locks in the admin database. */
const TEMPLATE_LOCK = 7399;

/** A database of a test file's own; times and errors are those of the service's own connections. */
export interface TestDatabase {
  readonly url: string;
  /** Runs one statement on a connection that belongs to the test, and gives its rows. */
  query<Row = Record<string, unknown>>(sql: string, params?: readonly unknown[]): Promise<Row[]>;
  /** From now on this database's clock, the only one the service asks, is off by so many milliseconds. */
  setClock(clock: { readonly offsetMs: number }): Promise<void>;
  /** Ends every connection to it and removes it. */
  drop(): Promise<void>;
}

/** The server of this run. */
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

/** A migrated database, cloned from a template that is made once per schema; workers wait for each other. */
export async function createTestDatabase(): Promise<TestDatabase> {
  const name = `colloquy_test_${randomUUID().replaceAll('-', '')}`;
  await asAdmin(async (admin) => {
    // The server refuses to clone a database while somebody else clones it or is connected to it.
    await admin.query('select pg_advisory_lock($1)', [TEMPLATE_LOCK]);
    // Copying the files takes a quarter of the time that writing them to the server's log takes.
    await admin.query(`create database ${name} template ${await ensureTemplate(admin)} strategy file_copy`);
  });
  return open(name);
}

/** A database without any schema. */
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
  // Under another name until it is whole: a run that is killed in between leaves no half template.
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
  // Nothing is parsed into Dates, and names say whose connection it is: tests end others by name.
  const client = new Client({ connectionString: url, application_name: 'test', options: '-c TimeZone=UTC' });
  client.on('error', () => undefined);
  await client.connect();
  // One connection, so that its settings and locks last; one statement at a time on it.
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
        // Every suite ends with this, whatever it was about.
        await expectCountersMatchLog({ query });
      } finally {
        await client.end();
        await asAdmin((admin) => admin.query(`drop database if exists ${name} with (force)`));
      }
    },
  };
}

async function asAdmin(work: (admin: Client) => Promise<unknown>): Promise<void> {
  const admin = new Client({ connectionString: adminUrl(), application_name: 'test admin' });
  await admin.connect();
  try {
    await work(admin);
  } finally {
    await admin.end();
  }
}
