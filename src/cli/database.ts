import { existsSync } from 'node:fs';
import { type Pool } from 'pg';
import { checkCell, inCellDatabase } from '../cells/cell-name.js';
import { type Config, FIRST_CELL, loadConfig } from '../config.js';
import { createPool } from '../database/connection.js';
import { migrate } from '../database/migrate.js';
import { DataFolderInUseError, lockDataFolder } from '../embedded-postgres/data-folder-lock.js';
import { findEmbeddedPostgres, startEmbeddedPostgres } from '../embedded-postgres/embedded-postgres.js';
import { embeddedMasterKeys } from '../master-keys.js';
import { migrations } from '../migrations.js';
import { type KeyedDatabase } from '../open-log.js';

export interface DatabaseOptions {
  /** Whether to create a data folder that does not exist. */
  readonly create: boolean;
  /** Default: the first. */
  readonly cell?: string | undefined;
}

/** The names of all cells of the settings in this folder, the first one first. */
export const cellsOfSettings = (): string[] => {
  const { storage } = loadConfig({ env: process.env, cwd: process.cwd() });
  return [FIRST_CELL, ...(storage.cells ?? []).map(({ name }) => name)];
};

/**
 * The database of the settings in this folder: the one that is named, or the embedded one. The embedded one is used
 * together with a service that runs it, or else is run for as long as the work takes.
 * @throws MasterKeyRefused when it was sealed under other master keys than those of the settings; ConfigError when it is the
 * database of another cell
 */
export async function withDatabase<T>(
  options: DatabaseOptions,
  work: (database: KeyedDatabase) => Promise<T>,
): Promise<T> {
  const { storage } = loadConfig({ env: process.env, cwd: process.cwd() });
  const { masterKeys = [], cipher, cells = [] } = storage;
  const { cell: name = FIRST_CELL } = options;
  const cell = name === FIRST_CELL ? storage.database : cells.find((one) => one.name === name);
  if (!cell && name !== FIRST_CELL) throw new Error(`the settings name no cell ${name}`);
  if (cell) {
    if (cells.length > 0) await inCellDatabase(cell.url, name, checkCell);
    return work({ url: cell.url, masterKeys, cipher });
  }
  const { dataDir } = storage;
  if (!options.create && !existsSync(dataDir)) {
    throw new Error(
      `there is no data in ${dataDir}: name its folder with COLLOQUY_DATA_DIR, or set DATABASE_URL`,
    );
  }
  let lock: { release(): Promise<void> };
  try {
    lock = await lockDataFolder(dataDir, { url: 'no address, as a command does' });
  } catch (error) {
    if (!(error instanceof DataFolderInUseError)) throw error;
    return work(await keyed(storage, await findEmbeddedPostgres(dataDir)));
  }
  try {
    const server = await startEmbeddedPostgres({ dataDir });
    // Ctrl-C ends the work by stopping its database, and leaves no server behind.
    const stop = (): void => void server.stop();
    process.on('SIGINT', stop).on('SIGTERM', stop);
    try {
      return await work(await keyed(storage, server.url));
    } finally {
      await server.stop();
      process.off('SIGINT', stop).off('SIGTERM', stop);
    }
  } finally {
    await lock.release();
  }
}

const keyed = async (storage: Config['storage'], url: string): Promise<KeyedDatabase> => ({
  url,
  masterKeys: await embeddedMasterKeys(storage, url),
  cipher: storage.cipher,
});

/** The same, with the schema of this code and one connection. */
export const withPool = <T>(options: DatabaseOptions, work: (pool: Pool) => Promise<T>): Promise<T> =>
  withDatabase(options, async ({ url }) => {
    await migrate(url, migrations);
    const pool = createPool(url, 'command', { max: 1 });
    try {
      return await work(pool);
    } finally {
      await pool.end();
    }
  });
