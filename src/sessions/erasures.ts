import { Injectable } from '@nestjs/common';
import { EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { type SessionRecord } from '../read-models/session-record.js';
import { forksBefore } from '../read-models/session-views.js';
import { type SessionAddress } from './command-context.js';
import { type Receipt } from './session.schemas.js';

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
