import { randomBytes } from 'node:crypto';
import { link, mkdir, open, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ignoring, readIfThere } from './files.js';

/**
 * The file of the master keys of an embedded database. It is in the data folder itself, also where the database had to be
 * moved elsewhere because the service runs as root: the account that PostgreSQL runs as must not be able to read it.
 */
export const masterKeyFile = (dataDir: string): string => join(dataDir, 'master.key');

/** The keys of the file, one a line, the first one first; none when there is no file. */
export async function readMasterKeyFile(dataDir: string): Promise<string[]> {
  const text = (await readIfThere(masterKeyFile(dataDir))) ?? '';
  return text.split(/[\s,]+/).filter((entry) => entry !== '');
}

/** Whether others than the owner of the file may read it. */
export async function isMasterKeyFileOpen(dataDir: string): Promise<boolean> {
  const found = await stat(masterKeyFile(dataDir)).catch(ignoring('ENOENT'));
  return found !== undefined && process.platform !== 'win32' && (found.mode & 0o077) !== 0;
}

/**
 * Makes the file with a new key, unless another process has made it meanwhile. It appears whole and is on the disk when
 * this resolves: a key that was lost in a crash would make all unreadable that was sealed with it.
 */
export async function makeMasterKeyFile(dataDir: string): Promise<void> {
  await mkdir(dataDir, { recursive: true });
  const file = masterKeyFile(dataDir);
  const temporary = `${file}.${process.pid}-${randomBytes(4).toString('hex')}`;
  try {
    const handle = await open(temporary, 'wx', 0o600);
    try {
      await handle.writeFile(`${randomBytes(32).toString('base64')}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
    // Unlike a rename it never replaces the file of another process.
    await link(temporary, file).catch(ignoring('EEXIST'));
  } finally {
    await rm(temporary, { force: true });
  }
  const folder = await open(dataDir);
  await folder.sync().finally(() => folder.close());
}
