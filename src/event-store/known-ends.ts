import { boundedCache } from '../bounded-cache.js';
import { type Append, type StreamEnd } from './append.js';
import { type StreamId, streamKey } from './lane.js';

/** The last event of a lane, as far as this process knows. */
export interface LaneEnd {
  readonly position: number;
  readonly time: string;
}

/** Streams that are remembered over all lanes: as many as there are states in the cache of the command handlers. */
const KNOWN_STREAMS = 20_000;
/**
 * How long the end of a lane is not believed after another process was found to have appended to it. Where processes
 * append to the same lanes all the time, most tries would fail, and each would leave a line in the server's log.
 */
const DISTRUST_MS = 1_000;

/** A lane as of its end, since the last event that another process appended to it. */
interface Stretch {
  end: LaneEnd;
}

/**
 * Where lanes and streams end, for those to which this process appended last. An append that relies on it also proves it:
 * it takes the position behind the end of the lane, and only if nobody else has appended to the lane is that free. Then
 * all streams to which this process appended in the lane end where it left them.
 */
export class KnownEnds {
  private readonly lanes = new Map<number, Stretch>();
  /** A version holds as long as the stretch in which it was seen goes on. */
  private readonly streams = boundedCache<string, { readonly version: number; readonly in: Stretch }>(
    KNOWN_STREAMS,
  );
  /** By `performance.now()`. */
  private readonly distrustedUntil = new Map<number, number>();
  private run = '';

  /** @param now by `performance.now()` */
  constructor(private readonly now: () => number = () => performance.now()) {}

  /**
   * Records an append of at least one event. Those of a lane have to come in the order of their positions.
   *
   * @param run start time of the server. In another run, what was committed before may have been lost.
   */
  appended({ stream, lane, events }: Append, { position, time, version }: StreamEnd, run: string): void {
    if (run !== this.run) this.forget();
    this.run = run;
    if (this.now() < (this.distrustedUntil.get(lane) ?? 0)) return;
    let stretch = this.lanes.get(lane);
    const end = { position, time };
    if (stretch?.end.position === position - events.length) stretch.end = end;
    else this.lanes.set(lane, (stretch = { end }));
    this.streams.set(streamKey(stream), { version, in: stretch });
  }

  /** Undefined when it is not known in this run of the server. */
  endOf(lane: number, run: string): LaneEnd | undefined {
    return run === this.run ? this.lanes.get(lane)?.end : undefined;
  }

  /** The version of a stream as of the known end of its lane; undefined when it is not known in this run of the server. */
  versionOf(stream: StreamId, lane: number, run: string): number | undefined {
    const known = run === this.run ? this.streams.get(streamKey(stream)) : undefined;
    return known?.in === this.lanes.get(lane) ? known?.version : undefined;
  }

  /** Forgets these lanes, or all of them, because other processes may have appended to them. */
  forget(lanes: Iterable<number> = [...this.lanes.keys()]): void {
    for (const lane of lanes) this.lanes.delete(lane);
  }

  /** Forgets lanes that were found to have grown, and does not learn their ends again for a while. */
  distrust(lanes: Iterable<number>): void {
    for (const lane of lanes) {
      this.lanes.delete(lane);
      this.distrustedUntil.set(lane, this.now() + DISTRUST_MS);
    }
  }
}
