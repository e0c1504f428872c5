import { connect } from '../database/connection.js';
import { migrate } from '../database/migrate.js';
import { type MasterKeyUse, masterKeyUse, rotateMasterKey } from '../event-store/sealing/master-key-use.js';
import { MasterKeys } from '../event-store/sealing/master-keys.js';
import { migrations } from '../migrations.js';
import { type KeyedDatabase } from '../open-log.js';
import { cellsOfSettings, withDatabase } from './database.js';

/** A master key of the settings or of the database, without the key itself. */
export interface MasterKeyRow extends MasterKeyUse {
  readonly cell: string;
  readonly use: 'seals' | 'opens';
}

/** The master keys, and how many data keys each of them wraps, in a cell or in all of them. */
export async function listMasterKeys(cell?: string): Promise<MasterKeyRow[]> {
  const rows: MasterKeyRow[] = [];
  for (const one of cell === undefined ? cellsOfSettings() : [cell])
    await onDatabase(one, async (client, masters) => {
      const counts = new Map((await masterKeyUse(client)).map(({ master, dataKeys }) => [master, dataKeys]));
      for (const master of masters.ids) {
        const use = masters.seals && master === masters.first ? 'seals' : 'opens';
        rows.push({ cell: one, master, use, dataKeys: counts.get(master) ?? 0 });
      }
    });
  return rows;
}

export interface Rotated {
  readonly cell: string;
  /** Id of the master key that wraps all data keys now. */
  readonly master: string;
  readonly wrapped: number;
}

/**
 * Wraps the data keys with the first of the master keys, in a cell or in all of them.
 * @param onWrapped gets the number of keys of a cell that were wrapped so far
 * @throws MasterKeyRefused
 */
export async function rotate(
  cell: string | undefined,
  onWrapped: (keys: number) => void,
): Promise<Rotated[]> {
  const rows: Rotated[] = [];
  for (const one of cell === undefined ? cellsOfSettings() : [cell])
    await onDatabase(one, async (client, masters) => {
      const wrapped = await rotateMasterKey(client, masters, onWrapped);
      rows.push({ cell: one, master: masters.first ?? '', wrapped });
    });
  return rows;
}

const onDatabase = (
  cell: string,
  work: (client: Awaited<ReturnType<typeof connect>>, masters: MasterKeys) => Promise<void>,
): Promise<void> =>
  withDatabase({ create: false, cell }, async ({ url, masterKeys }: KeyedDatabase) => {
    await migrate(url, migrations);
    const client = await connect(url, 'master keys', { statementMs: 600_000 });
    try {
      await work(client, new MasterKeys(masterKeys));
    } finally {
      await client.end();
    }
  });
