import { type Pool } from 'pg';
import { available } from '../database/connection.js';
import { type EventLog } from '../event-store/log.js';
import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
import { currentJson, toMessage } from './contract.js';
import {
  type FoundTopic,
  isTooLarge,
  type KafkaSettings,
  type NewTopic,
  type OutgoingMessage,
  Publisher,
  TopicAdmin,
} from './kafka-client.js';

const WORK = 'relay';
/** Events per send while there is more than that to catch up with. */
const BATCH = 2_000;
/** Events per send otherwise: so few that nobody has to ask for their sizes first. */
const SMALL_BATCH = 64;
const BATCH_BYTES = 2 * 1024 * 1024;
/** So long a look at the lease is good for; far less than what the lease then still has to run. */
const FRESH_MS = 1_000;
const MARGIN_MS = 2_000;
const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 5_000;
/** After a lost lease, so that a node whose renewals fail does not spin. */
const FENCED_PAUSE_MS = 200;
const STOP_LIMIT_MS = 5_000;
const SMALLEST_MAX_BYTES = 16_384;

export interface RelayOptions extends NewTopic {
  readonly kafka: KafkaSettings;
  readonly compression: 'gzip' | 'none';
  /** Told once per outage, not at each try. `forGood` = the relay has stopped; the error says what to do. */
  readonly onTrouble: (error: Error, forGood: boolean) => void;
  /** Publishing again after trouble. */
  readonly onRecovered: () => void;
}

export interface RelayLag {
  /** Events of the log that the brokers have not acknowledged yet. */
  readonly behind: number;
  /** The same by lane number. */
  readonly lanes: readonly number[];
}

/** What it published to is not what it finds: going on could break the order of a session. */
class TopicMismatch extends Error {}
/** Another node has a lane that this one took for its own. */
class Fenced extends Error {}

interface Cursor {
  /** Of the claim of the lane, in the checkpoint. */
  readonly epoch: number;
  /** Of the lease under which it was claimed. */
  readonly leaseEpoch: number;
  /** Last position read. */
  position: number;
}

interface Reading {
  readonly messages: readonly OutgoingMessage[];
  /** By lane: the claim under which it was read, and the checkpoint before and after. */
  readonly moves: ReadonlyMap<number, { readonly epoch: number; readonly from: number; readonly to: number }>;
}

/**
 * Publishes the log to Kafka: the log is the outbox, and nothing else is ever written for it.
 *
 * Each lane has one owner among the nodes and is read in order from its checkpoint, which moves only after the brokers
 * have acknowledged all that stands before it. So whatever dies, every event is on the topic at least once, and what
 * is sent again is a stretch that ends further on: first deliveries keep their order.
 */
export class Relay {
  private readonly share: LaneShare;
  private readonly cursors = new Map<number, Cursor>();
  private readonly dirty = new Set<number>();
  private wakeUp = (): void => undefined;
  private unsubscribe: (() => void) | undefined;
  private running: Promise<void> | undefined;
  private stopped = false;
  private trouble: Error | undefined;
  private connected = false;
  private catchingUp = false;
  private partitions = 0;
  private maxBytes = 0;
  private tooLarge = Infinity;
  /** When the lease of all that is claimed was last seen to stand. */
  private confirmedAt = -Infinity;

  constructor(
    private readonly store: EventLog,
    private readonly pool: Pool,
    private readonly leases: Leases,
    private readonly options: RelayOptions,
  ) {
    this.share = new LaneShare(leases, WORK, store.laneCount, (lanes) => {
      this.wake(lanes);
    });
  }

  /** Returns at once, whether or not a broker can be reached; follows the log until `stop`. */
  start(): void {
    this.unsubscribe = this.store.wakeUp.subscribe((lanes) => {
      this.wake(lanes);
    });
    this.running = this.run();
  }

  /** Lets the batch in flight end, within reason. */
  async stop(): Promise<void> {
    this.stopped = true;
    this.unsubscribe?.();
    this.wakeUp();
    const { promise, cancel } = pause(STOP_LIMIT_MS);
    await Promise.race([this.running, promise]);
    cancel();
  }

  /** Whether it was ever started: brokers are named. */
  get isOn(): boolean {
    return this.running !== undefined;
  }

  /** One line on how it goes; undefined while all is well. */
  get problem(): string | undefined {
    if (this.trouble) return this.trouble.message;
    return this.connected || this.stopped ? undefined : 'connecting';
  }

