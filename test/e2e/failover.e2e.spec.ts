import { createHash, randomUUID } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { consume, type Consumer, memoryPlaces } from '../../src/consumer.js';
import { sized } from '../support/heavy.js';
import { colloquy } from '../support/colloquy.js';
import { type Api, eventually } from '../support/http.js';
import { held, says } from '../support/fake-openai.js';
import { describeWithKafka, tap } from '../support/kafka.js';
import { type Replicated, startReplicated } from '../support/replica.js';
import { type Said, writers } from '../support/writers.js';
import { createWorld, type Node, say, texts, type World } from './fixture.js';

let world: World;
let replicated: Replicated;
beforeEach(async () => {
  world = await createWorld();
  replicated = await startReplicated();
});
afterEach(async () => {
  await world.end();
  await replicated.end();
});

const node = (cwd?: string): Promise<Node> =>
  world.node({ DATABASE_URL: replicated.bothUrl, MAX_SESSIONS: '1000' }, cwd);

const upTo = (count: number): string[] => Array.from({ length: count }, (_, index) => `Message ${index}`);

const ids = async (api: Api): Promise<string[]> => {
  const { status, body } = await api.get<{ data: { id: string }[] }>('/v1/sessions?limit=200');
  return status === 200 ? body.data.map(({ id }) => id).sort() : [`status ${status}`];
};

/** Repeats a request while the database is away. */
async function untilAnswered<T>(ask: () => Promise<{ status: number } & T>): Promise<{ status: number } & T> {
  let answer: ({ status: number } & T) | undefined;
  await eventually(async () => {
    answer = await ask();
    return answer.status !== 503;
  }, 20_000);
  if (!answer) throw new Error('no answer');
  return answer;
}

