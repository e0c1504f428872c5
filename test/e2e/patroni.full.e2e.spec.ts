import { setTimeout as sleep } from 'node:timers/promises';
import { type Api, eventually } from '../support/http.js';
import { describeWithPatroni, type PatroniCluster, startPatroni } from '../support/patroni.js';
import { type Said, writers } from '../support/writers.js';
import { createWorld, FULL, texts, type World } from './fixture.js';

const SESSIONS = Array.from({ length: 6 }, (_, index) => `s${index}`);
const LIMIT_MS = 240_000;

let world: World;
let cluster: PatroniCluster;

/** How a primary goes, and what has to be done before it may be the standby of the new one. */
const WAYS: Record<
  string,
  { go: (from: string, to: string) => Promise<void>; back: (from: string) => Promise<void> }
> = {
  'is killed': {
    go: (from) => cluster.kill9(from),
    back: (from) => {
      cluster.start(from);
      return Promise.resolve();
    },
  },
  'is frozen': { go: (from) => cluster.freeze(from), back: (from) => cluster.thaw(from) },
  'is cut off from etcd': { go: (from) => cluster.cutOff(from), back: (from) => cluster.rejoin(from) },
  'is switched over by hand': {
    go: (from, to) => cluster.switchOver(from, to),
    back: () => Promise.resolve(),
  },
};

(FULL ? describeWithPatroni : describe.skip)('servers that Patroni makes primary and standby', () => {
  beforeEach(async () => {
    world = await createWorld();
  }, LIMIT_MS);
  afterEach(async () => {
    await world.end();
    await cluster.end();
  }, LIMIT_MS);

  it.each(
    [true, false].flatMap((isSynchronous) => Object.keys(WAYS).map((way) => [isSynchronous, way] as const)),
  )(
    'given clients of two nodes (synchronous: %s), when the primary %s, then both nodes go on with the new one, and what was answered since is there',
    async (isSynchronous, way) => {
      cluster = await startPatroni({ isSynchronous });
      const from = await cluster.settled();
      const to = from === 'one' ? 'two' : 'one';
      const env = { DATABASE_URL: cluster.url, MAX_SESSIONS: '1000' };
      const nodes = [await world.node(env), await world.node(env)];
      const apis = nodes.map(({ api }) => api);
      const [api] = apis as [Api];
      for (const id of SESSIONS) await api.post('/v1/sessions', { id });
      const { said, odd, stop } = writers(apis, SESSIONS);
      await sleep(2_000);
      await cluster.settled();

      const wentAt = Date.now();
      await WAYS[way]?.go(from, to);
      let promotedAt = 0;
      await eventually(async () => {
        const rows = await cluster
          .query<{ standby: boolean }>(to, 'select pg_is_in_recovery() as standby')
          .catch(() => []);
        if (rows[0]?.standby === false) promotedAt = Date.now();
        return promotedAt > 0;
      }, 60_000);
      await eventually(() => Promise.resolve(said.some(({ begunAt }) => begunAt > promotedAt)), 60_000);
      const back = Math.min(
        ...said.filter(({ answeredAt }) => answeredAt > promotedAt).map((one) => one.answeredAt),
      );
      await WAYS[way]?.back(from);
      // The former primary comes back as a standby while clients go on to write.
      await cluster.settled();
      await sleep(1_000);
      await stop();

      expect(odd).toEqual([]);
      expect(await cluster.leader()).toBe(to);
      const rows = await cluster.query<{ session: string; version: number; content: string }>(
        to,
        `select stream_id as session, version, data->>'content' as content from event
         where type = 'MessageAppended' order by session, version`,
      );
      const log = rows.map(({ content }) => content);
      expect(new Set(log).size).toBe(log.length);
      const there = new Set(log);
      const lost = said.filter(({ content }) => !there.has(content));
      // Without a synchronous standby, what the former primary took until it stepped down may be gone.
      const mayBeLost = ({ begunAt }: Said): boolean => !isSynchronous && begunAt <= promotedAt;
      expect(lost.filter((one) => !mayBeLost(one))).toEqual([]);
      for (const one of apis)
        for (const id of SESSIONS) {
          const wanted = rows.filter(({ session }) => session === id).map(({ content }) => content);
          expect(await texts(one, id)).toEqual(wanted.slice(0, 200));
        }
      process.stderr.write(
        `${isSynchronous ? 'synchronous' : 'asynchronous'}, the primary ${way}: promoted after ${promotedAt - wentAt} ms, ` +
          `writes back ${back - promotedAt} ms later, ${lost.length} of ${said.length} answered writes lost\n`,
      );
    },
    LIMIT_MS,
  );
});
