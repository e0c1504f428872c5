import { type Client } from 'pg';
import { type EventLog } from '../event-store/log.js';
import { type LaneEvent, type RecordedEvent } from '../event-store/recorded-event.js';
import { type StreamId, streamKey } from '../event-store/lane.js';
import { findPoison, isPoison } from './poison.js';
import { applyOn, ERASURE, type Projection, tableOf } from './projection.js';

/** The result of comparing a read model with a fresh fold of the log. */
export interface Verification {
  readonly name: string;
  readonly ok: boolean;
  /** Number of rows of the live table, without parked sessions. */
  readonly rows: number;
  /** Hash of all columns of all rows, independent of their order. */
  readonly hash: string;
  readonly expectedRows: number;
  readonly expectedHash: string;
  /** Number of sessions that were left out, because they are parked in the read model or cannot be folded. */
  readonly parked: number;
  /** The first session by tenant and id whose rows differ. */
  readonly firstDifference: { readonly tenant: string; readonly sessionId: string } | null;
}

const BATCH = 1_000;

/**
 * Folds the whole log into a temporary table, up to the checkpoints of the live table, and compares the two in one
 * snapshot. Reads and writes go on; only a swap of the live table waits for the end of the comparison.
 *
 * @param client a connection for this alone, which the caller closes: temporary tables and settings go away with it
 */
export async function verify(store: EventLog, client: Client, projection: Projection): Promise<Verification> {
  const table = tableOf(projection);
  const fresh = `${table}_fresh`;
  // The live table is named with its schema, because from below on a plain name means the schema of temporary tables.
  const { rows: schemas } = await client.query<{ live: string }>(
    `select quote_ident(current_schema()) || '.' || $1 as live`,
    [table],
  );
  const live = schemas[0]?.live ?? table;
  await client.query(`select set_config('search_path', 'pg_temp, ' || current_schema(), false)`);
  await client.query(projection.createTable(fresh));
  await client.query('create table left_out (tenant text collate "C", session_id text collate "C")');
  const fold = new FreshFold(store, client, projection, fresh);

  // Most of the work is done without a snapshot: one that is held for long keeps the server from cleaning up.
  await fold.advance(await checkpoints(client, table));

  await client.query('begin isolation level repeatable read');
  fold.inTransaction = true;
  // The lock comes before the snapshot is taken: a table that is swapped in after the snapshot would look empty.
  await client.query(`lock table ${live} in access share mode`);
  await fold.advance(await checkpoints(client, table));
  const leftOut = fold.leftOut;
  await client.query(
    `insert into left_out select * from unnest($1::text[], $2::text[])
     union select tenant, session_id from projection_parked where projection = $3`,
    [leftOut.map(({ tenant }) => tenant), leftOut.map(({ streamId }) => streamId), table],
  );
  const found = await digest(client, live);
  const expected = await digest(client, fresh);
  const ok = found.rows === expected.rows && found.hash === expected.hash;
  const firstDifference = ok ? null : await difference(client, live, fresh);
  const { rows } = await client.query<{ count: number }>('select count(*) from left_out');
  await client.query('rollback');
  return {
    name: projection.name,
    ok,
    ...found,
    expectedRows: expected.rows,
    expectedHash: expected.hash,
    parked: rows[0]?.count ?? 0,
    firstDifference,
  };
}

async function checkpoints(client: Client, table: string): Promise<Map<number, number>> {
  const { rows } = await client.query<{ lane: number; position: number }>(
    'select lane, position from projection_checkpoint where projection = $1',
    [table],
  );
  return new Map(rows.map(({ lane, position }) => [lane, position]));
}

const COMPARED = `r where not exists (
  select from left_out o where o.tenant = r.tenant and o.session_id = r.session_id)`;

async function digest(client: Client, table: string): Promise<{ rows: number; hash: string }> {
  const { rows } = await client.query<{ rows: number; hash: string }>(
    // A sum instead of XOR, under which two equal rows too many would cancel each other out.
    `select count(*) as rows, coalesce(sum(hashtextextended(r::text, 0)::numeric), 0)::text as hash
     from ${table} ${COMPARED}`,
  );
  return rows[0] ?? { rows: 0, hash: '0' };
}

