import { boundedCache } from '../bounded-cache.js';
import { type Decider } from '../domain/decider.js';
import { type StreamId, streamKey } from './lane.js';
import { type EventLog } from './log.js';
import { type RecordedEvent } from './recorded-event.js';
import { Erased } from './refusals.js';
import { type StateLag } from './stream-reader.js';

/** A decider's state together with what only the store knows: where the stream ends, and its times. */
export interface Loaded<State> {
  readonly state: State;
  readonly lane: number;
  /** Position of the stream's last event; 0 when the stream does not exist. */
  readonly position: number;
  readonly time: string;
  readonly createdAt: string;
  readonly lastActivityAt: string;
  /** How far the stored state is behind; undefined when there is none that this code can use. */
  readonly lag: StateLag | undefined;
}

export interface StreamKind<State, Command, Event extends { type: string; data: unknown }> {
  readonly decider: Decider<State & { version: number }, Command, Event>;
  /** States stored under another number are discarded and folded again from the events. */
  readonly stateVersion: number;
  readonly schemaVersion: (type: Event['type']) => number;
  readonly isActivity: (event: Event) => boolean;
  /** Stores the state with every append, for readers that query the table of states directly. */
  readonly storesAlways?: boolean;
  readonly incarnation: (state: State) => number;
  /**
   * The state after an event whose data was erased. Only what follows from the types of events is known then, until an
   * event comes that makes the state known again. Without it such streams cannot be folded.
   */
  readonly evolveErased?: (state: State & { version: number }, type: string) => State & { version: number };
  /** Distance in versions between snapshots, from which states of the past are folded. Default 1000. */
  readonly snapshotEvery?: number;
  /** Approximate bytes that a command holds while it waits for its turn. Without it a command counts as 0 bytes. */
  readonly weigh?: (command: Command) => number;
  /** Adds to a command the data that its effect in this state needs and that the state does not hold. */
  readonly prepare?: (command: Command, state: State, stream: StreamId) => Command | Promise<Command>;
}

const CACHED_STATES = 20_000;
const SNAPSHOT_EVERY = 1_000;
/** How often a state is loaded that is erased at the moment of the loading. */
const TRIES = 5;

/** States of streams: as this process knows them, as the log has them, and as they were. */
export class StreamStates<State, Command, Event extends { type: string; data: unknown }> {
  private readonly cache = boundedCache<string, Loaded<State & { version: number }>>(CACHED_STATES);
  private readonly snapshotEvery: number;

  constructor(
    private readonly store: EventLog,
    private readonly kind: StreamKind<State, Command, Event>,
  ) {
    this.snapshotEvery = kind.snapshotEvery ?? SNAPSHOT_EVERY;
    // A state of events that are gone may have the version of others, and an append would not notice.
    store.generations.onNew(() => {
      this.cache.clear();
    });
  }

  /** Loads many states by one query, so that subsequent commands on them find the states cached. */
  async preload(streams: readonly StreamId[]): Promise<void> {
    const { current } = this.store.generations;
    const found = await this.store.streams.loadMany(streams);
    if (this.store.generations.current !== current) return;
    for (const stored of found) {
      const key = streamKey(stored);
      // A state of another version is skipped; `load` folds it when it is needed.
      if (stored.stateVersion !== this.kind.stateVersion || stored.since.at(-1)?.erased) continue;
      const loaded = this.follow(
        { ...stored, state: stored.state as State & { version: number } },
        stored.since,
      );
      if ((this.cache.get(key)?.state.version ?? 0) < loaded.state.version) this.cache.set(key, loaded);
    }
  }

  /** The cached state, which may be stale; use it only for what is checked again later. */
  known(stream: StreamId): Loaded<State & { version: number }> | undefined {
    return this.cache.get(streamKey(stream));
  }

  /**
   * Caches the state that an append left.
   *
   * @param before version of the stream before the append
   */
  appended(stream: StreamId, before: number, loaded: Loaded<State & { version: number }>): void {
    this.cache.set(streamKey(stream), loaded);
    this.keep(stream, before, loaded.state);
  }

  /** The current state, as the log has it. */
  async load(stream: StreamId): Promise<Loaded<State & { version: number }>> {
    const { current } = this.store.generations;
    const loaded = (await this.catchUp(stream)) ?? (await this.loadWhole(stream));
    if (this.store.generations.current === current) this.cache.set(streamKey(stream), loaded);
    return loaded;
  }