describe('the failover to a standby', () => {
  it('given a standby that has everything, when it takes over, then nothing is lost, and both nodes go on by themselves', async () => {
    const [one, two] = [await node(), await node()];
    await one.api.post('/v1/sessions', { id: 'kept' });
    for (const text of upTo(5)) await say(one.api, 'kept', text);
    expect(await texts(two.api, 'kept')).toEqual(upTo(5));
    await replicated.inStep();
    await replicated.failOver();

    const path = '/v1/sessions/kept/messages';
    const written = await untilAnswered(() => two.api.post(path, { role: 'user', content: 'Message 5' }));
    expect(written).toMatchObject({ status: 201, body: { version: 7 } });
    for (const { api } of [one, two]) {
      await untilAnswered(() => api.get('/v1/sessions'));
      expect(await texts(api, 'kept')).toEqual(upTo(6));
      expect(await ids(api)).toEqual(['kept']);
    }
    const [row] = await replicated.query(
      'replica',
      'select max(generation) as generation from log_generation',
    );
    expect(row).toEqual({ generation: 2 });
  });

  it('given a URL that names the standby first, when commands of operators run, then they work with the primary, and after a failover with the new one', async () => {
    const [one, other] = [replicated.replicaUrl, replicated.url].map((url) => new URL(url));
    const { username, password, pathname } = new URL(replicated.url);
    const hosts = `${one?.host ?? ''},${other?.host ?? ''}`;
    const env = { DATABASE_URL: `postgres://${username}:${password}@${hosts}${pathname}` };
    const run = async (...args: string[]): Promise<string> => {
      const { code, out, err } = await colloquy(args, { env });
      expect({ args, code, err: code === 0 ? '' : err }).toEqual({ args, code: 0, err: '' });
      return out;
    };
    const first = await world.node(env);
    await first.api.post('/v1/sessions', { id: 'kept' });
    await say(first.api, 'kept', 'Message 0');
    await first.service.stop();
    await replicated.inStep();
    const folder = await world.folder();
    const everything = async (name: string) => {
      await run('migrate');
      await run('grant', username);
      await run('keys', 'create', name);
      await run('tenants', 'place', name, 'default');
      await run('ranges', 'begin');
      const exported = join(folder, `${name}.jsonl`);
      await run('export', exported);
      expect(await readFile(exported, 'utf8')).toContain('Message 0');
      const talk = join(folder, `${name}-talk.jsonl`);
      const createdAt = '2026-01-01T00:00:00Z';
      await writeFile(talk, JSON.stringify({ sessionId: 'talk', role: 'user', content: 'Hello', createdAt }));
      await run('import', talk, '--format', 'messages', '--tenant', name);
    };
    await everything('before');
    await replicated.inStep();
    await replicated.failOver();
    await everything('after');
    const rows = await replicated.query('replica', 'select name from api_key order by 1');
    expect(rows).toEqual([{ name: 'after' }, { name: 'before' }]);
  });

  it('given a standby without the last events, when it takes over, then both nodes answer what it has, and what was lost can be done again', async () => {
    const [one, two] = [await node(), await node()];
    await one.api.post('/v1/sessions', { id: 'cut' });
    for (const text of upTo(5)) await say(one.api, 'cut', text);
    const before = (await one.api.get<{ cursor: string }>('/v1/events')).body.cursor;
    await replicated.inStep();
    await replicated.detach();
    // All of this will be lost, and both nodes know of it.
    const keyed = { role: 'user', content: 'Once' };
    const key = { 'idempotency-key': 'k-1' };
    for (const { api } of [one, two]) for (let n = 0; n < 10; n += 1) await say(api, 'cut', `Lost ${n}`);
    await one.api.post('/v1/sessions/cut/messages', keyed, key);
    await one.api.put('/v1/admin/tenants/default', { maxSessions: 7 });
    await two.api.post('/v1/sessions', { id: 'lost' });
    await say(two.api, 'lost', 'Lost');
    for (const { api } of [one, two]) {
      expect(await texts(api, 'cut')).toHaveLength(26);
      expect(await ids(api)).toEqual(['cut', 'lost']);
    }
    const beyond = (await one.api.get<{ cursor: string }>('/v1/events?after=end')).body.cursor;
    await replicated.failOver();

    for (const { api } of [one, two]) {
      await untilAnswered(() => api.get('/v1/sessions'));
      expect(await texts(api, 'cut')).toEqual(upTo(5));
      expect(await ids(api)).toEqual(['cut']);
      expect((await api.get('/v1/sessions/lost')).status).toBe(404);
    }
    for (const { api } of [one, two]) {
      await eventually(async () => {
        const { body } = await api.get<{ effective: { maxSessions: number } }>('/v1/admin/tenants/default');
        return body.effective.maxSessions === 1_000;
      });
      expect((await api.get('/metrics')).text).toMatch(/^colloquy_log_generation 2$/m);
    }
    // How much is gone is on record: 21 messages and the settings by one and two, a session and its message by two.
    const { out } = await colloquy(['generations'], { env: { COLLOQUY_URL: two.api.url } });
    const records = out
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { lost: { from: number; to: number }[] });
    expect(records.map(({ lost }) => lost.reduce((sum, { from, to }) => sum + to - from + 1, 0))).toEqual([
      0, 24,
    ]);
    // A cursor of what is gone says so, and where to go on; one of what is there goes on.
    expect(await one.api.get(`/v1/events?after=${before}`)).toMatchObject({
      status: 200,
      body: { data: [] },
    });
    const gone = await two.api.get<{ code: string; after: string }>(`/v1/events?after=${beyond}`);
    expect(gone).toMatchObject({ status: 410, body: { code: 'position-gone' } });
    const { after } = gone.body;
    const follow = { accept: 'text/event-stream', 'last-event-id': '27' };
    expect(await two.api.get('/v1/sessions/cut/events', follow)).toMatchObject({
      status: 410,
      body: { code: 'position-gone', after: 6 },
    });
    // Versions and positions are given out a second time; a key whose write was lost is free again.
    const again = await one.api.post('/v1/sessions/cut/messages', keyed, key);
    expect(again).toMatchObject({ status: 201, body: { version: 7 } });
    expect(await two.api.post('/v1/sessions/cut/messages', keyed, key)).toMatchObject({
      status: 201,
      body: { version: 7 },
    });
    const { data } = (await two.api.get<{ data: { version: number }[] }>(`/v1/events?after=${after}`)).body;
    expect(data.map(({ version }) => version)).toEqual([7]);
    await say(two.api, 'cut', 'Anew');
    expect(await two.api.post('/v1/sessions', { id: 'lost' })).toMatchObject({ status: 201 });
    for (const { api } of [one, two]) {
      expect(await texts(api, 'cut')).toEqual([...upTo(5), 'Once', 'Anew']);
      expect(await ids(api)).toEqual(['cut', 'lost']);
    }
  });
});

/** A number from 0 on and below another one, the same for the same seed and index. */
const drawn = (seed: number, index: number, below: number): number =>
  createHash('sha256').update(`${seed}/${index}`).digest().readUInt32BE(0) % below;

