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
 * Most appends in a row to one stream before this process pauses. When two nodes have a queue for the same stream, the
 * winner of a race has the next state at hand and wins again, while the other must load first and always comes too
 * late. The pause is long enough for another node to load and append.
 */
const RUN = 32;
const GAP_APPENDS = 4;
const LONGEST_GAP_MS = 50;

/** The last command that was queued on a stream. */
interface Turn {
  /** Resolves when the command has ended: to the failure of the database, if that is how it ended. */
  readonly settled: Promise<DatabaseUnavailable | undefined>;
  /** How many commands in a row this one completes. */
  readonly run: number;
  /** Number and bytes of all commands on the stream that have not settled yet. */
  readonly queue: { commands: number; bytes: number };
}

/** Runs the commands on each stream one after the other within this process, so that they do not conflict. */
export class StreamTurns {
  private readonly turns = new Map<string, Turn>();
  private readonly room = new FairShare(ALL_COMMANDS);
  private appendMs = 0;

  constructor(private readonly telemetry: Telemetry) {}

  /** Records how long the last append took; appends of other nodes are assumed to take about as long. */
  appendTook(ms: number): void {
    this.appendMs = ms;
  }

  /**
   * Runs `work` when all earlier work on the stream has ended, successfully or not.
   *
   * When the database could not be reached for the work before, the work that waited behind it fails with the same
   * error, without a try of its own: each try takes seconds, and a queue of them would keep its callers waiting for
   * minutes.
   *
   * @param bytes size of what the work holds while it waits
   * @throws Overloaded at once when too much waits on this stream or for this tenant; DatabaseUnavailable of the work
   *   before; whatever `work` throws
   */
  take<T>(stream: StreamId, bytes: number, work: () => Promise<T>): Promise<T> {
    const key = streamKey(stream);
    const { tenant } = stream;
    const before = this.turns.get(key);
    const queue = before?.queue ?? { commands: 0, bytes: 0 };
    const isFull =
      queue.commands >= STREAM_COMMANDS || (queue.commands > 0 && queue.bytes + bytes > STREAM_BYTES);
    if (isFull || !this.room.enter(tenant, bytes)) {
      this.telemetry.emit('overloaded', { what: 'command', tenant });
      return Promise.reject(new Overloaded('more arrives than can be worked on at the moment; try again'));
    }
    queue.commands += 1;
    queue.bytes += bytes;
    const run = before ? before.run + 1 : 1;
    const turn = before ? this.runAfter(before, run, work) : work();
    const settle = (): void => {
      queue.commands -= 1;
      queue.bytes -= bytes;
      this.room.leave(tenant, bytes);
      if (this.turns.get(key) === own) this.turns.delete(key);
    };
    const settled = turn.then(
      () => {
        settle();
        return undefined;
      },
      (error: unknown) => {
        settle();
        return error instanceof DatabaseUnavailable ? error : undefined;
      },
    );
    const own: Turn = { settled, run, queue };
    this.turns.set(key, own);
    return turn;
  }

  private async runAfter<T>(before: Turn, run: number, work: () => Promise<T>): Promise<T> {
    const failure = await before.settled;
    if (failure) throw failure;
    if (run % RUN === 0) await this.leaveGap();
    return work();
  }

  private leaveGap(): Promise<void> {
    return new Promise((resolve) => {
      setTimeout(resolve, Math.min(GAP_APPENDS * this.appendMs, LONGEST_GAP_MS));
    });
  }
}
