import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type MigrationInterface, type QueryRunner } from 'typeorm';

const sql = (name: string): string => readFileSync(join(__dirname, '..', 'sql', `${name}.sql`), 'utf8');

/**
 * The events alone tell where a stream ends; its row holds a state of not long ago, and is no longer written by every
 * append. Nodes that still take the row for the end would read too little and write in the wrong place: what they call
 * is gone, so that they fail instead.
 */
export class StreamState1770000000010 implements MigrationInterface {
  readonly name = 'StreamState1770000000010';

  async up(runner: QueryRunner): Promise<void> {
    await runner.query('alter table stream rename to stream_state');
    await runner.query('alter index stream_pkey rename to stream_state_pkey');
    await runner.query(`
      do $$
      declare
        v_function regprocedure;
      begin
        for v_function in
          select oid::regprocedure from pg_proc
          where proname in ('append_one', 'append_event', 'append_batch') and pronamespace = current_schema()::regnamespace
        loop
          execute 'drop function ' || v_function;
        end loop;
      end $$`);
    for (const name of ['append_event', 'append_batch', 'import_batch', 'last_version'])
      await runner.query(sql(name));
  }

  down(): Promise<void> {
    return Promise.reject(new Error('a log is never taken back'));
  }
}
