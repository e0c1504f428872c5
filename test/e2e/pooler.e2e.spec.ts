import { type Api } from '../support/http.js';
import { describeWith, type RunningProgram, startPgBouncer, through } from '../support/programs.js';
import { createWorld, type Node, say, texts, type World } from './fixture.js';

const SESSIONS = 30;

let world: World;
let poolers: RunningProgram[] = [];
beforeAll(async () => {
  world = await createWorld();
});
afterAll(async () => {
  await world.end();
  await Promise.all(poolers.map((pooler) => pooler.end()));
});

/** A node whose database is behind PgBouncer. */
async function nodeBehind(connectQuery: string): Promise<Node & { readonly pooler: RunningProgram }> {
  const { url } = world.database;
  const pooler = await startPgBouncer(url, connectQuery);
  poolers = [...poolers, pooler];
  const env = { DATABASE_URL: through(pooler.port, url), DATABASE_DIRECT_URL: url, MAX_SESSIONS: '1000' };
  return { ...(await world.node(env)), pooler };
}

async function useEverything(api: Api): Promise<void> {
  await Promise.all(
    Array.from({ length: SESSIONS }, async (_, index) => {
      const id = `pooled-${index}`;
      expect((await api.post('/v1/sessions', { id, metadata: { of: 'pooler' } })).status).toBe(201);
      expect((await say(api, id, `Hello number ${index}`)).status).toBe(201);
      expect(await texts(api, id)).toEqual([`Hello number ${index}`]);
      expect((await api.get(`/v1/sessions/${id}/events`)).status).toBe(200);
      expect((await api.post('/v1/chat', { sessionId: id, message: 'Again' })).status).toBe(200);
      expect((await api.get(`/v1/sessions/${id}/usage`)).status).toBe(200);
    }),
  );
  const list = await api.get<{ data: unknown[] }>(`/v1/sessions?limit=200&metadata.of=pooler`);
  expect(list.body.data).toHaveLength(SESSIONS);
  expect((await api.get<{ data: unknown[] }>('/v1/search?q=number')).body.data.length).toBeGreaterThanOrEqual(
    SESSIONS,
  );
  expect((await api.get<{ data: unknown[] }>('/v1/events?limit=200')).body.data.length).toBeGreaterThan(
    SESSIONS,
  );
}

describeWith('pgbouncer', 'a database behind PgBouncer in transaction mode', () => {
  /** The line that the service asks for, from its own message. */
  let needed = '';

  it('given sessions of the server without the settings that they need, when a node starts, then it ends with the line that is missing in pgbouncer.ini', async () => {
    const error = await nodeBehind('select 1').catch((reason: unknown) => reason as Error);
    expect((error as Error).message).toMatch(/DATABASE_URL.*pgbouncer\.ini.*connect_query='set TimeZone/s);
    needed = /connect_query='(.*)'/.exec((error as Error).message)?.[1] ?? '';
  });

  it('given that line, when many requests share two connections, then all are answered, and the server has no other reader', async () => {
    const { api } = await nodeBehind(needed);
    await useEverything(api);
    const names = await world.database.query<{ name: string }>(
      `select application_name as name from pg_stat_activity where datname = current_database() and application_name like 'colloquy %'`,
    );
    const reading = names.filter(({ name }) => /colloquy (log|read models)/.test(name));
    expect(reading.length).toBeLessThanOrEqual(2);
  });

  it('given a pooler that is gone, when it is back, then the node answers again', async () => {
    const { api, pooler } = await nodeBehind(needed);
    await pooler.kill9();
    expect((await api.get('/v1/sessions?limit=1')).status).toBe(503);
    await pooler.start();
    expect((await api.get('/v1/sessions?limit=1')).status).toBe(200);
  });
});
