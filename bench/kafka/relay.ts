import { randomUUID } from 'node:crypto';
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { CompressionTypes, Kafka, logLevel, Partitioners } from 'kafkajs';
import { createPool } from '../../src/database/connection.js';
import { RELAXED } from '../../src/database/server-settings.js';
import { startEmbeddedPostgres } from '../../src/embedded-postgres/embedded-postgres.js';
import { migrate } from '../../src/database/migrate.js';
import { upcast } from '../../src/domain/session.events.js';
import { EventLog } from '../../src/event-store/log.js';
import { toMessage } from '../../src/kafka/contract.js';
import { follow } from '../../src/kafka/group-member.js';
import { type OutgoingMessage } from '../../src/kafka/publisher.js';
import { Relay } from '../../src/kafka/relay.js';
import { TopicAdmin } from '../../src/kafka/topic-admin.js';
import { appendOf } from '../../test/support/append.js';
import { migrations } from '../../src/migrations.js';

/*
 *   node -r ./test/support/typescript-hook.cjs bench/kafka/relay.ts [events]
 *
 * Measures how fast the relay catches up from PostgreSQL to Kafka, in comparison with a bare kafkajs `send` loop of the
 * same messages, which are built beforehand, to the same broker, in turns. Then it measures the time from an
 * acknowledged append to a consumer at 1 000 events a second. Then, with --service <dist/main.js>, it measures the
 * processor time of an idle service with and without Kafka.
 */

const EVENTS = Number(process.argv[2] ?? 100_000);
const SESSIONS = 5_000;
const PARTITIONS = 16;
const ROUNDS = 3;
const topicSettings = { partitions: PARTITIONS, retentionMs: 3_600_000, maxMessageBytes: 8_388_608 };

