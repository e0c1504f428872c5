import { createHash } from 'node:crypto';
import { lstat, mkdir, readdir, realpath, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { readIfThere, removeFolder, unless } from './files.js';
import { isPostmasterOf, readPidFile } from './leftover-server.js';

/** Where root's PostgreSQL goes when the account that it has to run as cannot reach the service's own folders. */
export const SYSTEM_FOLDER = '/var/lib/colloquy';
const MOVED_DATA = join(SYSTEM_FOLDER, 'data');
const ORIGIN = 'The data of ';

/** Where the data of a folder goes when it cannot lie in the folder itself; the same place at every start. */
export const movedHomeOf = (dataDir: string): string =>
  join(MOVED_DATA, createHash('sha256').update(dataDir).digest('hex').slice(0, 16), 'postgres');

/** Names the place that root moved the data to, so that nobody finds an empty database instead of it. */
export const locationFile = (dataDir: string): string => join(dataDir, 'postgres-location.txt');

/** The place that the data of a folder was moved to; undefined when it is in the folder. */
export async function readLocation(dataDir: string): Promise<string | undefined> {
  return (await readIfThere(locationFile(dataDir)))?.split('\n')[0]?.trim();
}

/** Tells in the folder where its data is, for the next start and for whoever is about to delete the folder. */
export async function writeLocation(dataDir: string, home: string): Promise<void> {
  await writeFile(
    locationFile(dataDir),
    `${home}

The conversations of this folder are in the place named above: PostgreSQL does not run as root, and the account that it
runs as cannot reach this folder. Deleting this folder leaves them there. "colloquy data" lists such places, and
"colloquy data --remove <place>" deletes one.
`,
  );
}

/** Makes the folder for moved data, with a file that names where it comes from. */
export async function makeMovedFolder(dataDir: string): Promise<void> {
  const folder = dirname(movedHomeOf(dataDir));
  await mkdir(folder, { recursive: true, mode: 0o755 });
  await writeFile(join(folder, 'origin.txt'), `${ORIGIN}${dataDir}\n`);
}

/** A database that lies apart from its data folder. */
export interface MovedData {
  readonly place: string;
  /** The data folder that it belongs to; undefined when the place does not say. */
  readonly dataDir: string | undefined;
  /** Whether that folder is still there and names this place. */
  readonly isReferred: boolean;
  readonly isRunning: boolean;
  readonly bytes: number;
}

/** All that starts as root have put apart from their data folders on this machine. */
export async function listMovedData(): Promise<MovedData[]> {
  const names = (await readdir(MOVED_DATA).catch(unless('ENOENT'))) ?? [];
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
 * Deletes a database that lies apart from its data folder, and what the folder says of it.
 * @param place as `listMovedData` gives it
 * @throws Error with a message for the user when there is none, or when a service runs on it
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
  const info = await lstat(path).catch(unless('ENOENT'));
  if (!info?.isDirectory()) return info?.size ?? 0;
  const sizes = (await readdir(path)).map((name) => sizeOf(join(path, name)));
  return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0);
}
