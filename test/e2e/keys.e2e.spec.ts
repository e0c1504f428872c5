import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { held, says, type FakeOpenAi } from '../support/fake-openai.js';
import { colloquy } from '../support/colloquy.js';
import { openEvents } from '../support/event-stream.js';
import { type Api, apiOf, eventually, expectProblem } from '../support/http.js';
import { describeWith, type RunningProgram, startRedis } from '../support/programs.js';
import { bearer, createIssuer } from '../support/tokens.js';
import { createWorld, logged, type Node, type World } from './fixture.js';

interface Key {
  readonly id: string;
  readonly name: string;
  readonly scopes: readonly string[];
  readonly revokedAt: string | null;
  readonly key: string;
}
const ADMIN = 'root:*:key-of-root';

describe('keys in the database', () => {
  let world: World;
  let one: Node;
  let two: Node;
  let root: Api;
  beforeAll(async () => {
    world = await createWorld();
    one = await world.node({ COLLOQUY_API_KEYS: ADMIN });
    two = await world.node({ COLLOQUY_API_KEYS: ADMIN });
    root = apiOf(one.api.url, bearer('key-of-root'));
  });
  afterAll(() => world.end());

  const created = async (body: object): Promise<Key> => {
    const {
      status,
      body: key,
      headers,
    } = await root.post<Key & Record<string, unknown>>('/v1/admin/keys', body);
    expect([status, headers.get('cache-control')]).toEqual([201, 'no-store']);
    return key;
  };
  const holder = ({ api }: Node, { key }: Key): Api => apiOf(api.url, bearer(key));

  it('given a key of a tenant, when its holder acts, then its name is the actor, and only its hash is kept', async () => {
    const key = await created({ tenant: 'acme', name: 'app' });
    expect(key).toMatchObject({ scopes: expect.not.arrayContaining(['admin']) as string[], revokedAt: null });
    expect((await holder(two, key).post('/v1/sessions', { id: 'by-app' })).status).toBe(201);
    expect((await logged(world.database, 'by-app'))[0]?.actor).toBe('app');
    expectProblem(await holder(one, key).get('/v1/admin/keys'), 403, 'forbidden');
    expectProblem(
      await holder(one, key).get('/v1/sessions', { 'colloquy-tenant': 'other' }),
      403,
      'forbidden',
    );
    const rows = await world.database.query<{ row: string }>('select k::text as row from api_key k');
    expect(rows.map(({ row }) => row).join()).not.toContain(key.key);
    expect(world.output()).not.toContain(key.key);
  });

  it('given scopes, when a route needs another one, then 403 names it', async () => {
    const key = await created({ tenant: 'acme', name: 'reader', scopes: ['sessions:read'] });
    const reader = holder(one, key);
    expect((await reader.get('/v1/sessions')).status).toBe(200);
    for (const [scope, answer] of [
      ['sessions:write', await reader.post('/v1/sessions', {})],
      ['generate', await reader.post('/v1/chat', { message: 'x' })],
      ['audit:read', await reader.get('/v1/events')],
    ] as const) {
      expect(expectProblem(answer, 403, 'forbidden').detail).toContain(scope);
    }
  });

  it('given a key that is revoked on one node, when five seconds have passed, then no node takes it', async () => {
    const key = await created({ tenant: 'acme', name: 'leaked' });
    for (const node of [one, two]) expect((await holder(node, key).get('/v1/sessions')).status).toBe(200);
    const began = Date.now();
    expect((await root.delete(`/v1/admin/keys/${key.id}`)).status).toBe(204);
    for (const node of [one, two]) {
      await eventually(async () => (await holder(node, key).get('/v1/sessions')).status === 401, 5_000);
    }
    expect(Date.now() - began).toBeLessThan(5_000);
    // Revoked once more it stays as it is, and its name is free.
    expect((await root.delete(`/v1/admin/keys/${key.id}`)).status).toBe(204);
    await created({ tenant: 'acme', name: 'leaked' });
    expectProblem(await root.delete('/v1/admin/keys/key_none'), 404, 'not-found');
  });

  it('given a key whose time is over by the clock of the database, when it is presented, then 401', async () => {
    const soon = new Date(Date.now() + 3_600_000).toISOString();
    const key = await created({ tenant: 'acme', name: 'short', expiresAt: soon });
    expect((await holder(one, key).get('/v1/sessions')).status).toBe(200);
    await world.database.setClock({ offsetMs: 2 * 3_600_000 });
    await eventually(async () => (await holder(one, key).get('/v1/sessions')).status === 401, 5_000);
    await world.database.setClock({ offsetMs: 0 });
  });

  it('given what cannot be a key, when it is asked for, then 4xx says why, and there is none', async () => {
    const before = await root.get('/v1/admin/keys?limit=200');
    const bad = [
      [{ tenant: 'acme', name: 'app' }, 409, 'name-taken'],
      [{ tenant: 'acme', name: 'a b' }, 400, 'invalid-request'],
      [{ tenant: 'ACME', name: 'x' }, 400, 'invalid-request'],
      [{ tenant: 'acme', name: 'x', scopes: ['admin'] }, 400, 'invalid-request'],
      [{ tenant: 'acme', name: 'x', scopes: ['everything'] }, 400, 'invalid-request'],
      [{ tenant: 'acme', name: 'x', scopes: [] }, 400, 'invalid-request'],
      [{ tenant: 'acme', name: 'x', expiresAt: '2020-01-01T00:00:00Z' }, 400, 'invalid-request'],
      [{ tenant: 'acme', name: 'x', key: 'chosen' }, 400, 'invalid-request'],
      [{ name: 'x' }, 400, 'invalid-request'],
    ] as const;
    for (const [body, status, code] of bad)
      expectProblem(await root.post('/v1/admin/keys', body), status, code);
    expect((await root.get('/v1/admin/keys?limit=200')).body).toEqual(before.body);
  });

  it('given many keys, when they are listed by pages, then each is there once, and none with its secret', async () => {
    for (let index = 0; index < 5; index += 1) await created({ tenant: 'listed', name: `key-${index}` });
    const names: string[] = [];
    let cursor: string | null = null;
    do {
      const page: { data: Key[]; nextCursor: string | null } = (
        await root.get<{ data: Key[]; nextCursor: string | null }>(
          `/v1/admin/keys?tenant=listed&limit=2${cursor === null ? '' : `&cursor=${cursor}`}`,
        )
      ).body;
      names.push(...page.data.map(({ name }) => name));
      for (const key of page.data) expect(key).not.toHaveProperty('key');
      cursor = page.nextCursor;
    } while (cursor !== null);
    expect(names).toEqual(['key-0', 'key-1', 'key-2', 'key-3', 'key-4']);
  });

  it('given no key at all, when the command line makes the first one, then it opens the service', async () => {
    const env = { DATABASE_URL: world.database.url };
    const made = await colloquy(['keys', 'create', 'first', '--operator'], { env });
    expect(made).toMatchObject({ code: 0 });
    const key = JSON.parse(made.out) as Key;
    expect((await holder(one, key).get('/v1/admin/keys')).status).toBe(200);
    const read = await colloquy(['--tenant', 'acme', 'keys', 'create', 'cli', '--scopes', 'sessions:read'], {
      env,
    });
    expect(JSON.parse(read.out)).toMatchObject({ tenant: 'acme', scopes: ['sessions:read'] });
    expect(await colloquy(['--tenant', 'acme', 'keys', 'create', 'cli'], { env })).toMatchObject({
      code: 1,
      out: '',
    });
    expect(await colloquy(['keys', 'create', 'x', '--scopes', 'root'], { env })).toMatchObject({
      code: 1,
      out: '',
    });
    expect((await colloquy(['keys', 'revoke', key.id], { env })).code).toBe(0);
    const listed = await colloquy(['keys', 'list'], { env });
    expect(listed.out).toContain('"name":"first"');
    expect(listed.out).not.toContain(key.key);
  });
});

