import { DatabaseUnavailable } from '../database/connection.js';
import { Overloaded } from './append.js';
import { FairShare } from './fair-share.js';
import { type StreamId, streamKey } from './lane.js';
import { type Telemetry } from './telemetry.js';

/** Most commands that may wait on one stream, and most bytes they may hold. Beyond that they get `Overloaded`. */
const STREAM_COMMANDS = 1_000;
const STREAM_BYTES = 16 * 1024 * 1024;
/** The same limits over all streams. Each tenant has a share of them, so a flood of one tenant harms no other. */
const ALL_COMMANDS = { count: 20_000, bytes: 128 * 1024 * 1024 };

/**
 * Most commits in a row to one stream before this process pauses. When two nodes have a queue for the same stream, the
 * winner of a race has the next state at hand and wins again, while the other must load first and always comes too
 * late. The pause is long enough for another node to load and append.
 */
const RUN = 32;
const GAP_APPENDS = 4;
const LONGEST_GAP_MS = 50;

/** What all commands that wait on one stream have in common. */
interface Queue {
  commands: number;
  bytes: number;
  /** Commits in a row, and the time that the last of them gave its events: one commit gives one time. */
  commits: number;
  lastTime: string;
}

/**
 * The turn of one command on a stream. While its append is under way it may offer a tip: what the command behind it
 * needs in order to be decided as if the append had succeeded.
 */
export class Turn<Tip> {
  private tip: Tip | undefined;
  private hasEnded = false;
  private failure: DatabaseUnavailable | undefined;
  private watchers: (() => void)[] = [];

  constructor(
    private before: Turn<Tip> | undefined,
    private readonly queue: Queue,
    private readonly leaveGap: () => Promise<void>,
  ) {}

  /**
   * Waits until the command before offers a tip or has ended.
   *
   * @param used a tip that turned out wrong, so that another one is waited for
   * @returns undefined when the command before has ended: then the stream is as the log has it
   * @throws DatabaseUnavailable when the database could not be reached for the command before. A try of its own would
   *   take seconds, and a queue of such tries would keep the callers waiting for minutes.
   */
  async ahead(used?: Tip): Promise<Tip | undefined> {
    for (;;) {
      const { before } = this;
      if (!before) return undefined;
      if (before.hasEnded) return this.alone();
      const { tip } = before;
      if (tip !== undefined && tip !== used && this.queue.commits < RUN) return tip;
      await before.change();
    }
  }

  /** Waits until the command before has ended. @throws DatabaseUnavailable as `ahead` */
  async alone(): Promise<undefined> {
    const { before, queue } = this;
    if (!before) return undefined;
    while (!before.hasEnded) await before.change();
    // Or each turn would keep all turns before it in memory.
    this.before = undefined;
    if (before.failure) throw before.failure;
    if (queue.commits >= RUN) {
      queue.commits = 0;
      await this.leaveGap();
    }
    return undefined;
  }

  /** Lets the command behind be decided upon this tip; undefined takes back the last one. */
  offer(tip: Tip | undefined): void {
    this.tip = tip;
    this.tell();
  }

  /** @param time that the commit of this command's append gave its events */
  committed(time: string): void {
    if (time === this.queue.lastTime) return;
    this.queue.lastTime = time;
    this.queue.commits += 1;
  }

  end(failure?: DatabaseUnavailable): void {
    this.failure = failure;
    this.hasEnded = true;
    this.tip = undefined;
    this.before = undefined;
    this.tell();
  }

  private change(): Promise<void> {
    return new Promise((resolve) => this.watchers.push(resolve));
  }

  private tell(): void {
    const { watchers } = this;
    this.watchers = [];
    for (const resolve of watchers) resolve();
  }
}

/** Gives the commands on each stream their turns within this process, so that they do not conflict with each other. */
export class StreamTurns<Tip> {
  private readonly last = new Map<string, { readonly turn: Turn<Tip>; readonly queue: Queue }>();
  private readonly room = new FairShare(ALL_COMMANDS);
  private appendMs = 0;

  constructor(
    private readonly telemetry: Telemetry,
    private readonly isBehind: (tenant: string) => boolean,
  ) {}

  /** Records how long the last append took; appends of other nodes are assumed to take about as long. */
  appendTook(ms: number): void {
    this.appendMs = ms;
  }

  /**
   * Runs `work`, which waits for its turn by `ahead` or `alone`.
   *
   * @param bytes size of what the work holds while it waits
   * @throws Overloaded at once when too much waits on this stream or for this tenant, or for too long; whatever `work` throws
   */
  async take<T>(stream: StreamId, bytes: number, work: (turn: Turn<Tip>) => Promise<T>): Promise<T> {
    const key = streamKey(stream);
    const { tenant } = stream;
    const before = this.last.get(key);
    const queue = before?.queue ?? { commands: 0, bytes: 0, commits: 0, lastTime: '' };
    const isFull =
      queue.commands >= STREAM_COMMANDS || (queue.commands > 0 && queue.bytes + bytes > STREAM_BYTES);
    if (isFull || this.isBehind(tenant) || !this.room.enter(tenant, bytes)) {
      this.telemetry.emit('overloaded', { what: 'command', tenant });
      throw new Overloaded('more arrives than can be worked on at the moment; try again');
    }
    queue.commands += 1;
    queue.bytes += bytes;
    const turn = new Turn<Tip>(before?.turn, queue, this.leaveGap);
    this.last.set(key, { turn, queue });
    let failure: DatabaseUnavailable | undefined;
    try {
      return await work(turn);
    } catch (error) {
      if (error instanceof DatabaseUnavailable) failure = error;
      throw error;
    } finally {
      queue.commands -= 1;
      queue.bytes -= bytes;
      this.room.leave(tenant, bytes);
      if (this.last.get(key)?.turn === turn) this.last.delete(key);
      turn.end(failure);
    }
  }

  private readonly leaveGap = (): Promise<void> =>
    new Promise((resolve) => {
      setTimeout(resolve, Math.min(GAP_APPENDS * this.appendMs, LONGEST_GAP_MS));
    });
}
