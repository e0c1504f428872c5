import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type MigrationInterface, type QueryRunner } from 'typeorm';

/** The function that takes whole streams into the log. */
export class Import1770000000007 implements MigrationInterface {
  readonly name = 'Import1770000000007';

  async up(runner: QueryRunner): Promise<void> {
    await runner.query(readFileSync(join(__dirname, '..', 'sql', 'import_batch.sql'), 'utf8'));
  }

  down(): Promise<void> {
    return Promise.reject(new Error('an import may be running'));
  }
}
