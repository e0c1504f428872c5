import { randomBytes } from 'node:crypto';
import { chown, open, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf, run } from './account.js';
import { exists, readIfThere, removeFolder } from './files.js';
import { type Place } from './place.js';
import { ROLE_OPTIONS } from './sign-in.js';

/**
 * The password of the role, which is made at first use. It is written before initdb runs, so that a cluster never
 * exists without its password.
 * @throws Error with a message for the user when a cluster exists and its password is missing
 */
export async function ensurePassword(place: Place): Promise<string> {
  const file = join(place.home, 'password');
  const known = (await readIfThere(file))?.trim();
  if (known) return known;
  if (await exists(place.cluster)) {
    throw new Error(`The password file ${file} is missing, and the database in ${place.cluster} needs it.`);
  }
  const password = randomBytes(24).toString('base64url');
  const temporary = `${file}.new`;
  await rm(temporary, { force: true });
  await writeFile(temporary, password, { mode: 0o600, flag: 'wx', flush: true });
  if (place.account) await chown(temporary, place.account.uid, place.account.gid);
  await rename(temporary, file);
  return password;
}

/**
 * Makes the cluster if there is none. initdb works in a temporary folder, which is renamed at the end, so an
 * interrupted initdb leaves no half-made cluster. The next start removes its temporary folder.
 * @throws Error with a message for the user when the data is of another major version
 */
export async function ensureCluster(place: Place): Promise<void> {
  for (const name of await readdir(place.home)) {
    if (name.startsWith('data.init-')) await removeFolder(join(place.home, name));
  }
  const initdb = join(place.binaries, 'bin', 'initdb');
  const existing = (await readIfThere(join(place.cluster, 'PG_VERSION')))?.trim();
  if (existing !== undefined) {
    const major = / (\d+)/.exec(await run(initdb, ['--version'], place.account))?.[1];
    if (major !== existing) {
      throw new Error(
        `The database in ${place.cluster} was made by PostgreSQL ${existing}, and this is ${major ?? 'unknown'}. ` +
          'Go back to the former version of Colloquy, dump the data there (pg_dump), and restore it into a new folder.',
      );
    }
    return;
  }
  const temporary = join(place.home, `data.init-${process.pid}-${randomBytes(4).toString('hex')}`);
  const options = [
    `--pgdata=${temporary}`,
    ...ROLE_OPTIONS,
    `--pwfile=${join(place.home, 'password')}`,
    '--encoding=UTF8',
    // Text sorts the same on every machine, and upper and lower case work for all of Unicode, which the plain C locale
    // lacks.
    '--locale=C',
    '--locale-provider=builtin',
    '--builtin-locale=C.UTF-8',
  ];
  try {
    await run(initdb, options, place.account);
    await rename(temporary, place.cluster);
  } catch (error) {
    await removeFolder(temporary);
    throw new Error(`The database could not be made in ${place.cluster}: ${messageOf(error)}`, {
      cause: error,
    });
  }
  const folder = await open(place.home);
  await folder.sync().finally(() => folder.close());
}