describe('failovers under load', () => {
  for (const [seed, isWhole] of Array.from(
    { length: sized(20, 4, 1) },
    (_, n) => [n + 1, n % 2 === 1] as const,
  ))
    it(`given clients of two nodes and a standby that ${isWhole ? 'has everything' : 'is cut off before'}, when it takes over (seed ${seed}), then nothing of before or after is lost or doubled, and all answers are those of the database`, async () => {
      const [one, two] = [await node(), await node()];
      const apis = [one.api, two.api];
      const sessions = Array.from({ length: 6 }, (_, index) => `s${index}`);
      for (const id of sessions.slice(0, 5)) await one.api.post('/v1/sessions', { id });
      const { said, odd, stop } = writers(apis, sessions);
      await sleep(300 + drawn(seed, 0, 1_000));
      let cutAt = Infinity;
      if (isWhole) {
        await replicated.query('server', `alter system set synchronous_standby_names = '*'`);
        await replicated.query('server', 'select pg_reload_conf()');
      } else {
        await replicated.inStep();
        cutAt = Date.now();
        await replicated.detach();
      }
      await sleep(drawn(seed, 1, 700));
      await replicated.failOver();
      const promotedAt = Date.now();
      await sleep(500 + drawn(seed, 2, 1_000));
      await stop();

      expect(odd).toEqual([]);
      const rows = await replicated.query(
        'replica',
        `select stream_id as session, version, data->>'content' as content from event where type = 'MessageAppended'`,
      );
      const log = rows.map(({ content }) => content as string);
      expect(new Set(log).size).toBe(log.length);
      const there = new Set(log);
      const lost = said.filter(({ content }) => !there.has(content));
      const mayBeLost = ({ begunAt, answeredAt }: Said): boolean =>
        !isWhole && answeredAt >= cutAt && begunAt <= promotedAt;
      expect(lost.filter((one) => !mayBeLost(one))).toEqual([]);
      expect(said.some(({ begunAt }) => begunAt > promotedAt)).toBe(true);
      for (const { api } of [one, two]) {
        await untilAnswered(() => api.get('/v1/sessions'));
        for (const id of sessions) {
          const wanted = rows.filter(({ session }) => session === id);
          wanted.sort((a, b) => Number(a['version']) - Number(b['version']));
          expect(await texts(api, id)).toEqual(wanted.slice(0, 200).map(({ content }) => content));
        }
        for (const name of ['sessions', 'history'])
          expect((await api.post(`/v1/admin/projections/${name}/verify`)).body).toMatchObject({ ok: true });
      }
    }, 90_000);
});

describe('a reply that is generated while a standby takes over', () => {
  it.each([
    ['whose beginning was lost', true, 404],
    ['whose beginning was kept', false, 200],
  ])(
    'given a reply %s, when the model goes on, then its client is answered, and the session is as the database has it and goes on',
    async (_, isLost, status) => {
      const model = await world.model();
      const { api } = await node();
      const other = await node();
      if (!isLost) await api.post('/v1/sessions', { id: 's' });
      await replicated.inStep();
      const reply = held(says('late'));
      model.next(reply.reply);
      if (isLost) await replicated.detach();
      const answer = isLost
        ? api.post('/v1/chat', { sessionId: 's', message: 'Are you there?' })
        : api.post('/v1/sessions/s/generate', { message: 'Are you there?' });
      await reply.asked;
      if (!isLost) await replicated.inStep();
      await replicated.failOver();
      await untilAnswered(() => other.api.get('/v1/sessions'));
      reply.release();
      expect((await answer).status).toBe(status);

      const path = '/v1/sessions/s/messages';
      const found = await other.api.get<{ data: { content: string }[] }>(path);
      if (isLost) expect(found.status).toBe(404);
      else expect(found.body.data.map(({ content }) => content)).toEqual(['Are you there?', 'late']);
      model.next(says('again'));
      const next = await other.api.post('/v1/chat', { sessionId: 's', message: 'And now?' });
      expect(next.status).toBe(200);
      for (const one of [api, other.api])
        expect((await texts(one, 's')).slice(-2)).toEqual(['And now?', 'again']);
    },
  );
});

