import { type Pool } from 'pg';
import { type EventLog } from '../event-store/log.js';
import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
import { LaneFold } from './lane-fold.js';
import { Fenced, type Poison } from './poison.js';
import { type Projection, tableOf } from './projection.js';

/**
 * Events read per turn, over all lanes. Reading and folding them is work without a pause, in which no request is read
 * and no connection accepted: libuv accepts one per iteration of its loop. With 8 000, new connections waited for many
 * seconds at a service that had much to catch up with (measured).
 */
const BATCH = 1_000;
const RETRY_MS = 500;
/**
 * Pause after a turn, in which events gather for the next one, unless a reader waits. Under load, one turn per commit
 * cost more processor time than the appends themselves (measured).
 */
const GATHER_MS = 50;
/**
 * The pause is so many times as long as the turn was, up to `MOST_REST_MS`. Where processors are busy turns take longer, so
 * that pauses do as well, and the fixed cost of a turn is paid for more events. It left a tenth more for the appends of
 * three cells that share two processors, each with turns of its own, and 3 % more for those of one (measured).
 */
const REST = 3;
/**
 * It also has so many milliseconds at least for each event of the turn, where no other node follows lanes: a reader that
 * waits ends the pauses of its own node alone. As a pause is made of beats, this begins to matter at a thousand events a second.
 */
const REST_EACH_MS = 1;
/** A read that does not ask for freshness may be this much older because of a pause, where there is one log. */
const MOST_REST_MS = 250;
/**
 * Where a process works on several logs at the same time (cells), each pause is longer by their number, up to this many
 * times: they share its processors, and each has turns of its own, so that the fixed cost of turns is paid once for each.
 */
const MOST_LOGS = 4;
/** A log is worked on when a turn found events within this time. */
const BUSY_MS = 1_000;

/**
 * One timer for the pauses of all runners of a log, so that they read at the same time: as long as they are at the same
 * positions, they share one query.
 */
export class Beat {
  /** Those of all logs of this process on which somebody has worked. */
  private static readonly all = new Set<Beat>();
  private next: Promise<void> | undefined;
  private workedAt = -Infinity;

  /** To be called when nobody works on the log any more. */
  end(): void {
    Beat.all.delete(this);
  }

  /**
   * The milliseconds to rest after a turn that took so many and found so many events.
   * @param alone whether no other node follows lanes of the log
   */
  restAfter(ms: number, events: number, alone: boolean): number {
    const now = performance.now();
    if (events > 0) {
      this.workedAt = now;
      Beat.all.add(this);
    }
    let others = 0;
    for (const beat of Beat.all) if (beat !== this && now - beat.workedAt < BUSY_MS) others += 1;
    return (
      Math.min(MOST_REST_MS, Math.max(REST * ms, alone ? REST_EACH_MS * events : 0)) *
      Math.min(1 + others, MOST_LOGS)
    );
  }

  wait(): Promise<void> {
    return (this.next ??= new Promise((resolve) => {
      setTimeout(() => {
        this.next = undefined;
        resolve();
      }, GATHER_MS);
    }));
  }
}

/** The prefix of the names of the leases for the work on a table. */
export const workOn = (table: string): string => `projection/${table}`;

/** Keeps one read model in step with the log, in the lanes that are this node's. */
export class Runner {
  private readonly table: string;
  private readonly share: LaneShare;
  private readonly fold: LaneFold;
  private readonly dirty = new Set<number>();
  private running: Promise<void> | undefined;
  private unsubscribe: (() => void) | undefined;
  /** Whether the next pause is left out. */
  private skipsPause = false;
  private endPause: (() => void) | undefined;
  private stopped = false;

