import { type Api, apiOf, eventually, expectProblem } from '../support/http.js';
import { nextBuild } from '../support/next-build.js';
import { startService } from '../support/process.js';
import { createWorld, FULL, say, type SessionAnswer, texts, type World } from './fixture.js';
import { heavy } from '../support/heavy.js';

const NAMES = ['sessions', 'history', 'usage', 'search', 'generations'];

interface ProjectionAnswer {
  readonly name: string;
  readonly table: string;
  readonly version: number;
  readonly status: 'live' | 'building';
  readonly behind: number;
  readonly parked: number;
  readonly rebuild: { readonly processed: number; readonly total: number; readonly startedAt: string } | null;
}

let world: World;
const ends: (() => Promise<void>)[] = [];
beforeEach(async () => {
  world = await createWorld();
});
afterEach(async () => {
  await Promise.all(ends.splice(0).map((end) => end()));
  await world.end();
}, 30_000);

const projections = async (api: Api): Promise<readonly ProjectionAnswer[]> =>
  (await api.get<{ data: ProjectionAnswer[] }>('/v1/admin/projections')).body.data;
const isRebuilt = async (api: Api): Promise<boolean> =>
  (await projections(api)).every(({ rebuild }) => rebuild === null);
const verify = async (api: Api, name: string) =>
  (await api.post(`/v1/admin/projections/${name}/verify`)).body;

/** Writes events by SQL, so many that a rebuild takes a while: sessions of one message each. */
async function fillLog(events: number): Promise<void> {
  await world.database.query(
    `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                        correlation_id, data)
     select lane, row_number() over (partition by lane order by n), 'other', id, 1, 1, gen_random_uuid(),
            'SessionCreated', 1, colloquy_now(), 'test', 'test', '{}'
     from (select n, id, get_byte(sha256(convert_to('other/' || id, 'UTF8')), 7) % 16 as lane
           from (select n, 'filled-' || n as id from generate_series(1, $1::int) as n) s) e`,
    [events],
  );
  await world.database.query('insert into counter (key, value) values ($1, $2)', ['active:other', events]);
}

heavy(
  'given a service under traffic, when every read model is rebuilt, then no request fails, no read is stale, and the rows equal a fresh fold of the log',
  async () => {
    const { api } = await world.node({ MAX_SESSIONS: '100000' });
    const second = (await world.node({ MAX_SESSIONS: '100000' })).api;
    let isOver = false;
    const failures: unknown[] = [];
    const traffic = Array.from({ length: 6 }, async (_, loop) => {
      const [writer, reader] = loop % 2 ? [api, second] : [second, api];
      const id = `chat${loop}`;
      await api.post('/v1/sessions', { id });
      for (let count = 1; !isOver || count < 6; count += 1) {
        const written = await say(writer, id, `${count}`);
        const read = await reader.get<SessionAnswer>(`/v1/sessions/${id}`);
        const history = await reader.get<{ data: { content: string }[] }>(
          `/v1/sessions/${id}/messages?order=desc&limit=1`,
        );
        const list = await reader.get<{ data: SessionAnswer[] }>('/v1/sessions?limit=200');
        const listed = list.body.data.find((session) => session.id === id);
        const isRight =
          [written, read, history, list].every(({ status }) => status < 300) &&
          read.body.version === written.body.version &&
          history.body.data[0]?.content === `${count}` &&
          listed?.version === written.body.version;
        if (!isRight) failures.push([written.text, read.text, history.text, listed]);
      }
    });
    for (let round = 0; round < (FULL ? 20 : 2); round += 1) {
      for (const name of NAMES) {
        const begun = await api.post<ProjectionAnswer>(`/v1/admin/projections/${name}/rebuild`);
        expect(begun.status).toBe(202);
        expect(begun.body).toMatchObject({ name, rebuild: { startedAt: expect.any(String) as string } });
      }
      await eventually(() => isRebuilt(second));
    }
    for (const name of NAMES) expect(await verify(second, name)).toMatchObject({ name, ok: true });
    isOver = true;
    await Promise.all(traffic);
    expect(failures).toEqual([]);
    expect(world.output()).not.toMatch(/cannot go on/);
  },
  120_000,
);

