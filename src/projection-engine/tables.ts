import { type Pool } from 'pg';
import { available } from '../database/connection.js';
import { transaction } from '../database/transaction.js';
import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
import { type Projection, tableOf } from './projection.js';
import { workOn } from './runner.js';

/** Key of the advisory lock that serialises creating and dropping tables; any number that nothing else uses. */
const TABLES_LOCK = 7302;
/** The tables of a silent node are kept for this long, because it may only be suspended. */
const GRACE_MS = 60_000;

/** Creates the tables that are missing, with checkpoints at the beginning of the log. */
export async function createTables(
  pool: Pool,
  projections: readonly Projection[],
  lanes: number,
): Promise<void> {
  await transaction(pool, async (client) => {
    await client.query('select pg_advisory_xact_lock($1)', [TABLES_LOCK]);
    for (const projection of projections) {
      const table = tableOf(projection);
      const { rows } = await client.query<{ exists: boolean }>(
        'select to_regclass($1) is not null as exists',
        [table],
      );
      if (rows[0]?.exists) continue;
      await client.query(projection.createTable(table));
      // Checkpoints without a table mean that somebody dropped the table alone: it is filled again from the beginning.
      await client.query(
        `insert into projection_checkpoint as known (projection, lane, position, epoch)
         select $1, lane, 0, 0 from generate_series(0, $2 - 1) as l (lane)
         on conflict (projection, lane) do update set position = 0, revision = known.revision + 1`,
        [table, lanes],
      );
      await client.query('delete from projection_parked where projection = $1', [table]);
    }
  });
}

/** Drops the tables that neither these projections nor any node uses; returns their names. */
export async function pruneTables(
  pool: Pool,
  leases: Leases,
  projections: readonly Projection[],
): Promise<string[]> {
  const own = projections.map(tableOf);
  return available(() =>
    transaction(pool, async (client) => {
      await client.query('select pg_advisory_xact_lock($1)', [TABLES_LOCK]);
      const { rows } = await client.query<{ table: string; shadow: string | null }>(
        `select distinct c.projection as "table", r.shadow
         from projection_checkpoint c left join projection_rebuild r using (projection)
         where c.projection <> all ($1)
           and not exists (select from projection_rebuild other where other.shadow = c.projection)
         order by 1`,
        [own],
      );
      const dropped: string[] = [];
      for (const { table, shadow } of rows) {
        if (await leases.wasHeld(LaneShare.members(workOn(table)), GRACE_MS)) continue;
        for (const name of shadow === null ? [table] : [table, shadow]) {
          await client.query(`drop table if exists ${name}`);
          await client.query('delete from projection_checkpoint where projection = $1', [name]);
          await client.query('delete from projection_parked where projection = $1', [name]);
          dropped.push(name);
        }
        await client.query('delete from projection_rebuild where projection = $1', [table]);
      }
      return dropped;
    }),
  );
}
