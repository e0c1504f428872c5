import { type Decision, DomainError } from '../domain/decider.js';
import { type Chain, type CounterChange, type NewLease } from './append.js';
import { type EventLog, type Submitted } from './log.js';
import { Erased, CounterAtLimit, KeyReused, VersionMismatch } from './refusals.js';
import { type StateLag } from './stream-reader.js';
import { type Loaded, type StreamKind, StreamStates } from './stream-states.js';
import { type StreamId, streamKey } from './lane.js';
import { StreamTurns, type Turn } from './stream-turns.js';

/** The effect of a command. `duplicate` is set when the command was done before under the same key. */
export interface Handled<State, Event> extends Loaded<State> {
  readonly events: readonly Event[];
  readonly duplicate?: { readonly version: number; readonly reference: unknown };
}

export interface HandleOptions<State = unknown, Event = unknown> {
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId?: string | undefined;
  /** Called with the state before anything is decided upon it. What it throws refuses the command. */
  readonly admit?: ((state: State) => void) | undefined;
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
  /** The caller has just made the name of the stream up, so it need not be looked for. */
  readonly isNew?: boolean | undefined;
  /** A lease that begins with the append, if there is one. */
  readonly lease?: NewLease | undefined;
  /** Key and limit of the counter to which a decision refers by this name. */
  readonly counter?: (name: string) => Promise<{ key: string; max: number }> | { key: string; max: number };
  /**
   * Called with the events about to be appended and the state before them; called again when a conflict forces a retry.
   */
  readonly decided?: ((events: readonly Event[], before: State) => void) | undefined;
}

/**
 * A busy stream on several nodes loses a race now and then; losing this often in a row means that something is wrong.
 */
const ATTEMPTS = 100;

/** What a command is decided upon: a state, and what its append has to know of the stream. */
interface Basis<State> {
  readonly state: State & { version: number };
  readonly chain: Chain;
  readonly lag: StateLag | undefined;
  /** The generation of the log from which the state is. */
  readonly generation: number;
}

/**
 * Handles commands on streams: decides upon the state of the stream, appends, and starts over when somebody else
 * appended first.
 *
 * Commands on one stream are decided one after the other within a process. A command does not wait for the commit of
 * the one before: it is decided upon the state which that will probably leave, and both go into the same commit. If the
 * one before is not appended after all, the version check of the append refuses those behind it, and they are decided
 * again.
 *
 * That check also proves that a cached state is current. A decision that appends nothing has no such check, and a
 * refusal has none either, so both are made anew upon the state in the log: a stale state must not refuse a command.
 */
export class StreamHandler<State, Command, Event extends { type: string; data: unknown }> {
  private readonly states: StreamStates<State, Command, Event>;
  private readonly turns: StreamTurns<Basis<State>>;

  constructor(
    private readonly store: EventLog,
    private readonly kind: StreamKind<State, Command, Event>,
  ) {
    this.states = new StreamStates(store, kind);
    this.turns = new StreamTurns(store.telemetry, (tenant) => store.isBehind(tenant));
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
    return this.turns.take(stream, bytes, (turn) => this.attempt(stream, command, options, turn));
  }

  /** Loads many states by two queries, so that subsequent commands on them find the states cached. */
  preload(streams: readonly StreamId[]): Promise<void> {
    return this.states.preload(streams);
  }

  /** The cached state, which may be stale; use it only for what is checked again later. */
  known(stream: StreamId): Loaded<State & { version: number }> | undefined {
    return this.states.known(stream);
  }

  /** The current state, as the log has it. */
  load(stream: StreamId): Promise<Loaded<State & { version: number }>> {
    return this.states.load(stream);
  }

  /** The state of a stream at a version that it has reached, folded from the snapshot before that version. */
  stateAt(stream: StreamId, version: number): Promise<State & { version: number }> {
    return this.states.stateAt(stream, version);
  }