async function difference(
  client: Client,
  live: string,
  fresh: string,
): Promise<Verification['firstDifference']> {
  const bySession = (table: string): string =>
    `select tenant, session_id, count(*) as rows, sum(hashtextextended(r::text, 0)::numeric) as hash
     from ${table} ${COMPARED} group by tenant, session_id`;
  const { rows } = await client.query<{ tenant: string; session_id: string }>(
    `select tenant, session_id from (${bySession(live)}) l full join (${bySession(fresh)}) f using (tenant, session_id)
     where (l.rows, l.hash) is distinct from (f.rows, f.hash) order by tenant, session_id limit 1`,
  );
  const [row] = rows;
  return row ? { tenant: row.tenant, sessionId: row.session_id } : null;
}

/** Folds all lanes on one connection. */
class FreshFold {
  /** Whether the caller has begun a transaction, in which savepoints take the place of transactions. */
  inTransaction = false;
  /** Sessions that cannot be folded, by key. */
  private readonly poisoned = new Map<string, StreamId>();
  /** Sessions whose data was erased while the event that says so is still behind the checkpoint. */
  private readonly beingErased = new Map<string, StreamId>();
  private readonly positions = new Map<number, number>();

  constructor(
    private readonly store: EventLog,
    private readonly client: Client,
    private readonly projection: Projection,
    private readonly table: string,
  ) {}

  /** The sessions that are not to be compared. */
  get leftOut(): StreamId[] {
    return [...new Map([...this.poisoned, ...this.beingErased]).values()];
  }

  /** @param to lane → position of the last event wanted */
  async advance(to: ReadonlyMap<number, number>): Promise<void> {
    for (const [lane, end] of to) {
      let position = this.positions.get(lane) ?? 0;
      const read = (after: number): Promise<readonly LaneEvent[]> => {
        const limit = Math.min(BATCH, end - after);
        return limit > 0 ? this.store.lanes.read(new Map([[lane, after]]), limit) : Promise.resolve([]);
      };
      let next = read(position);
      for (;;) {
        const batch = await next;
        const last = batch.at(-1);
        if (!last) break;
        position = last.position;
        // The next batch is read while this one is written. An error of the reading is thrown when it is awaited.
        next = read(position);
        next.catch(() => undefined);
        await this.apply(batch);
      }
      this.positions.set(lane, position);
    }
  }

  private async apply(batch: readonly LaneEvent[]): Promise<void> {
    const events: RecordedEvent[] = [];
    for (const event of batch) {
      const key = streamKey(event);
      if (event.type === ERASURE) {
        this.poisoned.delete(key);
        this.beingErased.delete(key);
      } else if (event.erased) this.beingErased.set(key, event);
      if (this.poisoned.has(key)) continue;
      if (event.unreadable) this.leaveOut(event.tenant, event.streamId);
      else events.push(event);
    }
    try {
      await this.attempt(events, 'keep');
    } catch (error) {
      if (!isPoison(error)) throw error;
      const found = await findPoison(events, (some) => this.attempt(some, 'undo'));
      if (found.length === 0) throw error;
      for (const { tenant, sessionId } of found) this.leaveOut(tenant, sessionId);
      await this.attempt(
        events.filter((event) => event.type === ERASURE || !this.poisoned.has(streamKey(event))),
        'keep',
      );
    }
  }

  private leaveOut(tenant: string, sessionId: string): void {
    const stream = { tenant, streamId: sessionId };
    this.poisoned.set(streamKey(stream), stream);
  }

  /** Applies events within the caller's transaction, or in a transaction of their own. */
  private async attempt(events: readonly RecordedEvent[], effect: 'keep' | 'undo'): Promise<void> {
    if (events.length === 0) return;
    const { client } = this;
    const [begin, keep, undo] = this.inTransaction
      ? ['savepoint batch', 'release savepoint batch', 'rollback to savepoint batch']
      : ['begin', 'commit', 'rollback'];
    await client.query(begin);
    try {
      await applyOn(client, this.projection, this.table, events);
    } catch (error) {
      await client.query(undo);
      throw error;
    }
    await client.query(effect === 'keep' ? keep : undo);
  }
}