describe('tokens', () => {
  const issuer = createIssuer();
  let world: World;
  let url: string;
  beforeAll(async () => {
    world = await createWorld();
    const { api } = await world.node({ ...issuer.env, COLLOQUY_API_KEYS: 'all:acme:key-of-all' });
    ({ url } = api);
  });
  afterAll(() => world.end());
  const OWN = 'sessions:read:own sessions:write:own generate:own';
  const caller = async (subject: string, scope = OWN): Promise<Api> =>
    apiOf(url, bearer(await issuer.token('acme', subject, scope)));

  it('given owners in a tenant, when each uses every protocol, then each sees its own sessions, and a key sees all', async () => {
    const [alice, bob] = [await caller('alice'), await caller('bob')];
    for (const [name, api] of [
      ['alice', alice],
      ['bob', bob],
    ] as const) {
      expect((await api.post('/v1/sessions', { id: `${name}-1`, title: 'first' })).body).toMatchObject({
        owner: name,
      });
      await api.post('/v1/chat', { message: `hello of ${name}`, sessionId: `${name}-2` });
      await api.post('/openai/v1/responses', { input: `hello of ${name}` });
      const ui = { id: 'ui1', role: 'user', parts: [{ type: 'text', text: `hello of ${name}` }] };
      await api.post('/ai-sdk/chat', { id: `${name}-3`, messages: [ui], trigger: 'submit-message' });
    }
    for (const [name, api] of [
      ['alice', alice],
      ['bob', bob],
    ] as const) {
      const { body } = await api.get<{ data: { id: string; owner: string }[] }>('/v1/sessions');
      expect(body.data.map(({ owner }) => owner)).toEqual([name, name, name, name]);
      const found = await api.get<{ data: { sessionId: string }[] }>('/v1/search?q=hello');
      const own = new Set(body.data.map(({ id }) => id));
      expect(found.body.data.length).toBeGreaterThan(2);
      expect(found.body.data.every(({ sessionId }) => own.has(sessionId))).toBe(true);
      expect((await api.get('/openai/v1/conversations')).text).not.toContain(
        name === 'alice' ? 'bob' : 'alice',
      );
    }
    const all = apiOf(url, bearer('key-of-all'));
    const owned = await all.get<{ data: object[] }>('/v1/sessions?owner=alice');
    expect([
      owned.body.data.length,
      (await all.get<{ data: object[] }>('/v1/sessions')).body.data.length,
    ]).toEqual([4, 8]);
    expect((await all.get<{ data: object[] }>('/v1/search?q=hello&owner=bob')).text).not.toContain('alice');
    expect((await logged(world.database, 'alice-1'))[0]).toMatchObject({
      actor: 'alice',
      data: { owner: 'alice' },
    });
  });

  it('given a session for an owner made by a key, when the owner comes, then it is there; and nobody else gets it', async () => {
    const all = apiOf(url, bearer('key-of-all'));
    await all.post('/v1/sessions', { id: 'support', owner: 'carol' });
    const carol = await caller('carol');
    expect((await carol.post('/v1/sessions/support/messages', { role: 'user', content: 'hi' })).status).toBe(
      201,
    );
    expectProblem(await (await caller('dave')).get('/v1/sessions/support'), 404, 'session-not-found');
    expectProblem(await carol.post('/v1/sessions', { owner: 'dave' }), 400, 'invalid-request');
    expectProblem(await all.post('/v1/sessions', { id: 'support', owner: 'dave' }), 400, 'invalid-request');
    // A fork and a new life of the id are the owner's as well.
    expect((await all.post('/v1/sessions/support/fork', { id: 'support-2' })).body).toMatchObject({
      owner: 'carol',
    });
    await all.delete('/v1/sessions/support');
    expect((await all.post('/v1/sessions', { id: 'support' })).body).toMatchObject({ owner: 'carol' });
  });

  it('given a token that is not valid, when it is presented, then each protocol says so in its own form', async () => {
    const stranger = apiOf(url, bearer(await createIssuer().token('acme', 'alice', OWN)));
    expect(expectProblem(await stranger.get('/v1/sessions'), 401, 'unauthenticated').detail).toContain(
      'signature',
    );
    const openai = await stranger.post('/openai/v1/responses', { input: 'x' });
    expect([openai.status, openai.body['error']]).toEqual([
      401,
      expect.objectContaining({ type: expect.any(String) as string }),
    ]);
    const aiSdk = await stranger.post('/ai-sdk/chat', {});
    expect([aiSdk.status, aiSdk.headers.get('x-error-code')]).toEqual([401, 'unauthenticated']);
  });

  it('given `colloquy token`, when its token is used with the settings that it prints, then the service takes it', async () => {
    const cwd = await world.folder();
    const { out, err } = await colloquy(['token', '--subject', 'erin', '--tenant', 'acme'], { cwd });
    const pem = /-----BEGIN[^]*END PUBLIC KEY-----/.exec(err)?.[0].replaceAll(/^ +/gm, '') ?? '';
    expect(await readFile(join(cwd, 'colloquy-token-key.pem'), 'utf8')).toContain('PRIVATE KEY');
    const env = {
      COLLOQUY_JWT_ISSUER: 'colloquy-token',
      COLLOQUY_JWT_AUDIENCE: 'colloquy',
      COLLOQUY_JWT_PUBLIC_KEY: pem,
    };
    const { api } = await world.node(env);
    const erin = apiOf(api.url, bearer(out.trim()));
    expect((await erin.post('/v1/sessions', {})).body).toMatchObject({ owner: 'erin' });
  });
});