  private async attempt(
    stream: StreamId,
    command: Command,
    options: HandleOptions<State, Event>,
    turn: Turn<Basis<State>>,
  ): Promise<Handled<State, Event>> {
    const tryUpon = (basis: Basis<State>, certain?: Loaded<State & { version: number }>) =>
      this.decideAndAppend(stream, command, options, turn, basis, certain);
    const { key } = options;
    // Whoever is told of decisions acts on them, so these are not made in vain.
    if (options.decided) {
      await turn.alone();
      const duplicate = key && (await this.findDuplicate(stream, key));
      if (duplicate) return duplicate;
    }
    for (let tip = await turn.ahead(); tip; tip = await turn.ahead(tip)) {
      const handled = await tryUpon(tip);
      if (handled) return handled;
    }
    const cached = this.states.known(stream);
    const guessed = cached
      ? basisOf(cached, this.store.generations.current)
      : options.isNew
        ? this.nothing()
        : undefined;
    const handled = guessed && (await tryUpon(guessed));
    if (handled) return handled;
    // Where there is something to append, the append itself finds out whether the key was used before.
    const duplicate = key && !options.decided && (await this.findDuplicate(stream, key));
    if (duplicate) return duplicate;
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
      const generation = this.store.generations.current;
      const loaded = await this.load(stream);
      const retried = await tryUpon(basisOf(loaded, generation), loaded);
      if (retried) return retried;
    }
    throw new Error(`stream ${streamKey(stream)}: ${ATTEMPTS} appends in a row met a newer version`);
  }

  private nothing(): Basis<State> {
    const chain = { version: 0, createdAt: null, lastActivityAt: null };
    const { current: generation } = this.store.generations;
    return { state: this.kind.decider.initialState, chain, lag: undefined, generation };
  }

  /** The effect of an earlier command with the same key, if there was one. */
  private async findDuplicate(
    stream: StreamId,
    { scope, key, fingerprint }: NonNullable<HandleOptions['key']>,
  ): Promise<Handled<State, Event> | undefined> {
    const known = await this.store.keyed.find(stream.tenant, scope, key);
    if (!known) return undefined;
    if (known.fingerprint !== fingerprint) throw new KeyReused();
    return { ...(await this.load(stream)), events: [], duplicate: known };
  }

  /**
   * @param certain the state on which the basis rests, if it was read from the log during this turn
   * @returns undefined when the basis turned out to be wrong, or cannot be relied upon for this decision
   */
  private async decideAndAppend(
    stream: StreamId,
    command: Command,
    options: HandleOptions<State, Event>,
    turn: Turn<Basis<State>>,
    basis: Basis<State>,
    certain: Loaded<State & { version: number }> | undefined,
  ): Promise<Handled<State, Event> | undefined> {
    const { telemetry } = this.store;
    const begun = telemetry.isHeard('decided') ? performance.now() : undefined;
    let decision: Decision<Event>;
    try {
      options.admit?.(basis.state);
    } catch (error) {
      if (certain) throw error;
      return undefined;
    }
    // Outside of the `try`: that the database cannot be reached is no question of the basis.
    let prepared: Command;
    try {
      prepared = (await this.kind.prepare?.(command, basis.state, stream)) ?? command;
    } catch (error) {
      // What the state rests on was erased meanwhile, so there is a newer one.
      if (error instanceof Erased) return undefined;
      throw error;
    }
    try {
      checkIfMatch(options.ifMatch, basis.state.version);
      decision = this.kind.decider.decide(prepared, basis.state);
    } catch (error) {
      if (certain) throw error;
      return undefined;
    }
    for (let upon = basis; ; upon = { ...basis, chain: { ...basis.chain } }) {
      if (decision.events.length === 0) {
        if (!certain) return undefined;
        if (!options.key) return { ...certain, events: [] };
      }
      options.decided?.(decision.events, basis.state);
      if (begun !== undefined && upon === basis) {
        const { correlationId } = options;
        telemetry.emit('decided', { command: nameOf(command), correlationId, ms: performance.now() - begun });
      }
      const began = performance.now();
      const { next, appended } = await this.submit(stream, upon, decision, options);
      // From here on the next command can be decided.
      if (decision.events.length > 0) turn.offer({ ...upon, state: next, lag: appended.lag });
      const result = await appended.result;
      this.turns.appendTook(performance.now() - began);
      if (result.status === 'ok') {
        if (certain && decision.events.length === 0) return { ...certain, events: [] };
        turn.committed(result.time);
        const { position, time, createdAt, lastActivityAt } = result;
        const lane = this.store.laneOf(stream);
        const handled = { state: next, lane, position, time, createdAt, lastActivityAt, lag: appended.lag };
        if (this.store.generations.current === basis.generation)
          this.states.appended(stream, basis.state.version, handled);
        return { ...handled, events: decision.events };
      }
      turn.offer(undefined);
      switch (result.status) {
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

  private async submit(
    stream: StreamId,
    { state, chain, lag, generation }: Basis<State>,
    decision: Decision<Event>,
    options: HandleOptions<State, Event>,
  ): Promise<{ next: State & { version: number }; appended: Submitted }> {
    const { decider, stateVersion, schemaVersion, isActivity, incarnation } = this.kind;
    const next = decision.events.reduce((before, event) => decider.evolve(before, event), state);
    const counters: CounterChange[] = [];
    for (const [name, delta] of Object.entries(decision.counters ?? {})) {
      const counter = await options.counter?.(name);
      if (!counter) throw new Error(`nobody knows the counter ${name}`);
      counters.push({ ...counter, delta });
    }
    const appended = await this.store.submit({
      stream,
      expected: state.version,
      incarnation: incarnation(next),
      begins: state.version === 0 || incarnation(next) > incarnation(state),
      chain,
      generation,
      activity: decision.events.some(isActivity),
      state: next,
      stateVersion,
      // Whatever is loaded from then on begins with the state behind what was destroyed.
      lag: this.kind.storesAlways || decision.destroys ? undefined : lag,
      destroys: decision.destroys,
      actor: options.actor,
      correlationId: options.correlationId,
      causationId: options.causationId ?? null,
      events: decision.events.map((event) => ({ ...event, schemaVersion: schemaVersion(event.type) })),
      guard: decision.guard?.holds,
      counters,
      key: options.key && { ...options.key, reference: options.key.reference(decision.events) },
      lease: options.lease,
    });
    return { next, appended };
  }
}

const basisOf = <State>(
  { state, lag, createdAt, lastActivityAt }: Loaded<State & { version: number }>,
  generation: number,
): Basis<State> => ({
  state,
  lag,
  generation,
  chain: {
    version: state.version,
    createdAt: createdAt || null,
    lastActivityAt: lastActivityAt || null,
  },
});

const nameOf = (command: unknown): string => (command as { readonly type?: string }).type ?? 'command';

function checkIfMatch(ifMatch: HandleOptions['ifMatch'], version: number): void {
  if (ifMatch === undefined) return;
  if (ifMatch === '*' ? version === 0 : !ifMatch.includes(version)) throw new VersionMismatch(version);
}
