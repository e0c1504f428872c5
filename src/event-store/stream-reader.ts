import { type Pool } from 'pg';
import { arrayLiteral } from '../database/array-literal.js';
import { COMMAND_READ_MS, rowsOf } from '../database/query.js';
import { Coalescer } from './coalescer.js';
import { dataOf, type EventDecoder, type Opened, type Tolerance } from './event-decoder.js';
import {
  EVENT_COLUMNS,
  type EventRow,
  HELD_SIZE,
  PAGE_BYTES,
  PAYLOAD_SIZE,
  STATE_COLUMNS,
  type StateRow,
} from './event-rows.js';
import { type StreamId, streamKey } from './lane.js';
import { KeyDestroyed } from './payload-codec.js';
import { type RecordedEvent } from './recorded-event.js';

/** What was appended to a stream since its state was stored last. Bytes are those of the stored payloads. */
export interface StateLag {
  readonly events: number;
  readonly bytes: number;
}

/** The last stored state of a stream, its times as of that state, and the events that came since. */
export interface StoredStream {
  readonly lane: number;
  readonly version: number;
  readonly incarnation: number;
  readonly position: number;
  readonly time: string;
  readonly createdAt: string;
  readonly lastActivityAt: string;
  readonly state: unknown;
  readonly stateVersion: number;
  readonly since: readonly RecordedEvent[];
  readonly lag: StateLag;
}

/** The last stored state of a tenant's stream with a reserved id, and where the event that it is as of stands. */
export interface ReservedState {
  readonly tenant: string;
  readonly lane: number;
  readonly position: number;
  readonly version: number;
  readonly stateVersion: number;
  /** Opened for `dataOf`, so that a state that cannot be opened does not hold up those beside it. */
  readonly state: Opened | undefined;
}

export interface StreamRange extends Tolerance {
  /** First version to read, inclusive. Default 1. */
  readonly from?: number;
  /** Last version to read, inclusive. Default: the stream's end. */
  readonly to?: number;
  readonly limit?: number;
  readonly types?: readonly string[];
}

/** The keys of a stretch of a stream. */
export interface KeysOfStretch {
  /** The last version of the stretch that the log has; 0 when it has nothing of it. */
  readonly end: number;
  /** Whether data of it is stored in plain, which no key takes away. */
  readonly isPlain: boolean;
  /** Ids of the keys that there still are, of its events and of all states of the stream. */
  readonly keys: readonly string[];
  /** The versions of each incarnation that are in it, both inclusive. */
  readonly incarnations: readonly {
    readonly incarnation: number;
    readonly from: number;
    readonly to: number;
  }[];
}

type SizedEventRow = EventRow & { readonly size: number };

/** Where a stream ended when its state was cached. */
export interface KnownEnd {
  readonly version: number;
  readonly position: number;
  readonly time: string;
}

/**
 * Most events read at once to catch up from a cached state. Where more have come, loading the stored state is cheaper,
 * because a state is stored about every eight events.
 */
const MOST_SINCE_KNOWN = 16;

/** What `load` reads: the row of a stream, and those of the events since its state. */
interface StoredRows {
  readonly stored: StateRow;
  readonly since: readonly SizedEventRow[];
}

/** How often a state is read that is erased at the moment of the reading. */
const TRIES = 5;

const NOTHING_SINCE = { since: [], lag: { events: 0, bytes: 0 } };

/** A log that was restored from a backup may have continued with other events, under the same versions. */
const isSame = (one: KnownEnd, other: KnownEnd): boolean =>
  one.version === other.version && one.position === other.position && one.time === other.time;

/** Whether the log has anything of a tenant. */
export async function hasStreams(pool: Pool, tenant: string): Promise<boolean> {
  const { rowCount } = await pool.query('select from stream_state where tenant = $1 limit 1', [tenant]);
  return (rowCount ?? 0) > 0;
}

/** Reads single streams: their states, their events and their ends. */
export class StreamReader {
  private readonly loads = new Coalescer((streams: readonly StreamId[]) => this.storedRows(streams));
  private readonly ends = new Coalescer((streams: readonly StreamId[]) => this.readEnds(streams));

  constructor(
    private readonly pool: Pool,
    private readonly laneOf: (stream: StreamId) => number,
    private readonly decoder: EventDecoder,
  ) {}

