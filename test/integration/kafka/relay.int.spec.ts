import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Kafka as CloudEventsKafka, type CloudEvent } from 'cloudevents';
import { type Pool } from 'pg';
import { createPool } from '../../../src/database/connection.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { Relay, type RelayOptions } from '../../../src/kafka/relay.js';
import { ConfigResourceTypes } from 'kafkajs';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import {
  describeWithKafka,
  endLeases,
  kafka,
  killRelays,
  offences,
  startRelay,
  type Tap,
  tap,
} from '../../support/kafka.js';
import { countOf, logOf, openStore, said, sized, sleep, Writers } from './fixture.js';
import { heavy } from '../../support/heavy.js';

describeWithKafka('relay', (brokers) => {
  let db: TestDatabase;
  let store: EventLog;
  let pool: Pool;
  let topic: string;
  const ends: (() => Promise<unknown>)[] = [];

  beforeEach(async () => {
    db = await createTestDatabase();
    store = await openStore(db.url);
    pool = createPool(db.url, 'relay');
    topic = `relay-${randomUUID()}`;
  });

  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
    await killRelays();
    await pool.end();
    await store.close();
    await db.drop();
  });

  const optionsHere = () => ({
    kafka: { brokers: brokers.split(',') },
    topic,
    partitions: 4,
    retentionMs: 3_600_000,
    maxMessageBytes: 1_048_576,
    compression: 'gzip' as const,
    onRecovered: () => undefined,
  });

  function startHere(more: Partial<RelayOptions> = {}): { relay: Relay; troubles: string[] } {
    const troubles: string[] = [];
    const leases = store.leases(randomUUID());
    const relay = new Relay(store, pool, leases, {
      ...optionsHere(),
      onTrouble: ({ message }, forGood) => {
        troubles.push(`${forGood ? 'for good: ' : ''}${message}`);
      },
      ...more,
    });
    relay.start();
    ends.push(async () => {
      await relay.stop();
      await leases.close();
    });
    return { relay, troubles };
  }

  async function listen(): Promise<Tap> {
    const listening = await tap(brokers, topic);
    ends.push(() => listening.stop());
    return listening;
  }

  async function untilCaughtUp(relay: Relay, limitMs = 60_000): Promise<void> {
    const deadline = Date.now() + limitMs;
    while ((await relay.lag()).behind > 0) {
      if (Date.now() > deadline) throw new Error(`${(await relay.lag()).behind} events behind`);
      await sleep(50);
    }
  }

  it('given events from before brokers were configured and concurrent writers after, when they are relayed, then independent consumers find every event once, in order per session, as valid CloudEvents', async () => {
    const sessions = sized(5_000, 500, 150);
    const writers = [0, 1].map((n) => new Writers(store, sessions / 2, `w${n}-`));
    await Promise.all(writers.map((one) => one.round(10)));

    const { relay } = startHere();
    await Promise.all(writers.map((one) => one.round(5)));
    await Promise.all(writers.map((one) => one.round(5)));
    await untilCaughtUp(relay, 120_000);

    const log = await logOf(db);
    expect(countOf(log)).toBe(sized(100_000, 10_000, 3_000));
    const listening = await listen();
    await listening.distinct(countOf(log), 120_000);
    expect(offences(listening.records, log)).toEqual([]);
    // Without a failure nothing is sent twice.
    expect(listening.records).toHaveLength(countOf(log));

    for (const { message, partition } of listening.records) {
      const headers = Object.fromEntries(
        Object.entries(message.headers ?? {}).map(([name, value]) => [name, value?.toString()]),
      );
      const event = CloudEventsKafka.toEvent<string>({
        headers,
        value: message.value?.toString(),
      } as never) as CloudEvent<string>;
      expect(event.validate()).toBe(true);
      expect(event.type).toMatch(/^colloquy\.(MessageAppended\.v2|GenerationCompleted\.v1)$/);
      expect(`${String(event['tenant'])}/${event.subject ?? ''}`).toBe(message.key?.toString());
      expect(Number(event['lane']) % 4).toBe(partition);
    }

    const console = await consoleConsumer(brokers, topic, countOf(log));
    expect(console.length).toBe(countOf(log));
    const versions = new Map<string, number>();
    for (const { key, version } of console) {
      expect(version).toBe((versions.get(key) ?? 0) + 1);
      versions.set(key, version);
    }
  }, 300_000);

  heavy(
    'given two nodes, when one is killed, then the other publishes its lanes within 10 s',
    async () => {
      const first = await startRelay(db.url, brokers, topic);
      await startRelay(db.url, brokers, topic);
      const writers = new Writers(store, 100);
      const shared = async () =>
        (
          await db.query<{ lanes: number }>(
            `select count(*)::int as lanes from lease where name like 'relay/lane/%' group by owner order by 1`,
          )
        ).map(({ lanes }) => lanes);
      const sharing = Date.now();
      while ((await shared()).join() !== '8,8') {
        if (Date.now() - sharing > 15_000) throw new Error(`the lanes are shared ${(await shared()).join()}`);
        await sleep(100);
      }
      await writers.round(1);
      const listening = await listen();
      await listening.distinct(100);

      await first.kill9();
      const began = Date.now();
      await writers.round(1);
      await listening.distinct(200, 10_000);
      expect(Date.now() - began).toBeLessThan(10_000);
      expect(offences(listening.records, await logOf(db))).toEqual([]);
    },
    60_000,
  );

  heavy(
    'given a node stopped past its lease, when it wakes up, then it publishes nothing that another has not sent',
    async () => {
      const zombie = await startRelay(db.url, brokers, topic);
      const writers = new Writers(store, 100);
      await writers.round(5);
      const listening = await listen();
      await listening.distinct(500);

      writers.flow(500);
      await sleep(500);
      zombie.signal('SIGSTOP');
      const [stopped] = await db.query<{ at: string }>(
        `select to_char(colloquy_now(), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as at`,
      );
      await sleep(1_500);
      await endLeases((sql, params) => db.query(sql, params), zombie);
      const { relay } = startHere();
      await sleep(1_000);
      await writers.stop();
      await untilCaughtUp(relay);
      const log = await logOf(db);
      await listening.distinct(countOf(log));
      const before = listening.records.length;

      zombie.signal('SIGCONT');
      await sleep(1_500);
      // The batch that the node was sending when it was stopped may arrive now, but no event that was appended later.
      const late = listening.records.slice(before);
      expect(late.length).toBeLessThanOrEqual(1_000);
      const times = late.map(({ message }) => message.headers?.['ce_time']?.toString() ?? '');
      expect(times.filter((time) => time > (stopped?.at ?? ''))).toEqual([]);
      expect(offences(listening.records, log)).toEqual([]);
      await writers.round(1);
      const after = await logOf(db);
      await listening.distinct(countOf(after));
      expect(offences(listening.records, after)).toEqual([]);
    },
    60_000,
  );

  it('given an event larger than the topic accepts, when it is relayed, then a reference is published in its place and the lane goes on', async () => {
    const { relay, troubles } = startHere({ maxMessageBytes: 100_000 });
    const stream = { tenant: 'acme', streamId: 'large' };
    await store.append(appendOf(stream, 0, [said('small'), said('x'.repeat(300_000)), said('small again')]));
    await untilCaughtUp(relay);
    const listening = await listen();
    await listening.distinct(3);

    expect(listening.records.map(({ message }) => message.headers?.['ce_dataref']?.toString())).toEqual([
      undefined,
      '/v1/sessions/large/events?after=1&limit=1',
      undefined,
    ]);
    const [, large] = listening.records;
    expect(JSON.parse(large?.message.value?.toString() ?? '')).toEqual({
      reference: '/v1/sessions/large/events?after=1&limit=1',
      bytes: expect.any(Number) as number,
    });
    expect(large?.message.headers).toMatchObject({
      ce_dataschema: Buffer.from('urn:colloquy:event:EventReference:v1'),
      ce_type: Buffer.from('colloquy.MessageAppended.v2'),
    });
    expect(troubles).toEqual([]);
  }, 30_000);

  it('given a topic whose limit was lowered later, when an event exceeds it, then the event does not block its lane', async () => {
    const { relay } = startHere();
    const stream = { tenant: 'acme', streamId: 'large' };
    await store.append(appendOf(stream, 0, [said('small')]));
    await untilCaughtUp(relay);
    const admin = kafka(brokers).admin();
    await admin.alterConfigs({
      validateOnly: false,
      resources: [
        {
          type: ConfigResourceTypes.TOPIC,
          name: topic,
          configEntries: [{ name: 'max.message.bytes', value: '50000' }],
        },
      ],
    });
    await admin.disconnect();
    // The content is random, so that compression does not bring the event below the limit.
    const noise = Buffer.from(Array.from({ length: 200_000 }, () => Math.random() * 256)).toString('base64');
    await store.append(appendOf(stream, 1, [said(noise), said('small again')]));
    await untilCaughtUp(relay, 20_000);
    const listening = await listen();
    await listening.distinct(3);
    expect(offences(listening.records, await logOf(db))).toEqual([]);
  }, 40_000);

  it('given events of a newer node, of a type and a schema version that this code does not know, when relayed, then they are published as they are stored and the lane goes on', async () => {
    const published: number[] = [];
    const failures: unknown[] = [];
    store.telemetry.on('published', ({ events }) => published.push(events));
    store.telemetry.on('failed', ({ error }) => failures.push(error));
    const { relay, troubles } = startHere();
    const stream = { tenant: 'acme', streamId: 'upgraded' };
    const newer = [
      { type: 'MessagePinned', data: { messageId: 'm', by: 'a later release' }, schemaVersion: 1 },
      { ...said('in a later form'), schemaVersion: 7 },
    ];
    const events = [
      { ...said('before'), schemaVersion: 1 },
      ...newer,
      { ...said('after'), schemaVersion: 1 },
    ];
    await store.append(appendOf(stream, 0, events, { events }));
    await untilCaughtUp(relay, 10_000);
    const listening = await listen();
    await listening.distinct(4);
    const header = (name: string) =>
      listening.records.map(({ message }) => message.headers?.[name]?.toString());
    expect(header('ce_type')).toEqual([
      'colloquy.MessageAppended.v2',
      'colloquy.MessagePinned.v1',
      'colloquy.MessageAppended.v7',
      'colloquy.MessageAppended.v2',
    ]);
    expect(header('ce_dataschema').slice(1, 3)).toEqual([
      'urn:colloquy:event:MessagePinned:v1',
      'urn:colloquy:event:MessageAppended:v7',
    ]);
    expect(
      listening.records
        .slice(1, 3)
        .map(({ message }) => JSON.parse(message.value?.toString() ?? '') as unknown),
    ).toEqual(newer.map(({ data }) => data));
    expect(offences(listening.records, await logOf(db))).toEqual([]);
    expect(troubles).toEqual([]);
    expect(failures).toEqual([]);
    expect(published.reduce((sum, count) => sum + count, 0)).toBe(4);
  }, 30_000);

  it('given a topic that is created, then it has the settings asked for', async () => {
    const { relay } = startHere({ partitions: 3, retentionMs: 7_200_000, replication: 1 });
    await new Writers(store, 1).round(1);
    await untilCaughtUp(relay);
    const admin = kafka(brokers).admin();
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] });
    const { resources } = await admin.describeConfigs({
      includeSynonyms: false,
      resources: [
        {
          type: ConfigResourceTypes.TOPIC,
          name: topic,
          configNames: ['cleanup.policy', 'retention.ms', 'max.message.bytes'],
        },
      ],
    });
    await admin.disconnect();
    expect(topics[0]?.partitions).toHaveLength(3);
    expect(
      Object.fromEntries(resources[0]?.configEntries.map((one) => [one.configName, one.configValue]) ?? []),
    ).toEqual({ 'cleanup.policy': 'delete', 'retention.ms': '7200000', 'max.message.bytes': '1048576' });
  }, 30_000);

  it('given a topic with another number of partitions than was published to, when the relay starts, then it stops and says so', async () => {
    const first = startHere();
    await new Writers(store, 1).round(1);
    await untilCaughtUp(first.relay);
    for (const end of ends.splice(0)) await end();
    const admin = kafka(brokers).admin();
    await admin.createPartitions({ topicPartitions: [{ topic, count: 8 }] });
    await admin.disconnect();

    const { relay, troubles } = startHere();
    await new Writers(store, 1, 'other').round(1);
    await sleep(2_000);
    expect(troubles).toEqual([
      expect.stringMatching(/^for good: the topic .* has 8 partitions, .* to 4 so far/),
    ]);
    expect(relay.problem).toMatch(/has 8 partitions/);
    expect((await relay.lag()).behind).toBe(1);
  }, 30_000);

  it('given a topic that was deleted, when the relay notices, then it creates the topic again and publishes from the first event on', async () => {
    const first = startHere();
    await new Writers(store, 10).round(2);
    await untilCaughtUp(first.relay);
    for (const end of ends.splice(0)) await end();
    const admin = kafka(brokers).admin();
    await admin.deleteTopics({ topics: [topic] });
    await admin.disconnect();

    const { relay } = startHere({ partitions: 8 });
    await sleep(1_000);
    await untilCaughtUp(relay);
    const listening = await listen();
    await listening.distinct(20);
    expect(offences(listening.records, await logOf(db))).toEqual([]);
  }, 30_000);

  it('given a topic with events that the log has lost, when the relay starts, then it publishes nothing and says what to do', async () => {
    const first = startHere();
    await new Writers(store, 10).round(2);
    await untilCaughtUp(first.relay);
    const restored = await createTestDatabase();
    ends.unshift(() => restored.drop());
    const log = await openStore(restored.url);
    ends.unshift(() => log.close());
    const connections = createPool(restored.url, 'relay');
    ends.unshift(() => connections.end());
    // It has gone on otherwise: the same sessions have other events.
    await new Writers(log, 10).round(3);

    const troubles: string[] = [];
    const leases = log.leases(randomUUID());
    ends.push(() => leases.close());
    const relay = new Relay(log, connections, leases, {
      ...optionsHere(),
      onTrouble: ({ message }, forGood) => troubles.push(`${forGood ? 'for good: ' : ''}${message}`),
    });
    relay.start();
    ends.push(() => relay.stop());
    while (troubles.length === 0) await sleep(50);
    expect(troubles).toEqual([
      expect.stringMatching(/^for good: .* has events that this log has not and never had: .*anew/),
    ]);
    expect((await relay.lag()).behind).toBe(30);
    const listening = await listen();
    await listening.distinct(20);
    expect(offences(listening.records, await logOf(db))).toEqual([]);
  }, 60_000);

  it('given lost events behind which the topic has others that the log has, when the relay starts on another database, then it publishes nothing either', async () => {
    const first = startHere();
    await new Writers(store, 10).round(1);
    await untilCaughtUp(first.relay);
    const producer = kafka(brokers).producer();
    await producer.connect();
    const headers = {
      ce_id: randomUUID(),
      ce_lane: '1',
      ce_position: '1000',
      ce_time: '2026-11-29T10:00:00.000Z',
    };
    await producer.send({ topic, messages: [{ partition: 1, key: 't/lost', value: '{}', headers }] });
    await producer.disconnect();
    await new Writers(store, 40, 'later').round(1);
    await untilCaughtUp(first.relay);
    for (const end of ends.splice(0)) await end();
    await db.query(`update relay_topic set database = 'before the failover'`);

    const { troubles } = startHere();
    while (troubles.length === 0) await sleep(50);
    expect(troubles).toEqual([
      expect.stringMatching(
        /^for good: .* has events that this log has not and never had: 1 of the newest, .*2026-11-29T10/,
      ),
    ]);
  }, 60_000);

  it('given a database that has become another one without a loss, when the relay starts, then it goes on where it was', async () => {
    const first = startHere();
    await new Writers(store, 10).round(2);
    await untilCaughtUp(first.relay);
    for (const end of ends.splice(0)) await end();
    await db.query(`update relay_topic set database = 'before the failover'`);
    await new Writers(store, 10, 'later').round(1);

    const { relay, troubles } = startHere();
    await untilCaughtUp(relay);
    expect(troubles).toEqual([]);
    const listening = await listen();
    await listening.distinct(30);
    expect(listening.records).toHaveLength(30);
    expect(offences(listening.records, await logOf(db))).toEqual([]);
    expect(
      await db.query(`select from relay_topic where database ~ '^[0-9]+/[0-9A-F]{8}/[0-9]+$'`),
    ).toHaveLength(1);
  }, 60_000);

  heavy(
    'given large events in a long row, when catching up, then memory stays bounded',
    async () => {
      const content = 'x'.repeat(200_000);
      for (let n = 0; n < sized(2_000, 300); n += 20) {
        const events = Array.from({ length: 20 }, () => said(content));
        await store.append(appendOf({ tenant: 'acme', streamId: 'long' }, n, events));
      }
      let largest = 0;
      const watch = setInterval(() => {
        largest = Math.max(largest, process.memoryUsage().rss);
      }, 10);
      const before = process.memoryUsage().rss;
      const { relay } = startHere();
      await untilCaughtUp(relay, 120_000);
      clearInterval(watch);
      expect((largest - before) / 1024 / 1024).toBeLessThan(200);
    },
    180_000,
  );
});

async function consoleConsumer(
  brokers: string,
  topic: string,
  count: number,
): Promise<{ key: string; version: number }[]> {
  const run = promisify(execFile);
  const script = join(__dirname, '../../../scripts/kafka.mjs');
  const { stdout: classpath } = await run(process.execPath, [script, '--classpath']);
  const { stdout } = await run(
    'java',
    [
      ...['-cp', classpath.trim(), 'org.apache.kafka.tools.consumer.ConsoleConsumer'],
      ...['--bootstrap-server', brokers, '--topic', topic, '--from-beginning'],
      ...['--max-messages', String(count), '--timeout-ms', '60000'],
      ...[
        '--property',
        'print.key=true',
        '--property',
        'print.headers=true',
        '--property',
        'print.value=false',
      ],
    ],
    { maxBuffer: 1024 * 1024 * 1024 },
  );
  return stdout
    .split('\n')
    .filter((line) => line.includes('ce_id:'))
    .map((line) => {
      const [headers = '', key = ''] = line.split('\t');
      return { key, version: Number(/ce_sessionversion:(\d+)/.exec(headers)?.[1]) };
    });
}
