import { LRUCache } from 'lru-cache';
import { type Decider, type Decision, DomainError } from '../domain/decider.js';
import { type CounterChange, type NewLease } from './append.js';
import { type Appended, type EventLog } from './log.js';
import { type RecordedEvent } from './recorded-event.js';
import { CounterAtLimit, KeyReused, VersionMismatch } from './refusals.js';
import { type StateLag } from './stream-reader.js';
import { type StreamId, streamKey } from './lane.js';
import { StreamTurns } from './stream-turns.js';

/** A decider's state with the facts that only the store knows: where the stream ends, and its times. */
export interface Loaded<State> {
  readonly state: State;
  readonly lane: number;
  /** Position of the last event; 0 when the stream does not exist. */
  readonly position: number;
  readonly time: string;
  readonly createdAt: string;
  readonly lastActivityAt: string;
  /** How far the stored state is behind; undefined when it is one that this code cannot use. */
  readonly lag: StateLag | undefined;
}

/** What a command did. `duplicate` is there when it was done before under the same key. */
export interface Handled<State, Event> extends Loaded<State> {
  readonly events: readonly Event[];
  readonly duplicate?: { readonly version: number; readonly reference: unknown };
}

export interface HandleOptions<State = unknown, Event = unknown> {
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId?: string | undefined;
  /** The versions that the caller allows; `*` any that exists. */
  readonly ifMatch?: '*' | readonly number[] | undefined;
  readonly key?:
    | {
        readonly scope: string;
        readonly key: string;
        readonly fingerprint: string;
        /** What a retry needs to know of the result; no personal data. */
        readonly reference: (events: readonly { readonly type: string }[]) => unknown;
      }
    | undefined;
  /** Begins with the append, if there is one. */
  readonly lease?: NewLease | undefined;
  /** Key and limit of the counter that a decision calls by this name. */
  readonly counter?: (name: string) => Promise<{ key: string; max: number }> | { key: string; max: number };
  /** Told what is about to be appended, and the state before it; again if that came too late. */
  readonly decided?: ((events: readonly Event[], before: State) => void) | undefined;
}

export interface StreamKind<State, Command, Event extends { type: string; data: unknown }> {
  readonly decider: Decider<State & { version: number }, Command, Event>;
  /** States stored under another number are folded anew. */
  readonly stateVersion: number;
  readonly schemaVersion: (type: Event['type']) => number;
  readonly isActivity: (event: Event) => boolean;
  /** Stores the state with every append, for those who look at the table of states by themselves. */
  readonly storesAlways?: boolean;
  readonly incarnation: (state: State) => number;
  /** A state is kept about every so many versions, so that one of the past is folded from few events; 1000. */
  readonly snapshotEvery?: number;
  /** Bytes that a command holds while it waits for its turn, roughly; what is not weighed counts as nothing. */
  readonly weigh?: (command: Command) => number;
  /** Adds to a command what only its effect in this state needs, and what no state holds. */
  readonly prepare?: (command: Command, state: State) => Promise<Command>;
}

/** A hot stream on several nodes loses a race now and then; losing so many in a row means something is wrong. */
const ATTEMPTS = 100;
const CACHED_STATES = 20_000;
const SNAPSHOT_EVERY = 1_000;

/**
 * Load, decide, append, and again if somebody else was faster: the way of every command.
 *
 * Commands on one stream are taken one after the other within a process, so that they do not race themselves.
 * States are cached; a cached state is proven right by the append's version check, and when a decision appends
 * nothing it is proven by loading again: an old state may not refuse what is right by now.
 */
export class StreamHandler<State, Command, Event extends { type: string; data: unknown }> {
  private readonly cache = new LRUCache<string, Loaded<State & { version: number }>>({ max: CACHED_STATES });
  private readonly turns: StreamTurns;
  private readonly snapshotEvery: number;

  constructor(
    private readonly store: EventLog,
    private readonly kind: StreamKind<State, Command, Event>,
  ) {
    this.snapshotEvery = kind.snapshotEvery ?? SNAPSHOT_EVERY;
    this.turns = new StreamTurns(store.telemetry);
  }

