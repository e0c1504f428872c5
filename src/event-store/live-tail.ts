import { DatabaseUnavailable } from '../database/connection.js';
import { type FeedReader } from './feed-reader.js';
import { type EventHead, type LaneReader } from './lane-reader.js';
import { type LogTail, MOST } from './log-tail.js';
import { type RecordedEvent } from './recorded-event.js';
import { type Telemetry } from './telemetry.js';
import { type WakeUp } from './wake-up.js';

/** After a look at the log events gather for so long: following costs at most so many queries, whatever is written. */
const GATHER_MS = 20;
/** How long the follower waits before it asks a database again that did not answer. */
const RETRY_MS = 1_000;
/** Events of one lane that a look takes; a lane with more of them is looked at again at once. */
const LOOK = 500;
/** Bytes of payload that are read at once, and that wait for one subscriber at most: so much memory each may take. */
const HELD_BYTES = 1024 * 1024;

/** Whose events are wanted: those of all streams of a tenant, or of one. */
export interface Topic {
  readonly tenant: string;
  readonly streamId?: string | undefined;
}

/** An event behind the follower's place. */
interface Seen {
  readonly head: Omit<EventHead, 'bytes'>;
  /**
   * What it counts of `HELD_BYTES`. The least is that of the largest in the tail: 128 small ones are as many as may
   * wait.
   */
  readonly bytes: number;
  /** Known already when this process has just appended it. */
  readonly event?: RecordedEvent;
}

/** The follower's life from the first subscriber to the last one. */
interface Run {
  /** By lane: up to where everything was handed out, or concerned nobody. */
  places: number[];
  /** Lanes that may have grown since they were looked at. */
  readonly grown: Set<number>;
  /** Settled when the places are known. */
  started: Promise<void>;
  wake: () => void;
  readonly stopListening: () => void;
  isOver: boolean;
}

/**
 * Hands what is new in the log to all who follow it live on this node. However many they are, one follower asks the
 * database for all of them: once for each time it is woken, without payloads until an event is known to be wanted, and
 * not at all for what this process has appended itself. It sleeps while there are no subscribers.
 *
 * It begins at the end of the log; a subscriber reads by itself what is before that, after its subscription has begun.
 * No event falls in between: one that the follower passed earlier was committed earlier, so that read sees it. One that
 * comes both ways is known by its position. A subscriber that takes its events too slowly, or whose events cannot be
 * read, is dropped: it reads by itself again, and begins anew.
 */
export class LiveTail {
  private readonly subscribers = new Map<string, Set<Subscription>>();
  private run: Run | undefined;

  constructor(
    private readonly lanes: LaneReader,
    private readonly feed: FeedReader,
    private readonly tail: LogTail<RecordedEvent>,
    private readonly wakeUp: WakeUp,
    private readonly telemetry: Telemetry,
  ) {}

  /** A subscription that has not begun yet. Whoever asks for one has to end it. */
  subscribe({ tenant, streamId }: Topic): Subscription {
    const key = keyOf(tenant, streamId);
    return new Subscription(
      (one) => this.add(key, one),
      (one) => {
        this.remove(key, one);
      },
    );
  }

  /** Drops all subscribers. */
  close(): void {
    for (const subscribers of this.subscribers.values()) for (const one of subscribers) one.end();
  }

  private add(key: string, subscription: Subscription): Promise<void> {
    const others = this.subscribers.get(key);
    if (others) others.add(subscription);
    else this.subscribers.set(key, new Set([subscription]));
    this.run ??= this.start();
    return this.run.started;
  }

  private remove(key: string, subscription: Subscription): void {
    const subscribers = this.subscribers.get(key);
    subscribers?.delete(subscription);
    if (subscribers?.size === 0) this.subscribers.delete(key);
    const { run } = this;
    if (this.subscribers.size > 0 || !run) return;
    this.run = undefined;
    run.isOver = true;
    run.stopListening();
    run.wake();
  }

