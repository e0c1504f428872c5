import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Api, apiOf, expectProblem, type Problem } from '../support/http.js';
import {
  createWorld,
  type EventAnswer,
  expectWellFormed,
  say,
  type SessionAnswer,
  texts,
  type World,
} from './fixture.js';

interface List {
  readonly data: readonly SessionAnswer[];
  readonly nextCursor: string | null;
}

const HOUR = 3_600_000;
const NO_USAGE = { inputTokens: 0, outputTokens: 0, cachedTokens: 0, reasoningTokens: 0 };
const TIME = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/) as string;
const ids = ({ body }: { readonly body: List }): string[] => body.data.map((session) => session.id);

describe('sessions', () => {
  let world: World;
  let api: Api;
  /** The same node for a tenant that may have one active session, so that a new session evicts the old one. */
  let evicting: Api;

  beforeAll(async () => {
    world = await createWorld();
    const folder = await world.folder();
    await writeFile(
      join(folder, 'colloquy.yml'),
      'tenants: { evicting: { maxSessions: 1, capPolicy: evict } }',
    );
    ({ api } = await world.node({}, folder));
    evicting = apiOf(api.url, { 'colloquy-tenant': 'evicting' });
  });
  afterAll(() => world.end());
  afterEach(() => world.database.setClock({ offsetMs: 0 }));

  describe('create', () => {
    it('given nothing, when a session is created with an id, then 201 with the whole session', async () => {
      const details = { id: 'c-1', title: 'Support', metadata: { team: 'red', size: 2 } };
      const created = await api.post<SessionAnswer>('/v1/sessions', details);
      expect(created.status).toBe(201);
      expect(created.headers.get('etag')).toBe('"1"');
      expect(created.headers.get('location')).toBe('/v1/sessions/c-1');
      expect(created.body).toEqual({
        id: 'c-1',
        status: 'active',
        title: 'Support',
        metadata: { team: 'red', size: 2 },
        messageCount: 0,
        version: 1,
        createdAt: TIME,
        lastActivityAt: created.body.createdAt,
        expiresAt: new Date(Date.parse(created.body.createdAt) + HOUR).toISOString(),
        usage: NO_USAGE,
      });
      const read = await api.get<SessionAnswer>('/v1/sessions/c-1');
      expect(read.status).toBe(200);
      expect(read.headers.get('etag')).toBe('"1"');
      expect(read.body).toEqual(created.body);
    });

    it('given nothing, when sessions are created without a body, then each has a generated id, and the ids sort by age', async () => {
      const made: string[] = [];
      for (let index = 0; index < 5; index += 1) {
        const { status, body } = await api.post<SessionAnswer>('/v1/sessions');
        expect(status).toBe(201);
        expect(body).toMatchObject({ title: null, metadata: {} });
        made.push(body.id);
      }
      expect(new Set(made).size).toBe(5);
      for (const id of made) expect(id).toMatch(/^sess_[0-9a-z]{26}$/);
    });

    it('given an id with every allowed character, when it is used in paths, then it finds the session', async () => {
      const id = `a${'Z9._:@~-'.repeat(15)}zzzzzzz`;
      expect(id).toHaveLength(128);
      expect((await api.post('/v1/sessions', { id })).status).toBe(201);
      expect((await api.get<SessionAnswer>(`/v1/sessions/${encodeURIComponent(id)}`)).body.id).toBe(id);
      expect((await api.get<SessionAnswer>(`/v1/sessions/${id}`)).body.id).toBe(id);
    });

    it('given a session, when it is created again, then 200 with the session as it is, and nothing is appended', async () => {
      const first = await api.post<SessionAnswer>('/v1/sessions', { id: 'c-2', title: 'First' });
      const again = await api.post('/v1/sessions', { id: 'c-2', title: 'Second', metadata: { a: 1 } });
      expect(again.status).toBe(200);
      expect(again.headers.get('location')).toBeNull();
      expect(again.body).toEqual(first.body);
      expect((await events('c-2')).length).toBe(1);
    });

    it('given an expired session, when it is created again, then it is active again and keeps its history', async () => {
      await expire('c-3');
      const expired = await evicting.get<SessionAnswer>('/v1/sessions/c-3');
      expect(expired.body).toMatchObject({ status: 'expired', expiresAt: null, messageCount: 1 });
      const again = await evicting.post<SessionAnswer>('/v1/sessions', { id: 'c-3' });
      expect(again.status).toBe(200);
      expect(again.body).toMatchObject({ status: 'active', messageCount: 1 });
      expect(await texts(evicting, 'c-3')).toEqual(['hello']);
      expect((await events('c-3', evicting)).map((event) => event.type)).toEqual([
        'SessionCreated',
        'MessageAppended',
        'SessionExpired',
        'SessionResumed',
      ]);
    });

    it('given an expired session, when a message is appended, then it is restored in the same append', async () => {
      await expire('c-4');
      const { status, body } = await say(evicting, 'c-4', 'back again');
      expect(status).toBe(201);
      expect(body).toMatchObject({ version: 5, messages: [{ version: 5 }] });
      expect(await texts(evicting, 'c-4')).toEqual(['hello', 'back again']);
      const [resumed, appended] = (await events('c-4', evicting)).slice(-2);
      expect([resumed?.type, appended?.type]).toEqual(['SessionResumed', 'MessageAppended']);
      expect(resumed?.time).toBe(appended?.time);
    });
  });

  describe('change', () => {
    it('given a session, when title and metadata change, then the given fields are replaced and the rest stays', async () => {
      await api.post('/v1/sessions', { id: 'p-1', title: 'Old', metadata: { a: 1, b: 2 } });
      const titled = await api.patch<SessionAnswer>('/v1/sessions/p-1', { title: 'New' });
      expect(titled.status).toBe(200);
      expect(titled.headers.get('etag')).toBe('"2"');
      expect(titled.body).toMatchObject({ title: 'New', metadata: { a: 1, b: 2 }, version: 2 });
      const metadata = await api.patch<SessionAnswer>('/v1/sessions/p-1', {
        metadata: { c: 3 },
        title: null,
      });
      expect(metadata.body).toMatchObject({ title: null, metadata: { c: 3 }, version: 3 });
      expect((await api.get('/v1/sessions/p-1')).body).toEqual(metadata.body);
    });

    it('given a session, when a change leaves it as it is, then nothing is appended', async () => {
      await api.post('/v1/sessions', { id: 'p-2', title: 'Same', metadata: { a: 1 } });
      for (const body of [{}, { title: 'Same' }, { metadata: { a: 1 } }]) {
        const same = await api.patch<SessionAnswer>('/v1/sessions/p-2', body);
        expect(same.status).toBe(200);
        expect(same.body.version).toBe(1);
      }
    });
  });

  describe('reset', () => {
    it('given a conversation, when it is reset, then its history is empty and the session stays', async () => {
      await api.post('/v1/sessions', { id: 'r-1', title: 'Keeps', metadata: { kept: true } });
      await say(api, 'r-1', 'one');
      await say(api, 'r-1', 'two');
      const reset = await api.post<SessionAnswer>('/v1/sessions/r-1/reset', { reason: 'begin anew' });
      expect(reset.status).toBe(200);
      expect(reset.headers.get('etag')).toBe('"4"');
      expect(reset.body).toMatchObject({
        id: 'r-1',
        title: 'Keeps',
        metadata: { kept: true },
        messageCount: 0,
        version: 4,
      });
      expect(await texts(api, 'r-1')).toEqual([]);
      expect((await api.get('/v1/sessions/r-1')).body).toEqual(reset.body);
      expect((await events('r-1')).at(-1)).toMatchObject({
        type: 'ConversationReset',
        data: { reason: 'begin anew' },
      });
      await say(api, 'r-1', 'three');
      expect(await texts(api, 'r-1')).toEqual(['three']);
    });

    it('given a session, when it is reset without a body, or with an empty one of type JSON, then it is reset', async () => {
      await api.post('/v1/sessions', { id: 'r-2' });
      expect((await api.post('/v1/sessions/r-2/reset')).status).toBe(200);
      const empty = await api.send('POST', '/v1/sessions/r-2/reset', '', {
        'content-type': 'application/json',
      });
      expect(empty.status).toBe(200);
    });
  });

  describe('delete', () => {
    it('given a session, when it is deleted, then 204, reads and writes get 404, and the audit trail still holds all events', async () => {
      await api.post('/v1/sessions', { id: 'd-1', title: 'Secret' });
      await say(api, 'd-1', 'hello');
      const deleted = await api.delete('/v1/sessions/d-1', {}, { reason: 'asked to' });
      expect([deleted.status, deleted.text]).toEqual([204, '']);
      for (const answer of [
        await api.get('/v1/sessions/d-1'),
        await api.get('/v1/sessions/d-1/messages'),
        await api.get('/v1/sessions/d-1/usage'),
        await api.patch('/v1/sessions/d-1', { title: 'x' }),
        await api.post('/v1/sessions/d-1/reset'),
        await api.post('/v1/sessions/d-1/messages', { role: 'user', content: 'x' }),
        await api.post('/v1/sessions/d-1/generate', { message: 'x' }),
        await api.delete('/v1/sessions/d-1'),
      ]) {
        const problem = expectProblem(answer, 404, 'session-not-found');
        expect(JSON.stringify(problem)).not.toContain('Secret');
      }
      expect(ids(await api.get<List>('/v1/sessions?limit=200'))).not.toContain('d-1');
      const trail = await events('d-1');
      expect(trail.map((event) => [event.version, event.type])).toEqual([
        [1, 'SessionCreated'],
        [2, 'MessageAppended'],
        [3, 'SessionDeleted'],
      ]);
      expect(trail.at(-1)?.data).toEqual({ reason: 'asked to' });
    });

    it('given no such session, when it is read, changed or deleted, then 404, also for its audit trail', async () => {
      for (const answer of [
        await api.get('/v1/sessions/nobody'),
        await api.get('/v1/sessions/nobody/messages'),
        await api.get('/v1/sessions/nobody/messages?incarnation=1'),
        await api.get('/v1/sessions/nobody/messages?at=1'),
        await api.get('/v1/sessions/nobody/events'),
        await api.get('/v1/sessions/nobody/usage'),
        await api.delete('/v1/sessions/nobody'),
        await api.post('/v1/sessions/nobody/messages', { role: 'user', content: 'x' }),
      ]) {
        expectProblem(answer, 404, 'session-not-found');
      }
    });

    it('given a deleted session, when its id is created again, then it is a new one on the same stream', async () => {
      await api.post('/v1/sessions', { id: 'd-2', title: 'First life', metadata: { a: 1 } });
      await say(api, 'd-2', 'of the first life');
      await api.delete('/v1/sessions/d-2');
      const again = await api.post<SessionAnswer>('/v1/sessions', { id: 'd-2' });
      expect(again.status).toBe(201);
      expect(again.body).toMatchObject({
        title: null,
        metadata: {},
        messageCount: 0,
        version: 4,
        usage: NO_USAGE,
      });
      const trail = await events('d-2');
      expect(again.body.createdAt).toBe(trail.at(-1)?.time);
      expect(await texts(api, 'd-2')).toEqual([]);
      await say(api, 'd-2', 'of the second life');
      expect(await texts(api, 'd-2')).toEqual(['of the second life']);
      expect((await events('d-2')).map((event) => event.incarnation)).toEqual([1, 1, 1, 2, 2]);
      expectWellFormed(await events('d-2'));
    });
  });

  describe('the audit trail', () => {
    it('given a session, when its events are read, then each has the whole envelope, and pages continue by version', async () => {
      const created = await api.post(
        '/v1/sessions',
        { id: 'e-1', title: 'T' },
        { 'x-correlation-id': 'corr-1' },
      );
      expect(created.headers.get('x-correlation-id')).toBe('corr-1');
      for (const text of ['one', 'two', 'three']) await say(api, 'e-1', text);
      const [first] = await events('e-1');
      expect(first).toEqual({
        id: expect.stringMatching(/^[0-9a-f-]{36}$/) as string,
        type: 'SessionCreated',
        schemaVersion: 1,
        tenant: 'default',
        sessionId: 'e-1',
        incarnation: 1,
        version: 1,
        logGeneration: 1,
        position: expect.any(String) as string,
        time: TIME,
        actor: 'anonymous',
        correlationId: 'corr-1',
        causationId: null,
        data: { title: 'T' },
      });
      const page = await api.get<{ data: EventAnswer[] }>('/v1/sessions/e-1/events?after=1&limit=2');
      expect(page.body.data.map((event) => event.version)).toEqual([2, 3]);
      expect((await api.get<{ data: EventAnswer[] }>('/v1/sessions/e-1/events?after=4')).body.data).toEqual(
        [],
      );
      const everything = await events('e-1');
      expect(new Set(everything.map((event) => event.position)).size).toBe(4);
      expect(new Set(everything.map((event) => event.id)).size).toBe(4);
      // Positions must not reveal how much other tenants write.
      expect(everything.every((event) => !/^\d+$/.test(event.position))).toBe(true);
    });
  });

  describe('the list', () => {
    it('given sessions of a tenant, when they are listed by page while more are made, then each is there once, in order', async () => {
      const tenant = { 'colloquy-tenant': 'paging' };
      for (let index = 0; index < 7; index += 1) await api.post('/v1/sessions', { id: `l-${index}` }, tenant);
      const seen: string[] = [];
      let cursor = '';
      for (let page = 0; ; page += 1) {
        const { body } = await api.get<List>(`/v1/sessions?limit=3${cursor}`, tenant);
        seen.push(...body.data.map((session) => session.id));
        if (page < 2) {
          // A new session comes last, and a deleted one does not shift the others.
          await api.post('/v1/sessions', { id: `l-more-${page}` }, tenant);
          if (page === 0) await api.delete('/v1/sessions/l-1', tenant);
          if (page === 1) await say(api, 'l-0', 'x');
        }
        if (body.nextCursor === null) break;
        cursor = `&cursor=${body.nextCursor}`;
      }
      expect(seen).toEqual([
        ...Array.from({ length: 7 }, (_, index) => `l-${index}`),
        'l-more-0',
        'l-more-1',
      ]);
    });

    it('given sessions, when they are listed, then each entry equals a single read of the session', async () => {
      const tenant = { 'colloquy-tenant': 'listing' };
      const { body } = await api.post('/v1/sessions', { id: 'one', title: 'T', metadata: { a: 1 } }, tenant);
      const list = await api.get<List>('/v1/sessions', tenant);
      expect(list.status).toBe(200);
      expect(list.body).toEqual({ data: [body], nextCursor: null });
      expect((await api.get<List>('/v1/sessions', { 'colloquy-tenant': 'empty' })).body).toEqual({
        data: [],
        nextCursor: null,
      });
    });

    it('given active and expired sessions, when they are listed by status, then only those of that status are listed', async () => {
      await expire('s-1');
      await expire('s-2');
      await evicting.post('/v1/sessions', { id: 's-3' });
      await evicting.delete('/v1/sessions/s-1');
      const expired = await evicting.get<List>('/v1/sessions?status=expired');
      expect(ids(expired)).toEqual(['c-3', 'c-4', 's-2'].filter((id) => ids(expired).includes(id)));
      expect(ids(expired)).toContain('s-2');
      expect(ids(await evicting.get<List>('/v1/sessions?status=active'))).toEqual(['s-3']);
      const all = await evicting.get<List>('/v1/sessions?status=all');
      expect(ids(all)).toEqual([...ids(expired), 's-3']);
      expect((await evicting.get('/v1/sessions')).body).toEqual(all.body);
    });

    it('given titles and metadata, when the list is searched or filtered, then only matching sessions are listed', async () => {
      const tenant = { 'colloquy-tenant': 'search' };
      await api.post(
        '/v1/sessions',
        { id: 'q-1', title: 'Broken Printer', metadata: { team: 'red' } },
        tenant,
      );
      await api.post(
        '/v1/sessions',
        { id: 'q-2', title: '100% off_sale', metadata: { team: 'blue' } },
        tenant,
      );
      await api.post('/v1/sessions', { id: 'q-3', metadata: { team: 'red', vip: true, 'a.b': 'x' } }, tenant);
      const find = async (query: string) => ids(await api.get<List>(`/v1/sessions?${query}`, tenant));
      expect(await find('q=pRINTER')).toEqual(['q-1']);
      expect(await find('q=BLUE')).toEqual(['q-2']);
      expect(await find(`q=${encodeURIComponent('0%')}`)).toEqual(['q-2']);
      expect(await find('q=f_s')).toEqual(['q-2']);
      expect(await find('q=nowhere')).toEqual([]);
      expect(await find('metadata.team=red')).toEqual(['q-1', 'q-3']);
      expect(await find('metadata.team=red&metadata.vip=true')).toEqual(['q-3']);
      expect(await find('metadata.a.b=x')).toEqual(['q-3']);
      expect(await find('metadata.team=red&q=printer')).toEqual(['q-1']);
      expect(await find('metadata.team=re')).toEqual([]);
      expect(await find(`q=${encodeURIComponent("' or 1=1 --")}`)).toEqual([]);
      // A cursor of one search is refused by another.
      const page = await api.get<List>('/v1/sessions?metadata.team=red&limit=1', tenant);
      const cursor = page.body.nextCursor ?? '';
      expect(await find(`metadata.team=red&limit=1&cursor=${cursor}`)).toEqual(['q-3']);
      for (const other of [
        '',
        'metadata.team=blue&',
        'metadata.team=red&status=active&',
        'metadata.team=red&q=a&',
      ]) {
        expectProblem(await api.get(`/v1/sessions?${other}cursor=${cursor}`, tenant), 400, 'invalid-cursor');
      }
    });

    it('given a session past its time to live that was not swept yet, when it is read, then its status is that of the log', async () => {
      await api.post('/v1/sessions', { id: 'ttl-1' });
      await world.database.setClock({ offsetMs: 2 * HOUR });
      expect((await api.get('/v1/sessions/ttl-1')).body).toMatchObject({ status: 'active', version: 1 });
      // A write counts as use and begins the time to live again.
      const { body } = await api.post<SessionAnswer>('/v1/sessions/ttl-1/reset');
      expect(Date.parse(body.expiresAt ?? '') - Date.parse(body.lastActivityAt)).toBe(HOUR);
      expect(Date.parse(body.lastActivityAt) - Date.parse(body.createdAt)).toBeGreaterThanOrEqual(2 * HOUR);
    });
  });

  it('given a refused request, when its problem is read, then it names the path without the query', async () => {
    const { body } = await api.get<Problem>('/v1/sessions/nobody?consistency=strong');
    expect(body).toMatchObject({ instance: '/v1/sessions/nobody' });
  });

  async function events(sessionId: string, of = api): Promise<EventAnswer[]> {
    const { body } = await of.get<{ data: EventAnswer[] }>(`/v1/sessions/${sessionId}/events`);
    return body.data;
  }

  /**
   * Creates a session with one message in the tenant `evicting`, and evicts it by creating another one, which is then
   * deleted.
   */
  async function expire(sessionId: string): Promise<void> {
    await evicting.post('/v1/sessions', { id: sessionId });
    await say(evicting, sessionId, 'hello');
    await evicting.post('/v1/sessions', { id: 'who-comes-later' });
    await evicting.delete('/v1/sessions/who-comes-later');
  }
});
