import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createWorld, type World } from './fixture.js';

const HOUR = 3_600_000;

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(async () => {
  await world.end();
});

async function colloquy(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const script = join(__dirname, '..', '..', 'scripts', 'colloquy.mjs');
  try {
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [script, ...args]);
    return { code: 0, out: stdout, err: stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, out: stdout, err: stderr };
  }
}

describe('the command line', () => {
  it('given a session that is due, when a sweep is tried dry and then done, then it tells both', async () => {
    const { api } = await world.node({ SESSION_TTL_MS: String(HOUR) });
    await api.post('/v1/sessions', { id: 'due' });
    expect((await api.get('/v1/sessions')).status).toBe(200);
    await world.database.setClock({ offsetMs: 2 * HOUR });

    const dry = await colloquy('sweep', '--dry-run', '--url', api.url);
    expect(dry.code).toBe(0);
    expect(JSON.parse(dry.out)).toMatchObject({ sessionId: 'due', action: 'expire', reason: 'ttl' });

    const done = await colloquy('sweep', '--url', api.url);
    expect(done.code).toBe(0);
    const rows = done.out.trim().split('\n');
    expect(rows.map((row) => JSON.parse(row) as unknown)).toContainEqual({
      reason: 'ttl',
      found: 1,
      swept: 1,
    });
  });

  it('given no service or a wrong word, when it is called, then the exit code tells', async () => {
    expect(await colloquy('sweep', '--url', 'http://127.0.0.1:9')).toMatchObject({ code: 1, out: '' });
    expect(await colloquy('swep')).toMatchObject({ code: 2, out: '' });
    expect(await colloquy('sweep', '--no-such-option')).toMatchObject({ code: 2, out: '' });
  });
});
