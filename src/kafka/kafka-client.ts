import { createRequire } from 'node:module';
import { connect as connectPlain, isIP } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect as connectTls } from 'node:tls';
import type * as KafkaJs from 'kafkajs';
import type {
  Admin,
  ISocketFactory,
  Kafka,
  KafkaConfig,
  KafkaMessage as RawMessage,
  Producer,
} from 'kafkajs';

/*
 * All that this service knows of kafkajs. The package is no longer maintained, so whoever replaces it should have one
 * file to write anew. Its traps, each handled below: an idle client that spins, retries that outlive a lease, a failed
 * producer that loses messages, topics made by accident, consumers that stop without a word.
 */

/** How to reach the brokers. */
export interface KafkaSettings {
  /** `host:port` each. */
  readonly brokers: readonly string[];
  /** Shown in the brokers' logs and quotas. Default `colloquy`. */
  readonly clientId?: string | undefined;
  /** `true` for the system's certificate authorities, or PEM texts as in `tls.connect`. */
  readonly ssl?:
    | boolean
    | {
        readonly ca?: string | undefined;
        readonly cert?: string | undefined;
        readonly key?: string | undefined;
        readonly servername?: string | undefined;
        readonly rejectUnauthorized?: boolean | undefined;
      }
    | undefined;
  readonly sasl?:
    | {
        readonly mechanism: 'plain' | 'scram-sha-256' | 'scram-sha-512';
        readonly username: string;
        readonly password: string;
      }
    | undefined;
}

export interface OutgoingMessage {
  readonly key: string;
  readonly value: string;
  readonly partition: number;
  readonly headers: Readonly<Record<string, string>>;
}

export interface IncomingMessage {
  readonly offset: string;
  readonly key: string;
  readonly value: Buffer | null;
  /** The first value of each header. */
  readonly headers: Readonly<Record<string, string>>;
}

export interface NewTopic {
  readonly topic: string;
  readonly partitions: number;
  /** What the brokers are set to, unless given. */
  readonly replication?: number | undefined;
  readonly retentionMs: number;
  readonly maxMessageBytes: number;
}

export interface FoundTopic {
  readonly partitions: number;
  /** What the topic takes as one batch. */
  readonly maxMessageBytes: number;
}

const CONNECTION_TIMEOUT_MS = 3_000;
/** Shorter than kafkajs' own 30 s: a broker that stopped answering is as good as gone. */
const REQUEST_TIMEOUT_MS = 10_000;
/** Brokers take a batch of this size when nobody has set anything. */
const DEFAULT_MAX_MESSAGE_BYTES = 1_048_588;
/** A few small messages, spread over partitions and compressed one by one, take more time than they save bytes. */
const WORTH_COMPRESSING = 16_384;
/** `disconnect` waits for requests that may never be answered. */
const DISCONNECT_LIMIT_MS = 2_000;

let loaded: typeof KafkaJs | undefined;

/** Loaded at first use: a service without brokers carries nothing of it. */
function kafkajs(): typeof KafkaJs {
  if (loaded) return loaded;
  const require = createRequire(__filename);
  loaded = require('kafkajs') as typeof KafkaJs;
  // An idle client re-arms a timer of 1 ms for ever, which takes 2.7 % of a core, and from Node 24 on warns of
  // negative timeouts (tulios/kafkajs#1751). There is nothing to check while nothing waits, and whatever is put into
  // the queue later arms the timer itself.
  const { prototype } = require('kafkajs/src/network/requestQueue/index.js') as {
    prototype: { scheduleCheckPendingRequests: (this: { readonly pending: readonly unknown[] }) => void };
  };
  const { scheduleCheckPendingRequests: schedule } = prototype;
  prototype.scheduleCheckPendingRequests = function (this: { readonly pending: readonly unknown[] }) {
    if (this.pending.length > 0) schedule.call(this);
  };
  return loaded;
}

/** As kafkajs makes its sockets, but without Nagle's delay: a lone message leaves at once. */
const socketFactory: ISocketFactory = ({ host, port, ssl, onConnect }) => {
  const servername = isIP(host) === 0 ? { servername: host } : {};
  // Typed as always there; it is null or absent without TLS.
  const tls = ssl as typeof ssl | null | undefined;
  const socket = tls
    ? connectTls({ host, port, ...servername, ...tls }, onConnect)
    : connectPlain({ host, port }, onConnect);
  socket.setKeepAlive(true, 60_000);
  socket.setNoDelay(true);
  return socket;
};