  /** The last stored state and the events that came since; undefined when the stream does not exist. */
  async load(stream: StreamId): Promise<StoredStream | undefined> {
    for (let attempt = 1; ; attempt += 1) {
      const rows = await this.loads.ask(stream);
      try {
        return (
          rows &&
          (await this.toStream(rows.stored, (await this.decoder.states([rows.stored]))[0], rows.since))
        );
      } catch (error) {
        // Between the reading of the row and that of its key the stream was erased, which has put another state there.
        if (!(error instanceof KeyDestroyed) || attempt === TRIES) throw error;
      }
    }
  }

  /** Loads those of the streams that exist and that this code can read, in no particular order, by two queries. */
  async loadMany(streams: readonly StreamId[]): Promise<(StoredStream & StreamId)[]> {
    const found = (await this.storedRows(streams)).filter((rows) => rows !== undefined);
    const states = await this.decoder.states(found.map(({ stored }) => stored));
    const loaded = found.map(async ({ stored, since }, index) => {
      const stream = { tenant: stored.tenant, streamId: stored.stream_id };
      return { ...(await this.toStream(stored, states[index], since)), ...stream };
    });
    return (await Promise.all(loaded.map(readable))).filter((one) => one !== undefined);
  }

  /** The stored states of streams and the events since, in the order of the streams. */
  private async storedRows(streams: readonly StreamId[]): Promise<(StoredRows | undefined)[]> {
    const different = [...new Map(streams.map((stream) => [streamKey(stream), stream])).values()];
    // The lateral join looks up each stream through the index; with a plain join the planner would read the whole
    // table.
    const stored = await rowsOf<StateRow>(
      this.pool,
      {
        name: 'load_streams',
        text: `select s.* from unnest($1::text[], $2::text[]) as w (tenant, stream_id)
               cross join lateral (
                 select ${STATE_COLUMNS} from stream_state s
                 where s.tenant = w.tenant and s.stream_id = w.stream_id limit 1
               ) s`,
        values: [different.map((one) => one.tenant), different.map((one) => one.streamId)],
      },
      COMMAND_READ_MS,
    );
    // Events appended between the two queries do no harm, because the second query reads up to the streams' ends.
    const rows = await rowsOf<SizedEventRow>(
      this.pool,
      {
        name: 'load_streams_since',
        text: `select ${PAYLOAD_SIZE} as size, ${EVENT_COLUMNS}
               from unnest($1::smallint[], $2::text[], $3::text[], $4::int[]) as w (lane, tenant, stream_id, version)
               cross join lateral (
                 select * from event e
                 where e.lane = w.lane and e.tenant = w.tenant and e.stream_id = w.stream_id and e.version > w.version
                 order by e.version
               ) e`,
        values: [
          stored.map((row) => row.lane),
          stored.map((row) => row.tenant),
          stored.map((row) => row.stream_id),
          stored.map((row) => row.version),
        ],
      },
      COMMAND_READ_MS,
    );
    const found = new Map(
      stored.map((row) => [
        streamKey({ tenant: row.tenant, streamId: row.stream_id }),
        { stored: row, since: [] as SizedEventRow[] },
      ]),
    );
    for (const row of rows)
      found.get(streamKey({ tenant: row.tenant, streamId: row.stream_id }))?.since.push(row);
    return streams.map((stream) => found.get(streamKey(stream)));
  }

  /**
   * The states of all tenants' streams with a reserved id that were stored after these positions, in order within each
   * lane, at most `limit` per lane. A reader that goes on from the positions it was given misses no state of a stream
   * whose state is stored with every append.
   *
   * @param streamId begins with `~`; a tenant has one stream of such an id
   * @param after lane → the last position that the reader has
   */
  async reservedStates(
    streamId: string,
    after: ReadonlyMap<number, number>,
    limit: number,
  ): Promise<ReservedState[]> {
    const rows = await rowsOf<StateRow>(this.pool, {
      name: 'reserved_states',
      // The condition with the literal lets the planner use the partial index of reserved streams.
      text: `select r.* from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
             cross join lateral (
               select ${STATE_COLUMNS} from stream_state s
               where s.stream_id >= '~' and s.stream_id = $3 and s.lane = reader.lane and s.position > reader.position
               order by s.position limit $4
             ) r`,
      values: [[...after.keys()], [...after.values()], streamId, limit],
    });
    const states = await this.decoder.states(rows);
    return rows.map(({ tenant, lane, position, version, state_version }, index) => ({
      ...{ tenant, lane, position, version, stateVersion: state_version },
      state: states[index],
    }));
  }

