import { type Pool } from 'pg';
import { type CellConfig, ConfigError, FIRST_CELL } from '../config.js';
import { connect, isNotPermitted, isUndefinedTable } from '../database/connection.js';

type Queryable = Pick<Pool, 'query'>;

/**
 * Writes into the database of a cell which one it is, at the first start of several cells, and compares that from then on.
 * Where URLs were exchanged, requests would find nothing of their tenants, and what they write would be lost to them as
 * soon as the mistake is mended.
 * @throws ConfigError when it is another cell; whatever `pg` throws
 */
export async function claimCell(client: Queryable, name: string): Promise<void> {
  if ((await checkCell(client, name)) === name) return;
  if (name !== FIRST_CELL && (await hasDirectory(client))) throw mismatch(name, FIRST_CELL);
  try {
    await client.query('insert into cell_name (name) values ($1) on conflict do nothing', [name]);
  } catch (error) {
    if (!isNotPermitted(error)) throw error;
    throw new ConfigError([
      `the role of the service may not write into the table cell_name of the cell ${name}: run colloquy grant for it, as the owner of the tables`,
    ]);
  }
  await checkCell(client, name);
}

/**
 * The same for the first cell, if there are others. One without a name and without a directory is new, or not the first one: then
 * one of the others, as far as they can be reached, has the directory.
 * @throws ConfigError when it is another cell; whatever `pg` throws
 */
export async function claimFirstCell(
  url: string,
  others: readonly Pick<CellConfig, 'name' | 'url'>[],
): Promise<void> {
  if (others.length === 0) return;
  await inCellDatabase(url, FIRST_CELL, async (client) => {
    if ((await checkCell(client, FIRST_CELL)) !== FIRST_CELL && !(await hasDirectory(client))) {
      const looks = others.map(async (other) => {
        const isFirst = await inCellDatabase(other.url, other.name, hasDirectory);
        return isFirst ? other.name : undefined;
      });
      for (const look of await Promise.allSettled(looks))
        if (look.status === 'fulfilled' && look.value !== undefined) throw mismatch(look.value, FIRST_CELL);
    }
    await claimCell(client, FIRST_CELL);
  });
}

/**
 * Compares the name of a cell with that in its database, if one was written there.
 * @returns the name, if there is one
 * @throws ConfigError when it is another cell; whatever `pg` throws
 */
export async function checkCell(client: Queryable, name: string): Promise<string | undefined> {
  const claimed = await client.query<{ name: string }>('select name from cell_name').then(
    ({ rows }) => rows[0]?.name,
    (error: unknown) => {
      // Migrations have not been there yet, or the role was not granted anything since.
      if (!isUndefinedTable(error) && !isNotPermitted(error)) throw error;
      return undefined;
    },
  );
  if (claimed !== undefined && claimed !== name) throw mismatch(name, claimed);
  return claimed;
}

/** Claims or checks the database of a cell on a connection of its own. @throws ConfigError; whatever `pg` throws */
export async function inCellDatabase<T>(
  url: string,
  name: string,
  work: (client: Queryable, name: string) => Promise<T>,
): Promise<T> {
  const client = await connect(url, 'start');
  return work(client, name).finally(() => client.end());
}

/** Whether tenants were ever placed by this database. */
async function hasDirectory(client: Queryable): Promise<boolean> {
  const { rows } = await client.query('select from tenant_cell limit 1');
  return rows.length > 0;
}

const mismatch = (name: string, claimed: string): ConfigError =>
  new ConfigError([
    `the database of the cell ${name} is that of the cell ${claimed}: see whether the URLs of the two were exchanged in the settings. ` +
      'If it is a copy that is to be another cell from now on, docs/operations.md says under "Cells" how to rename it',
  ]);
