import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type MigrationInterface, type QueryRunner } from 'typeorm';

const sql = (name: string): string => readFileSync(join(__dirname, '..', 'sql', `${name}.sql`), 'utf8');

/**
 * A lone append of fewer statements, and `append_batch` as it is by now. `append_one`, which `append_event` replaces,
 * stays: in a rolling upgrade old nodes still call it.
 */
export class AppendEvent1770000000009 implements MigrationInterface {
  readonly name = 'AppendEvent1770000000009';

  async up(runner: QueryRunner): Promise<void> {
    for (const name of ['append_event', 'append_batch']) await runner.query(sql(name));
  }

  down(): Promise<void> {
    return Promise.reject(new Error('a log is never taken back'));
  }
}
