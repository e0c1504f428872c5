import { type ClientBase, type Pool } from 'pg';
import { type MasterKeys, MasterKeyRefused, type WrappedKey } from './master-keys.js';

/** Data keys that are wrapped anew in one commit. */
const PAGE = 1_000;

type Database = Pick<ClientBase, 'query'> | Pick<Pool, 'query'>;

/** How many data keys a master key wraps. */
export interface MasterKeyUse {
  /** Id of the master key. */
  readonly master: string;
  readonly dataKeys: number;
}

/** The ids of the master keys under which the database has keys; none when nothing was ever sealed in it. */
export async function mastersOf(database: Database): Promise<string[]> {
  const found = await database.query<{ exists: boolean }>(
    `select to_regclass('data_key') is not null as exists`,
  );
  // A database that was not migrated yet.
  if (!found.rows[0]?.exists) return [];
  // From one to the next along the index: there may be very many keys.
  const { rows } = await database.query<{ master: string }>(
    `with recursive used as (
       (select master from data_key where wrapped is not null order by master limit 1)
       union all
       select (select k.master from data_key k where k.wrapped is not null and k.master > u.master
               order by k.master limit 1)
       from used u where u.master is not null
     ) select master from used where master is not null`,
  );
  return rows.map(({ master }) => master);
}

/**
 * To be called before anything is written: with other master keys, or with none, what is sealed could not be read, and
 * what is written could not be read by whoever has the right ones.
 * @throws MasterKeyRefused when the database has keys that none of these opens
 */
export async function checkMasterKeys(database: Database, masters: MasterKeys): Promise<void> {
  const unknown = (await mastersOf(database)).filter((master) => !masters.has(master));
  if (unknown.length === 0) return;
  const given =
    masters.ids.length === 0 ? 'none was given' : `those that were given are ${masters.ids.join(', ')}`;
  throw new MasterKeyRefused(
    `the database has conversations that are sealed under the master key ${unknown.join(' and ')}, and ${given}. ` +
      'Nothing was written. Give that key as COLLOQUY_MASTER_KEY (storage.masterKey), behind the others if there are ' +
      'several, or put the file master.key back into the data folder; without it nobody can read what is sealed. ' +
      'docs/operations.md says more under "Master key".',
  );
}

/** How many data keys there are under each master key. */
export async function masterKeyUse(database: Database): Promise<MasterKeyUse[]> {
  const masters = await mastersOf(database);
  if (masters.length === 0) return [];
  const { rows } = await database.query<MasterKeyUse>(
    `select master, count(*)::float8 as "dataKeys" from data_key where wrapped is not null group by master order by master`,
  );
  return rows;
}

/**
 * Wraps all data keys with the first of the master keys, page by page, while nodes go on that have both. It may be broken
 * off at any moment, and goes on where it was when it is called again.
 * @param onWrapped gets the number of keys after each page
 * @returns how many were wrapped anew
 * @throws MasterKeyRefused
 */
export async function rotateMasterKey(
  database: Database,
  masters: MasterKeys,
  onWrapped: (keys: number) => void = () => undefined,
): Promise<number> {
  const { first } = masters;
  if (first === undefined) throw new MasterKeyRefused('there is no master key that wraps');
  await checkMasterKeys(database, masters);
  const former = (await mastersOf(database)).filter((master) => master !== first);
  if (former.length === 0) return 0;
  let count = 0;
  // Along the primary key, so that the rows of before, of which there are many by then, are not walked past again.
  for (let after: string | null = null; ;) {
    const { rows }: { rows: WrappedKey[] } = await database.query<WrappedKey>(
      `select id, master, wrapped from data_key
       where ($1::uuid is null or id > $1) and wrapped is not null and master = any ($2) order by id limit $3`,
      [after, former, PAGE],
    );
    const last = rows.at(-1);
    if (!last) return count;
    const wrapped = rows.map((row) => masters.wrap(row.id, masters.unwrap(row)));
    // One that was destroyed meanwhile stays destroyed.
    const { rowCount } = await database.query(
      `update data_key k set master = $1, wrapped = n.wrapped
       from unnest($2::uuid[], $3::bytea[]) as n (id, wrapped)
       where k.id = n.id and k.master = any ($4) and k.wrapped is not null`,
      [first, wrapped.map(({ id }) => id), wrapped.map((one) => one.wrapped), former],
    );
    count += rowCount ?? 0;
    onWrapped(count);
    after = last.id;
  }
}
