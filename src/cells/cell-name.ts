import { type Pool } from 'pg';
import { ConfigError, FIRST_CELL } from '../config.js';
import { connect } from '../database/connection.js';

/**
 * Writes into the database of a cell which one it is, at the first start of several cells, and compares that from then on.
 * Where URLs were exchanged, requests would find nothing of their tenants, and what they write would be lost to them as
 * soon as the mistake is mended.
 * @throws ConfigError when it is another cell; whatever `pg` throws
 */
export async function claimCell(client: Pick<Pool, 'query'>, name: string): Promise<void> {
  await client.query('insert into cell_name (name) values ($1) on conflict do nothing', [name]);
  const { rows } = await client.query<{ name: string }>('select name from cell_name');
  const [claimed] = rows;
  if (claimed === undefined || claimed.name === name) return;
  const setting = (cell: string): string =>
    cell === FIRST_CELL ? 'storage.database.url' : `the url of ${cell} in storage.database.cells`;
  throw new ConfigError([
    `the database of the cell ${name} is that of the cell ${claimed.name}: see whether ${setting(name)} was meant for ${setting(claimed.name)}`,
  ]);
}

/** The same, by a connection of its own. @throws ConfigError; whatever `pg` throws */
export async function claimDatabase(url: string, name: string): Promise<void> {
  const client = await connect(url, 'start');
  await claimCell(client, name).finally(() => client.end());
}
