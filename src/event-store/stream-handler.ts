import { LRUCache } from 'lru-cache';
import { type Decider, type Decision, DomainError } from '../domain/decider.js';
import { type CounterChange, type NewLease } from './append.js';
import { type Appended, type EventLog } from './log.js';
import { type RecordedEvent } from './recorded-event.js';
import { CounterAtLimit, KeyReused, VersionMismatch } from './refusals.js';
import { type StateLag } from './stream-reader.js';
import { type StreamId, streamKey } from './lane.js';
import { StreamTurns } from './stream-turns.js';

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

/** The effect of a command. `duplicate` is set when the command was done before under the same key. */
export interface Handled<State, Event> extends Loaded<State> {
  readonly events: readonly Event[];
  readonly duplicate?: { readonly version: number; readonly reference: unknown };
}

export interface HandleOptions<State = unknown, Event = unknown> {
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId?: string | undefined;
  /** The versions that the caller allows; `*` allows any existing stream. */
  readonly ifMatch?: '*' | readonly number[] | undefined;
  readonly key?:
    | {
        readonly scope: string;
        readonly key: string;
        readonly fingerprint: string;
        /** The part of the result that a retry needs. It must hold no personal data, because it is stored in plain. */
        readonly reference: (events: readonly { readonly type: string }[]) => unknown;
      }
    | undefined;
  /** A lease that begins with the append, if there is one. */
  readonly lease?: NewLease | undefined;
  /** Key and limit of the counter to which a decision refers by this name. */
  readonly counter?: (name: string) => Promise<{ key: string; max: number }> | { key: string; max: number };
  /**
   * Called with the events about to be appended and the state before them; called again when a conflict forces a retry.
   */
  readonly decided?: ((events: readonly Event[], before: State) => void) | undefined;
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
  /** Distance in versions between snapshots, from which states of the past are folded. Default 1000. */
  readonly snapshotEvery?: number;
  /** Approximate bytes that a command holds while it waits for its turn. Without it a command counts as 0 bytes. */
  readonly weigh?: (command: Command) => number;
  /** Adds to a command the data that its effect in this state needs and that the state does not hold. */
  readonly prepare?: (command: Command, state: State) => Promise<Command>;
}

/**
 * A busy stream on several nodes loses a race now and then; losing this often in a row means that something is wrong.
 */
const ATTEMPTS = 100;
const CACHED_STATES = 20_000;
const SNAPSHOT_EVERY = 1_000;

/**
 * Handles commands on streams: loads the state, decides, appends, and starts over when somebody else appended first.
 *
 * Commands on one stream run one after the other within a process, so that they do not conflict with each other. States
 * are cached. The version check of the append proves that a cached state is current. A decision that appends nothing
 * has no such check, so the state is loaded again before it counts: a stale state must not refuse a command.
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

  /** Loads many states by one query, so that subsequent commands on them find the states cached. */
  async preload(streams: readonly StreamId[]): Promise<void> {
    for (const stored of await this.store.streams.loadMany(streams)) {
      const key = streamKey(stored);
      // A state of another version is skipped; `load` folds it when it is needed.
      if (stored.stateVersion !== this.kind.stateVersion) continue;
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

  /** The current state, as the log has it. */
  async load(stream: StreamId): Promise<Loaded<State & { version: number }>> {
    const loaded = (await this.catchUp(stream)) ?? (await this.loadCold(stream));
    this.cache.set(streamKey(stream), loaded);
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

  /** Applies the events that came since to a state and its times. */
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

  /** The state of a stream at a version that it has reached, folded from the snapshot before that version. */
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
   * Stores a snapshot if this state is the first one past a multiple of `snapshotEvery`. Nobody waits for it: where a
   * snapshot is missing, the next read of the past folds the events and stores it.
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

  /** @returns undefined when the state turned out to be stale */
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
