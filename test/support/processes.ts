import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

/**
 * All processes that name a folder in their command line, as an embedded PostgreSQL and its supervisor do, and their
 * children.
 */
export async function processesOn(folder: string): Promise<number[]> {
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,ppid=,args=']);
  const all = stdout
    .trim()
    .split('\n')
    .map((line) => /^ *(\d+) +(\d+) (.*)$/.exec(line))
    .map((match) => ({ pid: Number(match?.[1]), parent: Number(match?.[2]), command: match?.[3] ?? '' }));
  const found = new Set(all.filter(({ command }) => command.includes(folder)).map(({ pid }) => pid));
  for (let size = 0; size < found.size;) {
    size = found.size;
    for (const { pid, parent } of all) if (found.has(parent)) found.add(pid);
  }
  return [...found];
}

/**
 * Returns the processes that still run. A process that has ended does not count, even if its parent has not reaped it
 * yet.
 */
export async function alive(pids: readonly number[]): Promise<number[]> {
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,stat=']);
  const running = new Set(
    stdout
      .trim()
      .split('\n')
      .map((line) => line.trim().split(/ +/))
      .filter(([, state]) => state?.startsWith('Z') !== true)
      .map(([pid]) => Number(pid)),
  );
  return pids.filter((pid) => running.has(pid));
}

/** The command line of a process; empty when the process does not exist. */
export async function commandOf(pid: number): Promise<string> {
  return promisify(execFile)('ps', ['-o', 'args=', '-p', String(pid)]).then(
    ({ stdout }) => stdout,
    () => '',
  );
}
