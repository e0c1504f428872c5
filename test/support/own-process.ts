import { transformFileSync } from '@swc/core';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { createInterface } from 'node:readline';

const ROOT = join(__dirname, '../..');

/**
 * Runs a source file in processes of its own, because the effects of `kill -9` and of races between processes show only
 * there.
 */
export interface OwnProcesses {
  /**
   * Runs `script`, the body of an async function whose parameters are `module` (the exports of the file), `args` and
   * `say(line)`.
   */
  start(script: string, ...args: readonly string[]): OwnProcess;
  /** Ends the processes that still run and removes the compiled files. */
  [Symbol.asyncDispose](): Promise<void>;
}

export interface OwnProcess {
  readonly child: ChildProcess;
  /** The next line of the process's standard output; rejects with its standard error if the process ends instead. */
  line(): Promise<string>;
  /** Sends SIGKILL unless the process has ended already; resolves when the process is gone. */
  kill9(): Promise<void>;
}

/**
 * @param source path, from the root of the repository, of a file that imports only packages and files of its own folder
 * @param packages a `node_modules` folder that is looked into before the repository's own
 */
export function ownProcesses(source: string, packages?: string): OwnProcesses {
  const folder = mkdtempSync(join(tmpdir(), 'colloquy-own-process-'));
  for (const name of readdirSync(join(ROOT, dirname(source)))) {
    const { code } = transformFileSync(join(ROOT, dirname(source), name), {
      jsc: { parser: { syntax: 'typescript' }, target: 'es2022' },
      module: { type: 'commonjs' },
      swcrc: false,
    });
    writeFileSync(join(folder, `${basename(name, '.ts')}.js`), code);
  }
  const compiled = join(folder, `${basename(source, '.ts')}.js`);
  const started: OwnProcess[] = [];
  return {
    start: (script, ...args) => {
      const program = `const [file, ...args] = process.argv.slice(1);
        const say = (line) => process.stdout.write(line + '\\n');
        (async (module) => { ${script} })(require(file)).catch((error) => { console.error(error); process.exit(1); });`;
      const ours = join(ROOT, 'node_modules');
      const child = spawn(process.execPath, ['-e', program, compiled, ...args], {
        env: {
          PATH: process.env['PATH'],
          NODE_PATH: packages === undefined ? ours : `${packages}:${ours}`,
        },
        stdio: ['pipe', 'pipe', 'pipe'],
      });
      const own = handle(child);
      started.push(own);
      return own;
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(started.map((own) => own.kill9()));
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function handle(child: ReturnType<typeof spawn>): OwnProcess {
  const { stdout, stderr } = child;
  if (stdout === null || stderr === null) throw new Error('The process was started without pipes.');
  let errors = '';
  stderr.setEncoding('utf8').on('data', (chunk: string) => (errors += chunk));
  const lines = createInterface(stdout)[Symbol.asyncIterator]();
  return {
    child,
    line: async () => {
      const next = await lines.next();
      if (next.done !== true) return next.value;
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
      throw new Error(`The process ended (${child.signalCode ?? child.exitCode ?? 'unknown'}): ${errors}`);
    },
    kill9: async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exit = once(child, 'exit');
      child.kill('SIGKILL');
      await exit;
    },
  };
}
