import { existsSync } from 'node:fs';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { colloquy, startColloquy } from '../support/colloquy.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { startService } from '../support/process.js';
import { apiOf, eventually, type Problem } from '../support/http.js';
import {
  createWorld,
  FULL,
  type MessageView,
  say,
  type SessionAnswer,
  texts,
  type World,
} from './fixture.js';
import { heavy } from '../support/heavy.js';

jest.setTimeout(FULL ? 600_000 : 120_000);

const EVENTS = FULL ? 100_000 : 8_000;
const PER_SESSION = 40;
const SESSIONS = EVENTS / PER_SESSION;

let world: World;
let folder: string;
/** Exports `world.database`. */
let file: string;

beforeAll(async () => {
  world = await createWorld();
  folder = await world.folder();
  // Each session has 40 events, with its creation and its expiry.
  const lines = Array.from({ length: SESSIONS * (PER_SESSION - 2) }, (_, index) => {
    const number = index % (PER_SESSION - 2);
    const sessionId = `s${Math.floor(index / (PER_SESSION - 2))}`;
    const createdAt = new Date(Date.UTC(2024, 1, 1) + number * 1000).toISOString();
    return JSON.stringify({
      sessionId,
      role: number % 2 ? 'assistant' : 'user',
      content: `text ${number}`,
      createdAt,
    });
  });
  const args = ['import', '-', '--format', 'messages', '--tenant', 'acme'];
  const env = { DATABASE_URL: world.database.url };
  const made = await colloquy(args, { env, input: `${lines.join('\n')}\n` });
  expect(made).toMatchObject({ code: 0, err: '' });
  file = join(folder, 'all.jsonl');
  expect(await colloquy(['export', file], { env })).toMatchObject({ code: 0, err: '' });
});
afterAll(() => world.end());

const report = (out: string) => JSON.parse(out) as { imported: number; unchanged: number; closed: number };

describe('import', () => {
  let target: TestDatabase;
  beforeEach(async () => {
    target = await createTestDatabase();
  });
  afterEach(() => target.drop());

  heavy(
    'given an import that is killed, when it is started again, then every session is there once',
    async () => {
      const env = { DATABASE_URL: target.url };
      const { child, ended } = startColloquy(['import', file], { env });
      const there = async () =>
        (await target.query<{ n: number }>('select count(*)::int as n from stream_state'))[0]?.n ?? 0;
      while ((await there()) === 0);
      child.kill('SIGKILL');
      await ended;
      const before = await there();
      expect(before).toBeGreaterThan(0);
      expect(before).toBeLessThan(SESSIONS);
      // Only whole sessions were imported.
      expect(
        await target.query(`select from event group by tenant, stream_id having count(*) <> ${PER_SESSION}`),
      ).toEqual([]);

      const again = await colloquy(['import', file], { env });

      expect(again).toMatchObject({ code: 0, err: '' });
      const { imported, unchanged } = report(again.out);
      expect(imported + unchanged).toBe(SESSIONS);
      expect(unchanged).toBeGreaterThanOrEqual(before);
      const copy = join(folder, 'copy.jsonl');
      await colloquy(['export', copy], { env });
      // No session was active, so the import had to close none.
      expect(await readFile(copy, 'utf8')).toBe(await readFile(file, 'utf8'));
    },
  );

  it('given a service on the database, when sessions are imported, then the service shows them, also their past states, and they can be used', async () => {
    const service = await startService({
      env: { DATABASE_URL: target.url, MAX_SESSIONS: '1' },
      cwd: folder,
    });
    const api = apiOf(service.url, { 'colloquy-tenant': 'acme' });
    try {
      await api.post('/v1/sessions', { id: 'own' });
      const done = await colloquy(['import', file], { env: { DATABASE_URL: target.url } });
      expect(report(done.out)).toMatchObject({ imported: SESSIONS, closed: 0 });

      expect((await api.get<SessionAnswer>('/v1/sessions/s1')).body).toMatchObject({
        status: 'expired',
        createdAt: '2024-02-01T00:00:00.000Z',
        lastActivityAt: '2024-02-01T00:00:37.000Z',
        messageCount: PER_SESSION - 2,
        version: PER_SESSION,
      });
      const then = await api.get<{ data: MessageView[] }>('/v1/sessions/s1/messages?at=2024-02-01T00:00:02Z');
      expect(then.body.data.map(({ content }) => content)).toEqual(['text 0', 'text 1', 'text 2']);
      // Imported sessions are expired, so they do not count against the cap. One that is resumed does.
      expect(
        (await api.post<Problem>('/v1/sessions/s1/messages', { role: 'user', content: 'x' })).body.code,
      ).toBe('session-limit-reached');
      await api.delete('/v1/sessions/own');
      expect((await say(api, 's1', 'and on')).status).toBe(201);
      // Until read models have taken in all that was imported, a read that has to be fresh may be refused.
      await eventually(
        async () => (await api.get('/v1/sessions/s1/messages?limit=1')).status === 200,
        60_000,
      );
      expect((await texts(api, 's1')).at(-1)).toBe('and on');
    } finally {
      await service.kill9();
    }
  });

  it('given a file that was changed or does not exist, when it is imported, then the command ends with 1, and nothing is imported', async () => {
    const env = { DATABASE_URL: target.url };
    const spoilt = join(folder, 'spoilt.jsonl');
    await writeFile(spoilt, (await readFile(file, 'utf8')).replace('text 7', 'text 8'));

    const refused = await colloquy(['import', spoilt], { env });
    expect(refused).toMatchObject({ code: 1, out: '' });
    expect(refused.err).toContain('SHA-256');
    expect(await colloquy(['import', join(folder, 'none')], { env })).toMatchObject({ code: 1, out: '' });
    expect(await target.query('select from stream_state')).toEqual([]);
  });
});

describe('the embedded database', () => {
  heavy(
    'given a service that runs or not, when sessions are exported and imported, then the command finds the database, and leaves it running or stopped as it was',
    async () => {
      const cwd = await world.folder();
      const dataDir = join(cwd, 'data');
      const env = { COLLOQUY_DATA_DIR: dataDir };
      const one = await colloquy(['export', '--tenant', 'acme', '--session', 's1', 's2'], {
        env: { DATABASE_URL: world.database.url },
      });

      const none = await colloquy(['export'], { env, cwd });
      expect(none).toMatchObject({ code: 1, out: '' });
      expect(existsSync(dataDir)).toBe(false);
      expect(report((await colloquy(['import', '-'], { env, cwd, input: one.out })).out)).toMatchObject({
        imported: 2,
      });
      expect((await colloquy(['export'], { env, cwd })).out).toBe(one.out);

      const service = await startService({ env, cwd });
      try {
        expect((await colloquy(['export'], { env, cwd })).out).toBe(one.out);
        expect(report((await colloquy(['import', '-'], { env, cwd, input: one.out })).out)).toMatchObject({
          unchanged: 2,
        });
        const api = apiOf(service.url, { 'colloquy-tenant': 'acme' });
        expect(await texts(api, 's2')).toHaveLength(PER_SESSION - 2);
      } finally {
        expect(await service.stop()).toBe(0);
      }
      expect((await readdir(join(dataDir, 'lock'))).length).toBe(1);
    },
  );
});
