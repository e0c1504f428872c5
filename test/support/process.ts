import { spawn, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';

const ROOT = join(__dirname, '../..');
const START_LIMIT_MS = 60_000;
const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** The built service in a process of its own. */
export interface RunningService {
  /** e.g. `http://127.0.0.1:40123` */
  readonly url: string;
  readonly pid: number;
  /** What the service has written so far, standard output and standard error together. */
  output(): string;
  /** Sends SIGTERM and resolves to the exit code when the process has ended; null if a signal ended it. */
  stop(): Promise<number | null>;
  /** Sends SIGKILL; resolves when the process has ended. */
  kill9(): Promise<void>;
  signal(signal: NodeJS.Signals): void;
}

/**
 * Runs `dist/main.js` on a free port and resolves once it listens. Its environment is `env` and nothing of this
 * process, so that neither a key nor a database URL leaks in.
 *
 * @param options.dataDir becomes COLLOQUY_DATA_DIR
 * @param options.main `main.js` of another build
 * @param options.cwd the folder in which the service looks for `colloquy.yml`; default: the root of the repository
 * @throws Error with the output if the service ends before it listens, or does not listen within 60 s (it is then
 * killed)
 */
export async function startService(options: {
  env?: Readonly<Record<string, string>>;
  dataDir?: string;
  cwd?: string;
  main?: string;
}): Promise<RunningService> {
  const child = spawn(process.execPath, [options.main ?? join(ROOT, 'dist/main.js')], {
    cwd: options.cwd ?? ROOT,
    env: {
      PATH: process.env['PATH'],
      HOME: process.env['HOME'],
      PORT: '0',
      NO_COLOR: '1',
      ...(options.dataDir !== undefined && { COLLOQUY_DATA_DIR: options.dataDir }),
      ...options.env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  running.add(child);
  const closed = new Promise<number | null>((resolve) => {
    child.once('close', (code) => {
      running.delete(child);
      resolve(code);
    });
  });
  let output = '';
  const url = await new Promise<string>((resolve, reject) => {
    const giveUp = (reason: string) => {
      clearTimeout(timer);
      child.kill('SIGKILL');
      reject(new Error(`The service ${reason}. Its output:\n${output}`));
    };
    const timer = setTimeout(() => {
      giveUp(`does not listen after ${START_LIMIT_MS / 1000} s`);
    }, START_LIMIT_MS);
    const read = (chunk: string) => {
      output += chunk;
      const listening = /listening on (https?:\/\/[^\s"]+)[\s"]/.exec(output)?.[1];
      if (listening !== undefined) {
        clearTimeout(timer);
        resolve(listening);
      }
    };
    child.stdout.setEncoding('utf8').on('data', read);
    child.stderr.setEncoding('utf8').on('data', read);
    child.once('error', (error) => {
      giveUp(`could not be started: ${error.message}`);
    });
    child.once('close', (code, signal) => {
      giveUp(`ended early (${signal ?? `exit code ${code ?? 'unknown'}`})`);
    });
  });
  return {
    url,
    // A child that has written something has a pid.
    pid: child.pid ?? 0,
    output: () => output,
    stop: () => {
      child.kill('SIGTERM');
      return closed;
    },
    kill9: async () => {
      child.kill('SIGKILL');
      await closed;
    },
    signal: (signal) => {
      child.kill(signal);
    },
  };
}
