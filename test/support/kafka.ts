import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  consume,
  type ConsumedEvent,
  type ConsumeOptions,
  type Consumer,
  memoryPlaces,
  type UnknownEvent,
} from '../../src/consumer.js';
import { Kafka, logLevel, type KafkaMessage } from 'kafkajs';
import { describeUnless, freePort } from './programs.js';

const ROOT = join(__dirname, '../..');
const HOOK = join(__dirname, 'typescript-hook.cjs');
const CHILD = join(__dirname, 'kafka-child.ts');

type Found = { readonly brokers: string } | { readonly reason: string };

/**
 * Declares tests that need a real broker: that of KAFKA_BROKERS, else one that scripts/kafka.mjs starts once for a run
 * of Jest, from the released jars or, where there is no Java, from the image. Without a broker the tests are skipped
 * with a message; with REQUIRE_KAFKA=1 they fail.
 */
export function describeWithKafka(name: string, tests: (brokers: string) => void): void {
  const found = findKafka();
  const missing = 'brokers' in found ? undefined : found.reason;
  describeUnless(missing, { what: 'Kafka', variable: 'REQUIRE_KAFKA' }, name, () => {
    tests('brokers' in found ? found.brokers : '');
  });
}

/** This is synchronous, because Jest has to know the tests of a file when it has read the file. */
function findKafka(): Found {
  const given = process.env['KAFKA_BROKERS'];
  if (given !== undefined && given !== '') return { brokers: given };
  // A worker of Jest is a child of the run's main process. A single file runs in the main process itself.
  const owner = process.send === undefined ? process.pid : process.ppid;
  const folder = join(tmpdir(), `colloquy-kafka-run-${owner}`);
  const known = join(folder, 'result');
  const { stdout, stderr } = existsSync(known)
    ? { stdout: readFileSync(known, 'utf8'), stderr: '' }
    : spawnSync(process.execPath, ['-r', HOOK, CHILD, 'broker', folder, String(owner)], {
        encoding: 'utf8',
        timeout: 300_000,
      });
  const [, what, rest = ''] = /^(brokers|none) (.*)$/s.exec(stdout) ?? [];
  if (what === 'brokers') return { brokers: rest };
  return { reason: `${rest}${stderr}`.trim() || 'it did not start' };
}

/** A broker that belongs to one test, which may stop it and start it again with the same port and data. */
export interface OwnBroker {
  readonly brokers: string;
  start(): Promise<void>;
  /** Shuts the broker down in order. Data and port are kept for the next start. */
  stop(): Promise<void>;
  remove(): Promise<void>;
}

/** @param properties returns further settings of the broker, given its port and another free port */
export async function ownBroker(
  properties: (port: number, other: number) => string = () => '',
): Promise<OwnBroker> {
  const [port, other] = [await freePort(), await freePort()];
  const folder = mkdtempSync(join(tmpdir(), 'colloquy-kafka-own-'));
  let child: ChildProcess | undefined;
  const stop = async (): Promise<void> => {
    if (!child) return;
    if (child.exitCode === null) {
      const exit = once(child, 'exit');
      child.kill('SIGTERM');
      await exit;
    }
    child = undefined;
  };
  const start = async (): Promise<void> => {
    const started = spawn(process.execPath, [join(ROOT, 'scripts/kafka.mjs')], {
      env: {
        ...process.env,
        KAFKA_DATA_DIR: folder,
        KAFKA_PORT: String(port),
        KAFKA_PROPERTIES: properties(port, other),
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    child = started;
    for await (const line of createInterface(started.stdout)) if (line.startsWith('KAFKA_BROKERS=')) return;
    throw new Error('the broker did not start');
  };
  await start();
  return {
    brokers: `127.0.0.1:${port}`,
    start,
    stop,
    remove: async () => {
      await stop();
      spawnSync(process.execPath, [join(ROOT, 'scripts/kafka.mjs'), '--remove'], {
        env: { ...process.env, KAFKA_DATA_DIR: folder },
      });
    },
  };
}

/** A node that publishes and does nothing else, in a process of its own. */
export interface RelayProcess {
  signal(signal: NodeJS.Signals): void;
  kill9(): Promise<void>;
  stop(): Promise<void>;
  output(): string;
  /** The owner under which the node holds its leases. */
  readonly owner: string;
}

const relays = new Set<RelayProcess>();

/** Ends the relays that a failed test left running. */
export async function killRelays(): Promise<void> {
  await Promise.all([...relays].map((node) => node.kill9()));
}

/** The last line that a node writes before it begins. */
const OWNER = /^ready (\S+)$/m;

export async function startRelay(url: string, brokers: string, topic: string): Promise<RelayProcess> {
  const child = spawn(process.execPath, ['-r', HOOK, CHILD, 'relay', url, brokers, topic], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  const exit = once(child, 'exit');
  const ready = new Promise<void>((resolve, reject) => {
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      output += chunk;
      if (OWNER.test(output)) resolve();
    });
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => (output += chunk));
    child.once('exit', () => {
      reject(new Error(`the relay ended: ${output}`));
    });
  });
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal);
    await exit;
    relays.delete(node);
  };
  await ready;
  const node: RelayProcess = {
    owner: OWNER.exec(output)?.[1] ?? '',
    signal: (signal) => {
      child.kill(signal);
    },
    kill9: () => end('SIGKILL'),
    stop: () => end('SIGTERM'),
    output: () => output,
  };
  relays.add(node);
  return node;
}