function client({ brokers, clientId, ssl, sasl }: KafkaSettings): Kafka {
  const { Kafka, logLevel } = kafkajs();
  return new Kafka({
    brokers: [...brokers],
    clientId: clientId ?? 'colloquy',
    ...(ssl !== undefined && { ssl: ssl === true ? {} : ssl }),
    ...(sasl && { sasl: { ...sasl } as NonNullable<KafkaConfig['sasl']> }),
    connectionTimeout: CONNECTION_TIMEOUT_MS,
    requestTimeout: REQUEST_TIMEOUT_MS,
    // Each try takes the next broker of the list; waiting longer is for the caller, who knows what has changed since.
    retry: { retries: Math.max(2, brokers.length), initialRetryTime: 100, maxRetryTime: 1_000 },
    socketFactory,
    // While a broker is away it would write several lines a second; callers say what matters, once.
    logLevel: logLevel.NOTHING,
    logCreator: () => () => undefined,
  });
}

async function settle(disconnected: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, DISCONNECT_LIMIT_MS);
  });
  await Promise.race([disconnected.catch(() => undefined), limit]);
  clearTimeout(timer);
}

/** What a failed request says about itself, e.g. `MESSAGE_TOO_LARGE`, through the wrappings of kafkajs. */
function typesOf(error: unknown): string[] {
  if (typeof error !== 'object' || error === null) return [];
  const { type, cause, errors } = error as { type?: unknown; cause?: unknown; errors?: unknown };
  return [
    ...(typeof type === 'string' ? [type] : []),
    ...typesOf(cause),
    ...(Array.isArray(errors) ? errors.flatMap(typesOf) : []),
  ];
}

export const isTooLarge = (error: unknown): boolean =>
  typesOf(error).some((type) => ['MESSAGE_TOO_LARGE', 'RECORD_LIST_TOO_LARGE'].includes(type));

/** Topics, looked at and made by hand: no send ever makes one. */
export class TopicAdmin {
  private constructor(private readonly admin: Admin) {}

  static async use<T>(settings: KafkaSettings, work: (topics: TopicAdmin) => Promise<T>): Promise<T> {
    const admin = client(settings).admin();
    try {
      await admin.connect();
      return await work(new TopicAdmin(admin));
    } finally {
      await settle(admin.disconnect());
    }
  }

  /** @returns undefined when there is no such topic. */
  async find(topic: string): Promise<FoundTopic | undefined> {
    try {
      const { topics } = await this.admin.fetchTopicMetadata({ topics: [topic] });
      const [found] = topics;
      if (!found || found.partitions.length === 0) return undefined;
      return { partitions: found.partitions.length, maxMessageBytes: await this.maxMessageBytes(topic) };
    } catch (error) {
      if (typesOf(error).includes('UNKNOWN_TOPIC_OR_PARTITION')) return undefined;
      throw error;
    }
  }

  /** Does nothing when somebody else was faster. */
  async create({ topic, partitions, replication, retentionMs, maxMessageBytes }: NewTopic): Promise<void> {
    await this.admin.createTopics({
      waitForLeaders: true,
      timeout: REQUEST_TIMEOUT_MS,
      topics: [
        {
          topic,
          numPartitions: partitions,
          replicationFactor: replication ?? -1,
          configEntries: [
            // Never compacted: a late write of a node that lost its lease could replace a newer record for good.
            { name: 'cleanup.policy', value: 'delete' },
            { name: 'retention.ms', value: String(retentionMs) },
            { name: 'max.message.bytes', value: String(maxMessageBytes) },
          ],
        },
      ],
    });
  }

  private async maxMessageBytes(topic: string): Promise<number> {
    try {
      const { resources } = await this.admin.describeConfigs({
        includeSynonyms: false,
        resources: [
          { type: kafkajs().ConfigResourceTypes.TOPIC, name: topic, configNames: ['max.message.bytes'] },
        ],
      });
      const value = Number(resources[0]?.configEntries[0]?.configValue);
      return value > 0 ? value : DEFAULT_MAX_MESSAGE_BYTES;
    } catch (error) {
      // Looking at settings is a right of its own, which a publisher may not have.
      if (typesOf(error).some((type) => type.endsWith('_AUTHORIZATION_FAILED')))
        return DEFAULT_MAX_MESSAGE_BYTES;
      throw error;
    }
  }
}

