import { execFile } from 'node:child_process';
import { stat } from 'node:fs/promises';
import { promisify } from 'node:util';

/** The system user that the server runs as when this process is root, because PostgreSQL refuses to run as root. */
export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/**
 * The environment of the server and its tools. They do not get the environment of this process, because it holds API
 * keys, and its PG* variables would change their behaviour.
 */
export const ENVIRONMENT = { PATH: process.env['PATH'] ?? '/usr/bin:/bin', LC_ALL: 'C' };

/**
 * The user that the server runs as on new data: `postgres`, or else `nobody`.
 * @throws Error with a message for the user when there is neither
 */
export async function unprivilegedAccount(): Promise<Account> {
  for (const name of ['postgres', 'nobody']) {
    try {
      const [uid, gid] = await Promise.all(
        ['-u', '-g'].map(async (flag) => Number((await run('id', [flag, name])).trim())),
      );
      if (uid !== undefined && gid !== undefined && uid > 0) return { name, uid, gid };
    } catch {
      // There is no user of this name. The next one may exist.
    }
  }
  throw new Error(
    'PostgreSQL does not run as root, and there is neither a user "postgres" nor "nobody" to run it as. Start ' +
      'Colloquy as another user, or set DATABASE_URL.',
  );
}

/**
 * The owner of existing data. The server has to run as this user, because PostgreSQL refuses data of another one, and
 * this process does not change the owner of a user's files.
 * @throws Error with a message for the user when root is the owner
 */
export async function ownerOf(cluster: string): Promise<Account> {
  const { uid, gid } = await stat(cluster);
  if (uid === 0) {
    throw new Error(
      `PostgreSQL does not run as root, but root owns ${cluster}. Give it to another user (chown -R).`,
    );
  }
  const name = await run('id', ['-nu', String(uid)]).catch(() => `user ${uid}`);
  return { name: name.trim(), uid, gid };
}

/**
 * Whether the user can write into the folder. A program tests this as that user, because the mode of the folder shows
 * neither ACLs nor read-only mounts nor the modes of its parent folders.
 */
export async function canUse(account: Account, folder: string): Promise<boolean> {
  const script = 'test -w "$1" && test -x "$1"';
  return run('/bin/sh', ['-c', script, 'sh', folder], account).then(
    () => true,
    () => false,
  );
}

/** Runs a program to its end and resolves to its standard output. Rejects with its standard error as the message. */
export async function run(program: string, options: readonly string[], account?: Account): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(program, options, {
      // The account may not be allowed into the working directory of this process.
      cwd: '/',
      env: ENVIRONMENT,
      ...(account && { uid: account.uid, gid: account.gid }),
    });
    return stdout;
  } catch (error) {
    const stderr = (error as { stderr?: string }).stderr?.trim();
    throw new Error(stderr === undefined || stderr === '' ? messageOf(error) : stderr, { cause: error });
  }
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
