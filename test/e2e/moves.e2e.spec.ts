import { createHash, randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { consume, memoryPlaces } from '../../src/consumer.js';
import { colloquy, startColloquy } from '../support/colloquy.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { type Api, apiOf, eventually } from '../support/http.js';
import { describeWithKafka, tap } from '../support/kafka.js';
import { writers } from '../support/writers.js';
import { seeded } from '../integration/event-store/fixture.js';
import { createWorld, FULL, type Node, type World } from './fixture.js';

jest.setTimeout(FULL ? 900_000 : 120_000);

const NAMES = ['default', 'two', 'three'] as const;
type Cell = (typeof NAMES)[number];

let world: World;
let databases: Record<Cell, TestDatabase>;
let env: Record<string, string>;

beforeEach(async () => {
  world = await createWorld();
  databases = { default: await createTestDatabase(), two: await createTestDatabase(), three: await createTestDatabase() };
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
const hashOf = (rows: readonly Row[]): string => createHash('sha256').update(JSON.stringify(rows)).digest('hex');

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
    const writing = writers(apis, ['s1', 's2', 's3']);
    await eventually(() => Promise.resolve(writing.said.length > 60));

    const closed: number[] = [];
    for (const [from, to] of [['two', 'three'], ['three', 'default'], ['default', 'two']] as const) {
      const report = await moved('acme', to);
      expect(report).toMatchObject({ from, to });
      closed.push(report.closedMs);
      const before = writing.said.length;
      await eventually(() => Promise.resolve(writing.said.length > before + 30));
      // Who reads at any node sees what was said there last.
      for (const api of apis) {
        const last = writing.said.filter(({ session }) => session === 's1').at(-1);
        const { body } = await api.get<{ data: { content: string }[] }>('/v1/sessions/s1/messages?order=desc&limit=200');
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
});
