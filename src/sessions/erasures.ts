import { Injectable } from '@nestjs/common';
import { EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { NotaryKeys } from '../proof/notary-keys.js';
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
    private readonly notary: NotaryKeys,
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
    const commitments = await this.store.leaves.commitments(stream, events.at(-1)?.version ?? 0);
    const signer = await this.notary.signer();
    return Promise.all(
      (events as readonly RecordedEvent[] as readonly SessionRecord[])
        .filter((event) => event.type === 'SessionErased')
        .map(async ({ data, time, version, actor }) => {
          const receipt = {
            sessionId,
            erasedAt: time,
            version,
            actor,
            ...data,
            commitments: commitments.filter((one) =>
              data.incarnations.some(({ from, to }) => from <= one.version && one.version <= to),
            ),
            forks: await forksBefore(this.models, ends, tenant, { sessionId, version }),
          };
          const said = { log: `colloquy/${this.store.id}`, tenant, ...receipt };
          return { tenant, ...receipt, statement: signer?.state('erasure', said) ?? null };
        }),
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
