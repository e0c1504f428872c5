import { type GuardCondition } from '../domain/decider.js';
import { type StreamId } from './lane.js';
import { type EncodedPayload } from './payload-codec.js';

export interface Append {
  readonly stream: StreamId;
  readonly lane: number;
  /** The version that the stream must be at; 0 when the stream must not exist. */
  readonly expected: number;
  readonly incarnation: number;
  /** Whether the incarnation begins with this append. */
  readonly begins: boolean;
  /**
   * The generation of the log in which it was decided: in a later one the version that it expects may be another event.
   * Without it the append is made in whatever generation there is.
   */
  readonly generation?: number | undefined;
  /** Shared by appends that follow one another before the first of them is committed. */
  readonly chain: Chain;
  /** Whether the append counts as use of the stream. */
  readonly activity: boolean;
  /** The state after the append, if it is to be stored. It is required for a new stream. */
  readonly state?: StoredState | undefined;
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId: string | null;
  /**
   * Ids of keys that are destroyed in the same commit: what is sealed with them cannot be read from then on. With them go
   * all snapshots of the stream. The append itself is stored in plain.
   */
  readonly destroys?: readonly string[] | undefined;
  /** May be empty for a keyed append: then only its result is stored. */
  readonly events: readonly AppendEvent[];
  readonly guard?: GuardCondition | undefined;
  readonly counters?: readonly CounterChange[] | undefined;
  readonly key?: AppendKey | undefined;
  /** A lease that begins in the same commit, so that nobody ever sees the events without the lease. */
  readonly lease?: NewLease | undefined;
}

/**
 * What is known of a stream as of the last one that was committed of the appends which share this. Times are RFC 3339;
 * null: there is none yet.
 *
 * The version that an append expects is not enough to tell that the append before it succeeded: another node may have
 * brought the stream to that version with other events.
 */
export interface Chain {
  version: number;
  createdAt: string | null;
  /** `idleFor` counts from this time, or from the last event when it is null. */
  lastActivityAt: string | null;
}

export interface StoredState {
  readonly payload: EncodedPayload;
  /** Version of the code that folds the state. */
  readonly version: number;
}

export interface NewLease {
  readonly name: string;
  /** UUID of the process that holds the lease and renews it. */
  readonly owner: string;
  readonly ms: number;
}

export interface AppendEvent {
  readonly id: string;
  readonly type: string;
  readonly schemaVersion: number;
  readonly data: unknown;
  /** `data` in the form in which it is stored. */
  readonly payload: EncodedPayload;
}

export interface CounterChange {
  readonly key: string;
  readonly delta: number;
  /** The append is refused when a positive change would raise the counter above this. */
  readonly max: number;
}

/** Makes an append happen once: a second append with the same scope and key returns the reference of the first. */
export interface AppendKey {
  readonly scope: string;
  readonly key: string;
  readonly fingerprint: string;
  readonly reference: unknown;
}

export type AppendResult =
  | ({ readonly status: 'ok' } & StreamEnd)
  | { readonly status: 'duplicate'; readonly version: number; readonly reference: unknown }
  | { readonly status: 'conflict'; readonly version: number }
  | { readonly status: 'reused' | 'guard' | 'counter' | 'retry' };

/** The end of a stream after an append; times are RFC 3339. */
export interface StreamEnd {
  readonly version: number;
  readonly position: number;
  readonly time: string;
  readonly createdAt: string;
  readonly lastActivityAt: string;
}

/** More work arrives than the database can take. Nothing of this append was written. */
export class Overloaded extends Error {
  override readonly name = 'Overloaded';
  readonly code = 'overloaded';
}

/**
 * Where a stream ends after an append whose events were recorded at `time`. To be called in the order of the appends of
 * a stream: their chain goes along.
 */
export function endOf(
  { begins, chain, activity }: Append,
  version: number,
  position: number,
  time: string,
): AppendResult {
  const createdAt = (begins ? null : chain.createdAt) ?? time;
  const lastActivityAt = (activity ? null : chain.lastActivityAt) ?? time;
  Object.assign(chain, { version, createdAt, lastActivityAt } satisfies Chain);
  return { status: 'ok', version, position, time, createdAt, lastActivityAt };
}

/** Whether an append goes on where another append to its stream ends, if that succeeds. */
export const follows = (append: Append, before: Append): boolean =>
  append.chain === before.chain && append.expected === before.expected + before.events.length;

/** A rough size in bytes: the limits on waiting appends need only its order of magnitude. */
export const weigh = (append: Append): number =>
  append.events.reduce(
    (sum, { payload }) => sum + (payload.json?.length ?? 0) + (payload.sealed?.length ?? 0),
    512,
  );
