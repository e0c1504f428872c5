import { type TestDatabase } from './database.js';

/** Does what the owner of the tables can do to events, and nobody else: the triggers that keep them are switched off. */
export async function tamper(
  db: Pick<TestDatabase, 'query'>,
  statement: string,
  params: readonly unknown[] = [],
): Promise<void> {
  const tables = await db.query<{ name: string }>(
    `select relid::regclass::text as name from pg_partition_tree('event')`,
  );
  for (const { name } of tables) await db.query(`alter table ${name} disable trigger refuse_change`);
  await db.query(statement, params);
  for (const { name } of tables) await db.query(`alter table ${name} enable always trigger refuse_change`);
}

/** Takes back all trees and what was signed of them, so that the notary begins anew. */
export async function forgetTrees(db: Pick<TestDatabase, 'query'>): Promise<void> {
  await db.query('delete from merkle_tile');
  await db.query('delete from signed_checkpoint');
  await db.query(`update merkle_lane set size = 0, root = sha256('')`);
}
