import { type LaneReader } from '../event-store/lane-reader.js';
import { type LogGenerations } from '../event-store/log-generations.js';
import { suspendClock } from '../suspend-clock.js';
import { currentJson, toMessage, toTruncation } from './contract.js';
import { type OutgoingMessage } from './publisher.js';
import { type Move, type RelayCheckpoints } from './relay-checkpoints.js';
import { type FoundTopic } from './topic-admin.js';

/** Events of one batch while the relay is catching up. */
const MAX_BATCH = 2_000;
/** Events of one batch otherwise: so few that their sizes need not be queried first. */
const MAX_SMALL_BATCH = 64;
const MAX_BATCH_BYTES = 2 * 1024 * 1024;
/** Milliseconds for which a check of the leases is trusted: far less than the time after which they could expire. */
const CHECK_VALID_MS = 1_000;

/** Another node has claimed a lane that this node still believed to be its own. */
export class Fenced extends Error {}

interface Cursor {
  /** Of this node's claim of the lane. */
  readonly epoch: number;
  /** Of the lease under which the lane was claimed. */
  readonly leaseEpoch: number;
  /** The last position that was read. */
  position: number;
  /** The generation of the log of which the topic was told, or is told by what was read. */
  generation: number;
}

/** Messages to be sent in one request, if any, and the positions to which they move the checkpoints of their lanes. */
export interface RelayBatch {
  readonly messages: readonly OutgoingMessage[];
  readonly moves: ReadonlyMap<number, Move>;
}

export interface RelayReaderParts {
  readonly lanes: Pick<LaneReader, 'readStored' | 'sizes'>;
  readonly checkpoints: RelayCheckpoints;
  readonly generations: LogGenerations;
  /** The name of the cell, unless it is the first. */
  readonly cell: string | undefined;
  /** Whether what is sealed in the log is published sealed. */
  readonly leaveSealed: boolean;
  /** Lane → epoch of the lease, for the lanes of this node. */
  readonly owned: () => ReadonlyMap<number, number>;
}

/**
 * Reads the lanes of this node in order, batch by batch, each lane under a claim. Reading runs ahead of what the
 * brokers have acknowledged. After an error the reader forgets its positions, claims the lanes again, and reads on from
 * their checkpoints.
 */
export class RelayReader {
  private readonly cursors = new Map<number, Cursor>();
  private readonly grownLanes = new Set<number>();
  private isCatchingUp = false;
  private topic: FoundTopic = { partitions: 0, maxMessageBytes: 0 };
  /** When all claims were last seen to be valid, by `suspendClock()`. */
  private checkedAt = -Infinity;

  constructor(private readonly parts: RelayReaderParts) {}

  /** Whether some lane may hold events that were not read yet. */
  get hasMore(): boolean {
    return this.grownLanes.size > 0;
  }

  markGrown(lanes: Iterable<number>): void {
    for (const lane of lanes) this.grownLanes.add(lane);
  }

  /** Sets the partition count and the size limit for the messages that are built from now on. */
  useTopic(topic: FoundTopic): void {
    this.topic = topic;
  }

  /** Forgets all claims, so that the next read claims the lanes again. */
  restart(): void {
    this.cursors.clear();
  }

