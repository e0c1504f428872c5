import { type ChildProcess, spawn } from 'node:child_process';
import { type Socket } from 'node:net';
import { type FileHandle } from 'node:fs/promises';
import { type Account, ENVIRONMENT } from './account.js';

/** A server that runs under a supervisor of its own. */
export interface SupervisedServer {
  /** Resolves, with the reason, when the server has gone; does not keep the event loop alive. */
  readonly ended: Promise<string>;
  hasEnded(): boolean;
  /** INT: fast shutdown; QUIT: at once, with recovery at the next start; KILL: for one that obeys neither. */
  signal(signal: 'INT' | 'QUIT' | 'KILL'): void;
}

/**
 * Runs the server and reads a pipe from its owner. A line is the name of a signal for the server. The end of the pipe
 * means that the owner is gone, however it ended, `kill -9` included: then the server is shut down, at first politely.
 *
 * Shells start what runs in the background deaf to SIGINT and without standard input, so the pipe is passed on as
 * descriptor 3; PostgreSQL sets handlers of its own. `read` is part of the shell, so that nothing but the shell itself
 * has to be ended when the server ends first.
 */
const SUPERVISOR = `
exec 3<&0
"$@" 3<&- </dev/null &
server=$!
alive() { kill -0 "$server" 2>/dev/null; }
within() { n=$1; while [ "$n" -gt 0 ] && alive; do sleep 0.1; n=$((n - 1)); done; }
{
  while read -r name <&3; do kill -s "$name" "$server" 2>/dev/null; done
  kill -s INT "$server" 2>/dev/null; within 30
  alive && kill -s QUIT "$server" 2>/dev/null; within 10
  alive && kill -s KILL "$server" 2>/dev/null
} >/dev/null 2>&1 &
watcher=$!
wait "$server"
code=$?
kill -s KILL "$watcher" 2>/dev/null
exit "$code"
`;

/**
 * Starts a program that ends with this process.
 * @param log takes what the program writes
 * @param account whom it runs as, with its supervisor; undefined: this process's own
 */
export function superviseServer(
  command: readonly string[],
  log: FileHandle,
  account: Account | undefined,
): SupervisedServer {
  const child = spawn('/bin/sh', ['-c', SUPERVISOR, 'colloquy-postgres', ...command], {
    cwd: '/',
    // As pg_ctl does it: a stale pid file that names this process is then no hindrance.
    env: { ...ENVIRONMENT, PG_GRANDPARENT_PID: String(process.pid) },
    // A session of its own: Ctrl-C in the terminal must reach this process alone, or the database would go before the
    // service has answered what is running.
    detached: true,
    stdio: ['pipe', log.fd, log.fd],
    ...(account && { uid: account.uid, gid: account.gid }),
  });
  const stdin = pipeOf(child);
  // The supervisor ends with the server; what is written after that goes nowhere.
  stdin.on('error', () => undefined);
  // A program that has nothing more to do may end.
  child.unref();
  stdin.unref();
  let hasEnded = false;
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => {
      hasEnded = true;
      resolve(error.message);
    });
    child.once('exit', (code, killedBy) => {
      hasEnded = true;
      resolve(killedBy === null ? `exit code ${code ?? 'unknown'}` : killedBy);
    });
  });
  return {
    ended,
    hasEnded: () => hasEnded,
    signal: (signal) => {
      stdin.write(`${signal}\n`);
    },
  };
}

/** A pipe to a child is a socket, whatever its type says. */
function pipeOf({ stdin }: ChildProcess): Socket {
  if (!stdin) throw new Error('the supervisor was started without a pipe');
  return stdin as unknown as Socket;
}

type Steps = readonly (readonly [signal: 'INT' | 'QUIT' | 'KILL', limitMs: number])[];
/** Fast shutdown, then harder ones for a server that does not obey. */
export const POLITELY: Steps = [
  ['INT', 30_000],
  ['QUIT', 10_000],
  ['KILL', 10_000],
];
export const QUICKLY: Steps = [
  ['QUIT', 5_000],
  ['KILL', 10_000],
];

/** Ends a server and keeps this process alive until it is gone. */
export async function endServer(server: SupervisedServer, steps: Steps): Promise<void> {
  for (const [signal, limitMs] of steps) {
    if (server.hasEnded()) return;
    server.signal(signal);
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise((resolve) => (timer = setTimeout(resolve, limitMs)));
    await Promise.race([server.ended, limit]);
    clearTimeout(timer);
  }
  if (!server.hasEnded()) throw new Error('PostgreSQL cannot be ended.');
}
