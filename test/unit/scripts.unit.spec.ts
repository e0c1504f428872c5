import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

const SCRIPTS = join(__dirname, '../../scripts');

describe('npm start', () => {
  let folder: string;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'colloquy start '));
    cpSync(SCRIPTS, join(folder, 'scripts'), { recursive: true });
    // Stand-ins for npm and for the build, which leave behind what the real ones do.
    write(
      'npm-cli.js',
      `const { mkdirSync, writeFileSync } = require('node:fs');
       if (process.env.NPM_FAILS) process.exit(1);
       console.error('npm ' + process.argv[2]);
       mkdirSync('node_modules/@nestjs/cli/bin', { recursive: true });
       writeFileSync('node_modules/@nestjs/cli/bin/nest.js',
         "console.error('nest build'); require('fs').cpSync('src', 'dist', { recursive: true });");`,
    );
    for (const file of ['tsconfig.json', 'tsconfig.build.json', 'nest-cli.json']) write(file, '{}');
    write('package-lock.json', lockWith('1.0.0'));
    write('src/main.js', `console.log('service', process.ppid); process.exitCode = 7;`);
  });

  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  function write(file: string, text: string): void {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    writeFileSync(join(folder, file), text);
  }

  function lockWith(version: string): string {
    return JSON.stringify({
      packages: {
        '': {},
        'node_modules/x': { version },
        'node_modules/other-os': { version, optional: true },
      },
    });
  }

  function start(env: Record<string, string> = {}) {
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(folder, 'scripts/start.mjs')], {
      env: { PATH: process.env['PATH'], npm_execpath: join(folder, 'npm-cli.js'), ...env },
      encoding: 'utf8',
    });
    return { status, stdout: stdout.trim().split('\n'), stderr: stderr.trim().split('\n') };
  }

  const service = `service ${process.pid}`;

  it('given a fresh clone in a path with a space, when started, then it installs, builds, and is the service itself', () => {
    expect(start()).toEqual({
      status: 7,
      stdout: ['Installing dependencies …', 'Building …', service],
      stderr: ['npm ci', 'nest build'],
    });
  });

  it('given nothing has changed, when started again, then it only runs', () => {
    start();

    expect(start()).toEqual({ status: 7, stdout: [service], stderr: [''] });
  });

  it('given a changed source, when started again, then it builds', () => {
    start();
    write('src/deep/new.js', '');

    expect(start().stdout).toEqual(['Building …', service]);
    expect(start().stdout).toEqual([service]);
  });

  it('given a changed lock file, when started again, then it installs and builds', () => {
    start();
    write('package-lock.json', lockWith('2.0.0'));

    expect(start().stdout).toEqual(['Installing dependencies …', 'Building …', service]);
  });

  it('given an install by hand of what the lock file says, when started, then it does not install again', () => {
    start();
    rmSync(join(folder, 'node_modules/.colloquy-install'));
    write('node_modules/.package-lock.json', `{"packages":{"node_modules/x":{"version":"1.0.0"}}}`);

    expect(start().stdout).toEqual([service]);
  });

  it('given an install that fails, when started, then it ends there and tries again the next time', () => {
    expect(start({ NPM_FAILS: '1' })).toMatchObject({ status: 1, stderr: ['npm ci failed; see above.'] });
    expect(start().stdout).toEqual(['Installing dependencies …', 'Building …', service]);
  });

  it('given an image with dist and without src, when started, then it only runs', () => {
    start();
    rmSync(join(folder, 'src'), { recursive: true });
    rmSync(join(folder, 'package-lock.json'));
    rmSync(join(folder, 'node_modules'), { recursive: true });

    expect(start()).toEqual({ status: 7, stdout: [service], stderr: [''] });
  });
});
