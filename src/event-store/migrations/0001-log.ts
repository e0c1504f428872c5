import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type MigrationInterface, type QueryRunner } from 'typeorm';

const sql = (name: string): string => readFileSync(join(__dirname, '..', 'sql', `${name}.sql`), 'utf8');

/** The log: events in lanes, states of streams, counters, leases. The functions that append come with 0010. */
export class Log1770000000001 implements MigrationInterface {
  readonly name = 'Log1770000000001';

  async up(runner: QueryRunner): Promise<void> {
    for (const name of ['tables', 'lane_ends', 'lease_take']) await runner.query(sql(name));
  }

  down(): Promise<void> {
    return Promise.reject(new Error('a log is never taken back'));
  }
}
