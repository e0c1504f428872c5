import { type GuardCondition } from '../domain/decider.js';
import { type StreamId } from './lane.js';
import { type EncodedPayload } from './payload-codec.js';

export interface Append {
  readonly stream: StreamId;
  readonly lane: number;
  /** The version that the stream must be at; 0 when the stream must not exist. */
  readonly expected: number;
  readonly incarnation: number;
  /** RFC 3339, as of version `expected`; null when the incarnation begins with this append. */
  readonly createdAt: string | null;
  /** RFC 3339, as of version `expected`. `idleFor` counts from this time, or from the last event when it is null. */
  readonly lastActivityAt: string | null;
  /** Whether the append counts as use of the stream. */
  readonly activity: boolean;
  /** The state after the append, if it is to be stored. It is required for a new stream. */
  readonly state?: StoredState | undefined;
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId: string | null;
  /** May be empty for a keyed append: then only its result is stored. */
  readonly events: readonly AppendEvent[];
  readonly guard?: GuardCondition | undefined;
  readonly counters?: readonly CounterChange[] | undefined;
  readonly key?: AppendKey | undefined;
  /** A lease that begins in the same commit, so that nobody ever sees the events without the lease. */
  readonly lease?: NewLease | undefined;
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

/** Where a stream ends after an append whose events were recorded at `time`. */
export const endOf = (append: Append, version: number, position: number, time: string): AppendResult => ({
  status: 'ok',
  version,
  position,
  time,
  createdAt: append.createdAt ?? time,
  lastActivityAt: append.activity ? time : (append.lastActivityAt ?? time),
});

/** A rough size in bytes: the limits on waiting appends need only its order of magnitude. */
export const weigh = (append: Append): number =>
  append.events.reduce(
    (sum, { payload }) => sum + (payload.json?.length ?? 0) + (payload.sealed?.length ?? 0),
    512,
  );