  /**
   * The events of a stream behind a known end. Undefined when the known event is not in the log or too far back, or
   * when one of the events cannot be read: then a newer stored state may still be usable.
   */
  async since(stream: StreamId, known: KnownEnd): Promise<Pick<StoredStream, 'since' | 'lag'> | undefined> {
    const end = await this.ends.ask(stream);
    if (end?.version === known.version) return isSame(end, known) ? NOTHING_SINCE : undefined;
    const [first, ...rows] = await this.rowsAfter(stream, known.version - 1, MOST_SINCE_KNOWN + 1);
    const isUsable = first && isSame(first, known) && rows.length < MOST_SINCE_KNOWN;
    return isUsable ? readable(this.followed(rows)) : undefined;
  }

  private async rowsAfter(stream: StreamId, version: number, limit?: number): Promise<SizedEventRow[]> {
    return rowsOf<SizedEventRow>(
      this.pool,
      {
        name: 'rows_after',
        text: `select ${PAYLOAD_SIZE} as size, ${EVENT_COLUMNS} from event e
               where e.lane = $1 and e.tenant = $2 and e.stream_id = $3 and e.version > $4
               order by e.version limit $5`,
        values: [this.laneOf(stream), stream.tenant, stream.streamId, version, limit],
      },
      COMMAND_READ_MS,
    );
  }

  /**
   * What a destruction of keys would take with it that concerns a stretch of a stream: events after one version up to
   * another, and with them all states of the stream.
   */
  async keysOf(stream: StreamId, after: number, to: number): Promise<KeysOfStretch> {
    const [row] = await rowsOf<KeysOfStretch>(
      this.pool,
      {
        name: 'keys_of_stretch',
        text: `with stretch as (
                 select e.incarnation, e.version, e.key_id, e.sealed is null and e.data is not null as plain from event e
                 where e.lane = $1 and e.tenant = $2 and e.stream_id = $3 and e.version > $4 and e.version <= $5
               ), named as (
                 select key_id from stretch
                 union select key_id from stream_state where tenant = $2 and stream_id = $3
                 union select key_id from stream_snapshot where tenant = $2 and stream_id = $3
               )
               select coalesce((select max(version) from stretch), 0) as "end",
                      coalesce((select bool_or(plain) from stretch), false) as "isPlain",
                      array(select k.id::text from data_key k join named n on n.key_id = k.id
                            where k.wrapped is not null order by 1) as keys,
                      coalesce((select jsonb_agg(jsonb_build_object('incarnation', i.incarnation, 'from', i.first,
                                                                    'to', i.last) order by i.incarnation)
                                from (select incarnation, min(version) as first, max(version) as last
                                      from stretch group by incarnation) i), '[]') as incarnations`,
        values: [this.laneOf(stream), stream.tenant, stream.streamId, after, to],
      },
      COMMAND_READ_MS,
    );
    return row ?? { end: 0, isPlain: false, keys: [], incarnations: [] };
  }

  /** The current versions of the streams, in the given order; 0 for a stream that does not exist. */
  async versions(streams: readonly StreamId[]): Promise<number[]> {
    return (await this.readEnds(streams)).map((end) => end?.version ?? 0);
  }

  private async readEnds(streams: readonly StreamId[]): Promise<(KnownEnd | undefined)[]> {
    const rows = await rowsOf<{ version: number | null; position: number; time: string }>(
      this.pool,
      {
        name: 'stream_ends',
        text: `select e.version, e.position, e.time
               from unnest($1::smallint[], $2::text[], $3::text[]) with ordinality as w (lane, tenant, stream_id, n)
               left join lateral (
                 select version, position, time from event e
                 where e.lane = w.lane and e.tenant = w.tenant and e.stream_id = w.stream_id
                 order by e.version desc limit 1
               ) e on true
               order by w.n`,
        values: [
          arrayLiteral(streams.map((one) => this.laneOf(one))),
          arrayLiteral(streams.map((one) => one.tenant)),
          arrayLiteral(streams.map((one) => one.streamId)),
        ],
      },
      COMMAND_READ_MS,
    );
    return rows.map(({ version, position, time }) =>
      version === null ? undefined : { version, position, time },
    );
  }

