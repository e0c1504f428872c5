import { request } from 'node:http';
import { openEvents, type StreamedEvent } from '../support/event-stream.js';
import { type Api, apiOf, expectProblem } from '../support/http.js';
import { createWorld, type EventAnswer, FULL, type Node, say, stored, user, type World } from './fixture.js';
import { heavy } from '../support/heavy.js';

interface Page {
  readonly data: readonly EventAnswer[];
  readonly nextCursor: string | null;
  readonly cursor: string;
}

const LOAD = FULL ? { perSecond: 2_000, seconds: 20 } : { perSecond: 300, seconds: 4 };
/** Messages per request. */
const BATCH = FULL ? 50 : 10;
const RECONNECT_MS = 1_000;

const tenant = (name: string) => ({ 'colloquy-tenant': name });
const feedOf = (api: Api, query = '', headers = {}) => api.get<Page>(`/v1/events${query}`, headers);

async function walk(api: Api, query: string, headers = {}): Promise<EventAnswer[]> {
  const events: EventAnswer[] = [];
  for (let after = ''; ;) {
    const { status, body } = await feedOf(api, `?${query}${after}`, headers);
    expect(status).toBe(200);
    events.push(...body.data);
    if (body.nextCursor === null) return events;
    after = `&after=${body.nextCursor}`;
  }
}

