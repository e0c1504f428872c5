import { type MigrationInterface, type QueryRunner } from 'typeorm';

/** What has arrived of replies that are still being generated. */
export class GenerationChunks1770000000004 implements MigrationInterface {
  readonly name = 'GenerationChunks1770000000004';

  async up(runner: QueryRunner): Promise<void> {
    await runner.query(`
      create table generation_chunk (
        generation text collate "C" not null,
        number integer not null,
        text text not null,
        time timestamptz not null default colloquy_now(),
        primary key (generation, number)
      )`);
  }

  down(): Promise<void> {
    return Promise.reject(new Error('replies may be on their way'));
  }
}
