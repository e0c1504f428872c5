import { type Pool, type PoolClient } from 'pg';
import { available } from '../database/connection.js';
import { transaction } from '../database/transaction.js';
import { type EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { freeStatement, parkStatement } from './lane-fold.js';
import { isPoison, type Poison } from './poison.js';
import { applyOn, type Projection, tableOf } from './projection.js';

/** A session whose events a projection no longer applies. */
export interface ParkedSession {
  /** Name of the projection. */
  readonly projection: string;
  readonly tenant: string;
  readonly sessionId: string;
  /** Version of the first event that is missing in the read model. */
  readonly version: number;
  readonly error: string;
  readonly parkedAt: string;
}

export interface SessionName {
  readonly tenant: string;
  readonly sessionId: string;
}

/** Events applied by one statement while a session is resumed. */
const PAGE = 500;

/** Lists the sessions that projections have parked, and resumes them. */
export class Parking {
  constructor(
    private readonly store: EventLog,
    private readonly pool: Pool,
    private readonly projections: readonly Projection[],
  ) {}

  /** The parked sessions of these projections, those that were parked first coming first. */
  async list(): Promise<ParkedSession[]> {
    const names = new Map(this.projections.map((projection) => [tableOf(projection), projection.name]));
    const { rows } = await available(() =>
      this.pool.query<Omit<ParkedSession, 'projection'> & { table: string }>(
        `select projection as "table", tenant, session_id as "sessionId", version, error, parked_at as "parkedAt"
         from projection_parked where projection = any ($1) order by parked_at, projection, tenant, session_id`,
        [[...names.keys()]],
      ),
    );
    return rows.map(({ table, ...row }) => ({ projection: names.get(table) ?? table, ...row }));
  }

  /**
   * Applies the events of a parked session from the event at which it was parked, or from the one after it.
   *
   * The checkpoint of the session's lane is locked meanwhile, so the session is applied exactly up to the checkpoint:
   * no event is applied twice, and none is left out.
   *
   * @returns false when the session was not parked
   */
  async resume(
    projection: Projection,
    { tenant, sessionId }: SessionName,
    from: 'parked' | 'next',
  ): Promise<boolean> {
    const table = tableOf(projection);
    const stream = { tenant, streamId: sessionId };
    const lane = this.store.laneOf(stream);
    const key = [table, tenant, sessionId];
    return available(() =>
      transaction(this.pool, async (client) => {
        const position = await lockLane(client, table, lane);
        const { rows } = await client.query<{ version: number }>(
          'select version from projection_parked where projection = $1 and tenant = $2 and session_id = $3',
          key,
        );
        const [parked] = rows;
        if (!parked) return false;
        const first = from === 'parked' ? parked.version : parked.version + 1;
        const poison = await this.fold(client, projection, stream, first, position);
        if (poison)
          await client.query(
            parkStatement(table, { tenant, sessionId, lane, ...poison }, this.store.isSealed),
          );
        else await client.query(freeStatement(table, tenant, sessionId));
        // The lane's owner still skips the session and may have computed rows from those of before. The new revision
        // refuses its next batch, after which it reads the state of the lane anew.
        await client.query(
          'update projection_checkpoint set revision = revision + 1 where projection = $1 and lane = $2',
          [table, lane],
        );
        return true;
      }),
    );
  }

  /** @returns the event that could not be applied, after all before it were; undefined when all were applied */
  private async fold(
    client: PoolClient,
    projection: Projection,
    stream: { readonly tenant: string; readonly streamId: string },
    first: number,
    position: number,
  ): Promise<Pick<Poison, 'version' | 'error'> | undefined> {
    let next = first;
    /** Undoes these events alone when one of them fails, so that those before them are kept. */
    const apply = async (events: readonly RecordedEvent[]): Promise<Error | undefined> => {
      await client.query('savepoint events');
      try {
        await applyOn(client, projection, tableOf(projection), events);
        await client.query('release savepoint events');
        return undefined;
      } catch (error) {
        if (!isPoison(error)) throw error;
        await client.query('rollback to savepoint events');
        return error instanceof Error ? error : new Error(String(error));
      }
    };
    for (;;) {
      let page: RecordedEvent[];
      try {
        page = await this.store.streams.read(stream, { from: next, limit: PAGE, erasedToo: true });
      } catch (error) {
        if (!isPoison(error)) throw error;
        return { version: next, error: error as Error };
      }
      const due = page.filter((event) => event.position <= position);
      if (due.length > 0 && (await apply(due))) {
        for (const event of due) {
          const error = await apply([event]);
          if (error) return { version: event.version, error };
        }
      }
      next += due.length;
      if (due.length < PAGE) return undefined;
    }
  }
}

/** Locks the checkpoint of a lane until the end of the transaction, and returns its position. */
async function lockLane(client: PoolClient, table: string, lane: number): Promise<number> {
  const { rows } = await client.query<{ position: number }>(
    'select position from projection_checkpoint where projection = $1 and lane = $2 for update',
    [table, lane],
  );
  return rows[0]?.position ?? 0;
}
