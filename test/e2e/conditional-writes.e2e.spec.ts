import { type FakeOpenAi } from '../support/fake-openai.js';
import { type Api, expectProblem } from '../support/http.js';
import { createWorld, logged, say, type SessionAnswer, stored, texts, user, type World } from './fixture.js';

type Write = (headers: Record<string, string>) => ReturnType<Api['post']>;

describe('conditional and repeated writes', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;
  /** Another node on the same database. */
  let other: Api;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    const env = { MAX_SESSIONS: '1000' };
    [{ api }, { api: other }] = await Promise.all([world.node(env), world.node(env)]);
  });
  afterAll(() => world.end());

  const unchanged = async (work: () => Promise<void>): Promise<void> => {
    const before = await stored(world.database);
    await work();
    expect(await stored(world.database)).toEqual(before);
  };
  const events = async (id: string) => (await logged(world.database, id)).map((event) => event.type);

  /** Every write on an existing session, by its name. */
  const writes: Record<string, (id: string) => Write> = {
    create: (id) => (headers) => api.post('/v1/sessions', { id }, headers),
    change: (id) => (headers) => api.patch(`/v1/sessions/${id}`, { title: 'changed' }, headers),
    reset: (id) => (headers) => api.post(`/v1/sessions/${id}/reset`, {}, headers),
    append: (id) => (headers) => api.post(`/v1/sessions/${id}/messages`, user('x'), headers),
    generate: (id) => (headers) => api.post(`/v1/sessions/${id}/generate`, { message: 'x' }, headers),
    chat: (id) => (headers) => api.post('/v1/chat', { message: 'x', sessionId: id }, headers),
    delete: (id) => (headers) => api.delete(`/v1/sessions/${id}`, headers),
  };

  describe.each(Object.entries(writes))('If-Match on %s', (name, of) => {
    /** A session at version 2. */
    const fresh = async (suffix: string): Promise<string> => {
      const id = `if-${name}-${suffix}`;
      await api.post('/v1/sessions', { id });
      await say(api, id, 'hello');
      return id;
    };

    it('given another version, when the session is written, then 412, nothing is stored, and the model is not called', async () => {
      const id = await fresh('no');
      const asked = model.requests.length;
      await unchanged(async () => {
        // Weak tags and tags that are no version match nothing, and a prefix of a version is another version.
        for (const tag of ['"1"', '"3"', 'W/"2"', '"abc"', '"1", "3"', '"02"', '"22"', '""']) {
          const problem = expectProblem(await of(id)({ 'if-match': tag }), 412, 'version-mismatch');
          expect(problem.detail).toContain('2');
        }
      });
      expect(model.requests).toHaveLength(asked);
    });

    it('given the current version, a list with it, or *, when the session is written, then the write succeeds', async () => {
      for (const [index, tag] of ['"2"', '"1", "2"', ' "2" , "9"', '*'].entries()) {
        const id = await fresh(`yes-${index}`);
        const { status } = await of(id)({ 'if-match': tag });
        expect([200, 201, 204]).toContain(status);
      }
    });

    it('given a malformed header, when the session is written, then 400', async () => {
      const id = await fresh('bad');
      await unchanged(async () => {
        for (const tag of ['2', '"2', "'2'", '*, "2"', '"1" "2"', ',', 'w/"2"']) {
          expectProblem(await of(id)({ 'if-match': tag }), 400, 'invalid-request', '/If-Match');
        }
      });
    });

    it('given no such session, when it is written with If-Match *, then the write is refused', async () => {
      await unchanged(async () => {
        expectProblem(await of(`if-${name}-none`)({ 'if-match': '*' }), 412, 'version-mismatch');
      });
    });
  });

  it('given the ETag of each answer, when it is used for the next write, then a chain of writes succeeds', async () => {
    let tag = (await api.post('/v1/sessions', { id: 'chain' })).headers.get('etag') ?? '';
    const steps: ((headers: Record<string, string>) => ReturnType<Api['post']>)[] = [
      (headers) => api.post('/v1/sessions/chain/messages', user('a'), headers),
      (headers) => api.patch('/v1/sessions/chain', { title: 'T' }, headers),
      (headers) => api.post('/v1/sessions/chain/generate', {}, headers),
      (headers) => api.post('/v1/sessions', { id: 'chain' }, headers),
      (headers) => api.post('/v1/sessions/chain/reset', undefined, headers),
    ];
    for (const step of steps) {
      const answer = await step({ 'if-match': tag });
      expect(answer.status).toBeLessThan(300);
      tag = answer.headers.get('etag') ?? '';
      expect((await api.get('/v1/sessions/chain')).headers.get('etag')).toBe(tag);
    }
  });

  it('given many writers with the same version, when they write at once on two nodes, then exactly one succeeds', async () => {
    await api.post('/v1/sessions', { id: 'cas' });
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, index) =>
        (index % 2 ? api : other).post('/v1/sessions/cas/messages', user(`m${index}`), { 'if-match': '"1"' }),
      ),
    );
    expect(answers.filter((answer) => answer.status === 201)).toHaveLength(1);
    expect(answers.filter((answer) => answer.status === 412)).toHaveLength(19);
    expect(await events('cas')).toEqual(['SessionCreated', 'MessageAppended']);
  });

  describe('Idempotency-Key', () => {
    it.each(['change', 'reset', 'append', 'delete'])(
      'given a %s that was done, when it is sent again, on either node, then the same answer and one event',
      async (name) => {
        const id = `key-${name}`;
        await api.post('/v1/sessions', { id });
        await say(api, id, 'hello');
        const key = { 'idempotency-key': `k of ${name}` };
        const send = (through: Api, headers: Record<string, string>) =>
          ({
            change: () => through.patch(`/v1/sessions/${id}`, { title: 'T' }, headers),
            reset: () => through.post(`/v1/sessions/${id}/reset`, { reason: 'r' }, headers),
            append: () =>
              through.post(`/v1/sessions/${id}/messages`, { messages: [user('a'), user('b')] }, headers),
            delete: () => through.delete(`/v1/sessions/${id}`, headers),
          })[name as 'append']();
        const first = await send(api, key);
        expect(first.status).toBeLessThan(300);
        const done = await events(id);
        const after = await stored(world.database);
        for (const through of [api, other]) {
          // The retry gets the answer of the first request, although the version in its If-Match is no longer current.
          const again = await send(through, { ...key, 'if-match': '"2"' });
          expect([again.status, again.body]).toEqual([first.status, first.body]);
          expect(again.headers.get('etag')).toBe(first.headers.get('etag'));
        }
        expect(await events(id)).toEqual(done);
        expect(await stored(world.database)).toEqual(after);
        expect(done).toHaveLength(name === 'append' ? 4 : 3);
      },
    );

    it('given an append, when it is sent again after others, then it gets its first answer', async () => {
      await api.post('/v1/sessions', { id: 'key-later' });
      const key = { 'idempotency-key': 'later' };
      const send = () =>
        api.post('/v1/sessions/key-later/messages', { messages: [user('a'), user('b')] }, key);
      const first = await send();
      for (let index = 0; index < 3; index += 1) await say(api, 'key-later', 'more');
      await api.post('/v1/sessions/key-later/reset');
      expect((await send()).body).toEqual(first.body);
      await api.delete('/v1/sessions/key-later');
      expect((await send()).body).toEqual(first.body);
    });

    it('given a used key, when a request with another body uses it, then 409, before If-Match is checked', async () => {
      await api.post('/v1/sessions', { id: 'key-other' });
      const key = { 'idempotency-key': 'other' };
      await api.post('/v1/sessions/key-other/messages', user('a'), key);
      await unchanged(async () => {
        for (const headers of [key, { ...key, 'if-match': '"99"' }]) {
          const answer = await api.post('/v1/sessions/key-other/messages', user('b'), headers);
          expectProblem(answer, 409, 'idempotency-key-reused');
        }
      });
    });

    it('given a used key, when another route, session or tenant uses it, then it counts as a new key', async () => {
      const key = { 'idempotency-key': 'shared' };
      const tenant = { ...key, 'colloquy-tenant': 'apart' };
      for (const id of ['key-a', 'key-b']) await api.post('/v1/sessions', { id });
      await api.post('/v1/sessions', { id: 'key-a' }, { 'colloquy-tenant': 'apart' });
      const answers = [
        await api.post('/v1/sessions/key-a/messages', user('a'), key),
        await api.post('/v1/sessions/key-b/messages', user('b'), key),
        await api.post('/v1/sessions/key-a/reset', {}, key),
        await api.post('/v1/sessions/key-a/messages', user('c'), tenant),
      ];
      expect(answers.map((answer) => answer.status)).toEqual([201, 201, 200, 201]);
      expect(await texts(api, 'key-b')).toEqual(['b']);
    });

    it('given a create without an id, when it is sent again, then the answer is the same session', async () => {
      const key = { 'idempotency-key': 'make' };
      const first = await api.post<SessionAnswer>('/v1/sessions', { title: 'Made' }, key);
      expect(first.status).toBe(201);
      for (const through of [api, other]) {
        const again = await through.post<SessionAnswer>('/v1/sessions', { title: 'Made' }, key);
        expect([again.status, again.body]).toEqual([201, first.body]);
        expect(again.headers.get('location')).toBe(`/v1/sessions/${first.body.id}`);
      }
      expect(await events(first.body.id)).toEqual(['SessionCreated']);
      expectProblem(await api.post('/v1/sessions', { title: 'Else' }, key), 409, 'idempotency-key-reused');
      const elsewhere = await api.post<SessionAnswer>(
        '/v1/sessions',
        { title: 'Made' },
        { ...key, 'colloquy-tenant': 'apart' },
      );
      expect(elsewhere.status).toBe(201);
      expect(elsewhere.body.id).not.toBe(first.body.id);
    });

    it('given creates with one key at the same time on two nodes, when all are answered, then there is one session', async () => {
      const key = { 'idempotency-key': 'make at once' };
      const answers = await Promise.all(
        Array.from({ length: 10 }, (_, index) =>
          (index % 2 ? api : other).post<SessionAnswer>('/v1/sessions', {}, key),
        ),
      );
      expect(new Set(answers.map((answer) => `${answer.status} ${answer.body.id}`)).size).toBe(1);
      expect(await events(answers[0]?.body.id ?? '')).toEqual(['SessionCreated']);
    });

    it('given appends with one key at the same time on two nodes, when all are answered, then there is one message', async () => {
      await api.post('/v1/sessions', { id: 'key-race' });
      const key = { 'idempotency-key': 'race' };
      const answers = await Promise.all(
        Array.from({ length: 10 }, (_, index) =>
          (index % 2 ? api : other).post('/v1/sessions/key-race/messages', user('a'), key),
        ),
      );
      expect(new Set(answers.map((answer) => `${answer.status} ${answer.text}`)).size).toBe(1);
      expect(answers[0]?.status).toBe(201);
      expect(await texts(api, 'key-race')).toEqual(['a']);
    });

    it('given a write that was refused, when it is sent again with the same key and is now allowed, then it succeeds', async () => {
      const key = { 'idempotency-key': 'refused' };
      const append = (headers: Record<string, string> = {}) =>
        api.post('/v1/sessions/key-refused/messages', user('a'), { ...key, ...headers });
      expectProblem(await append(), 404, 'session-not-found');
      await api.post('/v1/sessions', { id: 'key-refused' });
      expectProblem(await append({ 'if-match': '"7"' }), 412, 'version-mismatch');
      expect((await append()).status).toBe(201);
      expect(await texts(api, 'key-refused')).toEqual(['a']);
    });

    it('given a key that was used a day ago, when it is used again, then it counts as a new key', async () => {
      await api.post('/v1/sessions', { id: 'key-old' });
      const append = () => api.post('/v1/sessions/key-old/messages', user('a'), { 'idempotency-key': 'old' });
      try {
        await append();
        await world.database.setClock({ offsetMs: 23 * 3_600_000 });
        await append();
        expect(await texts(api, 'key-old')).toEqual(['a']);
        await world.database.setClock({ offsetMs: 24 * 3_600_000 + 60_000 });
        expect((await append()).status).toBe(201);
        expect(await texts(api, 'key-old')).toEqual(['a', 'a']);
      } finally {
        await world.database.setClock({ offsetMs: 0 });
      }
    });

    it('given a malformed key, when any write uses it, then 400', async () => {
      await unchanged(async () => {
        for (const key of ['', 'é', 'x'.repeat(256)]) {
          const answer = await api.post('/v1/sessions', {}, { 'idempotency-key': key });
          expectProblem(answer, 400, 'invalid-request', '/Idempotency-Key');
        }
      });
      expect((await api.post('/v1/sessions', {}, { 'idempotency-key': 'x'.repeat(255) })).status).toBe(201);
    });
  });
});