/** How many of so many requests at once are let through, and that the others say when to come back. */
async function through(apis: readonly Api[], count: number): Promise<number> {
  const answers = await Promise.all(
    Array.from({ length: count }, (_, index) => (apis[index % apis.length] as Api).get('/v1/sessions')),
  );
  const refused = answers.filter(({ status }) => status !== 200);
  for (const answer of refused) {
    expectProblem(answer, 429, 'rate-limited');
    expect(Number(answer.headers.get('retry-after'))).toBeGreaterThan(0);
  }
  return count - refused.length;
}

const LIMITS = `
auth:
  keys:
    - { name: app, tenant: acme, key: key-of-app }
    - { name: other, tenant: other, key: key-of-other }
    - { name: single, tenant: single, key: key-of-single }
tenants:
  single: { limits: { generations: 1, streams: 0 } }
server:
  limits:
    tenant: { generations: 2, streams: 2 }
    key: { requestsPerSecond: 20 }
`;

describeWith('redis-server', 'limits', () => {
  let world: World;
  let model: FakeOpenAi;
  let redis: RunningProgram;
  let nodes: Node[];
  let apis: Api[];
  let others: Api[];
  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    redis = await startRedis();
    const cwd = await world.folder();
    const { writeFile } = await import('node:fs/promises');
    await writeFile(join(cwd, 'colloquy.yml'), LIMITS);
    const env = { REDIS_URL: `redis://127.0.0.1:${redis.port}` };
    nodes = [await world.node(env, cwd), await world.node(env, cwd)];
    apis = nodes.map(({ api }) => apiOf(api.url, bearer('key-of-app')));
    others = nodes.map(({ api }) => apiOf(api.url, bearer('key-of-other')));
  });
  afterAll(async () => {
    await world.end();
    await redis.end();
  });
  const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

  it('given two nodes, when one key asks both, then together they let through what is allowed, and another key has its own', async () => {
    await through(apis, 2);
    await pause(1_200);
    const began = performance.now();
    const passed = await through(apis, 100);
    const seconds = (performance.now() - began) / 1_000;
    expect(passed).toBeGreaterThanOrEqual(20);
    expect(passed).toBeLessThanOrEqual(20 + Math.ceil(20 * seconds) + 1);
    expect(await through(others, 10)).toBe(10);
  });

  it('given replies that run on one node, when another one is asked for on the other, then 429 until one has ended', async () => {
    await pause(1_200);
    const replies = [held(says('one')), held(says('two'))];
    for (const { reply } of replies) model.next(reply);
    const [here, there] = apis as [Api, Api];
    const running = replies.map((_, index) =>
      here.post('/v1/chat', { message: 'x', sessionId: `limited-${index}` }),
    );
    for (const { asked } of replies) await asked;
    expectProblem(await there.post('/v1/chat', { message: 'x', sessionId: 'third' }), 429, 'rate-limited');
    expect((await others[1]?.post('/v1/chat', { message: 'x', sessionId: 'third' }))?.status).toBe(200);
    for (const reply of replies) reply.release();
    for (const answer of await Promise.all(running)) expect(answer.status).toBe(200);
    await eventually(async () => {
      const { status } = await there.post('/v1/chat', { message: 'x', sessionId: 'third' });
      return status === 200;
    });
  });

  it('given streams that are open, when another one is asked for, then 429 until a client has gone', async () => {
    await pause(1_200);
    const open = (api: Api) =>
      openEvents(`${api.url}/v1/events?after=end`, { headers: bearer('key-of-app') });
    const [here, there] = apis as [Api, Api];
    const streams = [await open(here), await open(there)];
    const third = await there.get('/v1/events?after=end', { accept: 'text/event-stream' });
    expectProblem(third, 429, 'rate-limited');
    streams[0]?.leave();
    await eventually(async () => {
      const another = await open(there);
      another.leave();
      return another.status === 200;
    });
    streams[1]?.leave();
  });

  it('given a limit of one reply and no streams, when the first reply is asked for as a stream, then it comes, and streams that are only read do not', async () => {
    const single = bearer('key-of-single');
    for (const { api } of nodes) {
      const { status, headers, text } = await apiOf(api.url, single).post(
        '/v1/chat',
        { message: 'x', sessionId: 'single' },
        { accept: 'text/event-stream' },
      );
      expect([status, headers.get('content-type')]).toEqual([200, 'text/event-stream']);
      expect(text).toContain('message.completed');
      const feed = await apiOf(api.url, single).get('/v1/events', { accept: 'text/event-stream' });
      expectProblem(feed, 429, 'rate-limited');
    }
  });

  it('given Redis that is gone, when requests come, then each node counts for itself', async () => {
    await redis.kill9();
    await pause(1_200);
    await through(apis, 2);
    await pause(1_200);
    const passed = await through(apis, 120);
    expect(passed).toBeGreaterThanOrEqual(20);
    expect(passed).toBeLessThanOrEqual(80);
  });
});
