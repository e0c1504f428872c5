/**
 * The pure core of an event-sourced stream: what may happen (`decide`) and what it means (`evolve`).
 * Neither sees a clock, a random number or a promise, so both can be run again at any time with the same result.
 */
export interface Decider<State, Command, Event> {
  readonly initialState: State;
  decide(command: Command, state: State): Decision<Event>;
  evolve(state: State, event: Event): State;
}

/**
 * What a command leads to: events to append in one piece, or none when there is nothing to change.
 *
 * A rule that depends on time or on another stream cannot be settled by a pure function, so a decision may carry
 * it to the append: a `guard` is checked there by the database's clock, `counters` are added there under a lock.
 */
export interface Decision<Event> {
  readonly events: readonly Event[];
  readonly guard?: Guard<Event>;
  /** Changes of named counters, e.g. `{ active: 1 }`; the caller knows the key and the limit behind a name. */
  readonly counters?: Readonly<Record<string, number>>;
  /**
   * Ids of keys that are destroyed with the append, so that what is sealed with them cannot be read any more. Events and
   * state of such a decision are stored in plain, and must hold nothing that a person wrote or that is to be erased.
   */
  readonly destroys?: readonly string[];
}

export interface Guard<Event> {
  readonly holds: GuardCondition;
  /** What happens when the condition does not hold: an error for the caller, or another decision. */
  readonly otherwise: DomainError | Decision<Event>;
}

export type GuardCondition =
  /** The stream has had no activity for at least this many milliseconds. */
  | { readonly idleFor: number }
  /** The time that the append gets from the database is before this RFC 3339 time. */
  | { readonly before: string }
  /** The lease of this name does not exist or has run out. */
  | { readonly leaseOver: string };

/** Where a command is wrong, in the names of its fields. Each interface translates this into a pointer of its own. */
export interface FieldFault {
  /** Names and indexes that lead from the command to the field, e.g. `['messages', 3, 'toolCallId']`. */
  readonly field: readonly (string | number)[];
  /** What is wrong with the field, as the end of a sentence that begins with the field's name. */
  readonly detail: string;
}

/** A rule refused a command. */
export class DomainError extends Error {
  override readonly name = 'DomainError';
  readonly field: FieldFault['field'] | undefined;
  readonly detail: string | undefined;

  constructor(
    readonly code:
      'session-not-found' | 'not-found' | 'session-busy' | 'legal-hold' | 'not-sealed' | 'invalid-request',
    message: string,
    fault?: FieldFault,
  ) {
    super(message);
    this.field = fault?.field;
    this.detail = fault?.detail;
  }

  /** The same error with another name for the field, for a caller whose own input has other names than the command. */
  withField(rename: (field: FieldFault['field']) => FieldFault['field']): DomainError {
    if (this.field === undefined || this.detail === undefined) return this;
    return new DomainError(this.code, this.message, { field: rename(this.field), detail: this.detail });
  }
}

/** Removes the keys whose value is undefined, so that events hold only what was given. */
export function given<T extends object>(data: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(data).filter(([, value]) => value !== undefined)) as never;
}
