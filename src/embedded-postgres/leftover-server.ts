import { constants } from 'node:fs';
import { readFile, readlink, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { run } from './account.js';
import { readIfThere } from './files.js';

/** What `postmaster.pid` says about the server that runs, or has run, on a cluster. */
export async function readPidFile(cluster: string): Promise<{ pid?: number; port?: number }> {
  const lines = (await readIfThere(join(cluster, 'postmaster.pid')))?.split('\n') ?? [];
  const [pid, port] = [Number(lines[0]), Number(lines[3])];
  return { ...(pid > 0 && { pid }), ...(port > 0 && { port }) };
}

/** Whether the process is the server of this cluster, and not another program that got the pid of a dead server. */
export async function isPostmasterOf(pid: number, cluster: string): Promise<boolean> {
  try {
    if (process.platform === 'linux') {
      const [program = ''] = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
      // The server works in its data folder. Its children name themselves "postgres: …".
      return basename(program) === 'postgres' && (await readlink(`/proc/${pid}/cwd`)) === cluster;
    }
    const line = await run('ps', ['-ww', '-o', 'command=', '-p', String(pid)]);
    return line.includes('/postgres ') && line.includes(cluster);
  } catch {
    // The process does not exist.
    return false;
  }
}

/**
 * Signals, and the milliseconds to wait after each: first a fast shutdown. A server that hangs is killed, and recovers
 * its data at the next start.
 */
const STEPS = [
  ['SIGINT', 5_000],
  ['SIGQUIT', 5_000],
  ['SIGKILL', 5_000],
] as const;

/**
 * Ends the server that an earlier process left running on the data. It is still shutting down because its owner is
 * gone, or its supervisor was killed as well. A second server on the same cluster would destroy the data.
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
 * PostgreSQL refuses to start if the pid in a stale postmaster.pid belongs to any program of its user, which is common
 * in a container. It always accepts the pid in PG_GRANDPARENT_PID, which is this process, so this pid replaces the
 * stale one. The file itself must stay: it names the shared memory by which PostgreSQL finds children of a killed
 * server that still work on the data.
 */
async function neutraliseStalePidFile(cluster: string): Promise<void> {
  const file = join(cluster, 'postmaster.pid');
  const text = await readIfThere(file);
  if (text === undefined) return;
  const { O_WRONLY, O_TRUNC, O_NOFOLLOW } = constants;
  await writeFile(file, text.replace(/^\d+/, String(process.pid)), { flag: O_WRONLY | O_TRUNC | O_NOFOLLOW });
}
