import { randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { colloquy } from '../support/colloquy.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { openEvents } from '../support/event-stream.js';
import { type Answer, type Api, apiOf, eventually, expectProblem } from '../support/http.js';
import { describeWithKafka, listen, tap } from '../support/kafka.js';
import { startProxy, type TcpProxy } from '../support/tcp-proxy.js';
import { createWorld, type Node, say, texts, type World } from './fixture.js';

const NAMES = ['default', 'two', 'three'] as const;
/** No name is the beginning of another one. */
const TENANTS = 'abcdefghijkl'.split('').map((letter) => `tenant-${letter}`);

let world: World;
let databases: TestDatabase[];
let proxies: TcpProxy[];
let env: Record<string, string>;

beforeEach(async () => {
  world = await createWorld();
  databases = await Promise.all(NAMES.map(() => createTestDatabase()));
  proxies = await Promise.all(databases.map(({ url }) => startProxy(url)));
  const [first, ...others] = proxies.map(({ url }) => url);
  env = {
    DATABASE_URL: first ?? '',
    DATABASE_CELLS: others.map((url, index) => `${NAMES[index + 1]}=${url}`).join(' '),
  };
});
afterEach(async () => {
  await world.end();
  await Promise.all(proxies.map((proxy) => proxy.close()));
  await Promise.all(databases.map((database) => database.drop()));
});

const of = (node: Node, tenant: string): Api => apiOf(node.service.url, { 'colloquy-tenant': tenant });

/** Tenant → the names of the cells whose log has something of it. */
async function homes(): Promise<Map<string, string[]>> {
  const found = new Map<string, string[]>();
  for (const [index, database] of databases.entries()) {
    const rows = await database.query<{ tenant: string }>(
      'select distinct tenant from event union select tenant from stream_state order by 1',
    );
    for (const { tenant } of rows) found.set(tenant, [...(found.get(tenant) ?? []), NAMES[index] ?? '']);
  }
  return found;
}

/** A tenant of each cell, with a session `s` that has one message. */
async function settle(node: Node): Promise<Record<(typeof NAMES)[number], string>> {
  for (const tenant of TENANTS) {
    const made = await of(node, tenant).post('/v1/sessions', { id: 's' });
    expect({ status: made.status, text: made.text }).toMatchObject({ status: 201 });
    const said = await say(of(node, tenant), 's', `Said by ${tenant}`);
    expect({ status: said.status, text: said.text }).toMatchObject({ status: 201 });
  }
  const found = await homes();
  const in_ = (name: string): string =>
    TENANTS.find((tenant) => found.get(tenant)?.join() === name) ?? `no tenant in ${name}`;
  return { default: in_('default'), two: in_('two'), three: in_('three') };
}

describe('cells', () => {
  it('given three cells and two nodes, when tenants write and read at either, then each lives in one cell, and no other has anything of it', async () => {
    const nodes = [await world.node(env), await world.node(env)] as const;
    await settle(nodes[0]);
    for (const tenant of TENANTS) {
      const api = of(nodes[1], tenant);
      expect(await texts(api, 's')).toEqual([`Said by ${tenant}`]);
      const list = await api.get<{ data: { id: string }[] }>('/v1/sessions');
      expect(list.body.data.map(({ id }) => id)).toEqual(['s']);
      const chat = await api.post<{ sessionId: string }>('/v1/chat', { message: 'Hello' });
      expect({ status: chat.status, text: chat.text }).toMatchObject({ status: 200 });
      expect(await texts(of(nodes[0], tenant), chat.body.sessionId)).toHaveLength(2);
      const events = await api.get<{ data: { tenant: string }[] }>('/v1/events');
      expect(new Set(events.body.data.map((event) => event.tenant))).toEqual(new Set([tenant]));
    }
    const found = await homes();
    expect([...found.keys()].sort()).toEqual([...TENANTS].sort());
    for (const cells of found.values()) expect(cells).toHaveLength(1);
    // Each gets about its part.
    const counts = NAMES.map((name) => [...found.values()].filter(([cell]) => cell === name).length);
    for (const count of counts) expect(count).toBeGreaterThan(0);

    const { out } = await colloquy(['cells'], { env: { COLLOQUY_URL: nodes[1].service.url } });
    expect(
      out
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as object),
    ).toEqual(NAMES.map((name, index) => ({ name, weight: 1, tenants: counts[index], status: 'ok' })));
    // Who only looks for a tenant does not make one.
    await of(nodes[0], 'nobody').get('/v1/sessions');
    expect(await databases[0]?.query('select 1 from tenant_cell where tenant = $1', ['nobody'])).toEqual([]);
  });

  it('given a tenant whose cell is known, when it asks for anything, then no statement of it reaches another server', async () => {
    const node = await world.node(env);
    const { two } = await settle(node);
    const reached = new Set<string>();
    let watched = two;
    for (const [index, proxy] of proxies.entries())
      proxy.decide((request) => {
        if (request.includes(watched)) reached.add(NAMES[index] ?? '');
        return 'pass';
      });
    const api = of(node, two);
    await say(api, 's', 'One more');
    for (const path of [
      'sessions',
      'sessions/s',
      'sessions/s/messages',
      'sessions/s/events',
      'events',
      'search?q=Said',
    ])
      expect((await api.get(`/v1/${path}`)).status).toBe(200);
    await api.post('/v1/chat', { message: 'Hello' });
    await api.put(`/v1/admin/tenants/${two}`, { maxSessions: 9 });
    expect([...reached]).toEqual(['two']);
    // One that is new is looked for in the directory once. (What is done for the other one in the background goes on.)
    watched = 'newcomer';
    reached.clear();
    await of(node, 'newcomer').post('/v1/sessions', { id: 's' });
    const [cell] = (await homes()).get('newcomer') ?? [];
    expect([...reached].sort()).toEqual([...new Set(['default', cell])].sort());
    reached.clear();
    await say(of(node, 'newcomer'), 's', 'x');
    expect([...reached]).toEqual([cell]);
  });

  it('given a running node, when its settings name a cell more and it gets SIGHUP, then new tenants live there', async () => {
    const [first = '', two = ''] = proxies.map(({ url }) => url);
    const folder = await world.folder();
    const write = (database: string) =>
      writeFile(join(folder, 'colloquy.yml'), `storage: { database: { url: "${first}", ${database} } }\n`);
    await write('weight: 1');
    const node = await world.node({ DATABASE_URL: '' }, folder);
    await of(node, 'old').post('/v1/sessions', { id: 's' });

    await write(`weight: 0, cells: [{ name: two, url: "${two}" }]`);
    node.service.signal('SIGHUP');
    await eventually(async () => {
      const { body } = await node.api.get<{ data: unknown[] }>('/v1/admin/cells');
      return body.data.length === 2 && node.service.output().includes('are in use');
    });
    await say(of(node, 'old'), 's', 'Hello');
    await of(node, 'new').post('/v1/sessions', { id: 's' });
    expect(await homes()).toEqual(
      new Map([
        ['old', ['default']],
        ['new', ['two']],
      ]),
    );

    // What cannot be used changes nothing.
    await write('weight: many');
    node.service.signal('SIGHUP');
    await eventually(() => Promise.resolve(node.service.output().includes('storage.database.weight')));
    expect((await of(node, 'new').get('/v1/sessions/s')).status).toBe(200);
  });

  it('given a cell that cannot be started because its database takes few connections, when it takes more again, then the cell starts, and nothing is left of the tries before', async () => {
    const [, two] = proxies;
    /** Waits for a few tries more. */
    const tries = async () => {
      const before = two?.refused ?? 0;
      await eventually(() => Promise.resolve((two?.refused ?? 0) > before + 2));
    };
    // With one the log is refused, with two what is opened next.
    two?.limit(1);
    const node = await world.node(env);
    const listening = async () => {
      const rows = await databases[1]?.query(
        `select from pg_stat_activity where datname = current_database() and application_name like '%wake-up%'`,
      );
      return rows?.length;
    };
    expect(node.service.output()).toContain('The cell two cannot be reached');
    await tries();
    two?.limit(2);
    await tries();
    expect(await listening()).toBeLessThanOrEqual(1);
    two?.up();
    await eventually(async () => {
      const { body } = await node.api.get<{ data: { name: string; status: string }[] }>('/v1/admin/cells');
      return body.data.find(({ name }) => name === 'two')?.status === 'ok';
    }, 15_000);
    await eventually(async () => (await listening()) === 1);
  });

  it('given cells whose URLs were exchanged, when the node is started anew, then those that are not what they should be are not used, and a first one that is not ends the start', async () => {
    const [first = '', two = '', three = ''] = proxies.map(({ url }) => url);
    const before = await world.node(env);
    const tenants = await settle(before);
    await before.service.stop();

    const node = await world.node({ ...env, DATABASE_CELLS: `two=${three} three=${two}` });
    expect(await texts(of(node, tenants.default), 's')).toHaveLength(1);
    for (const tenant of [tenants.two, tenants.three])
      expectProblem(await of(node, tenant).get('/v1/sessions/s'), 503, 'database-unavailable');
    expect(node.service.output()).toContain('The cell two cannot be used and is tried again');
    const exchanged = (one: string, other: string): string =>
      `the database of the cell ${one} is that of the cell ${other}: see whether the URLs of the two were exchanged`;
    expect(node.service.output()).toContain(exchanged('two', 'three'));
    await node.service.stop();

    const wrong = { ...env, DATABASE_URL: two, DATABASE_CELLS: `two=${first} three=${three}` };
    await expect(world.node(wrong)).rejects.toThrow(exchanged('default', 'two'));
    for (const [command, one, other] of [
      ['tenants place newcomer three', 'default', 'two'],
      ['export --cell two', 'two', 'default'],
    ] as const)
      expect(await colloquy(command.split(' '), { env: wrong })).toMatchObject({
        code: 1,
        err: expect.stringContaining(exchanged(one, other)) as string,
      });

    const after = await world.node(env);
    for (const tenant of Object.values(tenants)) expect(await texts(of(after, tenant), 's')).toHaveLength(1);
  });

  it('given operators, when they ask for what is of a cell, then the header says which, and metrics name it', async () => {
    const node = await world.node(env);
    const { two } = await settle(node);
    await say(of(node, two), 's', 'One more');
    const behind = (cell: string) =>
      node.api.get<{ behind: number }>('/v1/admin/relay', { 'colloquy-cell': cell });
    for (const [index, name] of NAMES.entries()) {
      const rows = await databases[index]?.query<{ events: number }>(
        'select count(*)::int as events from event',
      );
      expect((await behind(name)).body.behind).toBe(rows?.[0]?.events);
    }
    expectProblem(await behind('four'), 400, 'invalid-request', '/Colloquy-Cell');
    // Keys are in the first cell, whatever the header says.
    await node.api.post('/v1/admin/keys', { tenant: two, name: 'app' }, { 'colloquy-cell': 'two' });
    const keys = await Promise.all(databases.map((database) => database.query('select 1 from api_key')));
    expect(keys.map(({ length }) => length)).toEqual([1, 0, 0]);
    // The settings of a tenant are in its cell, whatever the header says.
    await node.api.put(`/v1/admin/tenants/${two}`, { maxSessions: 7 }, { 'colloquy-cell': 'three' });
    expect(
      await databases[1]?.query(`select 1 from event where type = 'TenantSettingsChanged'`),
    ).toHaveLength(1);
    // The command line asks all of them, and says which one does not answer.
    const verify = async () => {
      const { out, err, code } = await colloquy(['verify', 'sessions'], {
        env: { COLLOQUY_URL: node.api.url },
      });
      const rows = out.split('\n').filter(Boolean);
      return { code, err, rows: rows.map((line) => JSON.parse(line) as { cell: string; ok: boolean }) };
    };
    const verified = await verify();
    expect(verified.rows.map(({ cell, ok }) => [cell, ok])).toEqual(NAMES.map((name) => [name, true]));
    expect(verified.code).toBe(0);
    proxies[2]?.down();
    const partial = await verify();
    expect(partial.rows.map(({ cell }) => cell)).toEqual(['default', 'two']);
    expect(partial).toMatchObject({ code: 1, err: expect.stringMatching(/^three: /) as string });
    proxies[2]?.up();
    const metrics = (await node.api.get('/metrics')).text;
    for (const name of NAMES)
      expect(metrics).toMatch(new RegExp(`^colloquy_appends_total\\{cell="${name}"\\} [1-9]`, 'm'));
    expect(metrics.match(/^# TYPE colloquy_appends_total/gm)).toHaveLength(1);
  });

  it('given the OpenAPI document, when a cell is named that does not exist, then exactly the routes refuse it whose document has the header', async () => {
    const { api } = await world.node(env);
    interface Operation {
      readonly parameters?: readonly { readonly $ref?: string }[];
    }
    const { body } = await api.get<{ paths: Record<string, Record<string, Operation>> }>('/openapi.json');
    const documented: string[] = [];
    const refused: string[] = [];
    for (const [path, operations] of Object.entries(body.paths)) {
      for (const [method, { parameters = [] }] of Object.entries(operations)) {
        const name = `${method} ${path}`;
        if (parameters.some(({ $ref }) => $ref === '#/components/parameters/Cell')) documented.push(name);
        const to = path.replace(/\{\w+\}/g, '1');
        const answer = await api.send(method.toUpperCase(), to, undefined, { 'colloquy-cell': 'nowhere' });
        if (answer.text.includes('/Colloquy-Cell')) refused.push(name);
      }
    }
    expect(refused).toEqual(documented);
    expect(documented).toContain('get /v1/checkpoints/{lane}/inclusion');
    expect(documented).toContain('post /v1/admin/projections/{name}/verify');
  });

  it('given a tenant that was there before there were cells, when it goes on, then it stays where it is', async () => {
    const before = await world.node({ DATABASE_URL: env['DATABASE_URL'] ?? '' });
    for (const tenant of TENANTS) await of(before, tenant).post('/v1/sessions', { id: 'old' });
    await before.service.stop();
    const node = await world.node({ ...env, DATABASE_WEIGHT: '0' });
    for (const tenant of TENANTS) {
      expect((await of(node, tenant).get('/v1/sessions/old')).status).toBe(200);
      await say(of(node, tenant), 'old', 'More');
      expect(await texts(of(node, tenant), 'old')).toEqual(['More']);
      await say(of(node, `new-${tenant}`), 's', 'x');
    }
    const found = await homes();
    for (const tenant of TENANTS) expect(found.get(tenant)).toEqual(['default']);
  });

  it.each(['down', 'hang'] as const)(
    'given a cell that is away (%s), when tenants ask, then its own get 503, all others go on, and it is back by itself',
    async (how) => {
      const node = await world.node(env);
      const home = await settle(node);
      const cell = proxies[1];
      cell?.[how]();
      const write = (tenant: string) =>
        of(node, tenant).post('/v1/sessions/s/messages', { role: 'user', content: 'Meanwhile' });
      const timed = async (work: () => Promise<Answer<unknown>>) => {
        const began = performance.now();
        return { answer: await work(), ms: performance.now() - began };
      };
      // Whatever is asked for, whether it was under way before anybody knew or comes later.
      const ofTwo = of(node, home.two);
      const asked = () => [
        timed(() => write(home.two)),
        timed(() => ofTwo.get('/v1/sessions')),
        timed(() => ofTwo.get('/v1/sessions/s')),
        timed(() => ofTwo.get('/v1/sessions/s/messages')),
        timed(() => ofTwo.get('/v1/events')),
        timed(() => ofTwo.post('/v1/chat', { message: 'Hello' })),
        timed(() => ofTwo.post('/openai/v1/responses', { model: 'echo', input: 'Hello' })),
      ];
      const away = asked();
      for (let round = 0; round < 20; round += 1) {
        expect((await write(home.default)).status).toBe(201);
        expect((await write(home.three)).status).toBe(201);
        expect((await of(node, home.three).get('/v1/sessions')).status).toBe(200);
      }
      const [first] = await Promise.all(away);
      expectProblem(first?.answer as Answer<unknown>, 503, 'database-unavailable');
      for (const { answer, ms } of await Promise.all([...away, ...asked()])) {
        expect(answer.status).toBe(503);
        // What is known is known within 1.7 s; this machine may be busy.
        expect(ms).toBeLessThan(3_000);
      }
      await eventually(async () => {
        const { status, body } = await node.api.get<{ checks: Record<string, { status: string }> }>(
          '/health/ready',
        );
        return status === 200 && body.checks['cell two']?.status === 'degraded';
      });
      // A node that begins meanwhile serves the others.
      const late = await world.node(env);
      expect(await texts(of(late, home.three), 's')).toHaveLength(21);
      expectProblem(await of(late, home.two).get('/v1/sessions'), 503, 'database-unavailable');

      cell?.up();
      for (const { service } of [node, late]) {
        const api = apiOf(service.url, { 'colloquy-tenant': home.two });
        await eventually(async () => (await api.get('/v1/sessions')).status === 200, 20_000);
        expect((await texts(api, 's'))[0]).toBe(`Said by ${home.two}`);
      }
    },
  );

  it('given an export of a tenant, when it is imported, then only into the cell where the tenant lives', async () => {
    const node = await world.node(env);
    const { two } = await settle(node);
    const folder = await world.folder();
    const file = join(folder, 'export.jsonl');
    const run = (...args: string[]) => colloquy(args, { env, cwd: folder });
    expect((await run('export', file, '--tenant', two, '--cell', 'two')).code).toBe(0);
    const before = await homes();
    const refused = await run('import', file, '--cell', 'three');
    expect(refused).toMatchObject({ code: 1, err: expect.stringContaining('--cell two') as string });
    expect((await run('import', file, '--cell', 'two')).code).toBe(0);
    expect((await run('export', '--cell', 'four')).err).toContain('four');
    expect(await homes()).toEqual(before);
  });

  it.each(['down', 'hang'] as const)(
    'given the first cell is away (%s), when tenants ask whose cell is known, then they go on, and its own get 503',
    async (how) => {
      const node = await world.node(env);
      const home = await settle(node);
      proxies[0]?.[how]();
      const began = performance.now();
      const own = [
        say(of(node, home.default), 's', 'Meanwhile'),
        of(node, home.default).get('/v1/sessions'),
        of(node, 'unknown').post('/v1/sessions', {}),
      ];
      await say(of(node, home.two), 's', 'On');
      expect(await texts(of(node, home.three), 's')).toHaveLength(1);
      expect((await Promise.all(own)).map(({ status }) => status)).toEqual([503, 503, 503]);
      expect(performance.now() - began).toBeLessThan(3_500);
      // After a while nobody trusts what is remembered of the directory, and the cells are asked themselves.
      await new Promise((resolve) => setTimeout(resolve, 2_500));
      await say(of(node, home.two), 's', 'On and on');
      expect(await texts(of(node, home.three), 's')).toHaveLength(1);
      expect((await node.api.get('/health/ready')).status).toBe(200);
      proxies[0]?.up();
      await eventually(async () => (await of(node, 'unknown').post('/v1/sessions', {})).status === 201);
    },
  );

  it('given followers of tenants that are new, when these write for the first time, then the followers get it, whatever the cell is', async () => {
    const node = await world.node(env);
    const streams = await Promise.all(
      TENANTS.map((tenant) =>
        openEvents(`${node.service.url}/v1/events?after=end`, { headers: { 'colloquy-tenant': tenant } }),
      ),
    );
    for (const [index, tenant] of TENANTS.entries()) {
      await of(node, tenant).post('/v1/sessions', { id: 's' });
      expect((await streams[index]?.next())?.data).toMatchObject({ tenant, type: 'SessionCreated' });
    }
    for (const stream of streams) stream.leave();
  });

  it('given a node that is told to stop and still answers, when a tenant asks that it does not know, then it is found', async () => {
    const folder = await world.folder();
    await writeFile(join(folder, 'colloquy.yml'), 'server: { drainMs: 3000 }\n');
    const [node, other] = [await world.node(env, folder), await world.node(env)];
    for (const tenant of TENANTS) await of(other, tenant).post('/v1/sessions', { id: 's' });
    node.service.signal('SIGTERM');
    await eventually(async () => (await node.api.get('/health/ready')).status === 503);
    for (const tenant of TENANTS)
      expect((await of(node, tenant).get<{ id: string }>('/v1/sessions/s')).body.id).toBe('s');
    await node.service.stop();
  });

  it('given a stream of a tenant of another cell, when the node stops, then the stream ends and the node with it', async () => {
    const node = await world.node(env);
    const { two } = await settle(node);
    const stream = await openEvents(`${node.service.url}/v1/events?after=end`, {
      headers: { 'colloquy-tenant': two },
    });
    await say(of(node, two), 's', 'Seen');
    expect((await stream.next()).data).toMatchObject({ tenant: two, type: 'MessageAppended' });
    const began = performance.now();
    await node.service.stop();
    expect(performance.now() - began).toBeLessThan(5_000);
    await stream.rest();
  });
});

describeWithKafka('cells and the topic', (brokers) => {
  it('given tenants of all cells, when they write, then one topic has all of it, each record with its cell', async () => {
    const topic = `cells-${randomUUID()}`;
    const folder = await world.folder();
    await writeFile(join(folder, 'colloquy.yml'), `kafka: { topic: ${topic}, brokers: [${brokers}] }\n`);
    const node = await world.node(env, folder);
    const heard = new Map<string, number[]>();
    const consumer = listen(brokers, topic, ({ tenant, version }) => {
      heard.set(tenant, [...(heard.get(tenant) ?? []), version]);
    });
    try {
      await settle(node);
      await eventually(
        () => Promise.resolve(TENANTS.every((tenant) => heard.get(tenant)?.join() === '1,2')),
        30_000,
      );
      const seen = await tap(brokers, topic);
      await seen.distinct(2 * TENANTS.length);
      await seen.stop();
      const found = await homes();
      for (const { message } of seen.records) {
        const tenant = message.headers?.['ce_tenant']?.toString() ?? '';
        expect([message.headers?.['ce_cell']?.toString() ?? 'default']).toEqual(found.get(tenant));
      }
    } finally {
      await consumer.stop();
    }
  });
});
