import { type MigrationInterface, type QueryRunner } from 'typeorm';

/** How far each lane is published, and to which topic. */
export class Relay1770000000003 implements MigrationInterface {
  readonly name = 'Relay1770000000003';

  async up(runner: QueryRunner): Promise<void> {
    await runner.query(`
      create table relay_checkpoint (
        lane smallint primary key,
        -- The last position that the brokers have acknowledged.
        position bigint not null,
        -- Grows with every claim of the lane: who moves the position under an older one is refused.
        epoch bigint not null
      ) with (fillfactor = 50)`);
    await runner.query(`
      insert into relay_checkpoint select lane, 0, 0
      from generate_series(0, (select lanes - 1 from log_settings)) as l (lane)`);
    // One row once the topic is known. A session's partition follows from the count, so it may not change.
    await runner.query(`
      create table relay_topic (
        single boolean primary key default true check (single),
        topic text not null,
        partitions integer not null
      )`);
  }

  down(): Promise<void> {
    return Promise.reject(new Error('without its checkpoints the relay would publish everything again'));
  }
}