  async lag(): Promise<RelayLag> {
    // Positions first: an end that is younger can only make the lag larger, never negative.
    const { rows } = await available(() =>
      this.pool.query<{ lane: number; position: number }>('select lane, position from relay_checkpoint'),
    );
    const lanes = await this.store.lanes.ends();
    for (const { lane, position } of rows) lanes[lane] = (lanes[lane] ?? 0) - position;
    return { behind: lanes.reduce((sum, one) => sum + one, 0), lanes };
  }

  /** For how long the oldest event that the brokers have not acknowledged has been in the log, in seconds. */
  async lagSeconds(): Promise<number> {
    const { rows } = await available(() =>
      this.pool.query<{ lane: number; position: number }>('select lane, position from relay_checkpoint'),
    );
    return this.store.lanes.lagSeconds(new Map(rows.map(({ lane, position }) => [lane, position])));
  }

  /** Asked anew each time: it changes while we wait. */
  private isStopping(): boolean {
    return this.stopped;
  }

  private wake(lanes: Iterable<number>): void {
    for (const lane of lanes) this.dirty.add(lane);
    this.wakeUp();
  }

  private wakeAll(): void {
    this.wake(Array.from({ length: this.store.laneCount }, (_, lane) => lane));
  }

  private async run(): Promise<void> {
    await this.share.balance().catch(() => undefined); // The next beat does.
    let pauseMs = FIRST_PAUSE_MS;
    while (!this.stopped) {
      let publisher: Publisher | undefined;
      try {
        await this.settleTopic();
        publisher = await Publisher.connect(this.options.kafka, this.options.compression);
        await this.follow(publisher, () => {
          pauseMs = FIRST_PAUSE_MS;
        });
      } catch (error) {
        this.cursors.clear();
        this.connected = false;
        const forGood = error instanceof TopicMismatch;
        if (this.isStopping()) return;
        if (isTooLarge(error)) this.tooLarge = Math.max(SMALLEST_MAX_BYTES, Math.floor(this.maxBytes / 2));
        if (!this.trouble || forGood) this.options.onTrouble(error as Error, forGood);
        this.trouble = error as Error;
        if (forGood) return;
        // Nodes that lost the same broker at the same moment do not come back in step.
        const { promise, cancel } = pause(pauseMs * (0.5 + Math.random()));
        const interrupted = new Promise<void>((resolve) => {
          this.wakeUp = () => {
            if (this.stopped) resolve();
          };
        });
        await Promise.race([promise, interrupted]);
        cancel();
        pauseMs = Math.min(LONGEST_PAUSE_MS, pauseMs * 2);
      } finally {
        // A spent one is thrown away: see Publisher.
        await publisher?.close();
      }
    }
  }

  private async follow(publisher: Publisher, onSuccess: () => void): Promise<void> {
    this.connected = true;
    this.cursors.clear();
    this.wakeAll();
    let next = this.read();
    for (;;) {
      const reading = await next;
      if (this.stopped) return;
      if (!reading) {
        // Reaching for the brokers and finding nothing to say is success, too.
        this.recovered(onSuccess);
        await this.woken();
        next = this.read();
        continue;
      }
      // The next batch is read while this one is on its way: the brokers need not wait for the database.
      next = this.read();
      next.catch(() => undefined); // It is awaited later, or was read in vain.
      try {
        await this.confirmLeases(reading);
        await publisher.send(this.options.topic, reading.messages);
        await this.moveCheckpoints(reading);
        this.recovered(onSuccess);
      } catch (error) {
        await next.catch(() => undefined);
        if (!(error instanceof Fenced)) throw error;
        this.cursors.clear();
        await pause(FENCED_PAUSE_MS).promise;
        this.wakeAll();
        next = this.read();
      }
    }
  }

  private recovered(onSuccess: () => void): void {
    onSuccess();
    if (!this.trouble) return;
    this.trouble = undefined;
    this.options.onRecovered();
  }

  private async woken(): Promise<void> {
    if (this.dirty.size > 0 || this.stopped) return;
    await new Promise<void>((resolve) => {
      this.wakeUp = resolve;
    });
    this.wakeUp = () => undefined;
  }

