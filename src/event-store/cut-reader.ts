import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';
import { type EventDecoder } from './event-decoder.js';
import { EVENT_COLUMNS, type EventRow, PAYLOAD_SIZE } from './event-rows.js';
import { type StreamId } from './lane.js';
import { type RecordedEvent } from './recorded-event.js';

/** Most bytes of stored payload in one page of a cut; a page always holds at least one event. */
const CUT_PAGE_BYTES = 4 * 1024 * 1024;
const CUT_PAGE_EVENTS = 1_000;

/** Reads whole streams as they were at one moment, however long that takes. */
export class CutReader {
  constructor(
    private readonly pool: Pool,
    private readonly laneOf: (stream: StreamId) => number,
    private readonly decoder: EventDecoder,
  ) {}

  /**
   * Pages through the streams by tenant and id. Their versions are recent but need not be the latest.
   *
   * @param only restricts the result to this tenant
   */
  async streamsAfter(
    after: StreamId,
    limit: number,
    only?: string,
  ): Promise<(StreamId & { readonly version: number })[]> {
    const rows = await rowsOf<{ tenant: string; stream_id: string; version: number }>(this.pool, {
      name: 'streams_after',
      text: `select tenant, stream_id, version from stream_state
               where (tenant, stream_id) > ($1, $2) and tenant <= coalesce($4, tenant)
               order by tenant, stream_id limit $3`,
      values: [after.tenant, after.streamId, limit, only ?? null],
    });
    return rows.map((row) => ({ tenant: row.tenant, streamId: row.stream_id, version: row.version }));
  }

  /** All tenants that have a stream, in alphabetical order. */
  async tenants(): Promise<string[]> {
    // From one to the next through the index: a tenant may have a hundred thousand streams.
    const rows = await rowsOf<{ tenant: string }>(this.pool, {
      text: `with recursive t (tenant) as (
               select min(tenant) from stream_state
               union all
               select (select min(s.tenant) from stream_state s where s.tenant > t.tenant) from t where t.tenant is not null
             )
             select tenant from t where tenant is not null`,
    });
    return rows.map(({ tenant }) => tenant);
  }

  /**
   * All events of the given streams up to a cut through the log, stream by stream, in pages that fit in memory, those
   * whose data was erased too.
   *
   * A cut is the result of `LaneReader.ends`. Positions of a lane become visible in order, so the events up to the cut
   * are exactly what the log held when the cut was taken, however much is appended meanwhile. No transaction stays
   * open.
   *
   * @param streams their versions need not be exact: they only decide how many streams are read at once
   */
  async *eventsUpTo(
    cut: readonly number[],
    streams: readonly (StreamId & { readonly version: number })[],
  ): AsyncGenerator<RecordedEvent[]> {
    let rest = streams.map((stream) => ({ ...stream, after: 0 }));
    while (rest.length > 0) {
      let events = 0;
      const first = rest.findIndex(({ version }) => (events += version) >= CUT_PAGE_EVENTS);
      const wanted = first < 0 ? rest : rest.slice(0, first + 1);
      const rows = await rowsOf<EventRow & { n: number; total: number }>(this.pool, {
        name: 'events_up_to',
        text: `select ${EVENT_COLUMNS}, e.n, e.total
                 from (
                   select p.*, count(*) over () as total,
                          sum(p.size) over (order by p.n, p.version rows unbounded preceding) - p.size as before
                   from (
                     select e.*, s.n,
                            ${PAYLOAD_SIZE} as size
                     from unnest($1::smallint[], $2::text[], $3::text[], $4::int[])
                          with ordinality as s (lane, tenant, stream_id, after, n)
                     cross join lateral (
                       select * from event e
                       where e.lane = s.lane and e.tenant = s.tenant and e.stream_id = s.stream_id
                         and e.version > s.after and e.position <= ($5::bigint[])[s.lane + 1]
                       order by e.version limit $6
                     ) e
                     order by s.n, e.version limit $6
                   ) p
                 ) e
                 where e.before < $7 order by e.n, e.version`,
        values: [
          wanted.map((stream) => this.laneOf(stream)),
          wanted.map((stream) => stream.tenant),
          wanted.map((stream) => stream.streamId),
          wanted.map((stream) => stream.after),
          cut,
          CUT_PAGE_EVENTS,
          CUT_PAGE_BYTES,
        ],
      });
      const last = rows.at(-1);
      if (last) yield await this.decoder.events(rows, { erasedToo: true });
      if (!last || (rows.length === last.total && last.total < CUT_PAGE_EVENTS)) {
        rest = rest.slice(wanted.length);
      } else {
        rest = rest.slice(last.n - 1);
        if (rest[0]) rest[0].after = last.version;
      }
    }
  }
}
