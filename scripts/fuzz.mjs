import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { prepare, root } from './prepare.mjs';

// Sends requests that Schemathesis makes from the OpenAPI document to a service of its own, and ends with its exit
// code. Needs python3 with venv; Schemathesis comes from PyPI at the first time.

const VERSION = '4.32.5';
const { values } = parseArgs({
  options: {
    // Requests for each operation in the phases that make them at random, besides those that the document implies.
    examples: { type: 'string', default: '100' },
    seed: { type: 'string', default: '1' },
  },
});
prepare();

const venv = join(root, 'node_modules', '.cache', `schemathesis-${VERSION}`);
const schemathesis = join(venv, 'bin', 'schemathesis');
if (!existsSync(schemathesis)) {
  console.log('Installing Schemathesis …');
  must('python3', ['-m', 'venv', venv]);
  must(join(venv, 'bin', 'pip'), [
    'install',
    '--quiet',
    '--disable-pip-version-check',
    `schemathesis==${VERSION}`,
  ]);
}

const folder = mkdtempSync(join(tmpdir(), 'colloquy-fuzz-'));
const key = randomBytes(24).toString('base64url');
const service = spawn(process.execPath, [join(root, 'dist', 'main.js')], {
  cwd: folder,
  env: {
    PATH: process.env.PATH,
    PORT: '0',
    NO_COLOR: '1',
    COLLOQUY_DATA_DIR: join(folder, 'data'),
    COLLOQUY_API_KEYS: `fuzz:*:${key}`,
    MAX_SESSIONS: '1000000',
  },
  stdio: ['ignore', 'pipe', 'inherit'],
});
const ended = new Promise((resolve) => service.once('exit', resolve));
let status;
try {
  const url = await Promise.race([listening(service), ended.then(() => undefined)]);
  if (url === undefined) throw new Error('The service ended before it listened.');
  status = await run(url);
  const ready = await fetch(`${url}/health/ready`);
  if (ready.status !== 200) {
    console.error(`The service is not ready afterwards: ${ready.status} ${await ready.text()}`);
    status ||= 1;
  }
} finally {
  service.kill('SIGTERM');
  await ended;
  rmSync(folder, { recursive: true, force: true });
}
process.exit(status);

function run(url) {
  const child = spawn(
    schemathesis,
    [
      ...['--config-file', join(root, 'test/fuzz/schemathesis.toml'), 'run', `${url}/openapi.json`],
      ...['--phases', 'examples,coverage,fuzzing,stateful'],
      ...['--max-examples', values.examples, '--seed', values.seed],
    ],
    // Schemathesis keeps what it has found in its working folder.
    {
      cwd: folder,
      env: {
        ...process.env,
        COLLOQUY_FUZZ_KEY: key,
        SCHEMATHESIS_HOOKS: join(root, 'test/fuzz/checks.py'),
        PYTHONDONTWRITEBYTECODE: '1',
      },
      stdio: ['ignore', 'inherit', 'inherit'],
    },
  );
  process.once('SIGINT', () => child.kill('SIGINT'));
  return new Promise((resolve) => child.once('exit', (code) => resolve(code ?? 1)));
}

/** The URL of the service, once it listens. */
function listening(child) {
  return new Promise((resolve) => {
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      output = (output + text).slice(-10_000);
      const url = /listening on (https?:\/\/[^\s"]+)[\s"]/.exec(output)?.[1];
      if (url !== undefined) resolve(url);
    });
  });
}

function must(program, args) {
  const { status, error } = spawnSync(program, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  if (error !== undefined || status !== 0) {
    rmSync(venv, { recursive: true, force: true });
    console.error(`${program} failed${error === undefined ? '; see above' : `: ${error.message}`}.`);
    process.exit(1);
  }
}