  private start(): Run {
    const grown = new Set<number>();
    const run: Run = {
      places: [],
      grown,
      started: Promise.resolve(),
      wake: () => undefined,
      // Before the ends are asked for, so that what is written meanwhile is not missed.
      stopListening: this.wakeUp.subscribe((lanes) => {
        for (const lane of lanes) grown.add(lane);
        run.wake();
      }),
      isOver: false,
    };
    run.started = this.lanes.ends().then((ends) => {
      run.places = ends;
    });
    // When it cannot start, all who wait for it are told and end, and with the last of them this run.
    run.started
      .then(() => this.follow(run))
      .catch(this.telemetry.failed('following the log for live readers'));
    return run;
  }

  private async follow(run: Run): Promise<void> {
    while (!run.isOver) {
      if (run.grown.size === 0) {
        await new Promise<void>((resolve) => (run.wake = resolve));
        continue;
      }
      const lanes = [...run.grown].sort((a, b) => a - b);
      run.grown.clear();
      let ms = GATHER_MS;
      try {
        const unfinished = await this.look(run, lanes);
        for (const lane of unfinished) run.grown.add(lane);
        if (unfinished.length > 0) ms = 0;
      } catch (error) {
        // The places stay, so that the next look that succeeds finds what this one did not.
        for (const lane of lanes) run.grown.add(lane);
        this.telemetry.emit('failed', { what: 'following the log for live readers', error });
        ms = RETRY_MS;
      }
      await pause(run, ms);
    }
  }

  /**
   * Hands out what lanes have behind their places.
   * @returns lanes that may have more
   * @throws DatabaseUnavailable when part of it may not be handed out yet; that part will come again
   */
  private async look(run: Run, lanes: readonly number[]): Promise<number[]> {
    const seen = await this.behind(run.places, lanes);
    if (run.isOver) return [];
    if (!seen) {
      // A standby without its last events took over. Where each reader stands in it, its own cursor has to tell.
      this.close();
      return [];
    }
    const wanted = [...seen.values()].flatMap(mergeable).filter(({ head }) => this.wanting(head).length > 0);
    wanted.sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
    for (const part of parts(wanted)) await this.handOut(part);
    for (const [lane, events] of seen)
      run.places[lane] = events.at(-1)?.head.position ?? run.places[lane] ?? 0;
    return [...seen].filter(([, events]) => events.length >= LOOK).map(([lane]) => lane);
  }

  /** By lane, what is behind its place; undefined when the log has been set back to before one of them. */
  private async behind(
    places: readonly number[],
    lanes: readonly number[],
  ): Promise<Map<number, readonly Seen[]> | undefined> {
    const seen = new Map<number, Seen[]>();
    const unknown = new Map<number, number>();
    for (const lane of lanes) {
      const place = places[lane] ?? 0;
      const events = this.tail.after(lane, place, LOOK);
      if (events)
        seen.set(
          lane,
          events.map((event) => ({ head: event, bytes: MOST, event })),
        );
      else unknown.set(lane, place);
    }
    if (unknown.size === 0) return seen;
    const found = new Map([...unknown.keys()].map((lane) => [lane, [] as EventHead[]]));
    for (const head of await this.lanes.heads(unknown, LOOK)) found.get(head.lane)?.push(head);
    for (const [lane, heads] of found) {
      const place = unknown.get(lane) ?? 0;
      if (place > 0 && heads.shift()?.position !== place) return undefined;
      seen.set(
        lane,
        heads.map((head) => ({ head, bytes: Math.max(MOST, head.bytes) })),
      );
    }
    return seen;
  }

