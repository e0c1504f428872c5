import { setTimeout as sleep } from 'node:timers/promises';
import type { KafkaMessage as RawMessage } from 'kafkajs';
import { disconnected, kafkaClient, type KafkaSettings } from './kafka-connection.js';

export interface IncomingMessage {
  readonly offset: string;
  readonly key: string;
  readonly value: Buffer | null;
  /** The first value of each header. */
  readonly headers: Readonly<Record<string, string>>;
}

export interface Batch {
  readonly partition: number;
  readonly messages: readonly IncomingMessage[];
  /**
   * False once another member of the group may have the partition; that member then processes the rest of the batch.
   */
  isOurs(): boolean;
  /**
   * Must be called during long work: without heartbeats the group gives the partition to another member. Rejects when
   * the group has done so.
   */
  heartbeat(): Promise<void>;
  /** Must be called when the effect of everything up to this message is stored. Its offset is committed later. */
  done(message: IncomingMessage): void;
}

export interface FollowOptions {
  readonly topic: string;
  readonly groupId: string;
  /** Partitions that are processed at the same time. */
  readonly concurrency: number;
  /** Milliseconds that the brokers may wait for more records before they answer. */
  readonly maxWaitMs: number;
  /** When `process` rejects, the batch is delivered again. */
  readonly process: (batch: Batch) => Promise<void>;
  /** Called with every error that no caller gets. */
  readonly onError: (error: unknown) => void;
}

export interface Following {
  /** Waits for the batch that is being processed, then leaves the group. */
  stop(): Promise<void>;
}

const SESSION_TIMEOUT_MS = 30_000;
/**
 * A consumer that neither fetches nor sends heartbeats for so many milliseconds, while it has no batch to process, has
 * stalled.
 */
const STALL_MS = 60_000;
const COMMIT_MS = 1_000;
const RESTART_MS = 1_000;

/** Follows a topic as a member of a group, from its beginning, until stopped. A consumer that breaks is replaced. */
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
        // `sleep` rejects only when `stop` cuts the pause short.
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

/** Runs one consumer until told to stop. @throws the error of a consumer that crashes or stalls */
async function consume(settings: KafkaSettings, options: FollowOptions, signal: AbortSignal): Promise<void> {
  const consumer = kafkaClient(settings).consumer({
    groupId: options.groupId,
    allowAutoTopicCreation: false,
    sessionTimeout: SESSION_TIMEOUT_MS,
    maxWaitTimeInMs: options.maxWaitMs,
    // kafkajs would restart after some errors and stay down after others; `follow` makes a new consumer after any.
    retry: { retries: 3, restartOnFailure: () => Promise.resolve(false) },
  });
  let lastSeenAt = performance.now();
  let leaving = false;
  const processing = new Set<Promise<void>>();
  // By partition: the next offset, as long as it is not committed. By default kafkajs commits after the batch of each
  // partition and waits for that: sixteen times for sixteen partitions before it fetches more.
  const offsets = new Map<number, string>();
  const commit = async (): Promise<void> => {
    const due = [...offsets].map(([partition, offset]) => ({ topic: options.topic, partition, offset }));
    offsets.clear();
    // A failure is harmless: records whose offset was not committed are delivered again, and consumers drop them by
    // their version.
    if (due.length > 0) await consumer.commitOffsets(due).catch(options.onError);
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
      lastSeenAt = performance.now();
    };
    consumer.on(HEARTBEAT, alive);
    consumer.on(FETCH, alive);
    consumer.on(GROUP_JOIN, () => {
      alive();
      // Another member may have these partitions by now and have committed offsets further on.
      offsets.clear();
    });
    // After a rebalance a consumer of kafkajs can stall without any error (tulios/kafkajs#659, #1441).
    watch = setInterval(() => {
      if (processing.size === 0 && performance.now() - lastSeenAt > STALL_MS)
        reject(new Error(`the consumer has not fetched for ${STALL_MS / 1_000} s`));
    }, 5_000);
    watch.unref();
  });
  // `ended` may be rejected before it is awaited below. Without this handler, Node would then end the process.
  ended.catch(() => undefined);
  try {
    await Promise.race([consumer.connect(), ended]);
    // kafkajs silently goes to this place also when an offset is out of range or was forgotten (tulios/kafkajs#1119).
    // From the beginning, records come again and are dropped by their version; from the end, the skipped ones would be
    // lost.
    await consumer.subscribe({ topics: [options.topic], fromBeginning: true });
    await consumer.run({
      eachBatchAutoResolve: false,
      autoCommit: false,
      partitionsConsumedConcurrently: options.concurrency,
      eachBatch: async (payload) => {
        const { batch } = payload;
        const work = options.process({
          partition: batch.partition,
          messages: batch.messages.map(toIncomingMessage),
          isOurs: () => !leaving && payload.isRunning() && !payload.isStale(),
          heartbeat: () => payload.heartbeat(),
          done: ({ offset }) => {
            payload.resolveOffset(offset);
            offsets.set(batch.partition, String(BigInt(offset) + 1n));
          },
        });
        processing.add(work);
        try {
          await work;
        } finally {
          processing.delete(work);
          lastSeenAt = performance.now();
        }
      },
    });
    await ended;
  } finally {
    clearInterval(watch);
    clearInterval(committing);
    signal.removeEventListener('abort', onAbort);
    leaving = true;
    // The wait has no limit, because callers may close what a batch works with as soon as this function returns. An
    // error of a batch has reached kafkajs, which reports it as a crash.
    await Promise.allSettled(processing);
    await disconnected(commit());
    await disconnected(consumer.disconnect());
  }
}

export function toIncomingMessage({ offset, key, value, headers = {} }: RawMessage): IncomingMessage {
  const texts: Record<string, string> = {};
  for (const [name, header] of Object.entries(headers)) {
    const first = Array.isArray(header) ? header[0] : header;
    if (first !== undefined) texts[name] = first.toString();
  }
  return { offset, key: key?.toString() ?? '', value, headers: texts };
}