  /** A stream's events in the order of their versions. */
  async read(stream: StreamId, range: StreamRange = {}): Promise<RecordedEvent[]> {
    const rows = await rowsOf<EventRow>(this.pool, {
      name: 'read_stream',
      text: `select ${EVENT_COLUMNS} from event e
               where e.lane = $1 and e.tenant = $2 and e.stream_id = $3 and e.version between $4 and $5
                 and ($7::text[] is null or e.type = any ($7))
               order by e.version limit $6`,
      values: [
        this.laneOf(stream),
        stream.tenant,
        stream.streamId,
        range.from ?? 1,
        range.to ?? 2_147_483_647,
        range.limit ?? null,
        range.types ?? null,
      ],
    });
    return this.decoder.events(rows, range);
  }

  /** Number of events of each type in a range of versions, both ends inclusive. */
  async countTypes(stream: StreamId, from: number, to: number): Promise<Record<string, number>> {
    const rows = await rowsOf<{ type: string; count: number }>(this.pool, {
      name: 'count_types',
      text: `select e.type, count(*) from event e
               where e.lane = $1 and e.tenant = $2 and e.stream_id = $3 and e.version between $4 and $5
               group by e.type order by e.type`,
      values: [this.laneOf(stream), stream.tenant, stream.streamId, from, to],
    });
    return Object.fromEntries(rows.map(({ type, count }) => [type, count]));
  }

  /** The last event of an incarnation, as of a time if one is given; undefined when there was none. */
  async lastVersion(
    stream: StreamId,
    incarnation: number,
    at: { readonly time?: string; readonly version?: number } = {},
  ): Promise<{ readonly version: number; readonly time: string } | undefined> {
    const rows = await rowsOf<{ version: number; time: string }>(this.pool, {
      name: 'last_version',
      text: `select e.version, e.time from last_version($1, $2, $3, $4, $6, $5) as last (version)
               join event e on e.lane = $1 and e.tenant = $2 and e.stream_id = $3 and e.version = last.version
               where e.incarnation = $4`,
      values: [
        this.laneOf(stream),
        stream.tenant,
        stream.streamId,
        incarnation,
        at.time ?? null,
        at.version ?? 2_147_483_647,
      ],
    });
    return rows[0];
  }

  /** All events of a stream, read in pages of bounded size, so that a long stream need not fit in memory. */
  async *events(stream: StreamId, range: StreamRange = {}, limit = 1_000): AsyncGenerator<RecordedEvent> {
    let from = range.from ?? 1;
    for (;;) {
      const rows = await this.pageOf(stream, { ...range, from, limit });
      yield* await this.decoder.events(rows, range);
      const last = rows.at(-1);
      if (!last || (rows.length < limit && !last.isFull)) return;
      from = last.version + 1;
    }
  }

  /** The next events of a stream, no more once there are `PAGE_BYTES` of them. */
  private pageOf(
    stream: StreamId,
    { from, to, limit, types }: StreamRange,
  ): Promise<(EventRow & { readonly isFull: boolean })[]> {
    return rowsOf(this.pool, {
      name: 'page_of_stream',
      text: `select ${EVENT_COLUMNS}, e.bytes >= $8 as "isFull" from (
               select s.*, sum(s.size) over (order by s.version rows unbounded preceding) as bytes
               from (
                 select e.*, ${HELD_SIZE} as size from event e
                 where e.lane = $1 and e.tenant = $2 and e.stream_id = $3 and e.version between $4 and $5
                   and ($7::text[] is null or e.type = any ($7))
                 order by e.version limit $6
               ) s
             ) e where e.bytes - e.size < $8
             order by e.version`,
      values: [
        this.laneOf(stream),
        stream.tenant,
        stream.streamId,
        from ?? 1,
        to ?? 2_147_483_647,
        limit ?? null,
        types ?? null,
        PAGE_BYTES,
      ],
    });
  }

  private async toStream(
    row: StateRow,
    state: Opened | undefined,
    since: readonly SizedEventRow[],
  ): Promise<StoredStream> {
    return {
      lane: row.lane,
      version: row.version,
      incarnation: row.incarnation,
      position: row.position,
      time: row.time,
      createdAt: row.created_at,
      lastActivityAt: row.last_activity_at,
      state: dataOf(state),
      stateVersion: row.state_version,
      ...(await this.followed(since)),
    };
  }

  private async followed(rows: readonly SizedEventRow[]): Promise<Pick<StoredStream, 'since' | 'lag'>> {
    return {
      since: await this.decoder.events(rows, { erasedToo: true }),
      lag: { events: rows.length, bytes: rows.reduce((sum, { size }) => sum + size, 0) },
    };
  }
}

/** Returns undefined for what a newer version of the service wrote. */
async function readable<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch {
    return undefined;
  }
}
