import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** See writer-child.ts: a node in a process of its own that appends as fast as it can. */
export interface WriterProcess {
  /** Appends it was told are durable: stream → its last acknowledged version. */
  readonly acknowledged: ReadonlyMap<string, number>;
  signal(signal: NodeJS.Signals): void;
  /** Resolves once it said more than `count` acknowledgements. */
  past(count: number): Promise<void>;
  /** Lets it answer what it began, then end. */
  stop(): Promise<void>;
  /** SIGKILL, and waits until it is gone. */
  kill9(): Promise<void>;
}

const running = new Set<WriterProcess>();

/** Ends those that a failed test left behind. */
export async function killWriters(): Promise<void> {
  await Promise.all([...running].map((writer) => writer.kill9()));
}

export async function startWriter(url: string, name: string, streams: number): Promise<WriterProcess> {
  const script = join(__dirname, 'writer-child.ts');
  const hook = join(__dirname, 'typescript-hook.cjs');
  const child = spawn(process.execPath, ['-r', hook, script, url, name, String(streams)], {
    env: { PATH: process.env['PATH'] },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  // It is ended by its standard input; when it is gone already, that is what was wanted.
  child.stdin.on('error', () => undefined);
  let errors = '';
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (errors += chunk));
  const exit = once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>;
  const acknowledged = new Map<string, number>();
  let count = 0;
  let look = (): void => undefined;
  const ready = new Promise<void>((resolve, reject) => {
    createInterface(child.stdout).on('line', (line) => {
      if (line === 'ready') resolve();
      const [, streamId, version] = /^ok (\S+) (\d+)$/.exec(line) ?? [];
      if (streamId === undefined) return;
      acknowledged.set(streamId, Number(version));
      count += 1;
      look();
    });
    void exit.then(([code]) => {
      reject(new Error(`writer ${name} ended (${code ?? 'signal'}): ${errors}`));
    });
  });
  const writer: WriterProcess = {
    acknowledged,
    signal: (signal) => {
      child.kill(signal);
    },
    past: (wanted) =>
      new Promise<void>((resolve, reject) => {
        look = () => {
          if (count > wanted) resolve();
        };
        look();
        void exit.then(() => {
          reject(new Error(`writer ${name} ended: ${errors}`));
        });
      }),
    stop: async () => {
      child.stdin.write('stop\n');
      const [code] = await exit;
      running.delete(writer);
      if (code !== 0) throw new Error(`writer ${name} failed: ${errors}`);
    },
    kill9: async () => {
      child.kill('SIGKILL');
      await exit;
      running.delete(writer);
    },
  };
  running.add(writer);
  await ready;
  return writer;
}