  /** The next events of the lanes that have grown and are ours; undefined when there are none. */
  private async read(): Promise<Reading | undefined> {
    const owned = this.share.owned;
    for (const [lane, { leaseEpoch }] of this.cursors)
      if (owned.get(lane) !== leaseEpoch) this.cursors.delete(lane);
    const grown = [...this.dirty].filter((lane) => owned.has(lane));
    this.dirty.clear();
    await this.claim(
      grown.filter((lane) => !this.cursors.has(lane)),
      owned,
    );
    const from = new Map<number, number>();
    for (const lane of grown) {
      const cursor = this.cursors.get(lane);
      if (cursor) from.set(lane, cursor.position);
    }
    if (from.size === 0) return undefined;

    const limit = this.catchingUp
      ? await this.boundedBySize(from, Math.ceil(BATCH / from.size))
      : Math.ceil(SMALL_BATCH / from.size);
    const events = await this.store.lanes.readStored(from, limit);
    const messages: OutgoingMessage[] = [];
    const counts = new Map<number, number>();
    const moves = new Map<number, { epoch: number; from: number; to: number }>();
    for (const event of events) {
      const cursor = this.cursors.get(event.lane);
      const before = from.get(event.lane);
      if (!cursor || before === undefined) continue;
      messages.push(toMessage(event, currentJson(event), this.partitions, this.maxBytes));
      cursor.position = event.position;
      counts.set(event.lane, (counts.get(event.lane) ?? 0) + 1);
      moves.set(event.lane, { epoch: cursor.epoch, from: before, to: event.position });
    }
    this.catchingUp = false;
    for (const [lane, count] of counts) {
      if (count < limit) continue;
      this.dirty.add(lane);
      this.catchingUp = true;
    }
    return messages.length > 0 ? { messages, moves } : undefined;
  }

  /**
   * How many events of each lane fit into a batch, at least one. Memory is bounded by bytes, not only by count: a lane
   * may hold thousands of large messages in a row.
   */
  private async boundedBySize(from: ReadonlyMap<number, number>, limit: number): Promise<number> {
    const { rows } = await this.pool.query<{ nth: number; bytes: string }>({
      name: 'relay_sizes',
      text: `select e.position - reader.position as nth,
                    -- What is small is no other size as text; only what may be compressed is looked at as such.
                    sum(coalesce(case when pg_column_size(e.data) < 1000 then pg_column_size(e.data)
                                      else octet_length(e.data::text) end, octet_length(e.sealed), 0)) as bytes
             from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
             cross join lateral (
               select * from event e where e.lane = reader.lane and e.position > reader.position
               order by e.position limit $3
             ) e
             group by 1 order by 1`,
      values: [[...from.keys()], [...from.values()], limit],
    });
    let bytes = 0;
    let fitting = 0;
    for (const row of rows) {
      bytes += Number(row.bytes);
      if (bytes > BATCH_BYTES) break;
      fitting = row.nth;
    }
    // None fits: one per lane. Fewer than asked for, but all there are: the limit stands.
    return fitting === rows.length ? limit : Math.max(1, fitting);
  }

  /** Takes lanes whose lease is ours, by the database's word, and learns where they stand. */
  private async claim(lanes: readonly number[], owned: ReadonlyMap<number, number>): Promise<void> {
    if (lanes.length === 0) return;
    const { rows } = await this.pool.query<{ lane: number; position: number; epoch: number }>({
      name: 'relay_claim',
      text: `update relay_checkpoint c set epoch = c.epoch + 1
             from lease l
             where c.lane = any ($1) and l.name = $2 || c.lane and l.owner = $3
               and l.until > colloquy_now() + $4 * interval '1 millisecond'
             returning c.lane, c.position, c.epoch`,
      values: [lanes, `${WORK}/lane/`, this.leases.owner, MARGIN_MS],
    });
    for (const { lane, position, epoch } of rows)
      this.cursors.set(lane, { epoch, position, leaseEpoch: owned.get(lane) ?? 0 });
  }