async function main(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'colloquy-bench-kafka-'));
  chmodSync(folder, 0o755);
  const postgres = await startEmbeddedPostgres({ dataDir: folder });
  const broker = await startBroker();
  const kafka = { brokers: [broker.address] };
  try {
    await migrate(postgres.url, migrations);
    const store = await EventLog.open(postgres.url, { upcast });
    await fill(store);
    const messages = await allMessages(store);

    const bare: number[] = [];
    const relayed: number[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      for (const batch of [500, 1_000]) bare.push(await bareLoop(broker.address, messages, batch));
      relayed.push(await catchUp(store, postgres.url, kafka));
      relayed.push(await catchUp(store, postgres.url, kafka));
    }
    const best = Math.max(...bare);
    console.log(`bare kafkajs send loop: ${list(bare)} messages/s`);
    console.log(`relay catching up:      ${list(relayed)} events/s`);
    console.log(
      `best of each: ${(Math.max(...relayed) / best).toFixed(2)}; medians: ${(median(relayed) / median(bare)).toFixed(2)}`,
    );

    await latency(store, postgres.url, kafka);
    // The idle service gets a database of its own, so that it has nothing to catch up with.
    await store.pool.query('create database idle');
    await store.close();
    const empty = new URL(postgres.url);
    empty.pathname = '/idle';
    const service = process.argv[process.argv.indexOf('--service') + 1];
    if (process.argv.includes('--service') && service !== undefined)
      for (const brokers of ['', broker.address]) await idle(service, empty.href, brokers);
  } finally {
    await broker.stop();
    await postgres.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

async function startBroker(): Promise<{ address: string; stop: () => Promise<void> }> {
  const given = process.env['KAFKA_BROKERS'];
  if (given !== undefined && given !== '') return { address: given, stop: () => Promise.resolve() };
  const child = spawn(process.execPath, [join(__dirname, '../../scripts/kafka.mjs')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  for await (const line of createInterface(child.stdout)) {
    const address = /^KAFKA_BROKERS=(.*)$/.exec(line)?.[1];
    if (address === undefined) continue;
    return {
      address,
      stop: async () => {
        child.kill('SIGTERM');
        await new Promise((resolve) => child.once('exit', resolve));
      },
    };
  }
  throw new Error('the broker did not start');
}

const stream = (index: number) => ({ tenant: 'bench', streamId: `s${index}` });
const message = (n: number) => ({
  type: 'MessageAppended',
  data: {
    messageId: `msg_${n}`,
    role: 'user',
    content: `${n}: ${'what a user may have said, in a sentence or two. '.repeat(4)}`,
    status: 'complete',
  },
});

async function fill(store: EventLog): Promise<void> {
  const each = EVENTS / SESSIONS;
  for (let from = 0; from < SESSIONS; from += 250) {
    await Promise.all(
      Array.from({ length: 250 }, (_, n) =>
        store.append(
          appendOf(
            stream(from + n),
            0,
            Array.from({ length: each }, (_unused, m) => message(m)),
          ),
        ),
      ),
    );
  }
}

/** All messages, in the order in which the relay reads them. */
async function allMessages(store: EventLog): Promise<OutgoingMessage[]> {
  const after = new Map(Array.from({ length: store.laneCount }, (_, lane) => [lane, 0]));
  const messages: OutgoingMessage[] = [];
  for (;;) {
    const events = await store.lanes.read(after, 63);
    if (events.length === 0) return messages;
    for (const event of events) {
      messages.push(toMessage(event, JSON.stringify(event.data), PARTITIONS, 8_388_608));
      after.set(event.lane, event.position);
    }
  }
}

async function bareLoop(
  brokers: string,
  messages: readonly OutgoingMessage[],
  batch: number,
): Promise<number> {
  const topic = `bare-${randomUUID()}`;
  await TopicAdmin.use({ brokers: [brokers] }, (topics) => topics.create({ topic, ...topicSettings }));
  const producer = new Kafka({ brokers: [brokers], logLevel: logLevel.NOTHING }).producer({
    idempotent: true,
    maxInFlightRequests: 1,
    createPartitioner: Partitioners.DefaultPartitioner,
  });
  await producer.connect();
  const began = performance.now();
  for (let from = 0; from < messages.length; from += batch) {
    await producer.send({
      topic,
      messages: messages.slice(from, from + batch),
      acks: -1,
      compression: CompressionTypes.GZIP,
    });
  }
  const rate = (messages.length / (performance.now() - began)) * 1_000;
  await producer.disconnect();
  return rate;
}

async function withRelay<T>(
  store: EventLog,
  url: string,
  kafka: { brokers: string[] },
  topic: string,
  work: (relay: Relay) => Promise<T>,
): Promise<T> {
  const pool = createPool(url, 'relay', { settings: RELAXED });
  const leases = store.leases(randomUUID());
  const relay = new Relay(store, pool, leases, {
    kafka,
    topic,
    ...topicSettings,
    compression: 'gzip',
    onTrouble: (error) => {
      console.error(error);
    },
    onRecovered: () => undefined,
  });
  try {
    return await work(relay);
  } finally {
    await relay.stop();
    await leases.close();
    await pool.end();
  }
}

async function catchUp(store: EventLog, url: string, kafka: { brokers: string[] }): Promise<number> {
  const topic = `relay-${randomUUID()}`;
  await store.pool.query('delete from relay_topic');
  await store.pool.query('update relay_checkpoint set position = 0, epoch = epoch + 1');
  await TopicAdmin.use(kafka, (topics) => topics.create({ topic, ...topicSettings }));
  return withRelay(store, url, kafka, topic, async (relay) => {
    relay.start();
    // The time counts from the first batch, because the bare loop is connected as well before its time counts.
    while ((await relay.lag()).behind >= EVENTS) await sleep(1);
    const { behind } = await relay.lag();
    const began = performance.now();
    // Asking for the lag takes time from the relay, so it is asked rarely.
    while ((await relay.lag()).behind > 0) await sleep(100);
    return (behind / (performance.now() - began)) * 1_000;
  });
}

async function latency(store: EventLog, url: string, kafka: { brokers: string[] }): Promise<void> {
  const topic = `latency-${randomUUID()}`;
  await store.pool.query('delete from relay_topic');
  // Only events that are appended from now on are published.
  await store.pool.query(
    `update relay_checkpoint c set position = e.position, epoch = epoch + 1 from lane_ends() e where e.lane = c.lane`,
  );
  await TopicAdmin.use(kafka, (topics) => topics.create({ topic, ...topicSettings }));
  const acknowledged = new Map<string, number>();
  const arrived = new Map<string, number>();
  const following = follow(kafka, {
    topic,
    groupId: topic,
    concurrency: 1,
    maxWaitMs: 500,
    process: (batch) => {
      const now = performance.now();
      for (const one of batch.messages) {
        arrived.set(`${one.key} ${one.headers['ce_sessionversion'] ?? ''}`, now);
        batch.done(one);
      }
      return Promise.resolve();
    },
    onError: (error) => {
      console.error(error);
    },
  });
  await withRelay(store, url, kafka, topic, async (relay) => {
    relay.start();
    await sleep(5_000);
    const versions = Array.from({ length: 1_000 }, () => 0);
    const began = performance.now();
    const usedBefore = process.cpuUsage();
    const running: Promise<void>[] = [];
    const TOTAL = 20_000;
    for (let n = 0; n < TOTAL;) {
      const due = Math.min(TOTAL, Math.floor(performance.now() - began));
      for (; n < due; n += 1) running.push(appendOne(n % 1_000));
      await sleep(1);
    }
    await Promise.all(running);
    const seconds = (performance.now() - began) / 1_000;
    const used = process.cpuUsage(usedBefore);
    const core = (used.user + used.system) / 10_000 / seconds;
    console.log(
      `appended ${TOTAL} events in ${seconds.toFixed(1)} s; this process (writer, relay, consumer) took ${core.toFixed(0)} % of a core`,
    );
    const deadline = Date.now() + 20_000;
    while (arrived.size < TOTAL && Date.now() < deadline) await sleep(50);

    async function appendOne(index: number): Promise<void> {
      const streamId = `latency${index}`;
      const version = versions[index] ?? 0;
      versions[index] = version + 1;
      await store.append(appendOf({ tenant: 'bench', streamId }, version, [message(version)]));
      acknowledged.set(`bench/${streamId} ${version + 1}`, performance.now());
    }
  });
  await following.stop();
  // The first two seconds warm up and are not counted.
  const took = [...acknowledged].slice(2_000).map(([key, at]) => (arrived.get(key) ?? Infinity) - at);
  took.sort((a, b) => a - b);
  const at = (part: number) => (took[Math.floor(took.length * part)] ?? NaN).toFixed(1);
  console.log(
    `append acknowledged → consumer at 1 000/s: median ${at(0.5)} ms, p99 ${at(0.99)} ms, most ${at(0.9999)} ms`,
  );
}

/** Processor time of a service that has nothing to do. */
async function idle(main: string, url: string, brokers: string): Promise<void> {
  const child = spawn(process.execPath, [main], {
    env: { ...process.env, PORT: '0', DATABASE_URL: url, KAFKA_BROKERS: brokers },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines = createInterface(child.stdout);
  for await (const line of lines) if (line.includes('listening on')) break;
  child.stdout.resume();
  // V8 goes on compiling for about a minute what has run.
  await sleep(60_000);
  const ticks = () => {
    const fields =
      readFileSync(`/proc/${child.pid ?? 0}/stat`, 'utf8')
        .split(') ')[1]
        ?.split(' ') ?? [];
    return Number(fields[11]) + Number(fields[12]);
  };
  const before = ticks();
  await sleep(30_000);
  // Ticks are hundredths of a second.
  console.log(
    `idle service, Kafka ${brokers === '' ? 'off' : 'on'}: ${((ticks() - before) / 30).toFixed(2)} % of a core`,
  );
  child.kill('SIGTERM');
  await new Promise((resolve) => child.once('exit', resolve));
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

const list = (values: readonly number[]) => values.map((value) => Math.round(value)).join(' ');

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
