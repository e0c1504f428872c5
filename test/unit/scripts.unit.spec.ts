import { spawn, spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

const SCRIPTS = join(__dirname, '../../scripts');

it('given the modules of the build that benchmarks, examples and scripts load, when they are looked for in the source, then each exists', () => {
  const loaded = ['bench', 'examples', 'scripts'].flatMap((name) => {
    const folder = join(SCRIPTS, '..', name);
    return readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.mjs') && !file.includes('node_modules'))
      .flatMap((file) => [
        ...readFileSync(join(folder, file), 'utf8').matchAll(/'(?:\.\.\/)?dist\/(.+?)\.js'/g),
      ]);
  });
  expect(loaded.length).toBeGreaterThan(5);
  const missing = loaded
    .map(([, path = '']) => path)
    .filter((path) => !existsSync(join(SCRIPTS, '../src', `${path}.ts`)));
  expect(missing).toEqual([]);
});

describe('npm start', () => {
  let folder: string;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'colloquy start '));
    cpSync(SCRIPTS, join(folder, 'scripts'), { recursive: true });
    // Replacements for npm and for the build, which leave the same files behind as the real ones.
    write(
      'npm-cli.js',
      `const { mkdirSync, writeFileSync } = require('node:fs');
       if (process.env.NPM_FAILS) process.exit(1);
       console.error('npm ' + process.argv[2]);
       mkdirSync('node_modules/@nestjs/cli/bin', { recursive: true });
       writeFileSync('node_modules/@nestjs/cli/bin/nest.js',
         "console.error('nest build'); require('fs').cpSync('src', 'dist', { recursive: true });");
       mkdirSync('node_modules/vite/bin', { recursive: true });
       writeFileSync('node_modules/vite/bin/vite.js',
         "console.error('vite ' + process.argv.slice(2, 4).join(' '));");`,
    );
    for (const file of ['tsconfig.json', 'tsconfig.build.json', 'nest-cli.json']) write(file, '{}');
    write('package-lock.json', lockWith('1.0.0'));
    write('console/index.html', '');
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

  it('given a fresh clone in a path with a space, when it is started, then it installs, builds, and runs the service in the same process', () => {
    expect(start()).toEqual({
      status: 7,
      stdout: ['Installing dependencies …', 'Building …', service],
      stderr: ['npm ci', 'nest build', 'vite build console'],
    });
  });

  it('given no changes, when it is started again, then it only runs', () => {
    start();

    expect(start()).toEqual({ status: 7, stdout: [service], stderr: [''] });
  });

  it.each(['src/deep/new.js', 'console/src/new.tsx'])(
    'given the changed source %s, when it is started again, then it builds',
    (file) => {
      start();
      write(file, '');

      expect(start().stdout).toEqual(['Building …', service]);
      expect(start().stdout).toEqual([service]);
    },
  );

  it('given a changed lock file, when it is started again, then it installs and builds', () => {
    start();
    write('package-lock.json', lockWith('2.0.0'));

    expect(start().stdout).toEqual(['Installing dependencies …', 'Building …', service]);
  });

  it('given a manual installation that matches the lock file, when it is started, then it does not install again', () => {
    start();
    rmSync(join(folder, 'node_modules/.colloquy-install'));
    write('node_modules/.package-lock.json', `{"packages":{"node_modules/x":{"version":"1.0.0"}}}`);

    expect(start().stdout).toEqual([service]);
  });

  it('given an installation that fails, when it is started, then it ends there and tries again the next time', () => {
    expect(start({ NPM_FAILS: '1' })).toMatchObject({ status: 1, stderr: ['npm ci failed; see above.'] });
    expect(start().stdout).toEqual(['Installing dependencies …', 'Building …', service]);
  });

  it('given an image with dist and without src, when it is started, then it only runs', () => {
    start();
    rmSync(join(folder, 'src'), { recursive: true });
    rmSync(join(folder, 'package-lock.json'));
    rmSync(join(folder, 'node_modules'), { recursive: true });

    expect(start()).toEqual({ status: 7, stdout: [service], stderr: [''] });
  });
});

describe('npm run kafka without Java', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'colloquy docker '));
    mkdirSync(join(folder, 'bin'));
    // A replacement for Docker that records how it is called. As a broker it prints what a broker prints, and ends at
    // SIGTERM.
    const docker = `#!/bin/sh
echo "$KAFKA_VERSION $KAFKA_PORT $*" >> '${folder}/calls'
case "$*" in
  *' up '*) trap 'exit 0' TERM; echo '[KafkaRaftServer nodeId=1] Kafka Server started'; while :; do sleep 0.05; done;;
esac
`;
    writeFileSync(join(folder, 'bin/docker'), docker, { mode: 0o755 });
    // A PATH with everything that the janitor and the replacement need, and without Java.
    for (const program of ['sh', 'cat', 'sleep', 'rm', 'kill', 'env']) {
      const { stdout } = spawnSync('sh', ['-c', `command -v ${program}`], { encoding: 'utf8' });
      if (stdout.startsWith('/')) symlinkSync(stdout.trim(), join(folder, 'bin', program));
    }
  });
  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  const calls = (): string[] =>
    readFileSync(join(folder, 'calls'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => line.replace(/ -f .*kafka\.yml/, ''));

  it('given Docker, when Kafka is started and stopped, then the image of the release runs, and nothing of it is left', async () => {
    const child = spawn(process.execPath, [join(SCRIPTS, 'kafka.mjs')], {
      env: {
        PATH: join(folder, 'bin'),
        KAFKA_CACHE_DIR: join(folder, 'cache'),
        KAFKA_VERSION: '3.9.1',
        KAFKA_PORT: '19092',
        TMPDIR: folder,
      },
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    let said = '';
    for await (const chunk of child.stdout.setEncoding('utf8')) {
      said += String(chunk);
      if (said.includes('KAFKA_BROKERS=')) child.kill('SIGTERM');
    }

    expect(said).toMatch(/^KAFKA_BROKERS=127\.0\.0\.1:19092$/m);
    const [, project = ''] = /-p (\S+)/.exec(calls().join()) ?? [];
    expect(project).toMatch(/^colloquy-kafka-[0-9a-f]{12}$/);
    expect(calls().map((call) => call.replace(project, 'P'))).toEqual([
      '3.9.1 19092 compose version',
      '3.9.1 19092 compose -p P pull -q',
      '3.9.1 19092 compose -p P up --no-color --no-log-prefix',
      '3.9.1 19092 compose -p P down -v',
    ]);
    expect(readdirSync(folder).sort()).toEqual(['bin', 'calls']);
  });

  it('given no Docker either, when Kafka is started, then the error says what is missing', () => {
    rmSync(join(folder, 'bin/docker'));
    const { status, stderr } = spawnSync(process.execPath, [join(SCRIPTS, 'kafka.mjs')], {
      env: { PATH: join(folder, 'bin'), KAFKA_CACHE_DIR: join(folder, 'cache') },
      encoding: 'utf8',
    });
    expect(status).toBe(1);
    expect(stderr).toContain('Maven (the program mvn) is needed to fetch Kafka.');
  });
});