  /** The next events of this node's lanes; undefined when there are none. */
  async next(): Promise<RelayBatch | undefined> {
    const after = await this.startingPoints();
    if (after.size === 0) return undefined;
    const limit = this.isCatchingUp
      ? await this.fittingInBatch(after, Math.ceil(MAX_BATCH / after.size))
      : Math.ceil(MAX_SMALL_BATCH / after.size);
    const events = await this.parts.lanes.readStored(after, limit, this.parts.leaveSealed);
    const { partitions, maxMessageBytes } = this.topic;
    const { generations, cell } = this.parts;
    const messages: OutgoingMessage[] = [];
    const moves = new Map<number, Move>();
    // Whoever consumes a lane is told where it was cut before anything comes of it that was written since.
    for (const [lane, position] of after) {
      const cursor = this.cursors.get(lane);
      if (!cursor || cursor.generation === generations.current) continue;
      for (const begun of generations.since(cursor.generation))
        messages.push(toTruncation(begun, lane, partitions, cell));
      const { epoch } = cursor;
      cursor.generation = generations.current;
      moves.set(lane, { epoch, from: position, to: position, generation: cursor.generation });
    }
    for (const event of events) {
      const cursor = this.cursors.get(event.lane);
      const from = after.get(event.lane);
      // `restart` was called while the events were read.
      if (!cursor || from === undefined) continue;
      // A copy was published by the log that it comes from.
      if (!event.isCopy) {
        const generation = generations.of(event);
        messages.push(toMessage(event, currentJson(event), partitions, maxMessageBytes, generation, cell));
      }
      cursor.position = event.position;
      moves.set(event.lane, {
        epoch: cursor.epoch,
        from,
        to: event.position,
        generation: cursor.generation,
      });
    }
    // A lane that returned as many events as were requested may hold more. Positions have no gaps, so their difference
    // is the number of events.
    const unfinished = [...moves].filter(([, { from, to }]) => to - from >= limit).map(([lane]) => lane);
    this.markGrown(unfinished);
    this.isCatchingUp = unfinished.length > 0;
    return moves.size > 0 ? { messages, moves } : undefined;
  }

  /**
   * Makes sure, before a batch is sent, that its lanes still belong to this node, which they may not after the process
   * was suspended for a while. The age of a check counts from the moment before its query, so that an answer which
   * waited unread while the process was suspended is not trusted.
   * @throws Fenced
   */
  async ensureClaims({ moves }: RelayBatch): Promise<void> {
    while (suspendClock() - this.checkedAt > CHECK_VALID_MS) {
      const askedAt = suspendClock();
      // A copy, because reading ahead may claim further lanes while the database answers.
      const claims = new Map([...this.cursors].map(([lane, { epoch }]) => [lane, epoch]));
      if (!(await this.parts.checkpoints.stand(claims))) throw new Fenced();
      this.checkedAt = askedAt;
    }
    for (const [lane, { epoch }] of moves) if (this.cursors.get(lane)?.epoch !== epoch) throw new Fenced();
  }

  /** Lane → position to read on from, for the lanes that have grown and belong to this node. */
  private async startingPoints(): Promise<Map<number, number>> {
    const owned = this.parts.owned();
    for (const [lane, { leaseEpoch }] of this.cursors)
      if (owned.get(lane) !== leaseEpoch) this.cursors.delete(lane);
    const lanes = [...this.grownLanes].filter((lane) => owned.has(lane));
    this.grownLanes.clear();
    const unclaimed = lanes.filter((lane) => !this.cursors.has(lane));
    if (unclaimed.length > 0) {
      for (const { lane, position, epoch, generation } of await this.parts.checkpoints.claim(unclaimed))
        this.cursors.set(lane, { epoch, position, generation, leaseEpoch: owned.get(lane) ?? 0 });
    }
    const after = new Map<number, number>();
    for (const lane of lanes) {
      const cursor = this.cursors.get(lane);
      if (cursor) after.set(lane, cursor.position);
    }
    return after;
  }

  /**
   * How many events of each lane fit into a batch, at least one. Counting events would not bound memory: a lane may
   * hold thousands of large ones in a row.
   */
  private async fittingInBatch(after: ReadonlyMap<number, number>, limit: number): Promise<number> {
    const sizes = await this.parts.lanes.sizes(after, limit);
    let bytes = 0;
    const fitting = sizes.findIndex((size) => (bytes += size) > MAX_BATCH_BYTES);
    // Where all events fit, more of them may have been appended by now, so the limit by count applies.
    return fitting === -1 ? limit : Math.max(1, fitting);
  }
}
