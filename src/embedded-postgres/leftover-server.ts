import { constants } from 'node:fs';
import { readFile, readlink, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { run } from './account.js';
import { readIfThere } from './files.js';

/** The pid and port of the server that works or has worked on a cluster, from its `postmaster.pid`. */
export async function readPidFile(cluster: string): Promise<{ pid?: number; port?: number }> {
  const lines = (await readIfThere(join(cluster, 'postmaster.pid')))?.split('\n') ?? [];
  const [pid, port] = [Number(lines[0]), Number(lines[3])];
  return { ...(pid > 0 && { pid }), ...(port > 0 && { port }) };
}

/** Whether a process is the server of a cluster, and not another program that got the pid of a dead server. */
export async function isPostmasterOf(pid: number, cluster: string): Promise<boolean> {
  try {
    if (process.platform === 'linux') {
      const [program = ''] = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
      // The working directory of the server is its data folder. Its children are called "postgres: …".
      return basename(program) === 'postgres' && (await readlink(`/proc/${pid}/cwd`)) === cluster;
    }
    const line = await run('ps', ['-ww', '-o', 'command=', '-p', String(pid)]);
    return line.includes('/postgres ') && line.includes(cluster);
  } catch {
    // There is no such process.
    return false;
  }
}

/** A fast shutdown comes first. A server that hangs is killed, and recovers at the next start. */
const STEPS = [
  ['SIGINT', 5_000],
  ['SIGQUIT', 5_000],
  ['SIGKILL', 5_000],
] as const;

/**
 * Ends the server that a process before this one left on the data: it is on its way out, its owner being gone, or its
 * supervisor was killed as well. Two servers on one cluster would destroy it.
 */
export async function endLeftoverServer(cluster: string): Promise<void> {
  const { pid } = await readPidFile(cluster);
  if (pid === undefined) return;
  for (const [signal, limitMs] of STEPS) {
    if (!(await isPostmasterOf(pid, cluster))) break;
    try {
      process.kill(pid, signal);
    } catch {
      // The server ended between the check and the signal.
      break;
    }
    const deadline = performance.now() + limitMs;
    while (performance.now() < deadline && (await isPostmasterOf(pid, cluster))) await sleep(10);
  }
  if (await isPostmasterOf(pid, cluster)) throw new Error(`PostgreSQL (process ${pid}) cannot be ended.`);
  await neutraliseStalePidFile(cluster);
}

/**
 * PostgreSQL refuses to start if the pid in a stale postmaster.pid belongs to any program of its user, which in a
 * container is the rule and not the exception. The pid of its starter's parent, which is this process, always passes
 * (PG_GRANDPARENT_PID), so it takes the place of the stale one; the file itself stays, since it names the shared memory
 * by which PostgreSQL finds children of a killed server that still work on the data.
 */
async function neutraliseStalePidFile(cluster: string): Promise<void> {
  const file = join(cluster, 'postmaster.pid');
  const text = await readIfThere(file);
  if (text === undefined) return;
  const { O_WRONLY, O_TRUNC, O_NOFOLLOW } = constants;
  await writeFile(file, text.replace(/^\d+/, String(process.pid)), { flag: O_WRONLY | O_TRUNC | O_NOFOLLOW });
}
