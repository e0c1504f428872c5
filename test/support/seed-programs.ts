import { transformSync } from '@swc/core';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ROOT = join(__dirname, '../..');
/** The documentation whose programs must run unchanged. */
const SEEDS = readFileSync(join(__dirname, 'seeds.txt'), 'utf8');

/** The unchanged code of a block under a heading, by the number of the block. */
export function snippet(heading: string, block = 0): string {
  const [, section] = SEEDS.split(new RegExp(`^#+ ${heading}$`, 'm'));
  const blocks = section?.split(/^#+ /m)[0]?.matchAll(/^```\w+\n(.*?)^```$/gms);
  const found = [...(blocks ?? [])][block]?.[1];
  if (found === undefined) throw new Error(`the seeds have no block ${block} under "${heading}"`);
  return found;
}

export const SEED_IMPORT = `import { DextoAgent } from '@dexto/core';\n`;

/** A folder that has `colloquy` among its packages, as an application has. */
export interface Application {
  readonly folder: string;
  write(file: string, text: string): void;
  /**
   * Writes a TypeScript program in a form that Node can run: an ES module with top-level await, or CommonJS for `.cjs`.
   */
  writeProgram(file: string, source: string): void;
  run(file: string, env: Readonly<Record<string, string>>): Program;
  remove(): void;
}

export interface Program {
  /** Resolves to the exit code and everything that the program has written. */
  readonly ended: Promise<{ code: number | null; output: string; lines: string[] }>;
  /** Resolves to the first match in the output; rejects when the program ends without a match. */
  says(pattern: RegExp): Promise<RegExpExecArray>;
  end(): void;
}

export function createApplication(packages: readonly string[] = []): Application {
  const folder = mkdtempSync(join(tmpdir(), 'colloquy-application-'));
  // When this process is root, PostgreSQL runs as another user, who must be able to reach its data.
  chmodSync(folder, 0o755);
  mkdirSync(join(folder, 'node_modules'));
  symlinkSync(ROOT, join(folder, 'node_modules', 'colloquy'));
  for (const name of packages) {
    symlinkSync(join(ROOT, 'node_modules', name), join(folder, 'node_modules', name));
  }
  const write = (file: string, text: string): void => {
    writeFileSync(join(folder, file), text);
  };
  return {
    folder,
    write,
    writeProgram: (file, source) => {
      const { code } = transformSync(source, {
        jsc: { parser: { syntax: 'typescript' }, target: 'es2022' },
        module: { type: file.endsWith('.cjs') ? 'commonjs' : 'es6', ignoreDynamic: true },
        swcrc: false,
      });
      write(file, code);
    },
    run: (file, env) => run(folder, file, env),
    remove: () => {
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function run(folder: string, file: string, env: Readonly<Record<string, string>>): Program {
  const child = spawn(process.execPath, [file], {
    cwd: folder,
    env: { PATH: process.env['PATH'], HOME: folder, NO_COLOR: '1', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  let onOutput = (): void => undefined;
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      onOutput();
    });
  }
  let isOver = false;
  const ended = once(child, 'close').then(([code]: (number | null)[]) => {
    isOver = true;
    onOutput();
    return { code: code ?? null, output, lines: output.trimEnd().split('\n') };
  });
  return {
    ended,
    says: async (pattern) => {
      for (;;) {
        const found = pattern.exec(output);
        if (found) return found;
        if (isOver) throw new Error(`the program ended before it said ${String(pattern)}:\n${output}`);
        await new Promise<void>((resolve) => (onOutput = resolve));
      }
    },
    end: () => {
      child.kill('SIGKILL');
    },
  };
}
