import { setTimeout as sleep } from 'node:timers/promises';
import { applyRecords, type PageLimits } from './apply-records.js';
import { type ConsumedEvent, type UnknownEvent } from './contract.js';
import { type EventApi } from './event-api.js';
import { type Batch, follow, type Following, type IncomingMessage } from './group-member.js';
import { type KafkaSettings } from './kafka-connection.js';
import { type Places } from './places.js';

/** Records after which their offset is reported as done. */
const CHUNK = 500;
const PAGE: PageLimits = { events: 500, bytes: 4 * 1024 * 1024 };
const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 30_000;
/** Far below the session timeout, after which the group takes a member for dead. */
const BEAT_MS = 3_000;

export interface ConsumeOptions<Tx> {
  readonly kafka: KafkaSettings;
  /** Consumers of one group share the partitions. */
  readonly groupId: string;
  /** Default `colloquy.session-events`. */
  readonly topic?: string;
  /** Where the last version of each session is kept: `postgresPlaces` or `memoryPlaces`. */
  readonly places: Places<Tx>;
  /**
   * The effect of events that are new, each session's in order. What it does through `tx` is stored together with the
   * consumer's place: exactly once. What it does elsewhere may happen again. If it throws, the same events come again,
   * after a pause, and nothing behind them in their partition is applied until it succeeds.
   */
  readonly apply: (events: readonly (ConsumedEvent | UnknownEvent)[], tx: Tx) => Promise<void>;
  /** The Colloquy service: events that are missing on the topic, or too large for it, are fetched there. */
  readonly api?: EventApi;
  /**
   * How much `apply` gets at once, at most; a gap of any size comes in pages of this size. Default 500 events and 4 MiB
   * of data; one event that is larger comes alone.
   */
  readonly page?: Partial<PageLimits>;
  /** Partitions that are processed at the same time. Default 1. */
  readonly concurrency?: number;
  /** Milliseconds that the brokers may wait for more events before they answer. Default 5 000. */
  readonly maxWaitMs?: number;
  /** Told of every error, all of which lead to another try. Default: `console.error`. */
  readonly onError?: (error: unknown) => void;
}

export interface Consumer {
  /** Waits for the page that is being applied, then leaves the group. */
  stop(): Promise<void>;
}

/**
 * Consumes session events with an effect that happens exactly once. The last version of each session is kept together
 * with the effect: records up to it are dropped, the next one is applied, and before one beyond that the missing events
 * are fetched from the service. Offsets are committed after the effect. Rebalances, restarts, and brokers that come and
 * go are survived.
 */
export function consume<Tx>(options: ConsumeOptions<Tx>): Consumer {
  const onError =
    options.onError ??
    ((error: unknown) => {
      console.error('consuming session events:', error);
    });
  const page = { ...PAGE, ...options.page };
  const stopping = new AbortController();
  const following: Following = follow(options.kafka, {
    topic: options.topic ?? 'colloquy.session-events',
    groupId: options.groupId,
    concurrency: options.concurrency ?? 1,
    maxWaitMs: options.maxWaitMs ?? 5_000,
    onError,
    process: async (batch) => {
      for (let start = 0; start < batch.messages.length; start += CHUNK) {
        const chunk = batch.messages.slice(start, start + CHUNK);
        const last = chunk.at(-1);
        if (!last || !(await persist(batch, chunk))) return;
        batch.done(last);
        await batch.beat();
      }
    },
  });

  /** Tries until the effect is stored; false when another member has the partition, or the consumer stops. */
  async function persist(batch: Batch, chunk: readonly IncomingMessage[]): Promise<boolean> {
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(LONGEST_PAUSE_MS, pauseMs * 2)) {
      if (!batch.isOurs()) return false;
      try {
        return await whileBeating(batch, onError, () =>
          applyRecords({ ...options, page, isOurs: () => batch.isOurs() }, chunk),
        );
      } catch (error) {
        onError(error);
      }
      const until = Date.now() + pauseMs * (0.5 + Math.random());
      while (Date.now() < until && batch.isOurs()) {
        await batch.beat();
        await sleep(Math.min(BEAT_MS, Math.max(1, until - Date.now())), undefined, {
          signal: stopping.signal,
          // It fails only when `stop` cuts the pause short.
        }).catch(() => undefined);
        if (stopping.signal.aborted) return false;
      }
    }
  }

  return {
    stop: () => {
      stopping.abort();
      return following.stop();
    },
  };
}

/**
 * Runs `work` with heartbeats. One that fails means that the group goes on without this member, which `isOurs` tells.
 */
async function whileBeating<T>(
  batch: Batch,
  onError: (error: unknown) => void,
  work: () => Promise<T>,
): Promise<T> {
  const timer = setInterval(() => {
    batch.beat().catch(onError);
  }, BEAT_MS);
  try {
    return await work();
  } finally {
    clearInterval(timer);
  }
}
