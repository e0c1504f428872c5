import { existsSync } from 'node:fs';
import { Pool } from 'pg';
import { FIRST_CELL, loadConfig } from '../config.js';
import { migrate } from '../database/migrate.js';
import { DataFolderInUseError, lockDataFolder } from '../embedded-postgres/data-folder-lock.js';
import { findEmbeddedPostgres, startEmbeddedPostgres } from '../embedded-postgres/embedded-postgres.js';
import { migrations } from '../migrations.js';

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
 */
export async function withDatabase<T>(
  options: DatabaseOptions,
  work: (url: string) => Promise<T>,
): Promise<T> {
  const { storage } = loadConfig({ env: process.env, cwd: process.cwd() });
  if (options.cell !== undefined && options.cell !== FIRST_CELL) {
    const cell = storage.cells?.find(({ name }) => name === options.cell);
    if (!cell) throw new Error(`the settings name no cell ${options.cell}`);
    return work(cell.url);
  }
  if (storage.database) return work(storage.database.url);
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
    return work(await findEmbeddedPostgres(dataDir));
  }
  try {
    const server = await startEmbeddedPostgres({ dataDir });
    // Ctrl-C ends the work by stopping its database, and leaves no server behind.
    const stop = (): void => void server.stop();
    process.on('SIGINT', stop).on('SIGTERM', stop);
    try {
      return await work(server.url);
    } finally {
      await server.stop();
      process.off('SIGINT', stop).off('SIGTERM', stop);
    }
  } finally {
    await lock.release();
  }
}

/** The same, with the schema of this code and one connection. */
export const withPool = <T>(options: DatabaseOptions, work: (pool: Pool) => Promise<T>): Promise<T> =>
  withDatabase(options, async (url) => {
    await migrate(url, migrations);
    const pool = new Pool({ connectionString: url, max: 1, options: '-c TimeZone=UTC' });
    try {
      return await work(pool);
    } finally {
      await pool.end();
    }
  });
