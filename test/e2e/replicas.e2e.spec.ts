import { heavy } from '../support/heavy.js';
import { type Api, eventually } from '../support/http.js';
import { type Replicated, startReplicated } from '../support/replica.js';
import { createWorld, type Node, say, texts, type World } from './fixture.js';

const SESSIONS = 20;

let world: World;
let replicated: Replicated;
beforeAll(async () => {
  world = await createWorld();
  replicated = await startReplicated();
});
afterAll(async () => {
  await world.end();
  await replicated.end();
});

const node = (replicas = replicated.replicaUrl): Promise<Node> =>
  world.node({ DATABASE_URL: replicated.url, DATABASE_REPLICA_URLS: replicas, MAX_SESSIONS: '1000' });

/** How many reads a replica was asked for, by what became of them. */
async function replicaReads(api: Api): Promise<Record<string, number>> {
  const { text } = await api.get('/metrics');
  const lines = text.matchAll(/^colloquy_replica_reads_total\{outcome="(\w+)"\} (\d+)$/gm);
  return Object.fromEntries([...lines].map(([, outcome = '', count]) => [outcome, Number(count)]));
}

const ids = async (api: Api, path: string): Promise<string[]> =>
  (await api.get<{ data: { id: string }[] }>(path)).body.data.map(({ id }) => id);

describe('streaming replicas', () => {
  it('given a replica, when two nodes write and read in turns, then every strong read sees what was written, and the replica answers', async () => {
    const [one, two] = [await node(), await node()];
    for (let index = 0; index < SESSIONS; index += 1) {
      const [writer, reader] = index % 2 === 0 ? [one.api, two.api] : [two.api, one.api];
      const id = `shared-${index}`;
      await writer.post('/v1/sessions', { id });
      await say(writer, id, `Message ${index}`);
      expect(await texts(reader, id)).toEqual([`Message ${index}`]);
      expect(await ids(reader, '/v1/sessions?limit=200')).toContain(id);
    }
    await replicated.inStep();
    for (const { api } of [one, two]) {
      const before = (await replicaReads(api))['answered'] ?? 0;
      await ids(api, '/v1/sessions?limit=200&consistency=eventual');
      expect((await replicaReads(api))['answered']).toBe(before + 1);
    }
  });

  it('given a replica that stands still, when sessions are read, then strong reads come from the server, and others see the state of the replica', async () => {
    const { api } = await node();
    await replicated.inStep();
    await replicated.query('replica', 'select pg_wal_replay_pause()');
    try {
      await api.post('/v1/sessions', { id: 'unseen' });
      await say(api, 'unseen', 'Hello');
      expect(await texts(api, 'unseen')).toEqual(['Hello']);
      expect(await ids(api, '/v1/sessions?limit=200')).toContain('unseen');
      expect((await replicaReads(api))['late']).toBeGreaterThan(0);
      expect(await ids(api, '/v1/sessions?limit=200&consistency=eventual')).not.toContain('unseen');
    } finally {
      await replicated.query('replica', 'select pg_wal_replay_resume()');
    }
    await eventually(async () =>
      (await ids(api, '/v1/sessions?limit=200&consistency=eventual')).includes('unseen'),
    );
  });

  heavy(
    'given a replica that hears nothing for longer than ten seconds, when sessions are listed without waiting, then the server answers',
    async () => {
      const { api } = await node();
      await replicated.query('replica', 'select pg_wal_replay_pause()');
      try {
        await api.post('/v1/sessions', { id: 'stale' });
        const path = '/v1/sessions?limit=200&consistency=eventual';
        expect(await ids(api, path)).not.toContain('stale');
        await eventually(async () => (await ids(api, path)).includes('stale'), 20_000);
      } finally {
        await replicated.query('replica', 'select pg_wal_replay_resume()');
      }
    },
  );

  it('given a URL that leads to another database, when sessions are read, then the server answers, and the log tells', async () => {
    const { api, service } = await node(world.database.url);
    await api.post('/v1/sessions', { id: 'elsewhere' });
    expect(await ids(api, '/v1/sessions?limit=200&consistency=eventual')).toContain('shared-0');
    expect((await replicaReads(api))['answered']).toBeUndefined();
    // The log is written in pieces.
    await eventually(() =>
      Promise.resolve(/leads to another database.*A read from a replica failed/.test(service.output())),
    );
  });

  // The last one: the replica is gone after it.
  it('given a replica that stops, when sessions are read, then the server answers', async () => {
    const { api } = await node();
    await api.post('/v1/sessions', { id: 'lonely' });
    expect(await ids(api, '/v1/sessions?limit=200')).toContain('lonely');
    await replicated.stopReplica();
    await eventually(async () => {
      expect(await ids(api, '/v1/sessions?limit=200')).toContain('lonely');
      return (await replicaReads(api))['failed'] === 1;
    });
    // It is not asked again at once.
    for (let index = 0; index < 5; index += 1)
      expect(await ids(api, '/v1/sessions?limit=200')).toContain('lonely');
    expect((await replicaReads(api))['failed']).toBe(1);
    expect((await api.get('/health/ready')).status).toBe(200);
  });
});