  /**
   * Before a send: are the lanes still ours? A process that was stopped for a while learns it here. The look counts
   * from before it was asked for, so an answer that lay waiting while the process was stopped is no use.
   */
  private async confirmLeases({ moves }: Reading): Promise<void> {
    while (now() - this.confirmedAt > FRESH_MS) {
      const asked = now();
      // Reading ahead may claim lanes meanwhile.
      const claims = [...this.cursors];
      const { rowCount } = await this.pool.query({
        name: 'relay_confirm',
        text: `select from unnest($1::smallint[], $2::bigint[]) as claim (lane, epoch)
               join relay_checkpoint c on c.lane = claim.lane and c.epoch = claim.epoch
               join lease l on l.name = $3 || claim.lane and l.owner = $4
                            and l.until > colloquy_now() + $5 * interval '1 millisecond'`,
        values: [
          claims.map(([lane]) => lane),
          claims.map(([, { epoch }]) => epoch),
          `${WORK}/lane/`,
          this.leases.owner,
          MARGIN_MS,
        ],
      });
      if (rowCount !== claims.length) throw new Fenced();
      this.confirmedAt = asked;
    }
    // Read under a claim that is no more, or under one younger than the look.
    for (const [lane, { epoch }] of moves) if (this.cursors.get(lane)?.epoch !== epoch) throw new Fenced();
  }

  private async moveCheckpoints({ moves }: Reading): Promise<void> {
    const lanes = [...moves.keys()].sort((a, b) => a - b);
    const column = (of: 'epoch' | 'from' | 'to') => lanes.map((lane) => moves.get(lane)?.[of]);
    const { rowCount } = await this.pool.query({
      name: 'relay_move',
      text: `update relay_checkpoint c set position = m.new
             from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[]) as m (lane, epoch, old, new)
             where c.lane = m.lane and c.epoch = m.epoch and c.position = m.old`,
      values: [lanes, column('epoch'), column('from'), column('to')],
    });
    if (rowCount !== lanes.length) throw new Fenced();
  }

  /** Finds the topic, or makes it, and holds it against what was published to so far. */
  private async settleTopic(): Promise<void> {
    const { kafka, topic, partitions } = this.options;
    const recorded = await this.recordedTopic();
    if (recorded && recorded.topic !== topic) {
      throw new TopicMismatch(
        `events are published to the topic ${recorded.topic} so far, and the settings name ${topic}. Name the old one ` +
          'again, or have everything published anew: delete from relay_topic; update relay_checkpoint set position = 0;',
      );
    }
    const found = await TopicAdmin.use(kafka, async (topics): Promise<FoundTopic> => {
      const existing = await topics.find(topic);
      if (existing) return existing;
      // A topic that is new, or gone with all that was in it, begins with the first event.
      await this.beginAnew();
      await topics.create({ ...this.options, partitions });
      const made = await topics.find(topic);
      if (!made) throw new Error(`the topic ${topic} was created and cannot be found yet`);
      return made;
    });
    const { partitions: expected } = await this.recordTopic(found.partitions);
    if (found.partitions !== expected) {
      throw new TopicMismatch(
        `the topic ${topic} has ${found.partitions} partitions, and events were published to ${expected} so far: each ` +
          'session would go on in another one, past consumers that have not seen its beginning. Give the relay a new ' +
          'topic, which is published from the first event on',
      );
    }
    this.partitions = found.partitions;
    this.maxBytes = Math.min(found.maxMessageBytes, this.tooLarge);
  }

  private async recordedTopic(): Promise<{ topic: string; partitions: number } | undefined> {
    const { rows } = await this.pool.query<{ topic: string; partitions: number }>(
      'select topic, partitions from relay_topic',
    );
    return rows[0];
  }

  private async recordTopic(partitions: number): Promise<{ partitions: number }> {
    await this.pool.query(
      'insert into relay_topic (topic, partitions) values ($1, $2) on conflict do nothing',
      [this.options.topic, partitions],
    );
    return (await this.recordedTopic()) ?? { partitions };
  }

  /** One statement, so that there is never the one without the other. A new epoch stops who is publishing. */
  private async beginAnew(): Promise<void> {
    await this.pool.query(
      `with forgotten as (delete from relay_topic)
       update relay_checkpoint set position = 0, epoch = epoch + 1`,
    );
  }
}

/** Milliseconds that also pass while the machine sleeps, as far as either clock knows. */
let slept = 0;
let before = { monotonic: performance.now(), wall: Date.now() };
function now(): number {
  const monotonic = performance.now();
  const wall = Date.now();
  // The monotonic clock stands still while a machine is suspended, the other one may be set back.
  slept += Math.max(0, wall - before.wall - (monotonic - before.monotonic));
  before = { monotonic, wall };
  return monotonic + slept;
}

function pause(ms: number): { promise: Promise<void>; cancel: () => void } {
  let cancel = (): void => undefined;
  const promise = new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, ms);
    cancel = () => {
      clearTimeout(timer);
      resolve();
    };
  });
  return { promise, cancel };
}
