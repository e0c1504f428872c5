import { type SessionEvent } from '../domain/session.events.js';
import { type SessionState } from '../domain/session.state.js';

/** Whose sessions somebody may reach: all of a tenant, or those of one owner in it. */
export interface Reach {
  readonly tenant: string;
  /** Null: all sessions of the tenant. Sessions of other owners do not exist for who reaches one owner's only. */
  readonly ownedBy: string | null;
}

/** Where a session is. */
export interface SessionAddress {
  readonly tenant: string;
  readonly sessionId: string;
}

/** The address of a session, for commands and queries, as somebody sees it who has this reach. */
export interface SessionRef extends SessionAddress, Reach {}

export const refTo = ({ tenant, ownedBy }: Reach, sessionId: string): SessionRef => ({
  tenant,
  ownedBy,
  sessionId,
});

/** A session as the service itself sees it, whoever owns it. */
export const anyOwner = ({ tenant, sessionId }: SessionAddress): SessionRef => ({
  tenant,
  sessionId,
  ownedBy: null,
});

/**
 * The circumstances of a command: who gives it, and under which conditions. The rules of a session do not see them, so
 * a command means the same for every caller.
 */
export interface CommandContext {
  /** Name of the API key, or of the part of the service that acts on its own (`system:…`). Recorded with each event. */
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId?: string | undefined;
  /** The versions that `If-Match` allows; `*` means any existing session. */
  readonly ifMatch?: '*' | readonly number[] | undefined;
  readonly idempotency?: IdempotencyKey | undefined;
  /** The id of the session was made up for this command, so there is none yet. */
  readonly isNew?: boolean | undefined;
  /** A lease that begins in the same commit as the events of the command. */
  readonly lease?: { readonly name: string; readonly owner: string; readonly ms: number } | undefined;
  /** Called with the events to be appended and the state before them; called again when that state was out of date. */
  readonly onDecided?: ((events: readonly SessionEvent[], before: SessionState) => void) | undefined;
}

/** `key` is chosen by the client, within `scope`. `fingerprint` tells whether a retry is the same request. */
export interface IdempotencyKey {
  readonly scope: string;
  readonly key: string;
  readonly fingerprint: string;
}
