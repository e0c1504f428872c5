import { Overloaded } from './append.js';
import { FairShare } from './fair-share.js';
import { type StreamId, streamKey } from './lane.js';
import { type Telemetry } from './telemetry.js';

/** Commands that may wait for their turn on one stream, and the bytes that they may hold; past it they are `overloaded`. */
const STREAM_COMMANDS = 1_000;
const STREAM_BYTES = 16 * 1024 * 1024;
/** The same over all streams: each tenant has its share of it, so that one that floods its own sessions harms no other. */
const ALL_COMMANDS = { count: 20_000, bytes: 128 * 1024 * 1024 };

/**
 * Two nodes with a queue for one stream: the one that wins has the next state at hand and wins again, while the other
 * must load first, and comes too late every time. So whoever has made so many appends in a row leaves a gap, as long
 * as others need to load and append.
 */
const RUN = 32;
const GAP_APPENDS = 4;
const LONGEST_GAP_MS = 50;

/** The last command that was given on a stream. */
interface Turn {
  readonly settled: Promise<void>;
  /** How many commands in a row it ends. */
  readonly run: number;
  /** All commands on the stream that have not settled yet. */
  readonly queue: { commands: number; bytes: number };
}

/** Lets the commands on each stream take turns within this process, so that they do not race each other. */
export class StreamTurns {
  private readonly turns = new Map<string, Turn>();
  private readonly room = new FairShare(ALL_COMMANDS);
  private appendMs = 0;

  constructor(private readonly telemetry: Telemetry) {}

  /** How long an append took, the last time; others need about as long. */
  appendTook(ms: number): void {
    this.appendMs = ms;
  }

  /**
   * Runs `work` when all that came before on the stream is done, however that ended.
   * @param bytes that the work holds meanwhile
   * @throws Overloaded at once when too much waits on this stream, or of this tenant; whatever `work` throws
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
    const turn = before
      ? before.settled.then(() => (run % RUN === 0 ? this.leaveGap() : undefined)).then(work)
      : work();
    const settle = (): void => {
      queue.commands -= 1;
      queue.bytes -= bytes;
      this.room.leave(tenant, bytes);
      if (this.turns.get(key) === own) this.turns.delete(key);
    };
    const own: Turn = { settled: turn.then(settle, settle), run, queue };
    this.turns.set(key, own);
    return turn;
  }

  private leaveGap(): Promise<void> {
    return new Promise((resolve) => {
      setTimeout(resolve, Math.min(GAP_APPENDS * this.appendMs, LONGEST_GAP_MS));
    });
  }
}
