import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, readlink, realpath, symlink, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

/** Another Colloquy runs on the data folder; the message is meant for the user. */
export class DataFolderInUseError extends Error {
  override readonly name = 'DataFolderInUseError';

  constructor(
    readonly dataDir: string,
    readonly pid: number,
    /** The URL at which the other one listens. */
    readonly url: string,
  ) {
    super(
      `Colloquy is already running on the data folder ${dataDir}: process ${pid} at ${url}. Use that one, end it ` +
        `(kill ${pid}), or start this one on another folder with COLLOQUY_DATA_DIR.`,
    );
  }
}

/** The holder of a lock, as the lock names it. */
interface Holder {
  readonly pid: number;
  /** Tells apart two processes that had the same pid. */
  readonly born: string;
  readonly url: string;
}

const RELEASED = 'released';

/**
 * Makes this process the only one that works on `dataDir` (made if missing), until `release()` or its death: a lock
 * whose process is gone, or whose pid now belongs to another program, does not count. Of any number of processes
 * that try at once, one gets it.
 *
 * Processes have to see each other's pids; two containers on one volume do not.
 *
 * @param holder.url where this process listens, to be named to those who come too late
 * @throws DataFolderInUseError
 */
export async function lockDataFolder(
  dataDir: string,
  holder: { url: string },
): Promise<{ release(): Promise<void> }> {
  // Each taking of the lock is a symlink `lock/<n>` whose target text names the holder: made with its content in one
  // step, and by one process only. The highest number counts and is never removed, only outnumbered. (A lock file
  // that is deleted when stale and made anew can be deleted a second time, by one that judged the old file.)
  const folder = join(dataDir, 'lock');
  await mkdir(folder, { recursive: true });
  const me: Holder = { pid: process.pid, born: (await birthOf(process.pid)) ?? '', url: holder.url };

  for (;;) {
    const last = await highest(folder);
    const current = last === 0 ? undefined : await holderOf(join(folder, String(last)));
    // The lock was outnumbered and removed after the folder was listed.
    if (current === 'gone') continue;
    if (current !== undefined && (await isAlive(current))) {
      throw new DataFolderInUseError(await realpath(dataDir), current.pid, current.url);
    }
    const mine = last + 1;
    if (!(await take(folder, mine, JSON.stringify(me)))) continue;
    // The listed locks may have been outnumbered and removed meanwhile, in which case our number is not the highest.
    if ((await highest(folder)) !== mine) {
      await drop(folder, mine);
      continue;
    }
    for (const number of await numbers(folder)) if (number < mine) await drop(folder, number);
    return {
      release: async () => {
        if (await take(folder, mine + 1, RELEASED)) await drop(folder, mine);
      },
    };
  }
}

async function take(folder: string, number: number, text: string): Promise<boolean> {
  try {
    await symlink(text, join(folder, String(number)));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

async function drop(folder: string, number: number): Promise<void> {
  // The process that outnumbers this lock removes it, too.
  await unlink(join(folder, String(number))).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  });
}

async function numbers(folder: string): Promise<number[]> {
  return (await readdir(folder)).map(Number).filter((number) => Number.isSafeInteger(number) && number > 0);
}

async function highest(folder: string): Promise<number> {
  return Math.max(0, ...(await numbers(folder)));
}

async function holderOf(link: string): Promise<Holder | 'gone' | undefined> {
  let text: string;
  try {
    text = await readlink(link);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'gone';
    throw error;
  }
  return text === RELEASED ? undefined : (JSON.parse(text) as Holder);
}

async function isAlive(holder: Holder): Promise<boolean> {
  try {
    process.kill(holder.pid, 0);
  } catch (error) {
    // EPERM means that the process exists and belongs to another user.
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false;
  }
  const born = await birthOf(holder.pid);
  // Without access to /proc this cannot be told, and two services on one folder would be worse than one that does not
  // start.
  return born === undefined || born === holder.born;
}

/**
 * When the process began, as the system tells it: a pid alone may by now belong to another program. An ended process
 * that its parent has not collected yet counts as another one; undefined if the system does not tell.
 */
async function birthOf(pid: number): Promise<string | undefined> {
  try {
    if (process.platform === 'linux') {
      const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
      // The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      if (fields[0] === 'Z' || fields[0] === 'X') return 'ended';
      // Field 22 counts from the start of the system, so it recurs after a reboot.
      const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8');
      return `${boot.trim()} ${fields[19] ?? ''}`;
    }
    const { stdout } = await promisify(execFile)('ps', ['-o', 'lstart=', '-p', String(pid)], {
      env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' },
    });
    return stdout.trim();
  } catch {
    return undefined;
  }
}
