import { type GuardCondition } from '../domain/decider.js';
import { type StreamId } from './lane.js';
import { type EncodedPayload } from './payload-codec.js';

export interface Append {
  readonly stream: StreamId;
  readonly lane: number;
  /** The version that the stream must be at; 0 when it must not exist. */
  readonly expected: number;
  readonly incarnation: number;
  /** RFC 3339, as of `expected`; null: the incarnation begins with this append. */
  readonly createdAt: string | null;
  /** RFC 3339, as of `expected`: `idleFor` counts from here; null: there was none, and it counts from the last event. */
  readonly lastActivityAt: string | null;
  /** Whether this counts as use of the stream. */
  readonly activity: boolean;
  /** The state that the append leaves, if it is to be stored. A new stream's must be. */
  readonly state?: StoredState | undefined;
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId: string | null;
  /** None is allowed for a keyed append: then only the result is kept. */
  readonly events: readonly AppendEvent[];
  readonly guard?: GuardCondition | undefined;
  readonly counters?: readonly CounterChange[] | undefined;
  readonly key?: AppendKey | undefined;
  /** A lease that begins with the append, so that nobody ever sees the one without the other. */
  readonly lease?: NewLease | undefined;
}

export interface StoredState {
  readonly payload: EncodedPayload;
  /** Number of the code's way to fold. */
  readonly version: number;
}

export interface NewLease {
  readonly name: string;
  /** UUID of the process that works under it, and renews it. */
  readonly owner: string;
  readonly ms: number;
}

export interface AppendEvent {
  readonly id: string;
  readonly type: string;
  readonly schemaVersion: number;
  readonly data: unknown;
  /** `data` as it is stored. */
  readonly payload: EncodedPayload;
}

export interface CounterChange {
  readonly key: string;
  readonly delta: number;
  /** A positive change that would pass this is refused. */
  readonly max: number;
}

/** Makes an append happen once: a second one with the same scope and key gets the first one's reference. */
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

/** More work arrives than the database takes; nothing of this append was done. */
export class Overloaded extends Error {
  override readonly name = 'Overloaded';
  readonly code = 'overloaded';
}

/** Where a stream ends after an append whose events are of this time. */
export const endOf = (append: Append, version: number, position: number, time: string): AppendResult => ({
  status: 'ok',
  version,
  position,
  time,
  createdAt: append.createdAt ?? time,
  lastActivityAt: append.activity ? time : (append.lastActivityAt ?? time),
});

/** A rough size; only its order of magnitude matters to the bounds. */
export const weigh = (append: Append): number =>
  append.events.reduce(
    (sum, { payload }) => sum + (payload.json?.length ?? 0) + (payload.sealed?.length ?? 0),
    512,
  );
