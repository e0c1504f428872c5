import { DatabaseUnavailable, isConnectionError } from '../database/connection.js';
import { streamKey } from '../event-store/lane.js';
import { KeyDestroyed, KeyMissing, NotAuthentic } from '../event-store/payload-codec.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';

/** The first event of a session that a projection cannot apply. */
export interface Poison {
  readonly tenant: string;
  readonly sessionId: string;
  readonly lane: number;
  readonly version: number;
  readonly error: Error;
}

/**
 * Error messages of PostgreSQL quote values: of what people wrote, only as much is stored as finding the cause takes.
 */
const REASON_LENGTH = 300;

/**
 * What is told of an error, and stored with a parked session.
 * @param isSealed whether what people wrote must not be in it
 */
export function reasonOf(error: Error, isSealed: boolean): string {
  if (!isSealed || UNQUOTING.some((kind) => error instanceof kind))
    return error.message.slice(0, REASON_LENGTH);
  const { code } = error as { code?: unknown };
  const kind = typeof code === 'string' ? `${error.name} ${code}` : error.name;
  return `${kind}; what it says is not kept, because it may quote what is sealed`;
}

/** Errors that name events and quote nothing of them. */
const UNQUOTING = [KeyDestroyed, KeyMissing, NotAuthentic];

/** Another node moved the checkpoint: the lease of this node ran out without its noticing. */
export class Fenced extends Error {
  override readonly name = 'Fenced';
}

/** Classes of SQLSTATE that data can cause: cardinality, data, constraint, limit, and errors that a function raises. */
const DATA_ERRORS = /^(21|22|23|54|P0)/;

/**
 * Whether an error was caused by the events or by the projection's code. An error of a database that is unreachable,
 * full or too slow was not, and parking sessions for it would empty the read models.
 */
export function isPoison(error: unknown): boolean {
  if (error instanceof Fenced || error instanceof DatabaseUnavailable || isConnectionError(error))
    return false;
  const { severity, code } = (error ?? {}) as { severity?: unknown; code?: unknown };
  return severity === undefined || (typeof code === 'string' && DATA_ERRORS.test(code));
}

/**
 * Finds the sessions that keep a batch from being applied, by trying ever smaller parts of the batch.
 *
 * @param attempt applies events and undoes it
 * @returns an empty list when no part fails: the failure of before was not caused by the events
 * @throws errors of `attempt` that are not poison
 */
export async function findPoison(
  events: readonly RecordedEvent[],
  attempt: (events: readonly RecordedEvent[]) => Promise<void>,
): Promise<Poison[]> {
  const failure = async (some: readonly RecordedEvent[]): Promise<{ readonly error: Error } | undefined> => {
    try {
      await attempt(some);
      return undefined;
    } catch (error) {
      if (!isPoison(error)) throw error;
      return { error: error instanceof Error ? error : new Error(String(error)) };
    }
  };
  const amongSessions = async (sessions: readonly RecordedEvent[][]): Promise<Poison[]> => {
    const failed = await failure(sessions.flat());
    if (!failed) return [];
    const [session] = sessions;
    if (sessions.length === 1 && session) return [await firstIn(session, failed.error)];
    const half = sessions.length >> 1;
    return [
      ...(await amongSessions(sessions.slice(0, half))),
      ...(await amongSessions(sessions.slice(half))),
    ];
  };
  /** Binary search: the first `good` events can be applied, the first `bad` events cannot. */
  const firstIn = async (session: readonly RecordedEvent[], error: Error): Promise<Poison> => {
    let [good, bad, why] = [0, session.length, error];
    while (bad - good > 1) {
      const middle = (good + bad) >> 1;
      const failed = await failure(session.slice(0, middle));
      if (failed) [bad, why] = [middle, failed.error];
      else good = middle;
    }
    const event = session[bad - 1];
    if (!event) throw error;
    const { tenant, streamId: sessionId, lane, version } = event;
    return { tenant, sessionId, lane, version, error: why };
  };
  const sessions = new Map<string, RecordedEvent[]>();
  for (const event of events) {
    const key = streamKey(event);
    const session = sessions.get(key);
    if (session) session.push(event);
    else sessions.set(key, [event]);
  }
  return amongSessions([...sessions.values()]);
}
