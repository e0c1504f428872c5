import { createHash } from 'node:crypto';
import { lstat, mkdir, readdir, realpath, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { readIfThere, removeFolder, ignoring } from './files.js';
import { isPostmasterOf, readPidFile } from './leftover-server.js';

/**
 * The folder for binaries and data when this process is root and the account that PostgreSQL has to run as cannot reach
 * the folders of the service.
 */
export const SYSTEM_FOLDER = '/var/lib/colloquy';
const MOVED_DATA = join(SYSTEM_FOLDER, 'data');
const ORIGIN = 'The data of ';

/** Where the data of a folder is stored when it cannot be in the folder itself: the same place at every start. */
export const movedHomeOf = (dataDir: string): string =>
  join(MOVED_DATA, createHash('sha256').update(dataDir).digest('hex').slice(0, 16), 'postgres');

/**
 * The file that names the place to which a start as root moved the data. Without it, a later start could begin with an
 * empty database.
 */
export const locationFile = (dataDir: string): string => join(dataDir, 'postgres-location.txt');

/** The place that the data of a folder was moved to; undefined when it is in the folder. */
export async function readLocation(dataDir: string): Promise<string | undefined> {
  return (await readIfThere(locationFile(dataDir)))?.split('\n')[0]?.trim();
}

/** Writes into the folder where its data is, for the next start and for people who are about to delete the folder. */
export async function writeLocation(dataDir: string, home: string): Promise<void> {
  await writeFile(
    locationFile(dataDir),
    `${home}

The conversations of this folder are in the place named above: PostgreSQL does not run as root, and the account that it
runs as cannot reach this folder. Deleting this folder leaves them there, but takes away master.key, without which nobody
can read them. "colloquy data" lists such places, and "colloquy data --remove <place>" deletes one.
`,
  );
}

/** Makes the folder for moved data, with a file that names where it comes from. */
export async function makeMovedFolder(dataDir: string): Promise<void> {
  const folder = dirname(movedHomeOf(dataDir));
  await mkdir(folder, { recursive: true, mode: 0o755 });
  await writeFile(join(folder, 'origin.txt'), `${ORIGIN}${dataDir}\n`);
}

/** A database that is stored outside of its data folder. */
export interface MovedData {
  readonly place: string;
  /** The data folder that it belongs to; undefined when the place does not say. */
  readonly dataDir: string | undefined;
  /** Whether that folder is still there and names this place. */
  readonly isReferred: boolean;
  readonly isRunning: boolean;
  readonly bytes: number;
}

/** All databases of this machine that a start as root has stored outside of their data folders. */
export async function listMovedData(): Promise<MovedData[]> {
  const names = (await readdir(MOVED_DATA).catch(ignoring('ENOENT'))) ?? [];
  return Promise.all(
    names.sort().map(async (name) => {
      const place = join(MOVED_DATA, name);
      const origin = (await readIfThere(join(place, 'origin.txt')))?.split('\n')[0];
      const dataDir = origin?.startsWith(ORIGIN) === true ? origin.slice(ORIGIN.length) : undefined;
      const home = join(place, 'postgres');
      return {
        place,
        dataDir,
        isReferred: dataDir !== undefined && (await readLocation(dataDir)) === home,
        isRunning: await isServed(join(home, 'data')),
        bytes: await sizeOf(place),
      };
    }),
  );
}

/**
 * Deletes a database that is stored outside of its data folder, and the file in that folder which names its place.
 * @param place as `listMovedData` returns it
 * @throws Error with a message for the user when there is no such place, or when a service runs on it
 */
export async function removeMovedData(place: string): Promise<void> {
  const known = (await listMovedData()).find((one) => one.place === join(MOVED_DATA, basename(place)));
  if (!known || (await realpath(place).catch(() => undefined)) !== known.place) {
    throw new Error(`${place} is no place of moved data; "colloquy data" lists them`);
  }
  if (known.isRunning) throw new Error(`a service runs on ${place}: stop it first`);
  await removeFolder(known.place);
  if (known.isReferred && known.dataDir !== undefined) await rm(locationFile(known.dataDir));
}

async function isServed(cluster: string): Promise<boolean> {
  const { pid } = await readPidFile(cluster);
  return pid !== undefined && (await isPostmasterOf(pid, cluster));
}

async function sizeOf(path: string): Promise<number> {
  const info = await lstat(path).catch(ignoring('ENOENT'));
  if (!info?.isDirectory()) return info?.size ?? 0;
  const sizes = (await readdir(path)).map((name) => sizeOf(join(path, name)));
  return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0);
}
