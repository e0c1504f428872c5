import { createHash, randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { colloquy, startColloquy } from '../support/colloquy.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { openEvents } from '../support/event-stream.js';
import { type Api, apiOf, eventually, expectProblem } from '../support/http.js';
import { describeWithKafka, listen, offences, tap } from '../support/kafka.js';
import { freePort } from '../support/programs.js';
import { writers } from '../support/writers.js';
import { seeded } from '../integration/event-store/fixture.js';
import { createWorld, FULL, type Node, say, texts, type World } from './fixture.js';

jest.setTimeout(FULL ? 900_000 : 120_000);

/** Of each writer after a message. */
const PAUSE_MS = 25;

const NAMES = ['default', 'two', 'three'] as const;
type Cell = (typeof NAMES)[number];

let world: World;
let databases: Record<Cell, TestDatabase>;
let env: Record<string, string>;

beforeEach(async () => {
  world = await createWorld();
  databases = {
    default: await createTestDatabase(),
    two: await createTestDatabase(),
    three: await createTestDatabase(),
  };
  // They are clones of one template, and a log is known by its key.
  for (const database of Object.values(databases))
    await database.query(`update log_settings set position_key = decode(md5(current_database()), 'hex')`);
  env = {
    DATABASE_URL: databases.default.url,
    DATABASE_CELLS: `two=${databases.two.url} three=${databases.three.url}`,
  };
});
afterEach(async () => {
  await world.end();
  await Promise.all(Object.values(databases).map((database) => database.drop()));
});

const of = (node: Node, tenant: string): Api => apiOf(node.service.url, { 'colloquy-tenant': tenant });
const run = (...args: string[]) => colloquy(args, { env });
const moved = async (tenant: string, cell: Cell) => {
  const { code, out, err } = await run('tenants', 'move', tenant, cell);
  if (code !== 0) throw new Error(err);
  return JSON.parse(out || '{}') as { from: Cell; to: Cell; events: number; closedMs: number };
};

interface Row {
  readonly id: string;
  readonly stream_id: string;
  readonly version: number;
  readonly type: string;
  readonly data: { readonly content?: string };
}

/** What a cell has of a tenant, session by session. */
const history = (cell: Cell, tenant: string): Promise<Row[]> =>
  databases[cell].query<Row>(
    `select stream_id, version, type, incarnation, id, schema_version, time, actor, correlation_id, causation_id, data
     from event where tenant = $1 order by stream_id, version`,
    [tenant],
  );
const hashOf = (rows: readonly Row[]): string =>
  createHash('sha256').update(JSON.stringify(rows)).digest('hex');

/** Expects every session to have the versions from 1 on, and each of these messages once, in the order of its writer. */
function expectAll(rows: readonly Row[], said: readonly { session: string; content: string }[]): void {
  const last = new Map<string, number>();
  const counts = new Map<string, number>();
  const contents = new Map<string, number>();
  for (const { stream_id: id, version, data } of rows) {
    expect(`${id} ${version}`).toBe(`${id} ${(last.get(id) ?? 0) + 1}`);
    last.set(id, version);
    if (data.content === undefined) continue;
    contents.set(data.content, (contents.get(data.content) ?? 0) + 1);
    const [session = '', which = '', count = ''] = data.content.split(' ');
    const writer = `${session} ${which}`;
    expect(Number(count)).toBe((counts.get(writer) ?? -1) + 1);
    counts.set(writer, Number(count));
  }
  const wrong = said.filter(({ content }) => contents.get(content) !== 1);
  expect(wrong).toEqual([]);
}

describe('a move', () => {
  it('given a tenant that is written to through two nodes, when it is moved and moved on, then nothing is lost, doubled or out of order', async () => {
    await run('tenants', 'place', 'acme', 'two');
    const nodes = [await world.node(env), await world.node(env)] as const;
    const apis = nodes.map((node) => of(node, 'acme'));
    const writing = writers(apis, ['s1', 's2', 's3'], PAUSE_MS);
    await eventually(() => Promise.resolve(writing.said.length > 60));

    const closed: number[] = [];
    for (const [from, to] of [
      ['two', 'three'],
      ['three', 'default'],
      ['default', 'two'],
    ] as const) {
      const report = await moved('acme', to);
      expect(report).toMatchObject({ from, to });
      closed.push(report.closedMs);
      const before = writing.said.length;
      await eventually(() => Promise.resolve(writing.said.length > before + 30));
      // Who reads at any node sees what was said there last.
      for (const api of apis) {
        const last = writing.said.filter(({ session }) => session === 's1').at(-1);
        const { body } = await api.get<{ data: { content: string }[] }>(
          '/v1/sessions/s1/messages?order=desc&limit=200',
        );
        expect(body.data.map(({ content }) => content)).toContain(last?.content);
      }
      const [here, left] = [await history(to, 'acme'), await history(from, 'acme')];
      // What stays behind is the beginning of what is there.
      const keys = new Set(here.map(({ stream_id: id, version }) => `${id} ${version}`));
      expect(left.filter(({ stream_id: id, version }) => !keys.has(`${id} ${version}`))).toEqual([]);
      const versions = new Map(left.map(({ stream_id: id, version }) => [id, version]));
      const same = here.filter(({ stream_id: id, version }) => version <= (versions.get(id) ?? 0));
      expect(hashOf(same)).toBe(hashOf(left));
    }
    await writing.stop();
    expect(writing.odd).toEqual([]);
    expectAll(await history('two', 'acme'), writing.said);
    for (const ms of closed) expect(ms).toBeLessThan(2_000);
    // Lists, and sums, are those of the new home.
    const list = await apis[0]?.get<{ data: { id: string; messageCount: number }[] }>('/v1/sessions');
    const total = list?.body.data.reduce((sum, { messageCount }) => sum + messageCount, 0);
    expect(total).toBe(new Set(writing.said.map(({ content }) => content)).size);
    const { body } = await nodes[0].api.get<{ activeSessions: number }>('/v1/admin/tenants/acme');
    expect(body.activeSessions).toBe(3);
  });

  it('given movers that are killed at any point, when the move is taken up again, then nothing is lost, doubled or out of order', async () => {
    const random = seeded();
    await run('tenants', 'place', 'acme', 'two');
    const nodes = [await world.node(env), await world.node(env)];
    const writing = writers(
      nodes.map((node) => of(node, 'acme')),
      ['s1', 's2'],
      PAUSE_MS,
    );
    await eventually(() => Promise.resolve(writing.said.length > 60));
    let home: Cell = 'two';
    for (let kill = 0, killed = 0; killed < (FULL ? 20 : 6); kill += 1) {
      const to: Cell = home === 'two' ? 'three' : 'two';
      const { child, ended } = startColloquy(['tenants', 'move', 'acme', to], { env });
      await Promise.race([sleep(300 + random(4_500)), ended]);
      child.kill('SIGKILL');
      const { code } = await ended;
      if (code !== 0) killed += 1;
      // Every other time the next one goes on at once.
      if (code === 0 || kill % 2 === 1) {
        await moved('acme', to);
        home = to;
      }
    }
    await writing.stop();
    expect(writing.odd).toEqual([]);
    const homes = await databases.default.query<{ cell: Cell }>('select cell from tenant_cell');
    expectAll(await history(homes[0]?.cell ?? 'default', 'acme'), writing.said);
  });

  it('given settings, a hold, a fork, usage and a key of the tenant, when it is moved, then all of it is as it was', async () => {
    await run('tenants', 'place', 'acme', 'two');
    const node = await world.node(env);
    const api = of(node, 'acme');
    await node.api.put('/v1/admin/tenants/acme', { maxSessions: 7, sessionTTL: 600_000 });
    await api.post('/v1/sessions', { id: 's', metadata: { a: '1' } });
    await api.post('/v1/chat', { sessionId: 's', message: 'Hello' });
    await api.patch('/v1/sessions/s', { legalHold: true });
    await api.post('/v1/sessions/s/fork', { id: 'forked' });
    await api.post('/v1/sessions', { id: 'keyed' }, { 'idempotency-key': 'k' });
    const key = await colloquy(['keys', 'create', 'app', '--tenant', 'acme'], { env });
    const paths = [
      'sessions/s',
      'sessions/s/messages',
      'sessions/s/usage',
      'sessions/forked/messages',
      'sessions/s/messages?at=2',
      'sessions',
      'search?q=Hello',
      'admin/tenants/acme',
    ];
    const all = async () => {
      const answers = await Promise.all(paths.map((path) => api.get(`/v1/${path}`)));
      return answers.map(({ status, body }) => ({ status, body }));
    };
    const before = await all();
    expect(before.map(({ status }) => status)).toEqual(paths.map(() => 200));
    await moved('acme', 'three');
    expect(await all()).toEqual(before);
    expectProblem(await api.delete('/v1/sessions/s'), 409, 'legal-hold');
    const again = await api.post<{ id: string }>('/v1/sessions', { id: 'keyed' }, { 'idempotency-key': 'k' });
    expect(again).toMatchObject({ status: 201, body: { id: 'keyed' } });
    expect(
      await history('three', 'acme').then((rows) => rows.filter((row) => row.stream_id === 'keyed')),
    ).toHaveLength(1);
    expect(key.code).toBe(0);
    const secured = await world.node({ ...env, COLLOQUY_API_KEYS: 'all:other:key-of-all' });
    const { key: secret } = JSON.parse(key.out) as { key: string };
    const answer = await secured.api.get('/v1/sessions/s', { authorization: `Bearer ${secret}` });
    expect(answer.status).toBe(200);
  });

  it('given a follower of the feed, when the tenant is moved, then it goes on with its last cursor, and gets each event once', async () => {
    await run('tenants', 'place', 'acme', 'two');
    const node = await world.node(env);
    const api = of(node, 'acme');
    await api.post('/v1/sessions', { id: 's' });
    for (let count = 0; count < 5; count += 1) await say(api, 's', `before ${count}`);
    const seen: string[] = [];
    let after = '';
    const gone = new AbortController();
    const following = (async () => {
      while (!gone.signal.aborted) {
        const path = `${node.service.url}/v1/events${after && `?after=${after}`}`;
        const stream = await openEvents(path, { headers: { 'colloquy-tenant': 'acme' } });
        for (;;) {
          const event = await stream.next().catch(() => undefined);
          if (!event) break;
          after = event.id;
          const { sessionId, version } = event.data as { sessionId?: string; version?: number };
          if (sessionId !== undefined) seen.push(`${sessionId} ${String(version)}`);
        }
      }
    })();
    await eventually(() => Promise.resolve(seen.length === 6));
    await moved('acme', 'three');
    for (let count = 0; count < 5; count += 1) await say(api, 's', `after ${count}`);
    await eventually(() => Promise.resolve(seen.length === 11), 20_000);
    expect(seen).toEqual(Array.from({ length: 11 }, (_, index) => `s ${index + 1}`));
    gone.abort();
    await node.service.stop();
    await following;
  });

  it('given a move that stands still while the tenant is closed, when it is used, then it can be read, and writes get 503 until the move is given up', async () => {
    await run('tenants', 'place', 'acme', 'two');
    const node = await world.node(env);
    const api = of(node, 'acme');
    await api.post('/v1/sessions', { id: 's' });
    await say(api, 's', 'Before');
    // As a mover leaves it that is killed after it has closed the tenant.
    await databases.default.query(
      `update tenant_cell set moving_to = 'three', change = nextval('tenant_cell_change') where tenant = 'acme'`,
    );
    await databases.two.query('select guard_absences()');
    await databases.two.query(`select begin_absence('acme')`);
    const refused = await say(api, 's', 'Meanwhile');
    expectProblem(refused, 503, 'moving');
    expect(refused.headers.get('retry-after')).toBe('1');
    expect(await texts(api, 's')).toEqual(['Before']);
    const openAi = await api.post('/openai/v1/conversations', {});
    expect(openAi.status).toBe(503);
    expect((await run('tenants', 'moving')).out).toBe('{"tenant":"acme","cell":"two","movingTo":"three"}\n');
    expect(await run('tenants', 'move', 'acme', 'default')).toMatchObject({
      code: 1,
      err: expect.stringContaining('on its way') as string,
    });

    expect((await run('tenants', 'move', 'acme', '--give-up')).code).toBe(0);
    expect((await say(api, 's', 'After')).status).toBe(201);
    expect((await run('tenants', 'move', 'acme', '--give-up')).code).toBe(1);
    expect((await run('tenants', 'move', 'acme', 'four')).err).toContain('there is no cell four');
    expect((await run('tenants', 'move', 'acme')).code).toBe(2);
    expect(await run('tenants', 'move', 'acmee', 'two')).toMatchObject({
      code: 1,
      err: expect.stringContaining('colloquy tenants place acmee two') as string,
    });
    expect((await run('tenants', 'place', 'acme', 'three')).err).toContain('tenants move acme three');
  });

  it('given brokers that are away, when a tenant is to be moved, then it waits, and the tenant is used on', async () => {
    const brokers = { KAFKA_BROKERS: `127.0.0.1:${await freePort()}` };
    await run('tenants', 'place', 'acme', 'two');
    const node = await world.node({ ...env, ...brokers });
    const api = of(node, 'acme');
    await api.post('/v1/sessions', { id: 's' });
    const { child, ended } = startColloquy(['tenants', 'move', 'acme', 'three'], {
      env: { ...env, ...brokers },
    });
    await eventually(async () => (await history('three', 'acme')).length > 0, 20_000);
    // Longer than it takes until all nodes know, and until it tries again.
    for (let count = 0; count < 60; count += 1) {
      expect((await say(api, 's', `Meanwhile ${count}`)).status).toBe(201);
      await sleep(100);
    }
    expect(child.exitCode).toBeNull();
    child.kill('SIGTERM');
    await ended;
    expect((await run('tenants', 'move', 'acme', '--give-up')).code).toBe(0);
    expect(await texts(api, 's')).toHaveLength(60);
  });

  it('given a cell that is drained, when all its tenants have left, then nothing of them is swept or exported there', async () => {
    const node = await world.node({ ...env, DATABASE_WEIGHT: '0' });
    const tenants = ['a', 'b', 'c'];
    for (const tenant of tenants) {
      await run('tenants', 'place', tenant, 'two');
      await of(node, tenant).post('/v1/sessions', { id: 's' });
      await say(of(node, tenant), 's', `Said by ${tenant}`);
    }
    const { out, code } = await run('cells', 'drain', 'two');
    expect(code).toBe(0);
    const reports = out
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { tenant: string; to: string });
    expect(reports.map(({ tenant }) => tenant)).toEqual(tenants);
    for (const tenant of tenants) expect(await texts(of(node, tenant), 's')).toEqual([`Said by ${tenant}`]);
    const exported = async (cell: string) =>
      (await run('export', '--cell', cell)).out.split('\n').filter((line) => line.includes('MessageAppended'))
        .length;
    expect(await exported('two')).toBe(0);
    expect((await exported('default')) + (await exported('three'))).toBe(3);
    // Long after all of them are due.
    for (const database of Object.values(databases)) await database.setClock({ offsetMs: 40 * 86_400_000 });
    const before = await history('two', 'a');
    await Promise.all(
      NAMES.map((cell) => node.api.post('/v1/admin/sweep', undefined, { 'colloquy-cell': cell })),
    );
    expect(await history('two', 'a')).toEqual(before);
    for (const tenant of tenants)
      expect((await of(node, tenant).get<{ status: string }>('/v1/sessions/s')).body.status).toBe('expired');
  });
});