  /**
   * @throws DomainError, VersionMismatch, KeyReused, CounterAtLimit, Overloaded, DatabaseUnavailable
   */
  handle(
    stream: StreamId,
    command: Command,
    options: HandleOptions<State, Event>,
  ): Promise<Handled<State, Event>> {
    const bytes = this.kind.weigh?.(command) ?? 0;
    return this.turns.take(stream, bytes, () => this.attempt(stream, command, options));
  }

  /** Loads many states by one query, so that the commands on them which follow need no load of their own. */
  async preload(streams: readonly StreamId[]): Promise<void> {
    for (const stored of await this.store.streams.loadMany(streams)) {
      const key = streamKey(stored);
      // What is stored under another number is folded when it is needed.
      if (stored.stateVersion !== this.kind.stateVersion) continue;
      const loaded = this.follow(
        { ...stored, state: stored.state as State & { version: number } },
        stored.since,
      );
      if ((this.cache.get(key)?.state.version ?? 0) < loaded.state.version) this.cache.set(key, loaded);
    }
  }

  /** The state as it was when it was last seen here: good for what is checked later on anyway. */
  known(stream: StreamId): Loaded<State & { version: number }> | undefined {
    return this.cache.get(streamKey(stream));
  }

  /** The state as the log has it now. */
  async load(stream: StreamId): Promise<Loaded<State & { version: number }>> {
    const loaded = (await this.catchUp(stream)) ?? (await this.loadCold(stream));
    this.cache.set(streamKey(stream), loaded);
    return loaded;
  }

  /** From the state at hand; undefined when there is none that the log still has, or when it is too old. */
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
    return this.follow({ ...known, incarnation: this.kind.incarnation(known.state), lag }, found.since);
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

  /** What a state and its times have become by the events that came since. */
  private follow(
    from: Loaded<State & { version: number }> & { readonly incarnation: number },
    since: readonly RecordedEvent[],
  ): Loaded<State & { version: number }> {
    let { state, position, time, createdAt, lastActivityAt, incarnation } = from;
    for (const recorded of since) {
      const event = recorded as unknown as Event;
      state = this.kind.decider.evolve(state, event);
      ({ position, time } = recorded);
      if (recorded.incarnation > incarnation) ({ incarnation, time: createdAt } = recorded);
      if (this.kind.isActivity(event)) lastActivityAt = time;
    }
    return { state, lane: from.lane, position, time, createdAt, lastActivityAt, lag: from.lag };
  }

  /** The state that a stream had at a version which it has reached: folded from the snapshot before it. */
  async stateAt(stream: StreamId, version: number): Promise<State & { version: number }> {
    const { decider, stateVersion } = this.kind;
    const known = await this.store.snapshots.load(stream, stateVersion, version);
    let state = known === undefined ? decider.initialState : (known as State & { version: number });
    for await (const event of this.store.streams.events(stream, { from: state.version + 1, to: version })) {
      const before = state.version;
      state = decider.evolve(state, event as unknown as Event);
      this.keep(stream, before, state);
    }
    return state;
  }

  /**
   * Keeps a state as a snapshot if it is the first of its stretch of versions. Nobody waits for it: where one is
   * missing, the next question about the past folds the events and leaves it behind.
   */
  private keep(stream: StreamId, before: number, state: State & { version: number }): void {
    if (Math.floor(before / this.snapshotEvery) === Math.floor(state.version / this.snapshotEvery)) return;
    this.store.snapshots
      .save(stream, this.kind.stateVersion, this.kind.incarnation(state), state)
      .catch(this.store.telemetry.failed('keeping a snapshot of a state'));
  }

