import { type Pool } from 'pg';
import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
import { type EventLog } from '../event-store/log.js';
import { type KafkaSettings } from './kafka-connection.js';
import { isTooLarge, lengthOf, Publisher } from './publisher.js';
import { RelayCheckpoints } from './relay-checkpoints.js';
import { Fenced, type RelayBatch, RelayReader } from './relay-reader.js';
import { type NewTopic } from './topic-admin.js';
import { settleTopic, TopicMismatch } from './topic-settlement.js';

/** The name under which the nodes share the lanes among themselves. */
const WORK = 'relay';
const FIRST_PAUSE_MS = 200;
const MAX_PAUSE_MS = 5_000;
/** Pause after another node has taken a lane, so that a node whose lease renewals fail does not retry without end. */
const FENCED_PAUSE_MS = 200;
const STOP_LIMIT_MS = 5_000;
/** Bytes below which the limit of a message is never lowered, because references in place of data must fit. */
const MIN_MAX_BYTES = 16_384;

export interface RelayOptions extends NewTopic {
  /** The name of the cell whose log is published, unless it is the first: all cells publish to one topic. */
  readonly cell?: string | undefined;
  readonly kafka: KafkaSettings;
  readonly compression: 'gzip' | 'none';
  /** `sealed`: what is sealed in the log is published sealed. Default `plain`: it is opened first. */
  readonly payload?: 'plain' | 'sealed' | undefined;
  /**
   * Called once per outage, not for each retry. With `forGood` the relay has stopped, and the error says what an
   * operator has to do. Every single failure is reported to the telemetry of the log.
   */
  readonly onTrouble: (error: Error, forGood: boolean) => void;
  /** Called when publishing works again after an outage. */
  readonly onRecovered: () => void;
}

export interface RelayLag {
  /** Events of the log that the brokers have not acknowledged yet. */
  readonly behind: number;
  /** The same for each lane, by lane number. */
  readonly lanes: readonly number[];
}

/**
 * Publishes the log to Kafka. The log itself is the outbox: appends write nothing else for it.
 *
 * Each lane belongs to one node at a time and is read in order from its checkpoint, which moves only after the brokers
 * have acknowledged everything up to it. Whatever fails, every event therefore reaches the topic at least once. A
 * repetition begins with events that are on the topic already and ends with new ones, so first deliveries keep their
 * order.
 */
export class Relay {
  /** A node that publishes nothing takes part in nothing: lanes that it held would be published by nobody. */
  private share: LaneShare | undefined;
  private readonly checkpoints: RelayCheckpoints;
  private readonly reader: RelayReader;
  /** Ends the wait for new events. During a pause before a retry, it ends the pause only when the relay stops. */
  private wakeUp = (): void => undefined;
  private unsubscribe: (() => void) | undefined;
  private running: Promise<void> | undefined;
  private stopped = false;
  private trouble: Error | undefined;
  private connected = false;
  private pauseMs = FIRST_PAUSE_MS;
  /** The largest message that is sent with its data. */
  private maxBytes = 0;
  /** Lowered when the brokers refuse a batch that the topic's settings allow. */
  private acceptedBytes = Infinity;

  constructor(
    private readonly store: EventLog,
    pool: Pool,
    private readonly leases: Leases,
    private readonly options: RelayOptions,
  ) {
    this.checkpoints = new RelayCheckpoints(pool, leases.owner);
    this.reader = new RelayReader({
      lanes: store.lanes,
      checkpoints: this.checkpoints,
      generations: store.generations,
      cell: options.cell,
      leaveSealed: options.payload === 'sealed',
      owned: () => this.share?.owned ?? new Map(),
    });
  }

  /** Returns at once, whether or not a broker can be reached; publishes until `stop`. */
  start(): void {
    this.share = new LaneShare(this.leases, WORK, this.store.laneCount, (lanes) => {
      this.wake(lanes);
    });
    const unsubscribe = this.store.wakeUp.subscribe((lanes) => {
      this.wake(lanes);
    });
    const unsubscribeGenerations = this.store.generations.onNew(() => {
      this.reader.restart();
      this.wakeAll();
    });
    this.unsubscribe = () => {
      unsubscribe();
      unsubscribeGenerations();
    };
    this.running = this.run();
  }

  /** Waits for the batch that is being sent, but only for a few seconds: the next owner may send it again. */
  async stop(): Promise<void> {
    this.stopped = true;
    this.unsubscribe?.();
    this.wakeUp();
    const { promise, cancel } = pause(STOP_LIMIT_MS);
    await Promise.race([this.running, promise]);
    cancel();
  }

  /** Whether the relay was started. It is started when brokers are configured. */
  get isOn(): boolean {
    return this.running !== undefined;
  }

  /** Why nothing is published at the moment, in one line; undefined while publishing works. */
  get problem(): string | undefined {
    if (this.trouble) return this.trouble.message;
    return this.connected || this.stopped ? undefined : 'connecting';
  }

  async lag(): Promise<RelayLag> {
    // Checkpoints are read before ends, so that events that are appended in between make the lag larger and never
    // negative.
    const positions = await this.checkpoints.positions();
    const ends = await this.store.lanes.ends();
    const lanes = ends.map((end, lane) => end - (positions.get(lane) ?? 0));
    return { behind: lanes.reduce((sum, one) => sum + one, 0), lanes };
  }

