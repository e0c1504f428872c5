import { type LanePosition } from './position-tokens.js';

/** Events kept per lane (at times twice as many): what arrives between two reads of a follower, up to some 500 a second in the lane. */
const KEPT = 128;
/** Events with more characters of data are not kept. This limits the memory to about 32 MiB for 16 lanes. */
export const MOST = 8_192;

/**
 * The events that this process appended last, by lane and in order of position, so that those who follow the log on
 * this node need not read back what was just written.
 *
 * It is only a cache: a lane is forgotten when another process appends to it, and a reader that finds nothing here
 * reads the log.
 */
export class LogTail<Event extends LanePosition> {
  private readonly lanes = new Map<number, Event[]>();
  private run = '';

  /** Starts over when the server was restarted: events of an earlier run may have been lost with it. */
  enter(run: string): void {
    if (run !== this.run) this.forget();
    this.run = run;
  }

  /** @param size number of characters of the event's data */
  add(event: Event, size: number): void {
    let events = this.lanes.get(event.lane);
    // The positions in between belong to other processes, so the events before the gap are of no more use.
    if (size > MOST || (events && events.at(-1)?.position !== event.position - 1)) {
      this.lanes.delete(event.lane);
      events = undefined;
    }
    if (size > MOST) return;
    if (!events) this.lanes.set(event.lane, [event]);
    else if (events.push(event) >= 2 * KEPT) this.lanes.set(event.lane, events.slice(KEPT));
  }

  /** Forgets these lanes, or all of them, because other processes may have appended to them. */
  forget(lanes: Iterable<number> = [...this.lanes.keys()]): void {
    for (const lane of lanes) this.lanes.delete(lane);
  }

  /** The events of a lane behind one position, up to another one; undefined when not all of them are kept here. */
  between(lane: number, after: number, to: number): readonly Event[] | undefined {
    const found = this.after(lane, after, to - after);
    return found?.at(-1)?.position === to ? found : undefined;
  }

  /** The next events of a lane after a position; undefined when the caller has to read the log. */
  after(lane: number, position: number, limit: number): readonly Event[] | undefined {
    const events = this.lanes.get(lane);
    const [first] = events ?? [];
    if (!events || !first) return undefined;
    const from = position + 1 - first.position;
    return from < 0 || from >= events.length ? undefined : events.slice(from, from + limit);
  }
}
