import { type MigrationInterface, type QueryRunner } from 'typeorm';

/** How far each projection has come in each lane. Their tables are made by the projector, not by migrations. */
export class Checkpoints1770000000002 implements MigrationInterface {
  readonly name = 'Checkpoints1770000000002';

  async up(runner: QueryRunner): Promise<void> {
    await runner.query(`
      create table projection_checkpoint (
        projection text collate "C" not null,
        lane smallint not null,
        position bigint not null,
        -- Of the lease under which it was last moved: an owner of an older epoch is refused.
        epoch bigint not null,
        primary key (projection, lane)
      ) with (fillfactor = 50)`);
  }

  down(): Promise<void> {
    return Promise.reject(new Error('checkpoints go with their tables'));
  }
}