  /** For how long the oldest event that the brokers have not acknowledged has been in the log, in seconds. */
  async lagSeconds(): Promise<number> {
    return this.store.lanes.lagSeconds(await this.checkpoints.positions());
  }

  /** A method and not a field, because TypeScript assumes that a field is unchanged across an `await`. */
  private isStopping(): boolean {
    return this.stopped;
  }

  private wake(lanes: Iterable<number>): void {
    this.reader.markGrown(lanes);
    this.wakeUp();
  }

  private wakeAll(): void {
    this.wake(Array.from({ length: this.store.laneCount }, (_, lane) => lane));
  }

  /** Connects, publishes until something fails, and begins again after a pause. */
  private async run(): Promise<void> {
    const { kafka, compression } = this.options;
    // A failure is harmless: the next heartbeat of the leases balances the lanes again.
    await this.share?.balance().catch(this.store.telemetry.failed('the first share of lanes of the relay'));
    while (!this.stopped) {
      let publisher: Publisher | undefined;
      try {
        const topic = await settleTopic(kafka, this.options, this.checkpoints, this.store, this.options.cell);
        this.maxBytes = Math.min(topic.maxMessageBytes, this.acceptedBytes);
        this.reader.useTopic({ ...topic, maxMessageBytes: this.maxBytes });
        publisher = await Publisher.connect(kafka, compression);
        await this.publish(publisher);
      } catch (error) {
        if (this.isStopping() || this.recordFailure(error as Error)) return;
        await this.pauseBeforeRetry();
      } finally {
        // A publisher cannot be used again after a failure.
        await publisher?.close();
      }
    }
  }

  /** Publishes batch after batch until the relay stops. @throws whatever makes it necessary to connect anew */
  private async publish(publisher: Publisher): Promise<void> {
    const { current: generation } = this.store.generations;
    this.reader.restart();
    this.wakeAll();
    let next = this.reader.next();
    for (;;) {
      const batch = await next;
      // Another log has to be compared with the topic before anything of it is published.
      if (this.stopped || this.store.generations.current !== generation) return;
      if (!batch) {
        // The brokers were reached and there is nothing to send, which ends an outage as well.
        this.recordSuccess();
        await this.untilGrown();
        next = this.reader.next();
        continue;
      }
      // The next batch is read while this one is sent, so that the brokers need not wait for the database.
      next = this.reader.next();
      // `next` is awaited in the next iteration or below. Without this handler, Node would end the process because of
      // an error before that.
      next.catch(() => undefined);
      try {
        await this.send(publisher, batch);
        this.recordSuccess();
      } catch (error) {
        await next.catch(this.store.telemetry.failed('reading the next batch of the relay'));
        if (!(error instanceof Fenced)) throw error;
        this.store.telemetry.emit('fenced', { work: WORK });
        this.reader.restart();
        await pause(FENCED_PAUSE_MS).promise;
        this.wakeAll();
        next = this.reader.next();
      }
    }
  }

  private async send(publisher: Publisher, batch: RelayBatch): Promise<void> {
    await this.reader.ensureClaims(batch);
    const begun = performance.now();
    if (batch.messages.length > 0) {
      await publisher.send(this.options.topic, batch.messages);
      this.store.telemetry.emit('published', {
        topic: this.options.topic,
        events: batch.messages.length,
        bytes: lengthOf(batch.messages),
        ms: performance.now() - begun,
        causes: () => batch.messages.map(({ headers }) => headers['ce_correlationid'] ?? ''),
      });
    }
    if (!(await this.checkpoints.move(batch.moves))) throw new Fenced();
  }

  private recordSuccess(): void {
    this.pauseMs = FIRST_PAUSE_MS;
    // Not earlier: until the first batch is there, nobody has been told of events that are gone.
    this.connected = true;
    if (!this.trouble) return;
    this.trouble = undefined;
    this.options.onRecovered();
  }

  /** @returns true when the relay must not try again */
  private recordFailure(error: Error): boolean {
    this.reader.restart();
    this.connected = false;
    const forGood = error instanceof TopicMismatch;
    if (isTooLarge(error)) this.acceptedBytes = Math.max(MIN_MAX_BYTES, Math.floor(this.maxBytes / 2));
    this.store.telemetry.emit('failed', { what: 'publishing to Kafka', error });
    if (!this.trouble || forGood) this.options.onTrouble(error, forGood);
    this.trouble = error;
    return forGood;
  }

  private async pauseBeforeRetry(): Promise<void> {
    // Random, so that nodes which lost the same broker at the same moment do not all reconnect at the same moment.
    const { promise, cancel } = pause(this.pauseMs * (0.5 + Math.random()));
    this.pauseMs = Math.min(MAX_PAUSE_MS, this.pauseMs * 2);
    const interrupted = new Promise<void>((resolve) => {
      this.wakeUp = () => {
        if (this.stopped) resolve();
      };
    });
    await Promise.race([promise, interrupted]);
    cancel();
  }

  /** Resolves once a lane may hold more events, or the relay stops. */
  private async untilGrown(): Promise<void> {
    if (this.reader.hasMore || this.stopped) return;
    await new Promise<void>((resolve) => {
      this.wakeUp = resolve;
    });
    this.wakeUp = () => undefined;
  }
}

function pause(ms: number): { promise: Promise<void>; cancel: () => void } {
  let cancel = (): void => undefined;
  const promise = new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, ms).unref();
    cancel = () => {
      clearTimeout(timer);
      resolve();
    };
  });
  return { promise, cancel };
}
