import { Injectable } from '@nestjs/common';
import { EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { type SessionRecord } from '../read-models/session-record.js';
import { forksBefore } from '../read-models/session-views.js';
import { type SessionState } from '../domain/session.state.js';
import { erasureWaitsFor } from '../domain/session.erasure.js';
import { type SessionAddress } from './command-context.js';
import { type Receipt, type Scheduled } from './session.schemas.js';

/** What the log tells of the erasures of sessions. */
@Injectable()
export class Erasures {
  constructor(
    private readonly store: EventLog,
    private readonly models: ReadModels,
  ) {}

  /**
   * The receipts of a session, in the order of its erasures.
   * @throws ProjectionLagging
   */
  async receipts({ tenant, sessionId }: SessionAddress): Promise<Receipt[]> {
    const stream = { tenant, streamId: sessionId };
    const events = await this.store.streams.read(stream, { types: ['SessionErased'], erasedToo: true });
    if (events.length === 0) return [];
    const ends = await this.models.ends();
    return Promise.all(
      (events as readonly RecordedEvent[] as readonly SessionRecord[])
        .filter((event) => event.type === 'SessionErased')
        .map(async ({ data, time, version, actor }) => ({
          sessionId,
          erasedAt: time,
          version,
          actor,
          ...data,
          forks: await forksBefore(this.models, ends, tenant, { sessionId, version }),
        })),
    );
  }
}

/** The erasures of a session that are to come, the earliest first. */
export function scheduledErasures(sessionId: string, state: SessionState): Scheduled[] {
  const { requested, byPolicy } = state.planned ?? {};
  const waiting = (which: 'requested' | 'byPolicy') => {
    const waitsFor = erasureWaitsFor(state, which);
    return waitsFor ? { waitsFor } : {};
  };
  const scheduled: Scheduled[] = [];
  if (byPolicy) scheduled.push({ sessionId, ...byPolicy, ...waiting('byPolicy') });
  if (requested) {
    const { at, reason } = requested;
    scheduled.push({ sessionId, at, ...(reason !== undefined && { reason }), ...waiting('requested') });
  }
  return scheduled.sort((one, other) => Date.parse(one.at) - Date.parse(other.at));
}
