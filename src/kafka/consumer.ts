import { setTimeout as sleep } from 'node:timers/promises';
import { applyRecords, type PageLimits, type TruncatedSession } from './apply-records.js';
import { type ConsumedEvent, type UnknownEvent } from './contract.js';
import { type EventApi } from './event-api.js';
import { type Batch, follow, type Following, type IncomingMessage } from './group-member.js';
import { type KafkaSettings } from './kafka-connection.js';
import { type KeyApi, KeyRing } from './key-ring.js';
import { type Places } from './places.js';

/** Number of records that are applied before their offset is reported as done. */
const CHUNK_SIZE = 500;
const DEFAULT_PAGE: PageLimits = { events: 500, bytes: 4 * 1024 * 1024 };
const FIRST_PAUSE_MS = 200;
const MAX_PAUSE_MS = 30_000;
/** Milliseconds between heartbeats: far below the session timeout, after which the group considers a member dead. */
const HEARTBEAT_MS = 3_000;

export interface ConsumeOptions<Tx> {
  readonly kafka: KafkaSettings;
  /** Consumers of one group share the partitions. */
  readonly groupId: string;
  /** Default `colloquy.session-events`. */
  readonly topic?: string;
  /** Where the last version of each session is kept: `postgresPlaces` or `memoryPlaces`. */
  readonly places: Places<Tx>;
  /**
   * Applies new events, those of each session in order. What `apply` does through `tx` is stored together with the
   * consumer's place, so it happens exactly once. What it does elsewhere may happen again. If it throws, the same
   * events come again after a pause, and no later event of their partition is applied until it succeeds.
   */
  readonly apply: (events: readonly (ConsumedEvent | UnknownEvent)[], tx: Tx) => Promise<void>;
  /**
   * Undoes the effect of events that are gone, behind the version that is kept of each session: after the failover to a
   * standby that lacked them, or a restore, the log goes on without them, and other events come with their versions. It
   * shares the transaction with the place, as `apply` does. Without it their effect stays. Needs `api`.
   */
  readonly truncated?: (sessions: readonly TruncatedSession[], tx: Tx) => Promise<void>;
  /** The Colloquy service, from which events are fetched that are missing on the topic or too large for it. */
  readonly api?: EventApi;
  /**
   * The Colloquy service, from which the keys of sealed values are fetched (`kafka.payload: sealed`), with a key of its
   * API that has `audit:read`. Each is kept in memory for at most 60 seconds. While the service is away, nothing of a
   * partition is applied that comes behind a value that cannot be opened. Without it, sealed events come as `unknown`, with
   * `sealed`.
   */
  readonly keys?: KeyApi;
  /**
   * The most that `apply` gets at once; a gap of any size comes in pages of this size. Default 500 events and 4 MiB of
   * data. An event that is larger than a page comes alone.
   */
  readonly page?: Partial<PageLimits>;
  /** Partitions that are processed at the same time. Default 1. */
  readonly concurrency?: number;
  /** Milliseconds that the brokers may wait for more events before they answer. Default 5 000. */
  readonly maxWaitMs?: number;
  /** Called with every error. Each error leads to another attempt. Default: `console.error`. */
  readonly onError?: (error: unknown) => void;
}

export interface Consumer {
  /** Waits for the page that is being applied, then leaves the group. */
  stop(): Promise<void>;
}

/**
 * Consumes session events with an effect that happens exactly once. The last version of each session is kept together
 * with the effect: records up to that version are dropped, the next one is applied, and before a later one the missing
 * events are fetched from the service. Offsets are committed after the effect. The consumer survives rebalances,
 * restarts, and brokers that come and go.
 */
export function consume<Tx>(options: ConsumeOptions<Tx>): Consumer {
  const onError =
    options.onError ??
    ((error: unknown) => {
      console.error('consuming session events:', error);
    });
  const page = { ...DEFAULT_PAGE, ...options.page };
  const keys = options.keys && new KeyRing(options.keys);
  const stopping = new AbortController();
  const following: Following = follow(options.kafka, {
    topic: options.topic ?? 'colloquy.session-events',
    groupId: options.groupId,
    concurrency: options.concurrency ?? 1,
    maxWaitMs: options.maxWaitMs ?? 5_000,
    onError,
    process: async (batch) => {
      for (let start = 0; start < batch.messages.length; start += CHUNK_SIZE) {
        const chunk = batch.messages.slice(start, start + CHUNK_SIZE);
        const last = chunk.at(-1);
        if (!last || !(await persist(batch, chunk))) return;
        batch.done(last);
        await batch.heartbeat();
      }
    },
  });

  /**
   * Retries until the effect is stored. Resolves to false when another member has the partition, or the consumer stops.
   */
  async function persist(batch: Batch, chunk: readonly IncomingMessage[]): Promise<boolean> {
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(MAX_PAUSE_MS, pauseMs * 2)) {
      if (!batch.isOurs()) return false;
      try {
        return await withHeartbeats(batch, onError, () =>
          applyRecords({ ...options, keys, page, isOurs: () => batch.isOurs() }, chunk),
        );
      } catch (error) {
        onError(error);
      }
      const until = Date.now() + pauseMs * (0.5 + Math.random());
      while (Date.now() < until && batch.isOurs()) {
        await batch.heartbeat();
        await sleep(Math.min(HEARTBEAT_MS, Math.max(1, until - Date.now())), undefined, {
          signal: stopping.signal,
          // `sleep` rejects only when `stop` cuts the pause short.
        }).catch(() => undefined);
        if (stopping.signal.aborted) return false;
      }
    }
  }

  return {
    stop: async () => {
      stopping.abort();
      await following.stop();
      keys?.close();
    },
  };
}

/**
 * Sends heartbeats while `work` runs. A failed heartbeat means that the group goes on without this member; `isOurs` is
 * then false, and `work` stops by itself.
 */
async function withHeartbeats<T>(
  batch: Batch,
  onError: (error: unknown) => void,
  work: () => Promise<T>,
): Promise<T> {
  const timer = setInterval(() => {
    batch.heartbeat().catch(onError);
  }, HEARTBEAT_MS);
  try {
    return await work();
  } finally {
    clearInterval(timer);
  }
}