  private async attempt(
    stream: StreamId,
    command: Command,
    options: HandleOptions<State, Event>,
  ): Promise<Handled<State, Event>> {
    const { key } = options;
    const known = key && (await this.store.keyed.find(stream.tenant, key.scope, key.key));
    if (known) {
      if (known.fingerprint !== key.fingerprint) throw new KeyReused();
      return { ...(await this.load(stream)), events: [], duplicate: known };
    }
    const cached = this.cache.get(streamKey(stream));
    if (cached) {
      const handled = await this.decideAndAppend(stream, command, options, cached, true);
      if (handled) return handled;
    }
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
      const handled = await this.decideAndAppend(stream, command, options, await this.load(stream), false);
      if (handled) return handled;
    }
    throw new Error(`stream ${streamKey(stream)}: ${ATTEMPTS} appends in a row met a newer version`);
  }

  /** @returns undefined when the state turned out to be old. */
  private async decideAndAppend(
    stream: StreamId,
    command: Command,
    options: HandleOptions<State, Event>,
    loaded: Loaded<State & { version: number }>,
    maybeOld: boolean,
  ): Promise<Handled<State, Event> | undefined> {
    const prepared = (await this.kind.prepare?.(command, loaded.state)) ?? command;
    let decision: Decision<Event>;
    try {
      checkIfMatch(options.ifMatch, loaded.state.version);
      decision = this.kind.decider.decide(prepared, loaded.state);
    } catch (error) {
      if (maybeOld) return undefined;
      throw error;
    }
    for (;;) {
      if (decision.events.length === 0) {
        if (maybeOld) return undefined;
        if (!options.key) return { ...loaded, events: [] };
      }
      options.decided?.(decision.events, loaded.state);
      const { next, result } = await this.append(stream, loaded, decision, options);
      switch (result.status) {
        case 'ok': {
          const handled = {
            state: next,
            lane: loaded.lane,
            position: result.position,
            time: result.time,
            createdAt: result.createdAt,
            lastActivityAt: result.lastActivityAt,
            lag: result.lag,
          };
          if (decision.events.length === 0) return { ...loaded, events: [] };
          this.cache.set(streamKey(stream), handled);
          this.keep(stream, loaded.state.version, next);
          return { ...handled, events: decision.events };
        }
        case 'conflict':
        case 'retry':
          this.store.telemetry.emit('conflict', { tenant: stream.tenant });
          return undefined;
        case 'duplicate':
          return { ...(await this.load(stream)), events: [], duplicate: result };
        case 'reused':
          throw new KeyReused();
        case 'counter': {
          const [name = ''] = Object.keys(decision.counters ?? {});
          const counter = await options.counter?.(name);
          throw new CounterAtLimit(counter?.key ?? name, counter?.max ?? 0);
        }
        case 'guard': {
          const { otherwise } = decision.guard ?? {};
          if (otherwise instanceof DomainError || !otherwise)
            throw otherwise ?? new Error('a guard without an otherwise');
          decision = otherwise;
        }
      }
    }
  }

  private async append(
    stream: StreamId,
    loaded: Loaded<State & { version: number }>,
    decision: Decision<Event>,
    options: HandleOptions<State, Event>,
  ): Promise<{ next: State & { version: number }; result: Appended }> {
    const { decider, stateVersion, schemaVersion, isActivity, incarnation } = this.kind;
    const next = decision.events.reduce((state, event) => decider.evolve(state, event), loaded.state);
    const counters: CounterChange[] = [];
    for (const [name, delta] of Object.entries(decision.counters ?? {})) {
      const counter = await options.counter?.(name);
      if (!counter) throw new Error(`nobody knows the counter ${name}`);
      counters.push({ ...counter, delta });
    }
    const isNew = loaded.createdAt === '' || incarnation(next) > incarnation(loaded.state);
    const began = performance.now();
    const result = await this.store.append({
      stream,
      expected: loaded.state.version,
      incarnation: incarnation(next),
      createdAt: isNew ? null : loaded.createdAt,
      lastActivityAt: loaded.lastActivityAt || null,
      activity: decision.events.some(isActivity),
      state: next,
      stateVersion,
      lag: this.kind.storesAlways ? undefined : loaded.lag,
      actor: options.actor,
      correlationId: options.correlationId,
      causationId: options.causationId ?? null,
      events: decision.events.map((event) => ({ ...event, schemaVersion: schemaVersion(event.type) })),
      guard: decision.guard?.holds,
      counters,
      key: options.key && { ...options.key, reference: options.key.reference(decision.events) },
      lease: options.lease,
    });
    this.turns.appendTook(performance.now() - began);
    return { next, result };
  }
}

function checkIfMatch(ifMatch: HandleOptions['ifMatch'], version: number): void {
  if (ifMatch === undefined) return;
  if (ifMatch === '*' ? version === 0 : !ifMatch.includes(version)) throw new VersionMismatch(version);
}