/**
 * Ends the leases of a node that cannot renew them any more, so that a test need not wait until they expire. A node
 * that is only suspended goes on trusting its last check of its leases for a second, which is less than a lease has
 * left at that moment, so the test must suspend it for longer.
 */
export async function endLeases(
  query: (sql: string, params: string[]) => Promise<unknown>,
  { owner }: RelayProcess,
): Promise<void> {
  await query(`update lease set until = colloquy_now() - interval '1 second' where owner = $1`, [owner]);
}

/** By default kafkajs would wait up to 30 s before it tries a broker again that was away for a few seconds. */
const RETRY = { retries: 100, initialRetryTime: 100, maxRetryTime: 500 };

export const kafka = (brokers: string): Kafka =>
  new Kafka({ brokers: brokers.split(','), logLevel: logLevel.NOTHING, retry: RETRY });

/** An independent consumer, which collects everything that is on the topic, in the order of each partition. */
export interface Tap {
  readonly records: readonly TapRecord[];
  /** Resolves once the topic holds `count` different events. */
  distinct(count: number, limitMs?: number): Promise<void>;
  stop(): Promise<void>;
}

export interface TapRecord {
  readonly partition: number;
  readonly message: KafkaMessage;
  readonly id: string;
  readonly key: string;
  readonly version: number;
  /** `Date.now()` */
  readonly at: number;
}

const header = (message: KafkaMessage, name: string): string => message.headers?.[name]?.toString() ?? '';

export async function tap(brokers: string, topic: string): Promise<Tap> {
  const client = kafka(brokers);
  const consumer = client.consumer({
    groupId: `tap-${topic}-${Math.random()}`,
    maxWaitTimeInMs: 100,
    maxBytes: 20_000_000,
  });
  const admin = client.admin();
  await admin.connect();
  // The relay that publishes first creates the topic.
  while (!(await admin.listTopics()).includes(topic))
    await new Promise((resolve) => setTimeout(resolve, 100));
  await admin.disconnect();
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: true });
  const records: TapRecord[] = [];
  const ids = new Set<string>();
  await consumer.run({
    eachBatch: ({ batch }) => {
      for (const message of batch.messages) {
        const id = header(message, 'ce_id');
        ids.add(id);
        records.push({
          partition: batch.partition,
          message,
          id,
          key: message.key?.toString() ?? '',
          version: Number(header(message, 'ce_sessionversion')),
          at: Date.now(),
        });
      }
      return Promise.resolve();
    },
  });
  return {
    records,
    distinct: async (count, limitMs = 60_000) => {
      const deadline = Date.now() + limitMs;
      while (ids.size < count) {
        if (Date.now() > deadline)
          throw new Error(`${ids.size} of ${count} events are on the topic after ${limitMs} ms`);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    },
    stop: () => consumer.disconnect(),
  };
}

/** A consumer as a program has one, with its places in memory, which tells each event that takes effect. */
export const listen = (
  brokers: string,
  topic: string,
  hear: (event: ConsumedEvent | UnknownEvent) => void,
  more: Partial<ConsumeOptions<undefined>> = {},
): Consumer =>
  consume({
    kafka: { brokers: brokers.split(',') },
    groupId: topic,
    topic,
    places: memoryPlaces(),
    maxWaitMs: 100,
    apply: (events) => {
      for (const event of events) hear(event);
      return Promise.resolve();
    },
    onError: () => undefined,
    ...more,
  });

/** Checks what must be true of the topic at any time, and returns a description of each violation. */
export function offences(
  records: readonly TapRecord[],
  log: ReadonlyMap<string, readonly string[]>,
): string[] {
  const last = new Map<string, number>();
  const partitions = new Map<string, number>();
  const found: string[] = [];
  for (const { key, version, id, partition } of records) {
    if (log.get(key)?.[version - 1] !== id)
      found.push(`${key} ${version} on the topic is not that of the log`);
    if ((partitions.get(key) ?? partition) !== partition) found.push(`${key} is in two partitions`);
    partitions.set(key, partition);
    const seen = last.get(key) ?? 0;
    if (version > seen + 1) found.push(`${key}: version ${version} came for the first time after ${seen}`);
    if (version === seen + 1) last.set(key, version);
  }
  for (const [key, ids] of log)
    if (last.get(key) !== ids.length) found.push(`${key}: ${last.get(key) ?? 0} of ${ids.length} versions`);
  return found;
}

/**
 * Resolves once every partition of a new topic answers. A broker names the leader of a partition a moment before that
 * leader knows it, and until then refuses what is sent there.
 */
export async function hasLeaders(brokers: readonly string[], topic: string): Promise<void> {
  const admin = kafka(brokers.join(',')).admin();
  await admin.connect();
  try {
    for (const deadline = Date.now() + 30_000; ;) {
      const asked = await admin.fetchTopicOffsets(topic).catch((error: unknown) => {
        if (Date.now() > deadline) throw error;
        return undefined;
      });
      if (asked) return;
      await sleep(100);
    }
  } finally {
    await admin.disconnect();
  }
}