describe('audit', () => {
  let world: World;
  let nodes: readonly [Node, Node];
  let api: Api;
  let other: Api;

  beforeAll(async () => {
    world = await createWorld();
    nodes = await Promise.all([world.node({ MAX_SESSIONS: '1000' }), world.node({ MAX_SESSIONS: '1000' })]);
    [{ api }, { api: other }] = nodes;
  });
  afterAll(() => world.end());

  describe('the feed of a tenant', () => {
    it('given sessions of two tenants, when one tenant reads its feed, then it gets each of its events once and none of the other tenant', async () => {
      for (const name of ['acme', 'zeta']) {
        for (const id of ['a', 'b', 'c', 'd']) {
          await api.post('/v1/sessions', { id }, tenant(name));
          await api.post(`/v1/sessions/${id}/messages`, user(`${id} of ${name}`), tenant(name));
        }
        await api.delete('/v1/sessions/d', tenant(name));
      }
      const events = await walk(other, 'limit=3', tenant('acme'));
      expect(events).toHaveLength(9);
      expect(new Set(events.map(({ id }) => id)).size).toBe(9);
      expect(events.every((event) => event.tenant === 'acme')).toBe(true);
      expect(JSON.stringify(events)).not.toContain('zeta');
      // Across sessions, events are ordered by time. Here they were written one after the other.
      expect(events.map(({ time }) => time)).toEqual(events.map(({ time }) => time).sort());
      const trail = await api.get<Page>('/v1/sessions/d/events', tenant('acme'));
      expect(events.filter(({ sessionId }) => sessionId === 'd')).toEqual(trail.body.data);
    });

    it('given filters, when the feed is read, then it holds the matching events and no others', async () => {
      const headers = tenant('acme');
      const all = await walk(api, 'limit=200', headers);
      const [middle] = all.slice(4);
      const filters: [query: string, passes: (event: EventAnswer) => boolean][] = [
        ['type=MessageAppended', ({ type }) => type === 'MessageAppended'],
        ['type=SessionCreated,SessionDeleted', ({ type }) => /^Session(Created|Deleted)$/.test(type)],
        ['session=b', ({ sessionId }) => sessionId === 'b'],
        ['actor=anonymous', () => true],
        ['actor=somebody', () => false],
        [`from=${middle?.time}`, ({ time }) => time >= (middle?.time ?? '')],
        [`to=${middle?.time}`, ({ time }) => time < (middle?.time ?? '')],
        ['session=b&type=SessionDeleted', () => false],
      ];
      for (const [query, passes] of filters) {
        expect({ query, events: await walk(api, `limit=2&${query}`, headers) }).toEqual({
          query,
          events: all.filter(passes),
        });
      }
      const trail = await api.get<Page>('/v1/sessions/d/events?type=SessionDeleted,SessionCreated', headers);
      expect(trail.body.data.map(({ type }) => type)).toEqual(['SessionCreated', 'SessionDeleted']);
      const none = await api.get<Page>('/v1/sessions/d/events?actor=somebody', headers);
      expect([none.status, none.body.data]).toEqual([200, []]);
    });

    it('given a cursor of another tenant, when it is used for a page or a stream, then 400', async () => {
      const { body } = await feedOf(api, '?limit=2', tenant('acme'));
      expectProblem(await feedOf(api, `?after=${body.cursor}`, tenant('zeta')), 400, 'invalid-cursor');
      const sse = { accept: 'text/event-stream' };
      const streamed = { ...tenant('zeta'), ...sse, 'last-event-id': body.cursor };
      expectProblem(await feedOf(api, '', streamed), 400, 'invalid-cursor');
      for (const id of ['x', '1.5', '-1', '2147483647', body.cursor]) {
        const headers = { ...tenant('acme'), ...sse, 'last-event-id': id };
        expectProblem(await api.get('/v1/sessions/a/events', headers), 400, 'invalid-cursor');
      }
      expectProblem(await api.get('/v1/sessions/never/events', sse), 404, 'session-not-found');
    });

    it('given API keys, when a tenant reads its feed, then it gets its own events, and can filter them by actor', async () => {
      const keyed = await world.node({
        COLLOQUY_API_KEYS: 'desk:ka:secret-a,bot:ka:secret-c,else:kb:secret-b',
      });
      const as = (key: string) => apiOf(keyed.api.url, { authorization: `Bearer ${key}` });
      await as('secret-a').post('/v1/sessions', { id: 's' });
      await as('secret-c').post('/v1/sessions/s/messages', user('of a'));
      await as('secret-b').post('/v1/sessions', { id: 's' });
      expect((await walk(as('secret-a'), 'actor=bot')).map(({ type }) => type)).toEqual(['MessageAppended']);
      expect((await walk(as('secret-b'), 'limit=9')).map(({ actor }) => actor)).toEqual(['else']);
      const { body } = await feedOf(as('secret-a'));
      expectProblem(await feedOf(as('secret-b'), `?after=${body.cursor}`), 400, 'invalid-cursor');
      expectProblem(await feedOf(as('secret-b'), '', tenant('ka')), 403, 'forbidden');
      expectProblem(await feedOf(apiOf(keyed.api.url)), 401, 'unauthenticated');
    });
  });

  describe('live', () => {
    const open = (through: Api, path: string, headers: Record<string, string> = {}) =>
      openEvents(`${through.url}${path}`, { headers });

    it('given earlier events, when a stream is opened, then they come first, then those that any node writes; and it can be resumed on another node', async () => {
      const headers = tenant('live');
      await api.post('/v1/sessions', { id: 's' }, headers);
      await api.post('/v1/sessions/s/messages', user('one'), headers);
      const first = await open(api, '/v1/events', headers);
      expect(first.status).toBe(200);
      expect(first.headers.get('content-type')).toBe('text/event-stream');
      const seen = [await first.next(), await first.next()];
      await other.post('/v1/sessions/s/messages', user('two'), headers);
      seen.push(await first.next());
      first.leave();
      await api.post('/v1/sessions/s/messages', user('three'), headers);
      const resumed = await open(other, '/v1/events', { ...headers, 'last-event-id': seen.at(-1)?.id ?? '' });
      seen.push(await resumed.next());
      resumed.leave();

      expect(seen.map(({ event }) => event)).toEqual([
        'SessionCreated',
        'MessageAppended',
        'MessageAppended',
        'MessageAppended',
      ]);
      expect(seen.map(({ data }) => data)).toEqual(await walk(api, 'limit=9', headers));
      // The id of a streamed event is a cursor, which pages accept as well.
      const rest = await walk(api, `limit=9&after=${seen[1]?.id}`, headers);
      expect(rest.map(({ version }) => version)).toEqual([3, 4]);
    });

    it('given earlier events, when a stream begins at the end, then only later events are sent', async () => {
      const headers = tenant('live');
      const stream = await open(other, '/v1/events?after=end', headers);
      await api.post('/v1/sessions/s/messages', user('four'), headers);
      expect((await stream.next()).data).toMatchObject({ data: { content: 'four' } });
      stream.leave();
    });

    it('given a session, when its audit trail is streamed, then event ids are versions, and the stream goes on after the session is deleted and created again', async () => {
      const headers = tenant('trail');
      await api.post('/v1/sessions', { id: 's' }, headers);
      await api.post('/v1/sessions', { id: 'else' }, headers);
      const stream = await open(other, '/v1/sessions/s/events', headers);
      const seen = [await stream.next()];
      await api.delete('/v1/sessions/s', headers);
      await api.post('/v1/sessions', { id: 's' }, headers);
      seen.push(await stream.next(), await stream.next());
      stream.leave();
      expect(seen.map(({ id, event }) => `${id} ${event}`)).toEqual([
        '1 SessionCreated',
        '2 SessionDeleted',
        '3 SessionCreated',
      ]);
      const resumed = await open(api, '/v1/sessions/s/events', { ...headers, 'last-event-id': '2' });
      expect((await resumed.next()).id).toBe('3');
      resumed.leave();
    });

    it('given a HEAD request that accepts a stream, when it is sent, then it is answered at once', async () => {
      for (const path of ['/v1/events', '/v1/sessions/a/events']) {
        const answer = await api.send('HEAD', path, undefined, {
          accept: 'text/event-stream',
          ...tenant('acme'),
        });
        expect(answer.status).toBe(200);
      }
    });

    heavy(
      'given a client that stops reading, when many events are written, then other clients are served, and it gets every event when it reads again',
      async () => {
        const headers = tenant('slow');
        await api.post('/v1/sessions', { id: 's' }, headers);
        const { url } = nodes[0].service;
        const received = await new Promise<string>((resolve, reject) => {
          let text = '';
          const asked = request(`${url}/v1/events`, { headers: { ...headers, accept: 'text/event-stream' } });
          asked.once('error', reject);
          asked.once('response', (response) => {
            response.pause();
            response.setEncoding('utf8').on('data', (chunk: string) => {
              text += chunk;
              if (!text.includes('the last one')) return;
              asked.destroy();
              resolve(text);
            });
            const big = { messages: Array.from({ length: 8 }, () => user('x'.repeat(100_000))) };
            void (async () => {
              // 16 MB are more than sockets and buffers hold.
              for (let count = 0; count < 20; count += 1) {
                const { status } = await api.post('/v1/sessions/s/messages', big, headers);
                expect(status).toBe(201);
              }
              const quick = await open(api, '/v1/events?after=end', headers);
              await api.post('/v1/sessions/s/messages', user('the last one'), headers);
              expect((await quick.next()).data).toMatchObject({ data: { content: 'the last one' } });
              quick.leave();
              response.resume();
            })().catch(reject);
          });
          asked.end();
        });
        expect(received.match(/^event: MessageAppended$/gm)).toHaveLength(161);
      },
    );

    it('given open streams, when the service is stopped, then it ends them and exits', async () => {
      const node = await world.node();
      const [feed, trail] = await Promise.all([
        open(node.api, '/v1/events', tenant('live')),
        open(node.api, '/v1/sessions/s/events', tenant('live')),
      ]);
      await Promise.all([feed.next(), trail.next()]);
      const began = performance.now();
      const code = node.service.stop();
      await Promise.all([feed.rest(), trail.rest()]);
      expect(await code).toBe(0);
      expect(performance.now() - began).toBeLessThan(8_000);
    });

    it('given constant events and readers that reconnect every second to any node, when they read, then each gets every event once and in order', async () => {
      const headers = tenant('load');
      const SESSIONS = 8;
      for (let n = 0; n < SESSIONS; n += 1) await api.post('/v1/sessions', { id: `s${n}` }, headers);
      const load = { isOver: false };
      const total = LOAD.perSecond * LOAD.seconds + SESSIONS;
      const began = performance.now();
      const writing = Promise.all(
        Array.from({ length: SESSIONS }, async (_, n) => {
          const through = n % 2 ? api : other;
          const mine = (LOAD.perSecond * LOAD.seconds) / SESSIONS;
          for (let written = 0; written < mine; written += BATCH) {
            const early = began + (written / mine) * LOAD.seconds * 1_000 - performance.now();
            if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
            const messages = Array.from({ length: BATCH }, (_, index) => user(`${n} ${written + index}`));
            const { status } = await through.post(`/v1/sessions/s${n}/messages`, { messages }, headers);
            if (status !== 201) throw new Error(`an append was answered ${status}`);
          }
        }),
      ).finally(() => (load.isOver = true));

      const readers = Array.from({ length: 3 }, async (_, reader) => {
        const seen: StreamedEvent[] = [];
        let visits = 0;
        for (const wanted = total; seen.length < wanted; visits += 1) {
          const last = seen.at(-1)?.id;
          const stream = await open((reader + visits) % 2 ? api : other, '/v1/events', {
            ...headers,
            ...(last !== undefined && { 'last-event-id': last }),
          });
          // The stream is closed at any point, like a lost connection, also in the middle of an event.
          const timer = setTimeout(() => {
            stream.leave();
          }, RECONNECT_MS);
          try {
            while (seen.length < wanted) seen.push(await stream.next());
          } catch (error) {
            if ((error as Error).name !== 'AbortError') throw error;
          } finally {
            clearTimeout(timer);
            stream.leave();
          }
          if (visits > LOAD.seconds * 10) throw new Error(`reader ${reader} has ${seen.length} of ${wanted}`);
        }
        return { seen, visits };
      });
      await writing;
      const written = performance.now() - began;
      const results = await Promise.all(readers);
      if (FULL) {
        console.log(
          `${total} events in ${Math.round(written)} ms; readers done ${Math.round(performance.now() - began - written)} ms later, ${results.map(({ visits }) => visits).join()} connections`,
        );
      }
      const logged = await world.database.query<{ id: string }>(
        `select id from event where tenant = 'load' order by stream_id, version`,
      );
      expect(logged).toHaveLength(total);
      for (const { seen, visits } of results) {
        expect(visits).toBeGreaterThanOrEqual(LOAD.seconds - 2);
        expect(new Set(seen.map(({ id }) => id)).size).toBe(seen.length);
        const versions = new Map<unknown, number>();
        for (const { data } of seen) {
          expect(data['version']).toBe((versions.get(data['sessionId']) ?? 0) + 1);
          versions.set(data['sessionId'], Number(data['version']));
        }
        const ids = new Set(seen.map(({ data }) => data['id']));
        expect(logged.filter(({ id }) => !ids.has(id))).toEqual([]);
      }
    });
  });

  describe('the past', () => {
    const headers = tenant('past');
    const at = (path: string) => api.get(path, headers);

    it('given a session with a history, when past states and their differences are requested, then they are those of that time', async () => {
      await api.post('/v1/sessions', { id: 's', title: 'First' }, headers);
      await api.post('/v1/sessions/s/messages', user('one'), headers);
      await api.put('/v1/sessions/s/approvals/search', { scope: 'session' }, headers);
      await api.patch('/v1/sessions/s', { title: 'Second' }, headers);
      await api.post('/v1/sessions/s/reset', undefined, headers);
      await api.post('/v1/sessions/s/messages', user('two'), headers);
      const state = await at('/v1/sessions/s/state?at=3');
      expect([state.status, state.headers.get('etag')]).toEqual([200, '"3"']);
      expect(state.body).toMatchObject({
        sessionId: 's',
        version: 3,
        status: 'active',
        title: 'First',
        messageCount: 1,
        approvals: [{ tool: 'search', scope: 'session' }],
      });
      expect(state.body).not.toHaveProperty('messages');
      expect((await at('/v1/sessions/s/state')).body).toMatchObject({ version: 6, title: 'Second' });
      const byTime = await at(`/v1/sessions/s/state?at=${String(state.body['time'])}`);
      expect(byTime.body).toEqual(state.body);
      expect((await at('/v1/sessions/s/diff?from=3')).body).toMatchObject({
        from: 3,
        to: 6,
        events: { ConversationReset: 1, MessageAppended: 1, SessionDetailsChanged: 1 },
        title: { before: 'First', after: 'Second' },
        messages: {
          added: { count: 1, data: [{ content: 'two' }] },
          removed: { count: 1, data: [{ content: 'one' }] },
        },
        approvals: { added: [], removed: [{ tool: 'search' }] },
      });

      await api.delete('/v1/sessions/s', headers);
      expectProblem(await at('/v1/sessions/s/state'), 404, 'session-not-found');
      expect((await at('/v1/sessions/s/state?incarnation=1')).body).toMatchObject({ status: 'deleted' });
      await api.post('/v1/sessions', { id: 's' }, headers);
      expectProblem(await at('/v1/sessions/s/state?at=3'), 400, 'invalid-request', '/at');
      expectProblem(await at('/v1/sessions/s/diff?from=3&to=6'), 400, 'invalid-request', '/from');
      expect((await at('/v1/sessions/s/state?at=3&incarnation=1')).body).toEqual(state.body);
      expectProblem(await api.get('/v1/sessions/s/state', tenant('acme')), 404, 'session-not-found');
      expectProblem(await api.get('/v1/sessions/s/diff?from=1', tenant('acme')), 404, 'session-not-found');
    });

    it('given a session, when it is forked, then the fork is independent, and each of the two names the other', async () => {
      await api.post('/v1/sessions', { id: 'source' }, headers);
      await api.post('/v1/sessions/source/messages', user('one'), headers);
      await api.post('/v1/sessions/source/messages', user('two'), headers);
      const fork = await api.post('/v1/sessions/source/fork', { at: 2 }, headers);
      expect(fork.status).toBe(201);
      const location = fork.headers.get('location') ?? '';
      expect((await at(location)).body).toEqual(fork.body);
      expect(fork.body).toMatchObject({ messageCount: 1, forkedFrom: { sessionId: 'source', version: 2 } });
      expect((await at('/v1/sessions/source/forks')).body).toEqual({ data: [fork.body], nextCursor: null });
      const reply = await api.post('/v1/chat', { sessionId: fork.body['id'], message: 'go on' }, headers);
      expect(reply.status).toBe(200);
      expect((await at('/v1/sessions/source/messages')).body['data']).toHaveLength(2);
      expectProblem(await api.post('/v1/sessions/source/fork', {}, tenant('acme')), 404, 'session-not-found');
    });
  });

  describe('bad input', () => {
    let before: Record<string, unknown>;
    beforeAll(async () => {
      await api.post('/v1/sessions', { id: 's' });
      await say(api, 's', 'one');
      before = await stored(world.database);
    });
    afterEach(async () => {
      expect(await stored(world.database)).toEqual(before);
    });

    it.each([
      ['/v1/events?limit=0', '/limit'],
      ['/v1/events?limit=201', '/limit'],
      ['/v1/events?cursor=x', '/cursor'],
      ['/v1/events?after=', '/after'],
      [`/v1/events?after=${'x'.repeat(513)}`, '/after'],
      ['/v1/events?type=Nothing', '/type/0'],
      ['/v1/events?type=SessionCreated,', '/type/1'],
      ['/v1/events?type=', '/type/0'],
      ['/v1/events?type=SessionCreated&type=SessionDeleted', '/type'],
      ['/v1/events?actor=', '/actor'],
      [`/v1/events?actor=${'x'.repeat(257)}`, '/actor'],
      ['/v1/events?actor=%00', '/actor'],
      ['/v1/events?session=~tenant', '/session'],
      ['/v1/events?session=a%20b', '/session'],
      ['/v1/events?from=yesterday', '/from'],
      ['/v1/events?from=2026-01-01', '/from'],
      ['/v1/events?to=0000-01-01T00:00:00Z', '/to'],
      ['/v1/events?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z', '/to'],
      ['/v1/events?from=2026-01-01T00:00:00Z&to=2026-01-01T01:00:00%2B01:00', '/to'],
      ['/v1/sessions/s/events?type=Nothing', '/type/0'],
      ['/v1/sessions/s/events?after=-1', '/after'],
      ['/v1/sessions/s/events?session=s', '/session'],
      ['/v1/sessions/s/state?at=0', '/at'],
      ['/v1/sessions/s/state?at=3', '/at'],
      ['/v1/sessions/s/state?at=99999999999', '/at'],
      ['/v1/sessions/s/state?at=soon', '/at'],
      ['/v1/sessions/s/state?at=2020-01-01T00:00:00Z', '/at'],
      ['/v1/sessions/s/state?incarnation=0', '/incarnation'],
      ['/v1/sessions/s/state?version=1', '/version'],
      ['/v1/sessions/s/diff', '/from'],
      ['/v1/sessions/s/diff?from=0', '/from'],
      ['/v1/sessions/s/diff?from=2&to=1', '/to'],
      ['/v1/sessions/s/diff?from=1&to=9', '/to'],
      ['/v1/sessions/s/diff?from=1&limit=x', '/limit'],
      ['/v1/sessions/s/forks?limit=0', '/limit'],
      ['/v1/sessions/s/forks?incarnation=x', '/incarnation'],
      ['/v1/sessions/s/forks?status=all', '/status'],
    ])('given %s, then 400 at %s', async (path, pointer) => {
      const problem = expectProblem(await api.get(path), 400, 'invalid-request', pointer);
      expect(problem.errors?.[0]?.in).toBe('query');
    });

    it.each<[body: unknown, pointer: string]>([
      [{ at: 0 }, '/at'],
      [{ at: '2' }, '/at'],
      [{ at: 3 }, '/at'],
      [{ at: 2.5 }, '/at'],
      [{ at: null }, '/at'],
      [{ at: '2020-01-01T00:00:00Z' }, '/at'],
      [{ id: '' }, '/id'],
      [{ id: '~tenant' }, '/id'],
      [{ id: 's' }, '/id'],
      [{ title: 'x' }, '/title'],
      [[], ''],
    ])('given a fork with %j, then 400 at %s', async (body, pointer) => {
      expectProblem(await api.post('/v1/sessions/s/fork', body), 400, 'invalid-request', pointer);
    });

    it('given a session or an incarnation that does not exist, when it is read, then 404; given a wrong method, then 405', async () => {
      for (const path of [
        'state',
        'diff?from=1',
        'forks',
        'events',
        'state?incarnation=2',
        'forks?incarnation=2',
      ]) {
        const id = path.includes('incarnation') ? 's' : 'never';
        expectProblem(await api.get(`/v1/sessions/${id}/${path}`), 404, 'session-not-found');
      }
      expectProblem(await api.post('/v1/sessions/never/fork', {}), 404, 'session-not-found');
      expectProblem(await api.post('/v1/events', {}), 405, 'method-not-allowed');
      expectProblem(await feedOf(api, '?after=made-up'), 400, 'invalid-cursor');
      expectProblem(await api.get('/v1/sessions/s/forks?cursor=made-up'), 400, 'invalid-cursor');
    });
  });
});
