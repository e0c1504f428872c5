import { type EventLog } from '../event-store/log.js';
import { type SessionRef } from '../sessions/command-context.js';

export interface LaneGrowth {
  /** Resolves when the session may have new events, and after the given time at the latest. */
  readonly soon: Promise<void>;
  /** Must be called once `soon` is not needed any more; otherwise the subscription and the timer leak. */
  readonly end: () => void;
}

/**
 * Waits for events of a session. Call this before reading the log: otherwise an event that is appended between the read
 * and the wait would go unnoticed.
 */
export function laneGrowth(log: EventLog, { tenant, sessionId }: SessionRef, ms: number): LaneGrowth {
  const own = log.laneOf({ tenant, streamId: sessionId });
  let wake = (): void => undefined;
  const soon = new Promise<void>((resolve) => (wake = resolve));
  const unsubscribe = log.wakeUp.subscribe((lanes) => {
    for (const lane of lanes) if (lane === own) wake();
  });
  const timer = setTimeout(wake, ms);
  return {
    soon,
    end: () => {
      unsubscribe();
      clearTimeout(timer);
    },
  };
}
