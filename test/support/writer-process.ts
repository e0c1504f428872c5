import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** A node in a process of its own that appends as fast as it can; see writer-child.ts. */
export interface WriterProcess {
  /** The acknowledged appends: stream → its last acknowledged version. */
  readonly acknowledged: ReadonlyMap<string, number>;
  signal(signal: NodeJS.Signals): void;
  /** Resolves once the writer has printed more than `count` acknowledgements. */
  past(count: number): Promise<void>;
  /** Ends the writer after its running appends were acknowledged. */
  stop(): Promise<void>;
  /** Sends SIGKILL and waits until the process is gone. */
  kill9(): Promise<void>;
}

const running = new Set<WriterProcess>();

/** Ends the writers that a failed test left running. */
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
  // `stop` writes to the standard input of the writer. An error because the writer is already gone does not matter.
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
