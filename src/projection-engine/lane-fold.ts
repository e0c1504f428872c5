import { type Pool } from 'pg';
import { transaction } from '../database/transaction.js';
import { type EventLog } from '../event-store/log.js';
import { streamKey } from '../event-store/lane.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { Fenced, findPoison, isPoison, type Poison, reasonOf } from './poison.js';
import { compute, type Connection, ERASURE, notErased, type Projection, run } from './projection.js';

interface Advance {
  readonly events: readonly RecordedEvent[];
  readonly unfinished: ReadonlySet<number>;
}

/** The state of a lane as this node last saw it. */
interface Lane {
  readonly position: number;
  readonly revision: number;
  /** Keys of the parked sessions, whose events are skipped. */
  readonly parked: Set<string>;
}

/**
 * Folds lanes of the log into a table, batch by batch. A batch takes effect exactly once, even if this node is wrong
 * about its leases or about the rows: moving a checkpoint is a compare-and-set, and where there are rows to write they are
 * written in the same transaction.
 */
export class LaneFold {
  private readonly known = new Map<number, Lane>();

  constructor(
    private readonly store: EventLog,
    private readonly pool: Pool,
    private readonly projection: Projection,
    private readonly table: string,
    private readonly onParked: (poison: Poison) => void,
  ) {}

  /** Forgets the states of all lanes but these, so that they are read again when they come back. */
  keep(lanes: ReadonlyMap<number, unknown>): void {
    for (const lane of this.known.keys()) if (!lanes.has(lane)) this.known.delete(lane);
  }

  /**
   * Applies the next events of these lanes, at most `limit` of each.
   * @param epochs lane → epoch of the lease that this node holds
   * @returns the events that there were, and the lanes that may have more
   * @throws Fenced when a lane turns out to be another node's
   */
  async advance(epochs: ReadonlyMap<number, number>, limit: number): Promise<Advance> {
    try {
      const lanes = await this.lanes([...epochs.keys()]);
      const from = new Map([...lanes].map(([lane, { position }]) => [lane, position]));
      const events = await this.store.lanes.follow(from, limit);
      const unfinished = new Set<number>();
      const to = new Map<number, number>();
      for (const { lane, position, hasMore } of events) {
        to.set(lane, position);
        if (hasMore) unfinished.add(lane);
      }
      if (events.length === 0) return { events, unfinished };

      let poisons: Poison[] = [];
      /** Parked sessions that were erased, and go on behind that. */
      const freed: RecordedEvent[] = [];
      const parked = new Set([...lanes.values()].flatMap((lane) => [...lane.parked]));
      const readable: RecordedEvent[] = [];
      for (const event of events) {
        const key = streamKey(event);
        if (event.type === ERASURE && parked.delete(key)) {
          poisons = poisons.filter(
            ({ tenant, sessionId }) => sessionId !== event.streamId || tenant !== event.tenant,
          );
          freed.push(event);
        }
        if (parked.has(key)) continue;
        if (!event.unreadable) readable.push(event);
        else {
          parked.add(key);
          const { tenant, streamId: sessionId, lane, version, unreadable } = event;
          poisons.push({ tenant, sessionId, lane, version, error: unreadable });
        }
      }
      await this.apply(notErased(readable), { poisons, freed }, lanes, to, epochs);
      for (const [number, position] of to) {
        const lane = lanes.get(number);
        if (lane) this.known.set(number, { ...lane, position });
      }
      for (const event of freed) this.known.get(event.lane)?.parked.delete(streamKey(event));
      for (const { lane, tenant, sessionId } of poisons)
        this.known.get(lane)?.parked.add(streamKey({ tenant, streamId: sessionId }));
      poisons.forEach(this.onParked);
      return { events, unfinished };
    } catch (error) {
      for (const lane of epochs.keys()) this.known.delete(lane);
      throw error;
    }
  }

  /**
   * Applies the next events of a lane by the statement that stays inside the database, if the projection has one and it
   * understands these events.
   * @returns how many events were applied; 0 if they are left to `advance`
   * @throws Fenced when the lane turns out to be another node's
   */
  async advanceInside(number: number, epoch: number, limit: number): Promise<number> {
    const { applyInside } = this.projection;
    const lane = (await this.lanes([number])).get(number);
    // The statement would apply the events of parked sessions as well.
    if (!applyInside || !lane || lane.parked.size > 0) return 0;
    try {
      const { [ERASURE]: _erasure, ...known } = applyInside.schemaVersions;
      const stretch = await this.store.stretches.next(number, lane.position, limit, known);
      if (!stretch) return 0;
      const { end, events, values } = stretch;
      await transaction(this.pool, async (client) => {
        await this.move(
          client,
          new Map([[number, lane]]),
          new Map([[number, end]]),
          new Map([[number, epoch]]),
        );
        await client.query(applyInside.statement(this.table, events), [...values]);
      });
      this.known.set(number, { ...lane, position: end });
      return end - lane.position;
    } catch (error) {
      this.known.delete(number);
      // One of the events cannot be applied, but the error does not tell which: `advance` finds it.
      if (isPoison(error)) return 0;
      throw error;
    }
  }