/**
 * An idempotent producer, one per node. One `send` at a time; after one that failed this object is spent: kafkajs takes
 * the sequence numbers back, the broker may have seen them all the same, and would acknowledge other messages under
 * them as duplicates without storing them.
 */
export class Publisher {
  private inFlight = false;
  private failed = false;

  private constructor(
    private readonly producer: Producer,
    private readonly compression: 'gzip' | 'none',
  ) {}

  static async connect(settings: KafkaSettings, compression: 'gzip' | 'none'): Promise<Publisher> {
    const { Partitioners } = kafkajs();
    const producer = client(settings).producer({
      idempotent: true,
      maxInFlightRequests: 1,
      allowAutoTopicCreation: false,
      // Messages name their partition; named all the same, because the default comes with a warning.
      createPartitioner: Partitioners.DefaultPartitioner,
      // An idempotent producer retries for ever by default, and would publish when its lease is long over. These few
      // tries repeat one batch under its own sequence numbers; more are for who can look at the lease again.
      retry: { retries: 2, initialRetryTime: 100, maxRetryTime: 500 },
    });
    try {
      // A producer whose InitProducerId failed works on without being idempotent: it is thrown away here.
      await producer.connect();
    } catch (error) {
      await settle(producer.disconnect());
      throw error;
    }
    return new Publisher(producer, compression);
  }

  /** Resolves once all in-sync replicas have all messages; on failure any part of them may have been stored. */
  async send(topic: string, messages: readonly OutgoingMessage[]): Promise<void> {
    if (this.inFlight || this.failed)
      throw new Error('a publisher sends one batch at a time, and none after a failure');
    this.inFlight = true;
    const { CompressionTypes } = kafkajs();
    let bytes = 0;
    for (const { value } of messages) bytes += value.length;
    const compressed = this.compression === 'gzip' && bytes > WORTH_COMPRESSING;
    try {
      await this.producer.send({
        topic,
        messages: messages as OutgoingMessage[],
        acks: -1,
        timeout: REQUEST_TIMEOUT_MS,
        compression: compressed ? CompressionTypes.GZIP : CompressionTypes.None,
      });
    } catch (error) {
      this.failed = true;
      throw error;
    } finally {
      this.inFlight = false;
    }
  }

  close(): Promise<void> {
    return settle(this.producer.disconnect());
  }
}

export interface Batch {
  readonly partition: number;
  readonly messages: readonly IncomingMessage[];
  /** False once the partition may be somebody else's: what is not done by then is theirs to do. */
  isOurs(): boolean;
  /** To be called now and then in long work, or the group takes this member for dead; throws when it has. */
  beat(): Promise<void>;
  /** The effect of everything up to this message is stored. */
  done(message: IncomingMessage): void;
}

export interface FollowOptions {
  readonly topic: string;
  readonly groupId: string;
  /** Partitions worked on at the same time. */
  readonly concurrency: number;
  /** How long the brokers may wait for more before they answer. */
  readonly maxWaitMs: number;
  /** May throw: the batch then comes again. */
  readonly process: (batch: Batch) => Promise<void>;
  readonly onError: (error: unknown) => void;
}

export interface Following {
  /** Lets the running batch end, then leaves the group. */
  stop(): Promise<void>;
}

const SESSION_TIMEOUT_MS = 30_000;
/** No sign of life of the consumer's loop for so long, outside of our own work: it has stalled. */
const STALL_MS = 60_000;
const COMMIT_MS = 1_000;
const RESTART_MS = 1_000;

/** Follows a topic as a member of a group, from its beginning, until stopped; mends what breaks. */
export function follow(settings: KafkaSettings, options: FollowOptions): Following {
  const stopping = new AbortController();
  const { signal } = stopping;
  const isStopped = () => signal.aborted;
  const running = (async () => {
    while (!isStopped()) {
      try {
        await consume(settings, options, signal);
      } catch (error) {
        if (isStopped()) return;
        options.onError(error);
        await sleep(RESTART_MS * (0.5 + Math.random()), undefined, { signal }).catch(() => undefined);
      }
    }
  })();
  return {
    stop: async () => {
      stopping.abort();
      await running;
    },
  };
}