heavy(
  'given a rebuild whose node is killed, when another node starts, then it continues the rebuild to its end',
  async () => {
    await fillLog(FULL ? 300_000 : 20_000);
    const doomed = await world.node();
    await eventually(
      async () => (await projections(doomed.api)).every(({ behind }) => behind === 0),
      FULL ? 180_000 : 30_000,
    );
    await doomed.api.post('/v1/admin/projections/sessions/rebuild');
    await eventually(async () => ((await projections(doomed.api))[0]?.rebuild?.processed ?? 0) > 2_000);
    await doomed.service.kill9();
    const seen = async (): Promise<number> => {
      const [row] = await world.database.query<{ sum: number }>(
        `select coalesce(sum(position), 0)::int as sum from projection_checkpoint where projection like '%\\_r%'`,
      );
      return row?.sum ?? 0;
    };
    const before = await seen();
    expect(before).toBeGreaterThan(0);

    const { api } = await world.node();
    const [first] = await projections(api);
    // The rebuild is still running, and no finished part is repeated.
    expect(first?.rebuild?.processed).toBeGreaterThanOrEqual(before);
    await world.database.setClock({ offsetMs: 10_000 });
    await eventually(() => isRebuilt(api), FULL ? 120_000 : 30_000);
    expect(await verify(api, 'sessions')).toMatchObject({ ok: true, rows: FULL ? 300_000 : 20_000 });
  },
  FULL ? 600_000 : 180_000,
);

heavy(
  'given nodes of two builds with different versions of a read model, when they run side by side, then each answers from its own table; prune drops the tables that no node uses',
  async () => {
    const old = await world.node();
    await old.api.post('/v1/sessions', { id: 'chat' });
    await say(old.api, 'chat', 'before the upgrade');

    const next = await startService({
      main: await nextBuild(await world.folder()),
      env: { DATABASE_URL: world.database.url },
      cwd: await world.folder(),
    });
    ends.push(() => next.kill9());
    const api = apiOf(next.url);
    await eventually(async () => (await api.get('/health/ready')).status === 200);
    expect((await api.get('/health/ready')).text).toContain('history_v99');
    expect((await old.api.get('/health/ready')).text).toContain('history_v3');
    expect(await texts(api, 'chat')).toEqual(['before the upgrade']);

    // Both nodes follow the log, whichever of them writes.
    await say(api, 'chat', 'by the new one');
    await say(old.api, 'chat', 'by the old one');
    const all = ['before the upgrade', 'by the new one', 'by the old one'];
    expect(await texts(api, 'chat')).toEqual(all);
    expect(await texts(old.api, 'chat')).toEqual(all);

    expect((await api.post('/v1/admin/projections/prune')).body).toEqual({ dropped: [] });
    expect((await old.api.post('/v1/admin/projections/prune')).body).toEqual({ dropped: [] });
    // A node that stopped answering may only hang, so its tables are kept for a while.
    await old.service.kill9();
    await world.database.setClock({ offsetMs: 30_000 });
    expect((await api.post('/v1/admin/projections/prune')).body).toEqual({ dropped: [] });
    await world.database.setClock({ offsetMs: 120_000 });
    await eventually(
      async () =>
        (await api.post<{ dropped: string[] }>('/v1/admin/projections/prune')).body.dropped.length > 0,
    );
    expect(await world.database.query(`select to_regclass('history_v3') as table`)).toEqual([
      { table: null },
    ]);
    expect(await texts(api, 'chat')).toEqual(all);

    // When the old build is started again, its table is created again.
    const back = await world.node();
    await eventually(async () => (await back.api.get('/health/ready')).status === 200);
    expect(await texts(back.api, 'chat')).toEqual(all);
  },
  120_000,
);