  /** @param changes to what is parked: the events that cannot be applied are added to its `poisons` */
  private async apply(
    events: readonly RecordedEvent[],
    changes: { readonly poisons: Poison[]; readonly freed: readonly RecordedEvent[] },
    lanes: ReadonlyMap<number, Lane>,
    to: ReadonlyMap<number, number>,
    epochs: ReadonlyMap<number, number>,
  ): Promise<void> {
    try {
      await this.commit(events, changes, lanes, to, epochs);
    } catch (error) {
      if (!isPoison(error)) throw error;
      const found = await findPoison(events, (some) => this.attempt(some));
      if (found.length === 0) throw error;
      changes.poisons.push(...found);
      const first = new Map(
        found.map(({ tenant, sessionId, version }) => [streamKey({ tenant, streamId: sessionId }), version]),
      );
      const sound = events.filter((event) => event.version < (first.get(streamKey(event)) ?? Infinity));
      await this.commit(sound, changes, lanes, to, epochs);
    }
  }

  /** Reads everything before the transaction begins, which keeps the transaction short. */
  private async commit(
    events: readonly RecordedEvent[],
    { poisons, freed }: { readonly poisons: readonly Poison[]; readonly freed: readonly RecordedEvent[] },
    lanes: ReadonlyMap<number, Lane>,
    to: ReadonlyMap<number, number>,
    epochs: ReadonlyMap<number, number>,
  ): Promise<void> {
    const statements = events.length > 0 ? await this.compute(events) : [];
    if (statements.length === 0 && poisons.length === 0 && freed.length === 0) {
      // Messages are nothing to two of the five read models. Then there is nothing that would have to hold together, and lanes
      // that are still this node's move although others are refused.
      await this.move(this.pool, lanes, to, epochs);
      return;
    }
    await transaction(this.pool, async (client) => {
      await this.move(client, lanes, to, epochs);
      await run(client, statements);
      for (const { tenant, streamId } of freed)
        await client.query(freeStatement(this.table, tenant, streamId));
      for (const poison of poisons)
        await client.query(parkStatement(this.table, poison, this.store.isSealed));
    });
  }

  /**
   * Moves those checkpoints that still are where this node saw them and that no owner of a newer lease has moved.
   * @throws Fenced if there were others
   */
  private async move(
    client: Connection,
    lanes: ReadonlyMap<number, Lane>,
    to: ReadonlyMap<number, number>,
    epochs: ReadonlyMap<number, number>,
  ): Promise<void> {
    const moved = [...to.keys()].sort((a, b) => a - b);
    const { rowCount } = await client.query({
      name: 'move_checkpoint',
      text: `update projection_checkpoint c set position = m.new, epoch = m.epoch
             from unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
                  as m (lane, old, new, epoch, revision)
             where c.projection = $1 and c.lane = m.lane and c.position = m.old and c.revision = m.revision
               and c.epoch <= m.epoch`,
      values: [
        this.table,
        moved,
        moved.map((lane) => lanes.get(lane)?.position),
        moved.map((lane) => to.get(lane)),
        moved.map((lane) => epochs.get(lane)),
        moved.map((lane) => lanes.get(lane)?.revision),
      ],
    });
    if (rowCount !== moved.length) throw new Fenced();
  }

  private async attempt(events: readonly RecordedEvent[]): Promise<void> {
    const statements = await this.compute(events);
    await transaction(this.pool, async (client) => {
      await run(client, statements);
      throw new RolledBack();
    }).catch((error: unknown) => {
      if (!(error instanceof RolledBack)) throw error;
    });
  }

  private compute(events: readonly RecordedEvent[]): ReturnType<typeof compute> {
    return compute(this.pool, this.projection, this.table, events);
  }

  private async lanes(numbers: readonly number[]): Promise<Map<number, Lane>> {
    const unknown = numbers.filter((lane) => !this.known.has(lane));
    if (unknown.length > 0) {
      const { rows } = await this.pool.query<{
        lane: number;
        position: number;
        revision: number;
        parked: string[];
      }>(
        `select lane, position, revision,
                array(select p.tenant || '/' || p.session_id from projection_parked p
                      where p.projection = c.projection and p.lane = c.lane) as parked
         from projection_checkpoint c where projection = $1 and lane = any ($2)`,
        [this.table, unknown],
      );
      for (const { lane, position, revision, parked } of rows)
        this.known.set(lane, { position, revision, parked: new Set(parked) });
    }
    const lanes = new Map<number, Lane>();
    for (const number of numbers) {
      const lane = this.known.get(number);
      if (lane) lanes.set(number, lane);
    }
    return lanes;
  }
}

/** Ends a transaction that only tried whether its statements work. */
class RolledBack extends Error {}

export const freeStatement = (
  table: string,
  tenant: string,
  sessionId: string,
): { text: string; values: unknown[] } => ({
  text: 'delete from projection_parked where projection = $1 and tenant = $2 and session_id = $3',
  values: [table, tenant, sessionId],
});

export const parkStatement = (
  table: string,
  { tenant, sessionId, lane, version, error }: Poison,
  isSealed: boolean,
): { text: string; values: unknown[] } => ({
  text: `insert into projection_parked as known (projection, tenant, session_id, lane, version, error, parked_at)
         values ($1, $2, $3, $4, $5, $6, colloquy_now())
         on conflict (projection, tenant, session_id) do update
           set version = excluded.version, error = excluded.error, parked_at = excluded.parked_at`,
  values: [table, tenant, sessionId, lane, version, reasonOf(error, isSealed)],
});