  constructor(
    private readonly store: EventLog,
    pool: Pool,
    leases: Leases,
    projection: Projection,
    private readonly beat: Beat,
    private readonly onProgress: () => void,
    private readonly onError: (error: unknown) => void,
    onParked: (poison: Poison) => void,
  ) {
    const table = tableOf(projection);
    this.table = table;
    this.fold = new LaneFold(store, pool, projection, table, onParked);
    this.share = new LaneShare(leases, workOn(table), store.laneCount, (lanes) => {
      this.wake(lanes);
    });
  }

  /** Announces that this node uses the table, so that no other node drops it. */
  join(): Promise<void> {
    return this.share.join();
  }

  /** Follows the log until `stop`; the table must be there. */
  async start(): Promise<void> {
    const { wakeUp } = this.store;
    const unsubscribe = wakeUp.subscribe((lanes) => {
      this.wake(lanes);
    });
    const unsubscribeWaits = wakeUp.onReaderWaiting(this.table, () => {
      this.skipPause();
    });
    const unsubscribeGenerations = this.store.generations.onNew(() => {
      // Its places may be behind the end of the log, where nothing would come for long.
      this.fold.keep(new Map());
      this.wake(Array.from({ length: this.store.laneCount }, (_, lane) => lane));
    });
    this.unsubscribe = () => {
      unsubscribe();
      unsubscribeWaits();
      unsubscribeGenerations();
    };
    await this.share.balance();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    this.unsubscribe?.();
    this.skipPause();
    await this.running;
  }

  private wake(lanes: Iterable<number>): void {
    for (const lane of lanes) this.dirty.add(lane);
    if (this.stopped || this.dirty.size === 0) return;
    this.running ??= this.run();
  }

  private async run(): Promise<void> {
    while (this.dirty.size > 0 && !this.stopped) {
      this.skipsPause = false;
      const began = performance.now();
      try {
        const events = await this.turn();
        const alone = this.share.owned.size === this.store.laneCount;
        await this.pause(this.beat.restAfter(performance.now() - began, events, alone));
      } catch (error) {
        this.onError(error);
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
    // No `await` may stand between the last look at `dirty` and this line: a wake-up in between would be lost.
    this.running = undefined;
  }

  private skipPause(): void {
    this.skipsPause = true;
    this.endPause?.();
  }

  /** Waits for at least one beat, and for as many as there are in so many milliseconds, unless somebody ends it. */
  private async pause(ms: number): Promise<void> {
    const ended = new Promise<void>((resolve) => {
      this.endPause = resolve;
    });
    for (let left = ms; !this.skipsPause && !this.stopped; left -= GATHER_MS) {
      await Promise.race([this.beat.wait(), ended]);
      if (left <= GATHER_MS) break;
    }
    this.endPause = undefined;
  }

  /** @returns how many events there were */
  private async turn(): Promise<number> {
    const owned = this.share.owned;
    this.fold.keep(owned);
    // In a fixed order, so that runners at the same positions ask for the same and share the query.
    const lanes = [...this.dirty].filter((lane) => owned.has(lane)).sort((a, b) => a - b);
    this.dirty.clear();
    if (lanes.length === 0) return 0;
    try {
      const began = performance.now();
      const { events, unfinished } = await this.fold.advance(
        new Map(lanes.map((lane) => [lane, owned.get(lane) ?? 0])),
        Math.ceil(BATCH / lanes.length),
      );
      if (events.length === 0) return 0;
      this.store.telemetry.emit('projected', {
        projection: this.table,
        events: events.length,
        ms: performance.now() - began,
        causes: () => events.map(({ correlationId }) => correlationId),
      });
      for (const lane of unfinished) {
        this.dirty.add(lane);
        // More than a batch waits already, so a pause would only delay it.
        this.skipsPause = true;
      }
      this.onProgress();
      return events.length;
    } catch (error) {
      for (const lane of lanes) this.dirty.add(lane);
      if (!(error instanceof Fenced)) throw error;
      // Without asking which lanes are still its own, this node would read and be refused again and again.
      await this.share.confirm();
      return 0;
    }
  }
}
