import { type LanePosition } from './position-tokens.js';

/** Events that are kept of a lane, up to twice as many: several times what comes between two looks of a reader. */
const KEPT = 128;
/** Characters of an event's data, past which it is not kept: it bounds the memory, to some 32 MiB for 16 lanes. */
export const MOST = 8_192;

/**
 * The events that this process appended last, by lane and in the order of their positions, so that who follows the log
 * here need not read back what was just written.
 *
 * It never has the last word: a lane in which somebody else appends is forgotten, and whoever finds nothing here asks
 * the log.
 */
export class LogTail<Event extends LanePosition> {
  private readonly lanes = new Map<number, Event[]>();
  private run = '';

  /** What is added next was committed in this run of the server: of another one nothing can be relied on. */
  enter(run: string): void {
    if (run !== this.run) this.forget();
    this.run = run;
  }

  /** @param size characters of its data */
  add(event: Event, size: number): void {
    let events = this.lanes.get(event.lane);
    // Behind a gap stand events of others; those before it are of no use any more.
    if (size > MOST || (events && events.at(-1)?.position !== event.position - 1)) {
      this.lanes.delete(event.lane);
      events = undefined;
    }
    if (size > MOST) return;
    if (!events) this.lanes.set(event.lane, [event]);
    else if (events.push(event) >= 2 * KEPT) this.lanes.set(event.lane, events.slice(KEPT));
  }

  /** There may be events of others in these lanes, or in all. */
  forget(lanes: Iterable<number> = [...this.lanes.keys()]): void {
    for (const lane of lanes) this.lanes.delete(lane);
  }

  /** The last event that was seen in a lane in this run of the server; undefined when it is not here. */
  lastOf(lane: number, run: string): Event | undefined {
    return run === this.run ? this.lanes.get(lane)?.at(-1) : undefined;
  }

  /** The next events of a lane after a position; undefined when the log has to be asked. */
  after(lane: number, position: number, limit: number): readonly Event[] | undefined {
    const events = this.lanes.get(lane);
    const [first] = events ?? [];
    if (!events || !first) return undefined;
    const from = position + 1 - first.position;
    return from < 0 || from >= events.length ? undefined : events.slice(from, from + limit);
  }
}
