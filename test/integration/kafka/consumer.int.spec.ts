import { randomUUID } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import { once } from 'node:events';
import { type AddressInfo } from 'node:net';
import { type Pool, type PoolClient } from 'pg';
import {
  consume,
  type ConsumedEvent,
  type Consumer,
  memoryPlaces,
  postgresPlaces,
} from '../../../src/consumer.js';
import { createPool } from '../../../src/database/connection.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { toMessage, toTruncation } from '../../../src/kafka/contract.js';
import { Publisher } from '../../../src/kafka/publisher.js';
import { TopicAdmin } from '../../../src/kafka/topic-admin.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { describeWithKafka, hasLeaders } from '../../support/kafka.js';
import { completed, openStore, said, sized, sleep } from './fixture.js';
import { appendOf } from '../../support/append.js';
import { heavy } from '../../support/heavy.js';

type Seen = Pick<ConsumedEvent, 'sessionId' | 'version'>;

describeWithKafka('colloquy/consumer', (brokers) => {
  let db: TestDatabase;
  let store: EventLog;
  let pool: Pool;
  let topic: string;
  let publisher: Publisher;
  let api: Server;
  let apiUrl: string;
  let fetched: string[];
  /** Later versions were appended in the second generation of the log. */
  let kept: number;
  const consumers: Consumer[] = [];
  const kafka = { brokers: brokers.split(',') };

  beforeEach(async () => {
    db = await createTestDatabase();
    store = await openStore(db.url);
    pool = createPool(db.url, 'consumer', { max: 20 });
    await pool.query('create table effect (session_id text, version int)');
    topic = `consumer-${randomUUID()}`;
    await TopicAdmin.use(kafka, (topics) =>
      topics.create({ topic, partitions: 4, retentionMs: 3_600_000, maxMessageBytes: 1_048_576 }),
    );
    await hasLeaders(kafka.brokers, topic);
    publisher = await Publisher.connect(kafka, 'gzip');
    fetched = [];
    kept = Infinity;
    // A server that answers like the route of the service, from the same log.
    api = createServer((request, response) => {
      fetched.push(`${String(request.headers['colloquy-tenant'])} ${request.url ?? ''}`);
      const url = new URL(request.url ?? '', 'http://api');
      const [, sessionId = ''] = /^\/v1\/sessions\/([^/]+)\/events$/.exec(url.pathname) ?? [];
      const from = Number(url.searchParams.get('after')) + 1;
      const limit = Number(url.searchParams.get('limit'));
      void store.streams
        .read({ tenant: 'acme', streamId: decodeURIComponent(sessionId) }, { from, limit })
        .then((events) => {
          const data = events.map(({ streamId, ...event }) => ({
            ...event,
            sessionId: streamId,
            logGeneration: event.version > kept ? 2 : 1,
          }));
          response.end(JSON.stringify({ data }));
        });
    }).listen(0, '127.0.0.1');
    await once(api, 'listening');
    apiUrl = `http://127.0.0.1:${(api.address() as AddressInfo).port}`;
  });

  afterEach(async () => {
    await Promise.all(consumers.splice(0).map((consumer) => consumer.stop()));
    await publisher.close();
    api.close();
    await pool.end();
    await store.close();
    await db.drop();
  });

  /** Publishes some versions of a session, all of which are in the log. */
  async function publish(
    streamId: string,
    versions: readonly number[],
    maxBytes = 1_000_000,
    generation = 1,
  ): Promise<void> {
    const events = await store.streams.read({ tenant: 'acme', streamId });
    const messages = versions.map((version) => {
      const event = events[version - 1];
      if (!event) throw new Error(`there is no version ${version}`);
      return toMessage(event, JSON.stringify(event.data), 4, maxBytes, generation);
    });
    await publisher.send(topic, messages);
  }

  async function written(streamId: string, count: number): Promise<void> {
    const events = Array.from({ length: count }, (_, n) => (n % 2 ? said(`number ${n}`) : completed(n, 1)));
    await store.append(appendOf({ tenant: 'acme', streamId }, 0, events));
  }

  function start(more: Partial<Parameters<typeof consume<PoolClient>>[0]> = {}): Consumer {
    const consumer = consume({
      kafka,
      topic,
      groupId: topic,
      maxWaitMs: 100,
      places: postgresPlaces(pool, { consumer: 'test' }),
      api: { url: apiUrl },
      apply: async (events, tx) => {
        for (const { sessionId, version } of events)
          await tx.query('insert into effect values ($1, $2)', [sessionId, version]);
      },
      onError: () => undefined,
      ...more,
    });
    consumers.push(consumer);
    return consumer;
  }

  const effects = async (): Promise<Record<string, number[]>> => {
    const rows = await db.query<{ session_id: string; versions: number[] }>(
      'select session_id, array_agg(version order by version) as versions from effect group by 1',
    );
    return Object.fromEntries(rows.map(({ session_id, versions }) => [session_id, versions]));
  };

  async function until(check: () => Promise<boolean>, limitMs = 30_000): Promise<void> {
    const deadline = Date.now() + limitMs;
    while (!(await check())) {
      if (Date.now() > deadline)
        throw new Error(`not within ${limitMs} ms: ${JSON.stringify(await effects())}`);
      await sleep(50);
    }
  }

  const upTo = (last: number) => Array.from({ length: last }, (_, index) => index + 1);

  it('given repetitions, a gap and a reference, when they are consumed, then each version takes effect once and missing events are fetched', async () => {
    await written('a', 10);
    await written('b', 6);
    await publish('a', [1, 2, 3, 1, 2, 3, 4, 9, 10]);
    await publish('b', [3, 3, 4, 5, 6], 800);
    start();
    await until(async () => (await effects())['a']?.length === 10 && (await effects())['b']?.length === 6);
    await sleep(300);
    expect(await effects()).toEqual({ a: upTo(10), b: upTo(6) });
    expect(fetched).toContain('acme /v1/sessions/a/events?after=4&limit=5');
    expect(fetched).toContain('acme /v1/sessions/b/events?after=0&limit=3');
  }, 40_000);

  it('given no API, when there is a gap, then nothing is skipped and the error says what is missing', async () => {
    await written('a', 3);
    await publish('a', [3]);
    const errors: unknown[] = [];
    const { api: _, ...without } = { api: 0 };
    start({ ...without, api: undefined as never, onError: (error) => errors.push(error) });
    await until(() => Promise.resolve(errors.length > 0));
    expect(errors[0]).toMatchObject({
      message: expect.stringContaining('versions 1 to 3 of acme/a') as string,
    });
    expect(await effects()).toEqual({});
  }, 40_000);

  it('given an effect that fails in the middle, when it is tried again, then nothing of the first attempt is left', async () => {
    await written('a', 20);
    await publish('a', upTo(20));
    let tries = 0;
    start({
      apply: async (events, tx) => {
        tries += 1;
        for (const { sessionId, version } of events) {
          await tx.query('insert into effect values ($1, $2)', [sessionId, version]);
          if (tries < 3 && version === 10) throw new Error('not now');
        }
      },
    });
    await until(async () => (await effects())['a']?.length === 20);
    expect(tries).toBe(3);
    expect(await effects()).toEqual({ a: upTo(20) });
  }, 40_000);

  it('given events that are gone, when the topic says so, twice, then their effect is undone once, and what comes in their place takes effect', async () => {
    await written('a', 5);
    await written('b', 2);
    await publish('a', upTo(5));
    await publish('b', upTo(2));
    const calls: unknown[] = [];
    start({
      truncated: async (sessions, tx) => {
        calls.push(...sessions);
        for (const { sessionId, version } of sessions)
          await tx.query('delete from effect where session_id = $1 and version > $2', [sessionId, version]);
      },
    });
    const all = async (): Promise<boolean> =>
      JSON.stringify(await effects()) === JSON.stringify({ a: upTo(5), b: upTo(2) });
    await until(all);

    // The versions 4 and 5 of a were lost, and the log has others there, which have their positions.
    kept = 3;
    const lane = store.laneOf({ tenant: 'acme', streamId: 'a' });
    const [cut] = await store.streams.read({ tenant: 'acme', streamId: 'a' }, { from: 4, to: 4 });
    const ends = Array.from({ length: 16 }, (_, index) =>
      index === lane ? (cut?.position ?? 0) - 1 : 1_000,
    );
    const begun = { generation: 2, since: '2026-01-01T00:00:00.000Z', server: 'another', ends };
    const truncations = Array.from({ length: 16 }, (_, index) => toTruncation(begun, index, 4));
    await publisher.send(topic, truncations);
    await publisher.send(topic, truncations);
    await until(async () => (await effects())['a']?.length === 3);
    await publish('a', [4, 5], 1_000_000, 2);
    await until(all);
    expect(calls).toEqual([{ tenant: 'acme', sessionId: 'a', version: 3, applied: 5 }]);
  }, 40_000);

  heavy(
    'given members that come and go while events flow, when all is consumed, then every effect happened once',
    async () => {
      const sessions = Array.from({ length: 40 }, (_, index) => `s${index}`);
      await Promise.all(sessions.map((session) => written(session, 60)));
      const flowing = (async () => {
        for (let from = 1; from <= 60; from += 5) {
          for (const session of sessions)
            await publish(session, upTo(60).slice(Math.max(0, from - 3), from + 4));
          await sleep(100);
        }
      })();
      for (let round = 0; round < sized(6, 2); round += 1) {
        const members = [start(), start({ concurrency: 2 })];
        await sleep(1_500 + Math.random() * 1_000);
        await Promise.all(members.slice(round % 2).map((member) => member.stop()));
      }
      start();
      await flowing;
      await until(async () => Object.values(await effects()).flat().length >= 2_400, 60_000);
      await sleep(500);
      expect(await effects()).toEqual(Object.fromEntries(sessions.map((session) => [session, upTo(60)])));
    },
    120_000,
  );

  it('given places in memory, when consumed, then events are typed and in order', async () => {
    await written('a', 5);
    await publish('a', [1, 2, 2, 3, 4, 5]);
    const seen: Seen[] = [];
    let tokens = 0;
    const consumer = consume({
      kafka,
      topic,
      groupId: `${topic}-memory`,
      maxWaitMs: 100,
      places: memoryPlaces(),
      apply: (events) => {
        for (const event of events) {
          seen.push({ sessionId: event.sessionId, version: event.version });
          if (event.type === 'GenerationCompleted') tokens += event.data.usage?.inputTokens ?? 0;
        }
        return Promise.resolve();
      },
    });
    consumers.push(consumer);
    await until(() => Promise.resolve(seen.length >= 5));
    expect(seen).toEqual(upTo(5).map((version) => ({ sessionId: 'a', version })));
    expect(tokens).toBe(0 + 2 + 4);
  }, 40_000);
});