describeWithKafka('the failover to a standby, at a consumer of the topic', (brokers) => {
  it('given a standby without the last events, when it takes over, then the topic says where it was cut, the consumer ends with the history of the database, and what was lost can be taken from the topic', async () => {
    const topic = `failover-${randomUUID()}`;
    const folder = await world.folder();
    await writeFile(join(folder, 'colloquy.yml'), `kafka: { topic: ${topic}, brokers: [${brokers}] }\n`);
    const [one, two] = [await node(folder), await node(folder)];
    /** What a program would keep: the ids of the events of each session, in order. */
    const kept = new Map<string, string[]>();
    const cut: string[] = [];
    const consumer: Consumer = consume({
      kafka: { brokers: brokers.split(',') },
      groupId: `failover-${randomUUID()}`,
      topic,
      places: memoryPlaces(),
      maxWaitMs: 100,
      api: { url: two.api.url },
      apply: (events) => {
        for (const { sessionId, id } of events) kept.set(sessionId, [...(kept.get(sessionId) ?? []), id]);
        return Promise.resolve();
      },
      truncated: (sessions) => {
        for (const { sessionId, version } of sessions) {
          kept.set(sessionId, (kept.get(sessionId) ?? []).slice(0, version));
          cut.push(sessionId);
        }
        return Promise.resolve();
      },
      onError: () => undefined,
    });
    try {
      const held = (): number => [...kept.values()].reduce((sum, ids) => sum + ids.length, 0);
      const sessions = Array.from({ length: 12 }, (_, index) => `s${index}`);
      for (const id of sessions) {
        await one.api.post('/v1/sessions', { id });
        await say(one.api, id, 'Kept');
      }
      await replicated.inStep();
      await replicated.detach();
      for (const id of sessions.slice(0, 8))
        for (const { api } of [one, two]) await say(api, id, `Lost, said to ${api.url}`);
      await two.api.post('/v1/sessions', { id: 'lost' });
      // The consumer has all of it, also what will be gone.
      await eventually(() => Promise.resolve(held() === 24 + 16 + 1), 30_000);
      await replicated.failOver();

      await untilAnswered(() => two.api.get('/v1/sessions'));
      // Some go on, as another conversation; some never do.
      for (const id of sessions.slice(4)) await say(one.api, id, 'Anew');
      const database = async (): Promise<Map<string, string[]>> => {
        const rows = await replicated.query(
          'replica',
          'select stream_id as session, array_agg(id::text order by version) as ids from event group by 1',
        );
        return new Map(rows.map(({ session, ids: all }) => [session as string, all as string[]]));
      };
      const consumerHasTheDatabase = () =>
        eventually(async () => {
          const wanted = await database();
          return [...wanted].every(([session, all]) => all.join() === (kept.get(session) ?? []).join());
        }, 30_000);
      await consumerHasTheDatabase();
      expect([...kept.keys()].filter((session) => kept.get(session)?.length).sort()).toEqual(sessions.sort());
      expect([...new Set(cut)].sort()).toEqual(
        [...Array.from({ length: 8 }, (_, n) => `s${n}`), 'lost'].sort(),
      );
      // Whoever tells events by generation, lane and position is right without the helper.
      const seen = await tap(brokers, topic);
      await eventually(() => Promise.resolve(seen.records.length >= 41 + 8 + 16), 30_000);
      await seen.stop();
      const byPlace = new Map<string, string>();
      for (const { message, id } of seen.records) {
        const header = (name: string): string => message.headers?.[name]?.toString() ?? '';
        if (header('ce_type') === 'colloquy.LogTruncated.v1') continue;
        const place = [header('ce_loggeneration'), header('ce_lane'), header('ce_position')].join('/');
        expect(byPlace.get(place) ?? id).toBe(id);
        byPlace.set(place, id);
      }

      // What was lost is still in the topic.
      const recover = async (...options: string[]): Promise<Record<string, string>> => {
        const { out, err } = await colloquy(['recover', '--from-kafka', ...options], {
          cwd: folder,
          env: { DATABASE_URL: replicated.bothUrl },
        });
        const lines = out.split('\n').filter(Boolean);
        if (lines.length === 0) throw new Error(err);
        const rows = lines.map((line) => JSON.parse(line) as { sessionId: string; outcome: string });
        return Object.fromEntries(rows.map(({ sessionId, outcome }) => [sessionId, outcome]));
      };
      const outcomes = (standing: string) =>
        Object.fromEntries([
          ...['s0', 's1', 's2', 's3', 'lost'].map((id) => [id, standing]),
          ...['s4', 's5', 's6', 's7'].map((id) => [id, 'went on']),
        ]) as Record<string, string>;
      const before = await database();
      expect(await recover()).toEqual(outcomes('lost'));
      expect(await database()).toEqual(before);
      expect(await recover('--append')).toEqual(outcomes('recovered'));
      expect(await recover('--append')).toEqual(outcomes('there'));
      for (const { api } of [one, two]) {
        const said = [one, two].map((each) => `Lost, said to ${each.api.url}`);
        // The read models may take a moment, and say so.
        await untilAnswered(() => api.get('/v1/sessions/s0/messages'));
        expect(await texts(api, 's0')).toEqual(['Kept', ...said]);
        expect(await texts(api, 's4')).toEqual(['Kept', 'Anew']);
        // A read model may take a moment, and says so.
        await eventually(async () => (await ids(api)).join() === [...sessions, 'lost'].sort().join(), 30_000);
      }
      await consumerHasTheDatabase();
    } finally {
      await consumer.stop();
    }
  });
});
