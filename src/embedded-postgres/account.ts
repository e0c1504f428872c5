import { execFile } from 'node:child_process';
import { stat } from 'node:fs/promises';
import { promisify } from 'node:util';

/** The account that the server runs as when this process is root, because PostgreSQL refuses to run as root. */
export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/**
 * The environment of the server and its tools. Our own environment is not passed on: it contains API keys, and PG*
 * variables would change how they behave.
 */
export const ENVIRONMENT = { PATH: process.env['PATH'] ?? '/usr/bin:/bin', LC_ALL: 'C' };

export async function unprivilegedAccount(): Promise<Account> {
  for (const name of ['postgres', 'nobody']) {
    try {
      const [uid, gid] = await Promise.all(
        ['-u', '-g'].map(async (flag) => Number((await run('id', [flag, name])).trim())),
      );
      if (uid !== undefined && gid !== undefined && uid > 0) return { name, uid, gid };
    } catch {
      // This user does not exist; the next candidate may.
    }
  }
  throw new Error(
    'PostgreSQL does not run as root, and there is neither a user "postgres" nor "nobody" to run it as. Start ' +
      'Colloquy as another user, or set DATABASE_URL.',
  );
}

/**
 * The owner of existing data, as whom the server must run: PostgreSQL insists on it, and the owner is never changed.
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
 * Whether an account can use a folder. Tried as that account, because file modes do not show ACLs or read-only mounts.
 */
export async function canUse(account: Account, folder: string): Promise<boolean> {
  const script = 'test -w "$1" && test -x "$1"';
  return run('/bin/sh', ['-c', script, 'sh', folder], account).then(
    () => true,
    () => false,
  );
}

/** Runs a program and resolves to its standard output; rejects with its standard error when it fails. */
export async function run(program: string, options: readonly string[], account?: Account): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(program, options, {
      // The account may have no access to our working directory.
      cwd: '/',
      env: ENVIRONMENT,
      ...(account && { uid: account.uid, gid: account.gid }),
    });
    return stdout;
  } catch (error) {
    const said = (error as { stderr?: string }).stderr?.trim();
    throw new Error(said === undefined || said === '' ? messageOf(error) : said, { cause: error });
  }
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
