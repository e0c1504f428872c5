import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type MigrationInterface, type QueryRunner } from 'typeorm';

const sql = (name: string): string => readFileSync(join(__dirname, '..', 'sql', `${name}.sql`), 'utf8');

/** What questions about the past need: a tenant's events, states at some versions, where a stream stood at a time. */
export class Past1770000000008 implements MigrationInterface {
  readonly name = 'Past1770000000008';

  async up(runner: QueryRunner): Promise<void> {
    for (const name of ['past', 'last_version']) await runner.query(sql(name));
  }

  down(): Promise<void> {
    return Promise.reject(new Error('a log is never taken back'));
  }
}
