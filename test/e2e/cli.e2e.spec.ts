import { randomUUID } from 'node:crypto';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { colloquy as run, startColloquy } from '../support/colloquy.js';
import { createWorld, say, texts, type World } from './fixture.js';

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
  it('given a session that is due, when a dry run and then a sweep are run, then each prints what it found', async () => {
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

  it('given no service or a wrong argument, when the command is run, then the exit code shows it', async () => {
    expect(await colloquy('sweep', '--url', 'http://127.0.0.1:9')).toMatchObject({ code: 1, out: '' });
    expect(await colloquy('swep')).toMatchObject({ code: 2, out: '' });
    expect(await colloquy('sweep', '--no-such-option')).toMatchObject({ code: 2, out: '' });
    expect(await run([])).toMatchObject({ code: 2, out: '' });
    expect(await run(['history'])).toMatchObject({ code: 2, out: '' });
    expect(await run(['history', 'a', '--limit', '0'])).toMatchObject({ code: 2, out: '' });
    expect(await run(['import', 'x', '--format', 'xml'])).toMatchObject({ code: 2, out: '' });
    expect(await run(['--help'])).toMatchObject({ code: 0, err: '' });
  });

  it('given a history, when it is requested at a version, for a tenant or without a key, then it is printed as JSON lines or refused', async () => {
    const { api } = await world.node({ COLLOQUY_API_KEYS: 'ops:*:secret' });
    const key = { authorization: 'Bearer secret', 'colloquy-tenant': 'acme' };
    await api.post('/v1/sessions', { id: 'talk' }, key);
    const messages = Array.from({ length: 250 }, (_, index) => ({ role: 'user', content: `text ${index}` }));
    await api.post('/v1/sessions/talk/messages', { messages }, key);
    const env = { COLLOQUY_URL: api.url, COLLOQUY_API_KEY: 'secret' };
    const contents = (out: string) =>
      out
        .split('\n')
        .filter(Boolean)
        .map((line) => (JSON.parse(line) as { content: string }).content);

    const all = await run(['history', 'talk', '--tenant', 'acme'], { env });
    expect(contents(all.out)).toEqual(messages.map(({ content }) => content));
    const some = await run(['--tenant', 'acme', 'history', 'talk', '--at', '3', '--limit', '9'], { env });
    expect(contents(some.out)).toEqual(['text 0', 'text 1']);

    const denied = await run(['history', 'talk', '--tenant', 'acme', '--key', 'wrong'], { env });
    expect(denied).toMatchObject({ code: 1, out: '' });
    expect(denied.err).toMatch(/^unauthenticated: /);
    expect((await run(['history', 'none', '--tenant', 'acme'], { env })).err).toMatch(/^session-not-found: /);
    // The help does not show the key, which it would if commander read the key from the environment.
    expect((await run(['--help'], { env })).out).not.toContain('secret');
  });

  it('given a reader that closes a long output, when the command goes on writing, then it ends without an error', async () => {
    const { api } = await world.node();
    await api.post('/v1/sessions', { id: 'long' });
    for (let part = 0; part < 4; part += 1) {
      const messages = Array.from({ length: 1_000 }, () => ({ role: 'user', content: 'x'.repeat(500) }));
      await api.post('/v1/sessions/long/messages', { messages });
    }
    for (const args of [['history', 'long', '--url', api.url], ['export']]) {
      const { child, ended } = startColloquy(args, { env: { DATABASE_URL: world.database.url } });
      child.stdout?.once('data', () => child.stdout?.destroy());
      expect(await ended).toMatchObject({ code: 0, err: '' });
    }
  });

  it('given a service, when its lanes begin new ranges and the full ones are moved to another tablespace and back, then it has every event all the time', async () => {
    const { api } = await world.node();
    const env = { DATABASE_URL: world.database.url };
    const ranges = async (...args: string[]): Promise<Record<string, unknown>[]> => {
      const { code, out, err } = await run(['ranges', ...args], { env });
      expect({ code, err }).toEqual({ code: 0, err: '' });
      return out
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line) as Record<string, unknown>);
    };
    const tablespace = `cold_${randomUUID().replaceAll('-', '')}`;
    await world.database.query('set allow_in_place_tablespaces = on');
    await world.database.query(`create tablespace ${tablespace} location ''`);
    await api.post('/v1/sessions', { id: 'divided' });
    expect(await ranges()).toHaveLength(16);
    expect(await ranges('begin', '--ahead', '1')).toHaveLength(32);
    const said = Array.from({ length: 5 }, (_, n) => `Message ${n}`);
    for (const text of said) await say(api, 'divided', text);

    const moved = await ranges('move', tablespace);
    expect(moved.length).toBeGreaterThan(0);
    expect(moved[0]).toMatchObject({ isFull: true, tablespace, from: 1 });
    expect((await ranges()).filter((range) => range['tablespace'] === tablespace)).toHaveLength(moved.length);
    expect(await texts(api, 'divided')).toEqual(said);
    const trail = await api.get<{ data: unknown[] }>('/v1/sessions/divided/events');
    expect(trail.body.data).toHaveLength(6);

    expect(await ranges('move', 'pg_default')).toHaveLength(moved.length);
    // Nothing of the log is left there.
    await world.database.query(`drop tablespace ${tablespace}`);
    expect((await run(['verify'], { env: { COLLOQUY_URL: api.url } })).code).toBe(0);
  });
});
