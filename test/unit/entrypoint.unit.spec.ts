import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ENTRYPOINT = join(__dirname, '../../docker/entrypoint.mjs');

describe("the image's entrypoint", () => {
  let folder: string;
  let dataDir: string;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'colloquy-entrypoint-'));
    dataDir = join(folder, 'data');
    writeFileSync(
      join(folder, 'stub.mjs'),
      `const { HOST, COLLOQUY_API_KEYS } = process.env;
       console.log(JSON.stringify({ HOST, COLLOQUY_API_KEYS, pid: process.ppid, args: process.argv.slice(2) }));`,
    );
  });

  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  /** What the entrypoint printed before the service began, and what the service then found. */
  function run(env: Record<string, string> = {}) {
    const lines = execFileSync(process.execPath, [ENTRYPOINT, 'stub.mjs'], {
      cwd: folder,
      env: { PATH: process.env['PATH'], COLLOQUY_DATA_DIR: dataDir, ...env },
      encoding: 'utf8',
    })
      .trim()
      .split('\n');
    const service: unknown = JSON.parse(lines.pop() ?? '');
    return { printed: lines.join('\n'), service: service as Record<string, unknown> };
  }

  it('given no keys, when the image is started for the first time, then it makes a key, prints it, stores it privately and passes it to the service', () => {
    const { printed, service } = run();

    const key = readFileSync(join(dataDir, 'admin-api-key'), 'utf8').trim();
    expect(key).toMatch(/^[\w-]{32}$/);
    expect(printed).toContain(key);
    expect(service).toMatchObject({
      HOST: '0.0.0.0',
      COLLOQUY_API_KEYS: `admin:*:${key}`,
      // The service must run in the same process, or the signals of the container would not reach it.
      pid: process.pid,
      args: [],
    });
    expect(statSync(join(dataDir, 'admin-api-key')).mode & 0o777).toBe(0o600);
  });

  it('given a key of an earlier start, when the image is started again, then it uses the same key and does not print it', () => {
    const first = run();
    const second = run({ COLLOQUY_API_KEYS: '', HOST: '' });

    expect(second.printed).toBe('');
    expect(second.service).toEqual(first.service);
  });

  it('given keys in the environment, when the image is started, then it makes none', () => {
    const { printed, service } = run({ COLLOQUY_API_KEYS: 'me:default:secret', HOST: '127.0.0.1' });

    expect(printed).toBe('');
    expect(service).toMatchObject({ COLLOQUY_API_KEYS: 'me:default:secret', HOST: '127.0.0.1' });
  });

  it.each([
    ['an auth section', 'auth:\n  mode: none\n'],
    ['a mistake in its syntax', 'auth: {\n'],
  ])(
    'given a colloquy.yml with %s, when the image is started, then it makes no key and leaves access to the service',
    (_, text) => {
      writeFileSync(join(folder, 'colloquy.yml'), text);

      const { printed, service } = run();

      expect(printed).toBe('');
      expect(service).not.toHaveProperty('COLLOQUY_API_KEYS');
    },
  );
});