describe('the first cell', () => {
  it('given tenants that are older than cells, when it is drained, then they move as well', async () => {
    const before = await world.node({ DATABASE_URL: databases.default.url });
    for (const tenant of ['old', 'older']) await of(before, tenant).post('/v1/sessions', { id: 's' });
    await before.service.stop();
    const node = await world.node({ ...env, DATABASE_WEIGHT: '0' });
    const { out, code, err } = await run('cells', 'drain', 'default');
    expect({ code, err, moved: out.trim().split('\n').length }).toEqual({ code: 0, err: '', moved: 2 });
    for (const tenant of ['old', 'older']) {
      expect((await of(node, tenant).get('/v1/sessions/s')).status).toBe(200);
      expect((await say(of(node, tenant), 's', 'On')).status).toBe(201);
      expect(await history('default', tenant)).toHaveLength(1);
    }
  });
});

describeWithKafka('a move and the topic', (brokers) => {
  it('given a tenant that is written to, when it is moved, then the topic has each event once, and those of a session in order', async () => {
    const topic = `moves-${randomUUID()}`;
    const folder = await world.folder();
    await writeFile(join(folder, 'colloquy.yml'), `kafka: { topic: ${topic}, brokers: [${brokers}] }\n`);
    await run('tenants', 'place', 'acme', 'two');
    const nodes = [await world.node(env, folder), await world.node(env, folder)];
    /** By session: the versions as they took effect. */
    const heard = new Map<string, number[]>();
    const consumer = listen(brokers, topic, ({ sessionId, version }) => {
      heard.set(sessionId, [...(heard.get(sessionId) ?? []), version]);
    });
    try {
      const writing = writers(
        nodes.map((node) => of(node, 'acme')),
        ['s1', 's2', 's3'],
        PAUSE_MS,
      );
      await eventually(() => Promise.resolve(writing.said.length > 50 && heard.size > 0), 30_000);
      for (const cell of ['three', 'two', 'default']) {
        const { code, err } = await colloquy(['tenants', 'move', 'acme', cell], { env, cwd: folder });
        if (code !== 0) throw new Error(err);
        const before = writing.said.length;
        await eventually(() => Promise.resolve(writing.said.length > before + 20));
      }
      await writing.stop();
      const rows = await history('default', 'acme');
      expectAll(rows, writing.said);
      const ids = new Map<string, string[]>();
      for (const { stream_id: session, id } of rows)
        ids.set(`acme/${session}`, [...(ids.get(`acme/${session}`) ?? []), id]);
      const seen = await tap(brokers, topic);
      await seen.distinct(rows.length);
      await seen.stop();
      expect(offences(seen.records, ids)).toEqual([]);
      expect(seen.records).toHaveLength(rows.length);
      const count = (): number => [...heard.values()].reduce((sum, versions) => sum + versions.length, 0);
      await eventually(() => Promise.resolve(count() >= rows.length), 30_000);
      for (const [session, versions] of heard)
        expect(versions).toEqual((ids.get(`acme/${session}`) ?? []).map((_, index) => index + 1));
    } finally {
      await consumer.stop();
    }
  });
});
