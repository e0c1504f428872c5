import { type Pool } from 'pg';
import { ConfigError, FIRST_CELL } from '../config.js';
import { connect } from '../database/connection.js';

const UNDEFINED_TABLE = '42P01';
const INSUFFICIENT_PRIVILEGE = '42501';

type Queryable = Pick<Pool, 'query'>;

/**
 * Writes into the database of a cell which one it is, at the first start of several cells, and compares that from then on.
 * Where URLs were exchanged, requests would find nothing of their tenants, and what they write would be lost to them as
 * soon as the mistake is mended.
 * @throws ConfigError when it is another cell; whatever `pg` throws
 */
export async function claimCell(client: Queryable, name: string): Promise<void> {
  await checkCell(client, name);
  // The first cell, which has the directory, may have been there before databases had names.
  const { rows } = await client.query<{ cell: string }>('select cell from tenant_cell limit 1');
  if (name !== FIRST_CELL && rows.length > 0) throw mismatch(name, FIRST_CELL);
  try {
    await client.query('insert into cell_name (name) values ($1) on conflict do nothing', [name]);
  } catch (error) {
    if ((error as { code?: unknown }).code !== INSUFFICIENT_PRIVILEGE) throw error;
    throw new ConfigError([
      `the role of the service may not write into the table cell_name of the cell ${name}: run colloquy grant for it, as the owner of the tables`,
    ]);
  }
  await checkCell(client, name);
}

/**
 * Compares the name of a cell with that in its database, if one was written there.
 * @throws ConfigError when it is another cell; whatever `pg` throws
 */
export async function checkCell(client: Queryable, name: string): Promise<void> {
  const claimed = await client.query<{ name: string }>('select name from cell_name').then(
    ({ rows }) => rows[0]?.name,
    (error: unknown) => {
      // Migrations have not been there yet, or the role was not granted anything since.
      const code = (error as { code?: unknown }).code;
      if (code !== UNDEFINED_TABLE && code !== INSUFFICIENT_PRIVILEGE) throw error;
      return undefined;
    },
  );
  if (claimed !== undefined && claimed !== name) throw mismatch(name, claimed);
}

/** Does one or the other by a connection of its own. @throws ConfigError; whatever `pg` throws */
export async function inCellDatabase(
  url: string,
  name: string,
  check: typeof claimCell | typeof checkCell,
): Promise<void> {
  const client = await connect(url, 'start');
  await check(client, name).finally(() => client.end());
}

const mismatch = (name: string, claimed: string): ConfigError =>
  new ConfigError([
    `the database of the cell ${name} is that of the cell ${claimed}: see whether the URLs of the two were exchanged in the settings. ` +
      'If it is a copy that is to be another cell from now on, docs/operations.md says under "Cells" how to rename it',
  ]);
