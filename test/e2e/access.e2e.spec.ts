import { type Api, apiOf, expectProblem, getRaw } from '../support/http.js';
import { startService } from '../support/process.js';
import { createWorld, logged, type SessionAnswer, stored, texts, user, type World } from './fixture.js';

interface List {
  readonly data: readonly SessionAnswer[];
}
const bearer = (key: string) => ({ authorization: `Bearer ${key}` });

describe('access', () => {
  let world: World;
  beforeAll(async () => {
    world = await createWorld();
  });
  afterAll(() => world.end());

  describe('without keys', () => {
    let api: Api;
    beforeAll(async () => {
      ({ api } = await world.node());
    });

    it('given a client on this machine, when it sends a request, then it needs no key and may name any tenant', async () => {
      const { status } = await api.post('/v1/sessions', { id: 'open' }, { 'colloquy-tenant': 'anyone' });
      expect(status).toBe(201);
      expectProblem(await api.get('/v1/sessions/open'), 404, 'session-not-found');
      expect((await api.get('/v1/sessions/open', { 'colloquy-tenant': 'anyone' })).status).toBe(200);
      expect((await logged(world.database, 'open'))[0]?.actor).toBe('anonymous');
    });

    it('given a page of another site, when it sends a request with its origin or to a host name of its own, then 403', async () => {
      const before = await stored(world.database);
      for (const origin of [
        'https://evil.example',
        'http://localhost.evil.example',
        'null',
        'http://127.0.0.1.evil.example',
      ]) {
        expectProblem(await api.post('/v1/sessions', {}, { origin }), 403, 'forbidden');
      }
      for (const host of [
        'evil.example',
        'evil.example:3000',
        'localhost@evil.example',
        '127.0.0.1.evil.example',
      ]) {
        const { status, text } = await getRaw(api.url, '/v1/sessions', { host });
        expect([status, (JSON.parse(text) as { code: string }).code]).toEqual([403, 'forbidden']);
      }
      expect(await stored(world.database)).toEqual(before);
      expect((await api.get('/v1/sessions', { origin: 'http://localhost:5173' })).status).toBe(200);
      expect((await getRaw(api.url, '/v1/sessions', { host: 'localhost:3000' })).status).toBe(200);
    });

    it.each(['0.0.0.0', '::', '192.0.2.1'])(
      'given host %s, when it starts, then it refuses and says why',
      async (host) => {
        const start = startService({
          env: { DATABASE_URL: world.database.url, HOST: host },
          cwd: await world.folder(),
        });
        const refusal = expect(start).rejects;
        await refusal.toThrow(
          /exit code 1[^]*HOST must be a loopback address[^]*auth\.mode is none[^]*COLLOQUY_API_KEYS/,
        );
      },
    );
  });

  describe('with keys', () => {
    const keys = 'alice:acme:key-of-alice,bob:acme:key:of:bob,carol:other:key-of-carol,root:*:key-of-root';
    let open: Api;
    let alice: Api;
    let bob: Api;
    let carol: Api;
    let root: Api;
    let output: () => string;

    beforeAll(async () => {
      const { api, service } = await world.node({ COLLOQUY_API_KEYS: keys, HOST: '0.0.0.0' });
      const url = api.url.replace('0.0.0.0', '127.0.0.1');
      output = () => service.output();
      open = apiOf(url);
      [alice, bob, carol, root] = ['key-of-alice', 'key:of:bob', 'key-of-carol', 'key-of-root'].map((key) =>
        apiOf(url, bearer(key)),
      ) as [Api, Api, Api, Api];
    });

    it('given no key or a wrong one, when anything under /v1 is asked for, then 401, and nothing is stored', async () => {
      await alice.post('/v1/sessions', { id: 'locked' });
      const before = await stored(world.database);
      for (const headers of [
        {},
        bearer('key-of-mallory'),
        bearer('key-of-alic'),
        bearer('key-of-alice2'),
        bearer(''),
        { authorization: 'key-of-alice' },
        { authorization: 'Basic YWxpY2U6a2V5LW9mLWFsaWNl' },
        { 'x-api-key': 'key-of-alice' },
        { ...bearer('nothing'), 'colloquy-tenant': 'acme' },
      ]) {
        for (const answer of [
          await open.get('/v1/sessions', headers),
          await open.get('/v1/sessions/locked', headers),
          await open.post('/v1/sessions', { id: 'mine' }, headers),
          await open.post('/v1/chat', { message: 'x' }, headers),
          await open.delete('/v1/sessions/locked', headers),
          await open.get('/v1/nothing', headers),
          await open.get('/v1/sessions/%6Cocked', headers),
          await open.get('/v1/sessions?api_key=key-of-alice', headers),
        ]) {
          expectProblem(answer, 401, 'unauthenticated');
          expect(answer.headers.get('www-authenticate')).toBe('Bearer');
        }
      }
      // The body of a caller without a key is not read, even if it is a megabyte.
      expectProblem(
        await open.send('POST', '/v1/sessions', '{', { 'content-type': 'application/json' }),
        401,
        'unauthenticated',
      );
      expect(await stored(world.database)).toEqual(before);
    });

    it('given no key, when health or the documents are requested, then they are returned', async () => {
      for (const path of ['/health/live', '/health/ready', '/openapi.json', '/docs']) {
        expect((await open.get(path)).status).toBe(200);
      }
      for (const path of [
        '/health/../v1/sessions',
        '/docs/../v1/sessions',
        '//v1/sessions',
        '/docs/%2e%2e/v1/sessions',
      ]) {
        const { status } = await getRaw(open.url, path, {});
        expect([401, 404]).toContain(status);
      }
    });

    it('given two keys of a tenant, when both write, then each event names the key that wrote it', async () => {
      await alice.post('/v1/sessions', { id: 'shared' });
      await bob.post('/v1/sessions/shared/messages', user('hello'));
      expect((await logged(world.database, 'shared')).map((event) => event.actor)).toEqual(['alice', 'bob']);
      const { body } = await alice.get<{ data: { actor: string; tenant: string }[] }>(
        '/v1/sessions/shared/events',
      );
      expect(body.data.map(({ actor, tenant }) => [actor, tenant])).toEqual([
        ['alice', 'acme'],
        ['bob', 'acme'],
      ]);
    });

    it('given the same session id in two tenants, when both sessions are used, then neither shows anything of the other', async () => {
      await alice.post('/v1/sessions', { id: 'twin', title: 'of acme', metadata: { secret: 'acme' } });
      await alice.post('/v1/sessions/twin/messages', user('said in acme'));
      for (const answer of [
        await carol.get('/v1/sessions/twin'),
        await carol.get('/v1/sessions/twin/messages'),
        await carol.get('/v1/sessions/twin/messages?incarnation=1'),
        await carol.get('/v1/sessions/twin/events'),
        await carol.get('/v1/sessions/twin/usage'),
        await carol.post('/v1/sessions/twin/messages', user('x')),
        await carol.patch('/v1/sessions/twin', { title: 'x' }),
        await carol.post('/v1/sessions/twin/reset'),
        await carol.post('/v1/sessions/twin/generate', { message: 'x' }),
        await carol.delete('/v1/sessions/twin'),
      ]) {
        const problem = expectProblem(answer, 404, 'session-not-found');
        expect(JSON.stringify(problem)).not.toContain('acme');
      }
      const made = await carol.post<SessionAnswer>('/v1/sessions', { id: 'twin' });
      expect(made.status).toBe(201);
      expect(made.body).toMatchObject({ title: null, metadata: {}, version: 1 });
      expect(await texts(alice, 'twin')).toEqual(['said in acme']);
      expect(await texts(carol, 'twin')).toEqual([]);
      await carol.delete('/v1/sessions/twin');
      expect((await alice.get('/v1/sessions/twin')).status).toBe(200);

      const found = async (api: Api, query: string) =>
        (await api.get<List>(`/v1/sessions${query}`)).body.data;
      expect(await found(carol, '')).toEqual([]);
      expect(await found(carol, '?q=acme')).toEqual([]);
      expect(await found(carol, '?metadata.secret=acme')).toEqual([]);
      expect((await found(bob, '?q=acme')).map((session) => session.id)).toEqual(['twin']);
    });

    it('given a key of a tenant, when a request names another tenant, then 403; its own tenant may be named', async () => {
      const before = await stored(world.database);
      const elsewhere = { 'colloquy-tenant': 'other' };
      expectProblem(await alice.get('/v1/sessions', elsewhere), 403, 'forbidden');
      expectProblem(await alice.post('/v1/sessions', { id: 'x' }, elsewhere), 403, 'forbidden');
      expectProblem(
        await alice.post('/v1/sessions', { id: 'x' }, { 'colloquy-tenant': '*' }),
        400,
        'invalid-request',
      );
      expect(await stored(world.database)).toEqual(before);
      expect((await alice.get('/v1/sessions', { 'colloquy-tenant': 'acme' })).status).toBe(200);
    });

    it('given the key of an operator, when a request names a tenant, then it is for that tenant, else for the default tenant', async () => {
      const acme = { 'colloquy-tenant': 'acme' };
      await root.post('/v1/sessions', { id: 'by-root' }, acme);
      expect((await bob.get('/v1/sessions/by-root')).status).toBe(200);
      expect((await logged(world.database, 'by-root'))[0]?.actor).toBe('root');
      expectProblem(await root.get('/v1/sessions/by-root'), 404, 'session-not-found');
    });

    it('given one idempotency key in two tenants, when both create without an id, then there are two sessions', async () => {
      const key = { 'idempotency-key': 'the same' };
      const mine = await alice.post<SessionAnswer>('/v1/sessions', {}, key);
      const theirs = await carol.post<SessionAnswer>('/v1/sessions', {}, key);
      expect([mine.status, theirs.status]).toEqual([201, 201]);
      expect(mine.body.id).not.toBe(theirs.body.id);
      // The same idempotency key under another API key of the tenant is a retry, and creates no other session.
      expect((await bob.post<SessionAnswer>('/v1/sessions', {}, key)).body.id).toBe(mine.body.id);
    });

    it('given all requests of this file, when the log of the service is read, then it contains no key', () => {
      expect(output()).not.toMatch(/key-of-|key:of/);
    });
  });
});
