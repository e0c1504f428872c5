import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTestDatabase } from '../support/database.js';
import { openEvents } from '../support/event-stream.js';
import { apiOf } from '../support/http.js';
import { startService } from '../support/process.js';
import { heavy } from '../support/heavy.js';

const SESSIONS = 24;
const ROUNDS = 8;

heavy.each([10, 30])(
  'given at most %d connections, when sessions are written, read, listed and streamed at once, then the node never holds more, and every request is answered',
  async (maxConnections) => {
    const db = await createTestDatabase();
    const folder = await mkdtemp(join(tmpdir(), 'colloquy-connections-'));
    await writeFile(join(folder, 'colloquy.yml'), JSON.stringify({ storage: { maxConnections } }));
    const service = await startService({ cwd: folder, env: { DATABASE_URL: db.url, LOG_LEVEL: 'warn' } });
    const load = new AbortController();
    const held: number[] = [];
    const counting = (async () => {
      while (!load.signal.aborted) {
        const [row] = await db.query<{ count: number }>(
          `select count(*)::int as count from pg_stat_activity
           where datname = current_database() and application_name like 'colloquy %'`,
        );
        held.push(row?.count ?? 0);
      }
    })();
    const statuses = new Map<number, number>();
    try {
      const api = apiOf(service.url);
      const seen = async (answer: Promise<{ status: number }>): Promise<void> => {
        const { status } = await answer;
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
      };
      const session = async (id: string): Promise<void> => {
        await seen(api.post('/v1/sessions', { id }));
        for (let round = 0; round < ROUNDS; round += 1) {
          await Promise.all([
            seen(api.post(`/v1/sessions/${id}/messages`, { role: 'user', content: `${round}` })),
            seen(api.get(`/v1/sessions/${id}/messages`)),
            seen(api.get('/v1/sessions?limit=5')),
            seen(api.get(`/v1/sessions/${id}/state`)),
            seen(api.get(`/v1/sessions/${id}/events`)),
          ]);
          const stream = await openEvents(`${api.url}/v1/sessions/${id}/generate`, {
            body: { message: 'hi' },
          });
          expect((await stream.rest()).at(-1)?.event).toBe('message.completed');
        }
      };
      const feed = await openEvents(`${api.url}/v1/events?after=end`);
      await Promise.all([
        ...Array.from({ length: SESSIONS }, (_, index) => session(`s${index}`)),
        ...[1, 2].map(() => seen(api.post('/v1/admin/projections/sessions/verify'))),
        seen(api.post('/v1/admin/projections/history/rebuild')),
      ]);
      // The live feed was served as well.
      expect((await feed.next()).data).toMatchObject({ type: 'SessionCreated' });
      feed.leave();
    } finally {
      load.abort();
      await counting;
      await service.stop();
      await rm(folder, { recursive: true });
      await db.drop();
    }
    expect(Math.max(...held)).toBeLessThanOrEqual(maxConnections);
    // The pools were used; otherwise the bound would prove nothing.
    expect(Math.max(...held)).toBeGreaterThanOrEqual(8);
    // Requests are answered, or told to come again; on a machine that keeps up, none waits that long for a connection.
    const { 503: refused = 0, ...answered } = Object.fromEntries(statuses);
    expect(Object.keys(answered).sort()).toEqual(['200', '201', '202']);
    const all = Object.values(answered).reduce((sum, count) => sum + count, refused);
    expect(refused / all).toBeLessThan(0.2);
  },
  60_000,
);
