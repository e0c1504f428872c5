import { type ChildProcess, spawn } from 'node:child_process';
import { type Socket } from 'node:net';
import { type FileHandle } from 'node:fs/promises';
import { type Account, ENVIRONMENT } from './account.js';

/** A server that runs under a supervisor process of its own. */
export interface SupervisedServer {
  /** Resolves to the reason when the server has ended; does not keep the event loop alive. */
  readonly ended: Promise<string>;
  hasEnded(): boolean;
  /**
   * INT: fast shutdown. QUIT: immediate shutdown, with recovery at the next start. KILL: for a server that obeys
   * neither.
   */
  signal(signal: 'INT' | 'QUIT' | 'KILL'): void;
}

/**
 * A shell script that runs the server and reads a pipe from the process that owns the server. Each line is the name of
 * a signal, which the script sends to the server. The end of the pipe means that the owner has ended, even if by `kill
 * -9`: the script then shuts the server down, at first with a fast shutdown.
 *
 * A shell starts background commands without standard input, so the pipe is passed on as descriptor 3. It also starts
 * them with SIGINT ignored, which does not matter here because PostgreSQL sets its own handlers. `read` is built into
 * the shell, so that no program but the shell itself has to be ended when the server ends first.
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
 * Starts a program that ends when this process ends.
 * @param log the file that the output of the program goes to
 * @param account the user that the program and its supervisor run as; undefined for the user of this process
 */
export function superviseServer(
  command: readonly string[],
  log: FileHandle,
  account: Account | undefined,
): SupervisedServer {
  const child = spawn('/bin/sh', ['-c', SUPERVISOR, 'colloquy-postgres', ...command], {
    cwd: '/',
    // pg_ctl sets this as well. The server then accepts a stale pid file that names this process.
    env: { ...ENVIRONMENT, PG_GRANDPARENT_PID: String(process.pid) },
    // The supervisor gets a session of its own, so that Ctrl-C in the terminal reaches this process alone. Otherwise
    // the database would end before the service has answered the running requests.
    detached: true,
    stdio: ['pipe', log.fd, log.fd],
    ...(account && { uid: account.uid, gid: account.gid }),
  });
  const stdin = pipeOf(child);
  // The supervisor ends with the server. Writing to its pipe fails after that, which does not matter.
  stdin.on('error', () => undefined);
  // Neither the supervisor nor the pipe keeps this process alive.
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

/** The pipe to a child is a socket, although its type does not say so. */
function pipeOf({ stdin }: ChildProcess): Socket {
  if (!stdin) throw new Error('the supervisor was started without a pipe');
  return stdin as unknown as Socket;
}

/** Signals, and the milliseconds to wait after each. */
type Steps = readonly (readonly [signal: 'INT' | 'QUIT' | 'KILL', limitMs: number])[];
/** First a fast shutdown, then harder signals for a server that does not obey. */
export const FAST_SHUTDOWN: Steps = [
  ['INT', 30_000],
  ['QUIT', 10_000],
  ['KILL', 10_000],
];
export const IMMEDIATE_SHUTDOWN: Steps = [
  ['QUIT', 5_000],
  ['KILL', 10_000],
];

/** Ends a server and keeps this process alive until the server is gone. @throws Error when no signal ends it */
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
