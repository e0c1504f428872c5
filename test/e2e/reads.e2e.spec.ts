import { type Api, eventually } from '../support/http.js';
import {
  createWorld,
  FULL,
  type MessageView,
  type Node,
  say,
  type SessionAnswer,
  user,
  type World,
} from './fixture.js';
import { heavy } from '../support/heavy.js';

const LOOPS = FULL ? 32 : 16;
const ROUNDS = FULL ? 40 : 6;
/**
 * Milliseconds for which a stopped node can delay strong reads: until its leases have expired and another node has
 * noticed it.
 */
const TAKE_OVER_MS = 15_000;

interface Page {
  readonly data: readonly MessageView[];
}

describe('strong reads', () => {
  let world: World;
  let nodes: readonly [Node, Node];

  beforeAll(async () => {
    world = await createWorld();
    const env = { MAX_SESSIONS: '100000' };
    nodes = await Promise.all([world.node(env), world.node(env)]);
  });
  afterAll(() => world.end());

  it('given load on two nodes, when a write is acknowledged, then every read on either node shows it', async () => {
    const [one, two] = nodes;
    const apis = [one.api, two.api];
    const at = (index: number): Api => apis[index % 2] ?? one.api;
    const missed: string[] = [];
    const check = (what: string, holds: boolean): void => {
      if (!holds) missed.push(what);
    };
    await Promise.all(
      Array.from({ length: LOOPS }, async (_, loop) => {
        const id = `load-${loop}`;
        const tenant = { 'colloquy-tenant': `load-${loop % 4}` };
        const created = await at(loop).post('/v1/sessions', { id, metadata: { loop: String(loop) } }, tenant);
        check(`${id} is created`, created.status === 201);
        for (let round = 1; round <= ROUNDS; round += 1) {
          const text = `${id} ${round}`;
          // A busy machine turns writes away when they would wait for too long; nothing of them was written.
          const written = await eventually(async () => {
            const path = `/v1/sessions/${id}/messages`;
            const answer = await at(loop + round).post<{ version: number; code?: string }>(
              path,
              user(text),
              tenant,
            );
            return answer.body.code !== 'overloaded' && answer;
          });
          check(`${text} is written`, written.status === 201);
          for (const reader of [at(loop + round + 1), at(loop + round)]) {
            const page = await reader.get<Page>(`/v1/sessions/${id}/messages?order=desc&limit=1`, tenant);
            check(`${text} is in the history`, page.body.data[0]?.content === text);
            const list = await reader.get<{ data: SessionAnswer[] }>(
              `/v1/sessions?metadata.loop=${loop}`,
              tenant,
            );
            check(`${text} is in the list`, list.body.data[0]?.version === written.body.version);
            const single = await reader.get<SessionAnswer>(`/v1/sessions/${id}`, tenant);
            check(`${text} is in the session`, single.body.messageCount === round);
          }
        }
        await at(loop).delete(`/v1/sessions/${id}`, tenant);
        const list = await at(loop + 1).get<{ data: SessionAnswer[] }>('/v1/sessions?limit=200', tenant);
        check(
          `${id} is gone from the list`,
          list.status === 200 && !list.body.data.some((session) => session.id === id),
        );
      }),
    );
    expect(missed).toEqual([]);
  });

  it('given a session, when it is read with eventual consistency, then the read is answered at once, and later reads show every write', async () => {
    const [{ api }, { api: other }] = nodes;
    await api.post('/v1/sessions', { id: 'eventual' });
    await say(api, 'eventual', 'hello');
    await eventually(async () => {
      const page = await other.get<Page>('/v1/sessions/eventual/messages?consistency=eventual');
      const list = await other.get<{ data: SessionAnswer[] }>('/v1/sessions?consistency=eventual&limit=200');
      const single = await other.get<SessionAnswer>('/v1/sessions/eventual?consistency=eventual');
      const used = await other.get('/v1/sessions/eventual/usage?consistency=eventual');
      expect([page.status, list.status, used.status]).toEqual([200, 200, 200]);
      expect([200, 404]).toContain(single.status);
      return (
        page.body.data[0]?.content === 'hello' &&
        list.body.data.some((session) => session.id === 'eventual') &&
        single.body.messageCount === 1
      );
    });
  });

  heavy(
    'given load, when a node is stopped, then writes on the other node go on, and strong reads go on as soon as the leases have expired',
    async () => {
      const [one, two] = nodes;
      const tenant = { 'colloquy-tenant': 'stopped' };
      const acknowledged = new Map<string, number>();
      let stop = false;
      const load = (node: Node, name: string) =>
        Array.from({ length: 8 }, async (_, loop) => {
          const id = `${name}-${loop}`;
          await node.api.post('/v1/sessions', { id }, tenant);
          acknowledged.set(id, 1);
          while (!stop) {
            const answer = await node.api.post<{ version: number }>(
              `/v1/sessions/${id}/messages`,
              user('x'),
              tenant,
            );
            if (answer.status === 201) acknowledged.set(id, answer.body.version);
          }
        });
      const mine = load(one, 'mine');
      const theirs = load(two, 'theirs');
      const written = () =>
        [...acknowledged].reduce((sum, [id, version]) => sum + (id.startsWith('mine') ? version : 0), 0);
      await eventually(() => Promise.resolve(acknowledged.size === 16 && written() > 100));
      // The node is stopped at a random point of its work.
      two.service.signal('SIGSTOP');
      try {
        const stopped = performance.now();
        let slowest = 0;
        for (let count = 0; count < 50; count += 1) {
          const begun = performance.now();
          const { status } = await one.api.post('/v1/sessions/mine-0/messages', user('on'), tenant);
          expect(status).toBe(201);
          slowest = Math.max(slowest, performance.now() - begun);
        }
        expect(slowest).toBeLessThan(2_000);
        await eventually(async () => {
          const reads = await Promise.all(
            [...acknowledged.keys()].map((id) => one.api.get(`/v1/sessions/${id}/messages?limit=1`, tenant)),
          );
          const list = await one.api.get('/v1/sessions', tenant);
          for (const { status } of [...reads, list]) expect([200, 503]).toContain(status);
          return [...reads, list].every((read) => read.status === 200);
        }, TAKE_OVER_MS);
        expect(performance.now() - stopped).toBeLessThan(TAKE_OVER_MS);
      } finally {
        stop = true;
        two.service.signal('SIGCONT');
      }
      await Promise.all([...mine, ...theirs]);
      // No acknowledged write is missing, on the stopped node neither.
      for (const api of [one.api, two.api]) {
        await eventually(async () => (await api.get('/v1/sessions', tenant)).status === 200);
        for (const [id, version] of acknowledged) {
          const { body } = await api.get<SessionAnswer>(`/v1/sessions/${id}`, tenant);
          expect(body.version).toBeGreaterThanOrEqual(version);
          expect(body.messageCount).toBe(body.version - 1);
        }
      }
    },
  );
});
