import { randomUUID } from 'node:crypto';
import { Client } from 'pg';
import { migrate } from '../../src/database/migrate.js';
import { migrations } from '../../src/migrations.js';
import { adminUrl, createEmptyDatabase } from './database.js';

/** The state of an error of PostgreSQL: `object in use`. */
const IN_USE = '55006';
const TRIES = 5;

/**
 * A database that can be set back to what it was, as by the failover to a standby that has nothing newer.
 * @param ends what has to be done at the end of the test is added to it
 */
export async function settableDatabase(ends: (() => Promise<unknown>)[]): Promise<{
  url: string;
  keep: () => Promise<void>;
  /** @returns URL of the former database, which is there still, as a former primary may be */
  setBack: () => Promise<string>;
}> {
  const database = await createEmptyDatabase();
  const name = new URL(database.url).pathname.slice(1);
  const copy = `colloquy_test_${randomUUID().replaceAll('-', '')}`;
  await migrate(database.url, migrations);
  const admin = new Client({ connectionString: adminUrl() });
  await admin.connect();
  const disconnect = () =>
    admin.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = any ($1)', [
      [name, copy],
    ]);
  const alone = async (...statements: readonly string[]): Promise<void> => {
    await admin.query(`alter database ${name} allow_connections false`);
    for (const statement of statements) {
      for (let attempt = 1; ; attempt += 1) {
        await disconnect();
        try {
          await admin.query(statement);
          break;
        } catch (error) {
          // Somebody who was about to connect when connections were forbidden has come after the others were ended.
          if ((error as { code?: unknown }).code !== IN_USE || attempt === TRIES) throw error;
        }
      }
    }
    await admin.query(`alter database ${name} allow_connections true`);
  };
  ends.push(async () => {
    await admin.query(`drop database if exists ${name} with (force)`);
    await admin.query(`drop database if exists ${copy} with (force)`);
    await admin.end();
  });
  return {
    url: database.url,
    keep: () => alone(`create database ${copy} template ${name}`),
    setBack: async () => {
      const set = new Client({ connectionString: database.url.replace(name, copy) });
      await set.connect();
      // The copy has all that identifies the server, as a standby has not.
      await set.query(`update log_generation set server = 'the former one'`);
      await set.end();
      const gone = `colloquy_test_${randomUUID().replaceAll('-', '')}`;
      ends.push(() => admin.query(`drop database if exists ${gone} with (force)`));
      await alone(`alter database ${name} rename to ${gone}`, `alter database ${copy} rename to ${name}`);
      await admin.query(`alter database ${gone} allow_connections true`);
      return database.url.replace(name, gone);
    },
  };
}

/** Repeats what fails while the database is being replaced. */
export async function insist<T>(work: () => Promise<T>): Promise<T> {
  for (const deadline = Date.now() + 20_000; ;) {
    try {
      return await work();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}