  /**
   * Brings the cached state up to date. Returns undefined when there is none, or when it is too old or no longer in the
   * log.
   */
  private async catchUp(stream: StreamId): Promise<Loaded<State & { version: number }> | undefined> {
    const known = this.known(stream);
    if (!known || known.state.version === 0) return undefined;
    const { position, time } = known;
    const found = await this.store.streams.since(stream, { version: known.state.version, position, time });
    if (!found || found.since.length === 0) return found && known;
    const lag = known.lag && {
      events: known.lag.events + found.lag.events,
      bytes: known.lag.bytes + found.lag.bytes,
    };
    // What was erased while it was read is behind the end of the stream by now.
    if (found.since.at(-1)?.erased) return undefined;
    return this.follow({ ...known, incarnation: this.kind.incarnation(known.state), lag }, found.since);
  }

  private async loadWhole(stream: StreamId): Promise<Loaded<State & { version: number }>> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.loadCold(stream);
      } catch (error) {
        // Behind what was erased while it was read there is an event by now that tells so.
        if (!(error instanceof Erased) || attempt === TRIES) throw error;
      }
    }
  }

  private async loadCold(stream: StreamId): Promise<Loaded<State & { version: number }>> {
    const { decider, stateVersion } = this.kind;
    const stored = await this.store.streams.load(stream);
    if (!stored) {
      return {
        state: decider.initialState,
        lane: this.store.laneOf(stream),
        position: 0,
        time: '',
        createdAt: '',
        lastActivityAt: '',
        lag: { events: 0, bytes: 0 },
      };
    }
    if (stored.stateVersion === stateVersion)
      return this.follow({ ...stored, state: stored.state as State & { version: number } }, stored.since);
    const state = await this.stateAt(stream, stored.version);
    return this.follow({ ...stored, state, lag: undefined }, stored.since);
  }

  /** Applies the events that came since to a state and its times. */
  private follow(
    from: Loaded<State & { version: number }> & { readonly incarnation: number },
    since: readonly RecordedEvent[],
  ): Loaded<State & { version: number }> {
    let { state, position, time, createdAt, lastActivityAt, incarnation } = from;
    if (since.at(-1)?.erased) throw new Erased(state.version + since.length);
    for (const recorded of since) {
      const event = recorded as unknown as Event;
      state = this.evolve(state, recorded);
      ({ position, time } = recorded);
      if (recorded.incarnation > incarnation) ({ incarnation, time: createdAt } = recorded);
      if (this.kind.isActivity(event)) lastActivityAt = time;
    }
    return { state, lane: from.lane, position, time, createdAt, lastActivityAt, lag: from.lag };
  }

  private evolve(state: State & { version: number }, event: RecordedEvent): State & { version: number } {
    if (!event.erased) return this.kind.decider.evolve(state, event as unknown as Event);
    if (!this.kind.evolveErased) throw new Erased(event.version);
    return this.kind.evolveErased(state, event.type);
  }

  /**
   * The state of a stream at a version that it has reached, folded from the snapshot before that version.
   * @throws Erased when the data of the event of that version was erased
   */
  async stateAt(stream: StreamId, version: number): Promise<State & { version: number }> {
    const { decider, stateVersion } = this.kind;
    const known = await this.store.snapshots.load(stream, stateVersion, version);
    let state = known === undefined ? decider.initialState : (known as State & { version: number });
    const range = { from: state.version + 1, to: version, erasedToo: true };
    let isErased = false;
    for await (const event of this.store.streams.events(stream, range)) {
      const before = state.version;
      state = this.evolve(state, event);
      isErased = event.erased === true;
      if (!isErased) this.keep(stream, before, state);
    }
    if (isErased) throw new Erased(version);
    return state;
  }

  /**
   * Stores a snapshot if this state is the first one past a multiple of `snapshotEvery`. Nobody waits for it: where a
   * snapshot is missing, the next read of the past folds the events and stores it.
   */
  private keep(stream: StreamId, before: number, state: State & { version: number }): void {
    if (Math.floor(before / this.snapshotEvery) === Math.floor(state.version / this.snapshotEvery)) return;
    this.store.snapshots
      .save(stream, this.kind.stateVersion, this.kind.incarnation(state), state)
      .catch(this.store.telemetry.failed('keeping a snapshot of a state'));
  }
}