/** One life of a consumer: until told to stop, or until it crashes or stalls, which throws. */
async function consume(settings: KafkaSettings, options: FollowOptions, signal: AbortSignal): Promise<void> {
  const consumer = client(settings).consumer({
    groupId: options.groupId,
    allowAutoTopicCreation: false,
    sessionTimeout: SESSION_TIMEOUT_MS,
    maxWaitTimeInMs: options.maxWaitMs,
    // It would restart after some errors and stay down after others; here a new consumer is made after any.
    retry: { retries: 3, restartOnFailure: () => Promise.resolve(false) },
  });
  let seen = performance.now();
  let leaving = false;
  const works = new Set<Promise<void>>();
  // By partition: the next offset, while it is not committed. kafkajs would commit after each partition's batch and
  // wait for it, sixteen times for sixteen partitions, before it looks for more.
  const offsets = new Map<number, string>();
  const commit = async (): Promise<void> => {
    const due = [...offsets].map(([partition, offset]) => ({ topic: options.topic, partition, offset }));
    offsets.clear();
    // What is not committed comes again, and is dropped by its version.
    if (due.length > 0) await consumer.commitOffsets(due).catch(() => undefined);
  };
  const committing = setInterval(() => {
    void commit();
  }, COMMIT_MS);
  let watch: NodeJS.Timeout | undefined;
  let onAbort = (): void => undefined;
  const ended = new Promise<void>((resolve, reject) => {
    onAbort = resolve;
    signal.addEventListener('abort', onAbort);
    if (signal.aborted) resolve();
    consumer.on(consumer.events.CRASH, ({ payload }) => {
      reject(payload.error);
    });
    const { HEARTBEAT, FETCH, GROUP_JOIN } = consumer.events;
    const alive = () => {
      seen = performance.now();
    };
    consumer.on(HEARTBEAT, alive);
    consumer.on(FETCH, alive);
    consumer.on(GROUP_JOIN, () => {
      alive();
      // What was done may be somebody else's by now, who may have come further.
      offsets.clear();
    });
    // After a rebalance a consumer can stall without a word (tulios/kafkajs#659, #1441).
    watch = setInterval(() => {
      if (works.size === 0 && performance.now() - seen > STALL_MS)
        reject(new Error(`the consumer has not fetched for ${STALL_MS / 1_000} s`));
    }, 5_000);
    watch.unref();
  });
  // It may be rejected while we connect.
  ended.catch(() => undefined);
  try {
    await Promise.race([consumer.connect(), ended]);
    // Also when an offset is out of range or forgotten, which resets it silently (tulios/kafkajs#1119): what was
    // there before is told apart by its version, what was skipped would be lost.
    await consumer.subscribe({ topics: [options.topic], fromBeginning: true });
    await consumer.run({
      eachBatchAutoResolve: false,
      autoCommit: false,
      partitionsConsumedConcurrently: options.concurrency,
      eachBatch: async (payload) => {
        const { batch } = payload;
        const work = options.process({
          partition: batch.partition,
          messages: batch.messages.map(incoming),
          isOurs: () => !leaving && payload.isRunning() && !payload.isStale(),
          beat: () => payload.heartbeat(),
          done: ({ offset }) => {
            payload.resolveOffset(offset);
            offsets.set(batch.partition, String(BigInt(offset) + 1n));
          },
        });
        works.add(work);
        try {
          await work;
        } finally {
          works.delete(work);
          seen = performance.now();
        }
      },
    });
    await ended;
  } finally {
    clearInterval(watch);
    clearInterval(committing);
    signal.removeEventListener('abort', onAbort);
    leaving = true;
    // However long it takes: what a batch works with may be closed as soon as we are through.
    await Promise.allSettled(works);
    await settle(commit());
    await settle(consumer.disconnect());
  }
}

function incoming({ offset, key, value, headers = {} }: RawMessage): IncomingMessage {
  const texts: Record<string, string> = {};
  for (const [name, header] of Object.entries(headers)) {
    const first = Array.isArray(header) ? header[0] : header;
    if (first !== undefined) texts[name] = first.toString();
  }
  return { offset, key: key?.toString() ?? '', value, headers: texts };
}
