import { type MigrationInterface, type QueryRunner } from 'typeorm';

/** Rebuilds that are under way, and sessions that a projection cannot take in. */
export class Rebuilds1770000000006 implements MigrationInterface {
  readonly name = 'Rebuilds1770000000006';

  async up(runner: QueryRunner): Promise<void> {
    await runner.query(`
      -- Grows when somebody else than the lane's owner changed its rows: what the owner computed from rows of before
      -- is then refused, even if the position is the same.
      alter table projection_checkpoint add column revision bigint not null default 0;

      -- "projection" is the name of a table here, as in projection_checkpoint.
      create table projection_rebuild (
        projection text collate "C" primary key,
        shadow text collate "C" not null,
        started_at timestamptz not null
      );

      -- A session stands here from the first event on that the projection could not take in.
      create table projection_parked (
        projection text collate "C" not null,
        tenant text collate "C" not null,
        session_id text collate "C" not null,
        lane smallint not null,
        version integer not null,
        error text not null,
        parked_at timestamptz not null,
        primary key (projection, tenant, session_id)
      )`);
  }

  down(): Promise<void> {
    return Promise.reject(new Error('checkpoints go with their tables'));
  }
}
