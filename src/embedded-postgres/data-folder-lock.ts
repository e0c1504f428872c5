import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, readlink, realpath, symlink, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

/** Another Colloquy runs on the data folder. The message is meant for the user. */
export class DataFolderInUseError extends Error {
  override readonly name = 'DataFolderInUseError';

  constructor(
    readonly dataDir: string,
    readonly pid: number,
    /** The URL at which the other process listens. */
    readonly url: string,
  ) {
    super(
      `Colloquy is already running on the data folder ${dataDir}: process ${pid} at ${url}. Use that one, end it ` +
        `(kill ${pid}), or start this one on another folder with COLLOQUY_DATA_DIR.`,
    );
  }
}

/** What a lock says about its holder. */
interface Holder {
  readonly pid: number;
  /** When the process started, as the system tells it. Differs between two processes that had the same pid. */
  readonly born: string;
  readonly url: string;
}

const RELEASED = 'released';

/**
 * Makes this process the only one that works on `dataDir`, which is created if it is missing. The lock ends with
 * `release()` or with the process: a lock whose process is gone, or whose pid now belongs to another program, does not
 * count. Of any number of processes that try at once, exactly one gets the lock.
 *
 * The lock works only between processes that see each other's pids. It does not protect a volume that two containers
 * share.
 *
 * @param holder.url the URL at which this process listens, which is named in the errors of later processes
 * @throws DataFolderInUseError
 */
export async function lockDataFolder(
  dataDir: string,
  holder: { url: string },
): Promise<{ release(): Promise<void> }> {
  // Each acquisition of the lock is a symlink `lock/<n>` whose target text names the holder. A symlink is created
  // together with its content in one step, and by one process only. The link with the highest number is the lock. It is
  // never removed, only superseded by a higher number. (A lock file that is deleted when it is stale and then made
  // again could be deleted a second time, by a process that had looked at the old file.)
  const folder = join(dataDir, 'lock');
  await mkdir(folder, { recursive: true });
  const self: Holder = { pid: process.pid, born: (await startOf(process.pid)) ?? '', url: holder.url };

  for (;;) {
    const last = await highest(folder);
    const current = last === 0 ? undefined : await holderOf(join(folder, String(last)));
    // The link was superseded and removed after the folder was listed.
    if (current === 'gone') continue;
    if (current !== undefined && (await isAlive(current))) {
      throw new DataFolderInUseError(await realpath(dataDir), current.pid, current.url);
    }
    const mine = last + 1;
    if (!(await createLink(folder, mine, JSON.stringify(self)))) continue;
    // If the links that were listed have been superseded and removed meanwhile, this process did not create the highest
    // number, and another process holds the lock.
    if ((await highest(folder)) !== mine) {
      await removeLink(folder, mine);
      continue;
    }
    for (const number of await numbers(folder)) if (number < mine) await removeLink(folder, number);
    return {
      release: async () => {
        if (await createLink(folder, mine + 1, RELEASED)) await removeLink(folder, mine);
      },
    };
  }
}

async function createLink(folder: string, number: number, text: string): Promise<boolean> {
  try {
    await symlink(text, join(folder, String(number)));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

async function removeLink(folder: string, number: number): Promise<void> {
  // A process that supersedes the link removes it as well, so it may be gone already.
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
  const born = await startOf(holder.pid);
  // Without a readable /proc the start of the process is unknown. The holder then counts as alive, because two services
  // on one folder do more harm than one that does not start.
  return born === undefined || born === holder.born;
}

/**
 * When the process started, as the system tells it, because a pid alone may by now belong to another program. An ended
 * process that its parent has not reaped yet counts as another process. Undefined if the system does not tell.
 */
async function startOf(pid: number): Promise<string | undefined> {
  try {
    if (process.platform === 'linux') {
      const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
      // The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      if (fields[0] === 'Z' || fields[0] === 'X') return 'ended';
      // Field 22 counts from the start of the system, so the same value may occur again after a reboot.
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
