import { type SessionEvent } from '../domain/session.events.js';
import { type SessionState } from '../domain/session.state.js';

/** One conversation: the address of every command and query. */
export interface SessionRef {
  readonly tenant: string;
  readonly sessionId: string;
}

/**
 * What stands beside a command: who asks, and under which conditions. The rules of a session never see it, so a command
 * means the same whoever gives it.
 */
export interface CommandContext {
  /** Name of the API key, or of the part of the service that acts by itself (`system:…`); recorded with each event. */
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId?: string | undefined;
  /** The versions that `If-Match` allows; `*` means any existing session. */
  readonly ifMatch?: '*' | readonly number[] | undefined;
  readonly idempotency?: IdempotencyKey | undefined;
  /** Begins together with the events of the command, so that nobody ever sees the one without the other. */
  readonly lease?: { readonly name: string; readonly owner: string; readonly ms: number } | undefined;
  /** Told what is about to be appended, and the state before it; told again when that state turns out to be old. */
  readonly onDecided?: ((events: readonly SessionEvent[], before: SessionState) => void) | undefined;
}

/** `key` is the client's own within `scope`; `fingerprint` tells whether a retry asks for the same thing. */
export interface IdempotencyKey {
  readonly scope: string;
  readonly key: string;
  readonly fingerprint: string;
}