  private async handOut(part: readonly Seen[]): Promise<void> {
    const unread = part.flatMap(({ head, event }) => (event ? [] : [head]));
    let read: Map<string, RecordedEvent>;
    try {
      const events = unread.length === 0 ? [] : await this.feed.readAt(unread);
      read = new Map(events.map((event) => [placeOf(event), event]));
    } catch (error) {
      if (error instanceof DatabaseUnavailable) throw error;
      // Whoever wants these events meets the error by reading them; nobody else may be held up by it.
      this.telemetry.emit('failed', { what: 'reading events for live readers', error });
      for (const { head } of part) for (const subscription of this.wanting(head)) subscription.end();
      return;
    }
    for (const { head, bytes, ...known } of part) {
      const event = known.event ?? read.get(placeOf(head));
      if (event) for (const subscription of this.wanting(head)) subscription.push(event, bytes);
    }
  }

  private wanting({ tenant, streamId }: Pick<EventHead, 'tenant' | 'streamId'>): readonly Subscription[] {
    const ofTenant = this.subscribers.get(keyOf(tenant));
    const ofStream = this.subscribers.get(keyOf(tenant, streamId));
    return ofTenant || ofStream ? [...(ofTenant ?? []), ...(ofStream ?? [])] : NOBODY;
  }
}

/** The live events of a topic, for one reader. */
export class Subscription {
  private events: RecordedEvent[] = [];
  private bytes = 0;
  private isOn = false;
  private wake: () => void = () => undefined;

  constructor(
    private readonly join: (self: Subscription) => Promise<void>,
    private readonly leave: (self: Subscription) => void,
  ) {}

  /**
   * Begins, also anew after the end. What is in the log when this resolves is for the reader to read.
   * @throws DatabaseUnavailable
   */
  async begin(): Promise<void> {
    this.events = [];
    this.bytes = 0;
    this.isOn = true;
    try {
      await this.join(this);
    } catch (error) {
      this.end();
      throw error;
    }
  }

  /**
   * The next events as soon as there are some, those of a lane in its order. Some may have been in the log when the
   * subscription began, or come twice.
   * @returns undefined when it is over: then the reader has to read by itself again what it has not got yet
   */
  async take(): Promise<readonly RecordedEvent[] | undefined> {
    if (this.events.length === 0 && this.isOn) await new Promise<void>((resolve) => (this.wake = resolve));
    if (this.events.length === 0) return undefined;
    const taken = this.events;
    this.events = [];
    this.bytes = 0;
    return taken;
  }

  /** Is over when more would wait than may be held: what was pushed so far can still be taken. */
  push(event: RecordedEvent, bytes: number): void {
    if (this.events.length > 0 && this.bytes + bytes > HELD_BYTES) {
      this.end();
      return;
    }
    this.events.push(event);
    this.bytes += bytes;
    this.wake();
  }

  end(): void {
    this.isOn = false;
    this.leave(this);
    this.wake();
  }
}

const NOBODY: readonly Subscription[] = [];

/** No tenant has a blank in its name. */
const keyOf = (tenant: string, streamId?: string): string =>
  streamId === undefined ? tenant : `${tenant} ${streamId}`;

const placeOf = ({ lane, position }: Pick<EventHead, 'lane' | 'position'>): string => `${lane}/${position}`;

/** Times by which lanes can be merged: within one the position rules, also where a clock was set back. */
function mergeable(events: readonly Seen[]): (Seen & { readonly at: string })[] {
  let at = '';
  return events.map((one) => {
    if (one.head.time > at) at = one.head.time;
    return { ...one, at };
  });
}

/** Pieces of no more than `HELD_BYTES`, or of one event that alone is larger. */
function* parts(events: readonly Seen[]): Generator<readonly Seen[]> {
  let part: Seen[] = [];
  let bytes = 0;
  for (const one of events) {
    if (part.length > 0 && bytes + one.bytes > HELD_BYTES) {
      yield part;
      part = [];
      bytes = 0;
    }
    part.push(one);
    bytes += one.bytes;
  }
  if (part.length > 0) yield part;
}

/** Returns early at the end of the run. */
const pause = (run: Run, ms: number): Promise<void> =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    run.wake = () => {
      if (!run.isOver) return;
      clearTimeout(timer);
      resolve();
    };
  });