it('given the routes for operators, when a request names something that does not exist, is not allowed or is invalid, then it is refused and changes nothing', async () => {
  const { api, service } = await world.node({
    COLLOQUY_API_KEYS: 'ops:*:secret-of-ops,app:acme:secret-of-app',
  });
  const as = (key: string) => apiOf(service.url, { authorization: `Bearer ${key}` });
  const [ops, app] = [as('secret-of-ops'), as('secret-of-app')];
  const session = { projection: 'history', tenant: 'acme', sessionId: 'nobody' };
  expectProblem(await api.get('/v1/admin/projections'), 401, 'unauthenticated');
  expectProblem(await app.get('/v1/admin/projections'), 403, 'forbidden');
  expectProblem(await app.post('/v1/admin/projections/history/rebuild'), 403, 'forbidden');
  expectProblem(await app.post('/v1/admin/projections/history/verify'), 403, 'forbidden');
  expectProblem(await app.post('/v1/admin/projections/prune'), 403, 'forbidden');
  expectProblem(await app.get('/v1/admin/parked'), 403, 'forbidden');
  expectProblem(await app.post('/v1/admin/parked/retry', session), 403, 'forbidden');
  expectProblem(await app.post('/v1/admin/parked/skip', session), 403, 'forbidden');
  expectProblem(await ops.post('/v1/admin/projections/none/rebuild'), 404, 'not-found');
  expectProblem(await ops.post('/v1/admin/projections/x;drop/verify'), 400, 'invalid-request');
  expectProblem(await ops.post('/v1/admin/parked/retry', session), 404, 'not-found');
  expectProblem(await ops.post('/v1/admin/parked/skip', { ...session, more: 1 }), 400, 'invalid-request');

  expect(await projections(ops)).toMatchObject(
    NAMES.map((name) => ({ name, status: 'live', behind: 0, parked: 0, rebuild: null })),
  );
  expect((await ops.get('/v1/admin/parked')).body).toEqual({ data: [] });
}, 60_000);

it('given a read model with a conflicting row, when the next event is applied, then the session is parked, reads say so, and a retry applies the event', async () => {
  const { api } = await world.node();
  await api.post('/v1/sessions', { id: 'chat' });
  await say(api, 'chat', 'one');
  await eventually(async () => (await projections(api)).every(({ behind }) => behind === 0));
  await world.database.query(
    `insert into history_v3 select tenant, session_id, 3, incarnation, message from history_v3 where version = 2`,
  );
  expect(await verify(api, 'history')).toMatchObject({
    ok: false,
    firstDifference: { tenant: 'default', sessionId: 'chat' },
  });

  expect((await say(api, 'chat', 'two')).status).toBe(201);
  // Until the read model comes to it, the message is added from the memory of this node.
  const refused = await eventually(async () => {
    const answer = await api.get('/v1/sessions/chat/messages');
    return answer.status === 200 ? undefined : answer;
  });
  expect(expectProblem(refused, 503, 'projection-lagging').detail).toMatch(/parked/);
  expect((await api.get('/v1/sessions/chat')).status).toBe(200);
  expect((await api.get('/v1/sessions/chat/events')).status).toBe(200);
  expect((await api.post('/v1/sessions/chat/generate', { message: 'three' })).status).toBe(200);
  const { body } = await api.get<{ data: { error: string }[] }>('/v1/admin/parked');
  expect(body.data).toMatchObject([
    { projection: 'history', tenant: 'default', sessionId: 'chat', version: 3 },
  ]);

  const session = { projection: 'history', tenant: 'default', sessionId: 'chat' };
  expect((await api.post('/v1/admin/parked/retry', session)).body).toMatchObject({ parked: { version: 3 } });
  await world.database.query('delete from history_v3 where version = 3');
  expect((await api.post('/v1/admin/parked/retry', session)).body).toEqual({ parked: null });
  expect((await texts(api, 'chat')).slice(0, 3)).toEqual(['one', 'two', 'three']);
  expect(await verify(api, 'history')).toMatchObject({ ok: true });
}, 60_000);
