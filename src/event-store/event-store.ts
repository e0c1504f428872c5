import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { LRUCache } from 'lru-cache';
import { type Pool } from 'pg';
import { available, connect, createPool } from '../database/connection.js';
import {
  type Append,
  type AppendResult,
  BatchWriter,
  endOfTurn,
  type StreamEnd,
  type WriterOptions,
} from './batch-writer.js';
import { laneOf, type StreamId, streamKey } from './lane.js';
import { LogImport } from './log-import.js';
import { LogTail } from './log-tail.js';
import { LogWakeUp } from './log-wake-up.js';
import { type EncodedPayload, type PayloadCodec, plainCodec, STATE } from './payload-codec.js';
import { type LanePosition, PositionTokens } from './position-tokens.js';
import { VectorTokens } from './vector-tokens.js';

/** An event as the log holds it: the envelope of the design, times as RFC 3339. */
export interface RecordedEvent<Type extends string = string, Data = unknown> {
  readonly id: string;
  readonly type: Type;
  readonly schemaVersion: number;
  readonly tenant: string;
  readonly streamId: string;
  readonly incarnation: number;
  readonly version: number;
  readonly lane: number;
  readonly position: number;
  readonly time: string;
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId: string | null;
  readonly data: Data;
}

/** An event as it is stored: its data as JSON, in the schema version that it was written in. */
export type StoredEvent = Omit<RecordedEvent, 'data'> & { readonly json: string };

/** What a lane holds at a position: an event, or with `unreadable` one that this code cannot read, without its data. */
export type LaneEvent = RecordedEvent & { readonly unreadable?: Error };

/** What a stream has had since its state was stored last; bytes are those of payloads as they are stored. */
export interface StateLag {
  readonly events: number;
  readonly bytes: number;
}

/** The state of a stream that was stored last, its times as of then, and all that came since. */
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

export type Appended =
  Exclude<AppendResult, { status: 'ok' }> | ({ readonly status: 'ok'; readonly lag: StateLag } & StreamEnd);

export interface KeyedResult {
  readonly fingerprint: string;
  readonly reference: unknown;
  readonly streamId: string;
  readonly version: number;
}

export interface EventStoreOptions extends WriterOptions {
  readonly codec?: PayloadCodec;
  /** Lifts stored data to the current schema version; as it is, unless given. */
  readonly upcast?: (
    type: string,
    schemaVersion: number,
    data: Record<string, unknown>,
  ) => Record<string, unknown>;
}

export interface StreamRange {
  /** First version wanted, inclusive; 1 unless given. */
  readonly from?: number;
  /** Last version wanted, inclusive. */
  readonly to?: number;
  readonly limit?: number;
  readonly types?: readonly string[];
  /** Data of a type or version that this code does not know comes as it is stored, instead of being an error. */
  readonly unknownAsStored?: boolean;
}

/** Which of a tenant's events are wanted; all, unless something is said. Times are RFC 3339. */
export interface FeedFilter {
  readonly streamId?: string | undefined;
  readonly types?: readonly string[] | undefined;
  readonly actor?: string | undefined;
  /** Inclusive. */
  readonly from?: string | undefined;
  /** Exclusive. */
  readonly to?: string | undefined;
}

export interface FeedPage {
  readonly events: RecordedEvent[];
  /** By lane: up to where the feed is known after this page, past its last event where others were passed over. */
  readonly seen: ReadonlyMap<number, number>;
  /** Whether there may be more by now. */
  readonly more: boolean;
}

const COLUMNS = `e.id, e.type, e.schema_version, e.tenant, e.stream_id, e.incarnation, e.version, e.lane, e.position,
  e.time, e.actor, e.correlation_id, e.causation_id, e.data, e.sealed, e.key_id`;

interface EventRow {
  id: string;
  type: string;
  schema_version: number;
  tenant: string;
  stream_id: string;
  incarnation: number;
  version: number;
  lane: number;
  position: number;
  time: string;
  actor: string;
  correlation_id: string;
  causation_id: string | null;
  data: unknown;
  sealed: Buffer | null;
  key_id: string | null;
}

const SIZE = '(coalesce(pg_column_size(e.data), 0) + coalesce(pg_column_size(e.sealed), 0))';

const STATE_COLUMNS = `s.tenant, s.stream_id, s.lane, s.version, s.incarnation, s.position, s.time, s.created_at,
  s.last_activity_at, s.state, s.state_version, s.sealed, s.key_id`;

interface StateRow {
  tenant: string;
  stream_id: string;
  lane: number;
  version: number;
  incarnation: number;
  position: number;
  time: string;
  created_at: string;
  last_activity_at: string;
  state: unknown;
  state_version: number;
  sealed: Buffer | null;
  key_id: string | null;
}

type SizedEventRow = EventRow & { readonly size: number };

/**
 * A state is stored by the append that brings it to so many events or bytes behind the one that is stored. More often
 * makes appends dearer, above all beside an old snapshot, which keeps every version of the row for all to walk past;
 * less often makes cold loads dearer (ADR 0015).
 */
const STATE_EVENTS = 8;
const STATE_BYTES = 64 * 1024;
const NO_LAG: StateLag = { events: 0, bytes: 0 };

/** Events since a known state that are read at once; where there are more, the stored state is nearer. */
const SINCE_KNOWN = 2 * STATE_EVENTS;

/** Bytes of payloads, as they are stored, that a page of a cut holds; one event may be more. */
const CUT_PAGE_BYTES = 4 * 1024 * 1024;
const CUT_PAGE_EVENTS = 1_000;

/**
 * No plan here depends on its parameters, and planning for all lanes is a good part of what a small read takes.
 * On the append functions the setting would cost each call.
 */
const GENERIC_PLANS = '-c plan_cache_mode=force_generic_plan';

/** Lanes of the streams in use: a hash for each append would be dearer. */
const KNOWN_LANES = 20_000;

/** Events that a page of a feed looks at when a filter may pass over most of them; it may then hold few or none. */
const FEED_SCAN = 20_000;
const SCAN_FEED = readFileSync(join(__dirname, 'sql', 'feed.sql'), 'utf8');

/**
 * An append-only log of streams in PostgreSQL.
 *
 * A reader that keeps only lane and number misses nothing and reorders nothing: a lane's numbers have no gaps and
 * become visible in their order, because each append holds the lane's lock until it is committed.
 */
export class EventStore {
  readonly wakeUp: LogWakeUp;
  private readonly writer: BatchWriter;
  /** Reads that were asked for in this turn of the event loop: those of the same place are one query. */
  private readonly asked = new Map<string, Promise<readonly LaneEvent[]>>();
  private readonly tail = new LogTail<RecordedEvent>();
  private readonly knownLanes = new LRUCache<string, number>({ max: KNOWN_LANES });

  private constructor(
    readonly pool: Pool,
    private readonly url: string,
    readonly lanes: number,
    /** Positions as clients see them. */
    readonly positions: PositionTokens,
    /** Places of readers of all lanes as clients see them. */
    readonly vectors: VectorTokens,
    private readonly options: EventStoreOptions,
    private readonly codec: PayloadCodec,
  ) {
    this.wakeUp = new LogWakeUp(url, lanes, (changed) => {
      this.tail.forget(changed);
    });
    const { tail } = this;
    const committed = (appends: readonly (readonly [Append, StreamEnd])[], run: string): void => {
      tail.enter(run);
      for (const [append, end] of appends) this.keep(append, end);
      this.wakeUp.appended(new Set(appends.map(([{ lane }]) => lane)));
    };
    this.writer = new BatchWriter(
      () => connect(url, 'writer', { settings: GENERIC_PLANS }),
      {
        committed,
        lost: () => {
          tail.forget();
        },
        lastOf: (lane, run) => tail.lastOf(lane, run),
      },
      options,
    );
  }

  /** @param url of a database that is migrated. */
  static async open(url: string, options: EventStoreOptions = {}): Promise<EventStore> {
    const pool = createPool(url, 'log', { settings: GENERIC_PLANS });
    try {
      const { rows } = await available(() =>
        pool.query<{ lanes: number; position_key: Buffer }>('select lanes, position_key from log_settings'),
      );
      const [settings] = rows;
      if (!settings) throw new Error('the database has no lane count: it was not migrated');
      return new EventStore(
        pool,
        url,
        settings.lanes,
        new PositionTokens(settings.position_key),
        new VectorTokens(settings.position_key, settings.lanes),
        options,
        options.codec ?? plainCodec,
      );
    } catch (error) {
      await pool.end();
      throw error;
    }
  }

  /** Answers what was accepted, then closes the connections. */
  async close(): Promise<void> {
    await this.writer.close();
    await this.wakeUp.close();
    await this.pool.end();
  }

  /** How many appends were asked for since the process began: whoever can wait sees how much else there is to do. */
  get appends(): number {
    return this.writer.appends;
  }

  laneOf(stream: StreamId): number {
    const key = streamKey(stream);
    let lane = this.knownLanes.get(key);
    if (lane === undefined) {
      lane = laneOf(stream, this.lanes);
      this.knownLanes.set(key, lane);
    }
    return lane;
  }

  /**
   * Durable when it resolves: the commit is on disk.
   * @param append `lag` as the last append or load gave it; without it the state is stored.
   * @throws Overloaded, DatabaseUnavailable
   */
  async append({
    state,
    stateVersion,
    lag,
    ...append
  }: Omit<Append, 'lane' | 'state' | 'events'> & {
    readonly state: unknown;
    readonly stateVersion: number;
    readonly lag?: StateLag | undefined;
    readonly events: readonly {
      readonly type: string;
      readonly schemaVersion: number;
      readonly data: unknown;
    }[];
  }): Promise<Appended> {
    const events = append.events.map(({ type, schemaVersion, data }) => ({
      id: randomUUID(),
      type,
      schemaVersion,
      data,
      payload: this.codec.encode(type, data),
    }));
    const behind = {
      events: (lag?.events ?? 0) + events.length,
      bytes: events.reduce((sum, { payload }) => sum + sizeOf(payload), lag?.bytes ?? 0),
    };
    const isStored =
      !lag || append.expected === 0 || behind.events >= STATE_EVENTS || behind.bytes >= STATE_BYTES;
    const result = await this.writer.append({
      ...append,
      lane: this.laneOf(append.stream),
      state: isStored ? { payload: this.codec.encode(STATE, state), version: stateVersion } : undefined,
      events,
    });
    return result.status === 'ok' ? { ...result, lag: isStored ? NO_LAG : behind } : result;
  }

  /** What was appended here is at hand for those who follow the log. */
  private keep(append: Append, end: StreamEnd): void {
    const { stream, lane, incarnation, actor, correlationId, causationId, events } = append;
    let missing = events.length;
    for (const { id, type, schemaVersion, data, payload } of events) {
      missing -= 1;
      const event = {
        id,
        type,
        schemaVersion,
        tenant: stream.tenant,
        streamId: stream.streamId,
        incarnation,
        version: end.version - missing,
        lane,
        position: end.position - missing,
        time: end.time,
        actor,
        correlationId,
        causationId,
        data,
      };
      this.tail.add(event, sizeOf(payload));
    }
  }

  async loadStream(stream: StreamId): Promise<StoredStream | undefined> {
    const { rows } = await available(() =>
      this.pool.query<StateRow>({
        name: 'load_stream',
        text: `select ${STATE_COLUMNS} from stream_state s where s.tenant = $1 and s.stream_id = $2`,
        values: [stream.tenant, stream.streamId],
      }),
    );
    const [row] = rows;
    if (!row) return undefined;
    // Whatever was appended in between: a later look at the events has all up to its end.
    return this.toStream(row, await this.rowsAfter(stream, row.version));
  }

  /** Those of the streams that exist and that this code can read, in no particular order, by two queries. */
  async loadStreams(streams: readonly StreamId[]): Promise<(StoredStream & StreamId)[]> {
    // One by one through the index: for many streams the planner would rather read the whole table.
    const { rows: stored } = await available(() =>
      this.pool.query<StateRow>({
        name: 'load_streams',
        text: `select s.* from unnest($1::text[], $2::text[]) as w (tenant, stream_id)
               cross join lateral (
                 select ${STATE_COLUMNS} from stream_state s
                 where s.tenant = w.tenant and s.stream_id = w.stream_id limit 1
               ) s`,
        values: [streams.map((one) => one.tenant), streams.map((one) => one.streamId)],
      }),
    );
    const { rows } = await available(() =>
      this.pool.query<SizedEventRow>({
        name: 'load_streams_since',
        text: `select ${SIZE} as size, ${COLUMNS}
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
      }),
    );
    const since = new Map<string, SizedEventRow[]>();
    for (const row of rows) {
      const key = streamKey({ tenant: row.tenant, streamId: row.stream_id });
      const before = since.get(key);
      if (before) before.push(row);
      else since.set(key, [row]);
    }
    return stored.flatMap((row) => {
      const stream = { tenant: row.tenant, streamId: row.stream_id };
      const loaded = readable(() => this.toStream(row, since.get(streamKey(stream)) ?? []));
      return loaded ? [{ ...loaded, ...stream }] : [];
    });
  }

  /**
   * The events of a stream behind one that is known; undefined when that one is not there or too far back, or when one
   * of them cannot be read: a state that was stored since may be of more use.
   */
  async eventsSince(
    stream: StreamId,
    known: { readonly version: number; readonly position: number; readonly time: string },
  ): Promise<Pick<StoredStream, 'since' | 'lag'> | undefined> {
    const [first, ...rows] = await this.rowsAfter(stream, known.version - 1, SINCE_KNOWN + 1);
    // A log that was set back may have gone on with other events since.
    const isThere =
      first?.version === known.version && first.position === known.position && first.time === known.time;
    return isThere && rows.length < SINCE_KNOWN ? readable(() => this.followed(rows)) : undefined;
  }

  private async rowsAfter(stream: StreamId, version: number, limit?: number): Promise<SizedEventRow[]> {
    const { rows } = await available(() =>
      this.pool.query<SizedEventRow>({
        name: 'rows_after',
        text: `select ${SIZE} as size, ${COLUMNS} from event e
               where e.lane = $1 and e.tenant = $2 and e.stream_id = $3 and e.version > $4
               order by e.version limit $5`,
        values: [this.laneOf(stream), stream.tenant, stream.streamId, version, limit],
      }),
    );
    return rows;
  }

  /** The versions that streams are at, in the order asked; 0 for one that does not exist. */
  async streamVersions(streams: readonly StreamId[]): Promise<number[]> {
    const { rows } = await available(() =>
      this.pool.query<{ version: number }>({
        name: 'stream_versions',
        text: `select coalesce((
                 select e.version from event e
                 where e.lane = w.lane and e.tenant = w.tenant and e.stream_id = w.stream_id
                 order by e.version desc limit 1
               ), 0) as version
               from unnest($1::smallint[], $2::text[], $3::text[]) with ordinality as w (lane, tenant, stream_id, n)
               order by w.n`,
        values: [
          streams.map((one) => this.laneOf(one)),
          streams.map((one) => one.tenant),
          streams.map((one) => one.streamId),
        ],
      }),
    );
    return rows.map((row) => row.version);
  }

  /** A stream's events in the order of their versions. */
  async readStream(stream: StreamId, range: StreamRange = {}): Promise<RecordedEvent[]> {
    const { rows } = await available(() =>
      this.pool.query<EventRow>({
        name: 'read_stream',
        text: `select ${COLUMNS} from event e
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
      }),
    );
    return rows.map((row) => this.toEvent(row, range.unknownAsStored));
  }

  /** How many events of each type a stream has in a range of versions, both inclusive. */
  async countTypes(stream: StreamId, from: number, to: number): Promise<Record<string, number>> {
    const { rows } = await available(() =>
      this.pool.query<{ type: string; count: number }>({
        name: 'count_types',
        text: `select e.type, count(*) from event e
               where e.lane = $1 and e.tenant = $2 and e.stream_id = $3 and e.version between $4 and $5
               group by e.type order by e.type`,
        values: [this.laneOf(stream), stream.tenant, stream.streamId, from, to],
      }),
    );
    return Object.fromEntries(rows.map(({ type, count }) => [type, count]));
  }

  /** The last event that an incarnation had at a time, or has now; undefined when it had none. */
  async lastVersion(
    stream: StreamId,
    incarnation: number,
    at: { readonly time?: string; readonly version?: number } = {},
  ): Promise<{ readonly version: number; readonly time: string } | undefined> {
    const { rows } = await available(() =>
      this.pool.query<{ version: number; time: string }>({
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
      }),
    );
    return rows[0];
  }

  /** The last state that was kept of a stream at or before a version; undefined when there is none. */
  async loadSnapshot(stream: StreamId, stateVersion: number, upTo: number): Promise<unknown> {
    const { rows } = await available(() =>
      this.pool.query<{ state: unknown; sealed: Buffer | null; key_id: string | null }>({
        name: 'load_snapshot',
        text: `select state, sealed, key_id from stream_snapshot
               where tenant = $1 and stream_id = $2 and state_version = $3 and version <= $4
               order by version desc limit 1`,
        values: [stream.tenant, stream.streamId, stateVersion, upTo],
      }),
    );
    const [row] = rows;
    return row && this.codec.decode(STATE, { data: row.state, sealed: row.sealed, keyId: row.key_id });
  }

  /** Keeps the state that a stream had at a version; one that is there already stays. */
  async saveSnapshot(
    stream: StreamId,
    stateVersion: number,
    state: { readonly version: number },
  ): Promise<void> {
    const { json, sealed, keyId } = this.codec.encode(STATE, state);
    await available(() =>
      this.pool.query({
        name: 'save_snapshot',
        text: `insert into stream_snapshot values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing`,
        values: [stream.tenant, stream.streamId, stateVersion, state.version, json, sealed, keyId],
      }),
    );
  }

  /** All of a stream's events, a page at a time, so that a long one does not have to fit in memory. */
  async *streamEvents(
    stream: StreamId,
    range: StreamRange = {},
    limit = 1_000,
  ): AsyncGenerator<RecordedEvent> {
    let from = range.from ?? 1;
    for (;;) {
      const page = await this.readStream(stream, { ...range, from, limit });
      yield* page;
      const last = page.at(-1);
      if (!last || page.length < limit) return;
      from = last.version + 1;
    }
  }

  /**
   * What `readLanes` gives, for those who keep up with the log: what this process has just appended is not read back.
   * A lane may then come without what others appended behind that; they wake up whoever subscribed.
   */
  async followLanes(after: ReadonlyMap<number, number>, limit: number): Promise<readonly LaneEvent[]> {
    const recent: LaneEvent[] = [];
    const unknown = new Map<number, number>();
    for (const [lane, position] of after) {
      const events = this.tail.after(lane, position, limit);
      if (events) recent.push(...events);
      else unknown.set(lane, position);
    }
    if (unknown.size === 0) return recent;
    const stored = await this.readLanes(unknown, limit);
    return recent.length === 0 ? stored : [...recent, ...stored];
  }

  /**
   * The next events of several lanes, each lane in order, at most `limit` per lane. An event that this code cannot
   * read is marked and not thrown: it must not hold up what stands beside it.
   *
   * Reads from the same place that are asked for in one turn of the event loop are one query: whoever follows the log
   * is woken with all others.
   * @param after by lane: the last position that the reader has.
   */
  readLanes(after: ReadonlyMap<number, number>, limit: number): Promise<readonly LaneEvent[]> {
    const place = `${limit}/${[...after].join()}`;
    let read = this.asked.get(place);
    if (!read) {
      read = endOfTurn().then(() => {
        this.asked.delete(place);
        return this.readLanesNow(after, limit);
      });
      this.asked.set(place, read);
    }
    return read;
  }

  private async readLanesNow(after: ReadonlyMap<number, number>, limit: number): Promise<LaneEvent[]> {
    const { rows } = await available(() =>
      this.pool.query<EventRow>({
        name: 'read_lanes',
        text: nextOfLanes(COLUMNS),
        values: [[...after.keys()], [...after.values()], limit],
      }),
    );
    return rows.map((row) => {
      try {
        return this.toEvent(row);
      } catch (error) {
        return { ...envelope(row), data: undefined, unreadable: error as Error };
      }
    });
  }

  /**
   * What `readLanes` gives, as it is stored: for those who pass events on, and would only make JSON of the data again.
   */
  async readStored(after: ReadonlyMap<number, number>, limit: number): Promise<StoredEvent[]> {
    const { rows } = await available(() =>
      this.pool.query<EventRow & { data: string | null }>({
        name: 'read_stored',
        text: nextOfLanes(COLUMNS.replace('e.data,', 'e.data::text as data,')),
        values: [[...after.keys()], [...after.values()], limit],
      }),
    );
    return rows.map((row) => {
      const { type, data, sealed, key_id: keyId } = row;
      const json = sealed ? JSON.stringify(this.codec.decode(type, { data: null, sealed, keyId })) : data;
      return { ...envelope(row), json: json ?? 'null' };
    });
  }

  /**
   * A tenant's next events, merged by time; those of a lane always in its order.
   * @param after by lane: the last position that the reader has; only these lanes are read.
   */
  async readFeed(
    tenant: string,
    after: ReadonlyMap<number, number>,
    limit: number,
    filter: FeedFilter = {},
  ): Promise<FeedPage> {
    const { streamId, types, actor, from, to } = filter;
    const lanes = [...after.keys()].filter(
      (lane) => streamId === undefined || lane === this.laneOf({ tenant, streamId }),
    );
    const isFiltered = [streamId, types, actor, from, to].some((one) => one !== undefined);
    const scan = isFiltered ? Math.max(limit, Math.ceil(FEED_SCAN / Math.max(lanes.length, 1))) : limit;
    const { rows: found } = await available(() =>
      this.pool.query<{ lane: number; position: number | null; is_event: boolean; more: boolean }>({
        name: 'scan_feed',
        text: SCAN_FEED,
        values: [
          tenant,
          lanes,
          lanes.map((lane) => after.get(lane)),
          scan + 1,
          streamId ?? null,
          types ?? null,
          actor ?? null,
          from ?? null,
          to ?? null,
          limit,
        ],
      }),
    );
    const page = found.filter((row) => row.is_event);
    const ends = found.filter((row) => !row.is_event);
    const seen = ends.flatMap(({ lane, position }) => (position === null ? [] : [[lane, position] as const]));
    return {
      events: page.length === 0 ? [] : await this.readAt(page as LanePosition[]),
      seen: new Map(seen),
      more: ends.some((row) => row.more),
    };
  }

  /** Events by where they are, in the order asked; of a type that this code does not know as they are stored. */
  private async readAt(places: readonly LanePosition[]): Promise<RecordedEvent[]> {
    const { rows } = await available(() =>
      this.pool.query<EventRow>({
        name: 'read_at',
        text: `select ${COLUMNS}
               from unnest($1::smallint[], $2::bigint[]) with ordinality as w (lane, "position", n)
               cross join lateral (
                 select * from event e where e.lane = w.lane and e.position = w.position limit 1
               ) e order by w.n`,
        values: [places.map((one) => one.lane), places.map((one) => one.position)],
      }),
    );
    return rows.map((row) => this.toEvent(row, true));
  }

  /** The last position of every lane, by lane number. */
  async laneEnds(): Promise<number[]> {
    const { rows } = await available(() =>
      this.pool.query<{ position: number }>({
        name: 'lane_ends',
        text: 'select position from lane_ends() order by lane',
      }),
    );
    return rows.map((row) => row.position);
  }

  /**
   * Streams by tenant and id, with versions that they had not long ago.
   * @param only those of this tenant
   */
  async streamsAfter(
    after: StreamId,
    limit: number,
    only?: string,
  ): Promise<(StreamId & { readonly version: number })[]> {
    const { rows } = await available(() =>
      this.pool.query<{ tenant: string; stream_id: string; version: number }>({
        name: 'streams_after',
        text: `select tenant, stream_id, version from stream_state
               where (tenant, stream_id) > ($1, $2) and tenant <= coalesce($4, tenant)
               order by tenant, stream_id limit $3`,
        values: [after.tenant, after.streamId, limit, only ?? null],
      }),
    );
    return rows.map((row) => ({ tenant: row.tenant, streamId: row.stream_id, version: row.version }));
  }

  /**
   * All events of some streams up to a cut through the log, stream by stream, in pages that fit in memory.
   *
   * A cut is what `laneEnds` gave at one moment: since a lane's numbers become visible in order, the events up to it
   * are what the log held at that moment, however much is appended while they are read. No transaction stays open.
   * @param streams with versions that need not be exact: they tell how much to ask for at once
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
      const { rows } = await available(() =>
        this.pool.query<EventRow & { n: number; total: number }>({
          name: 'events_up_to',
          text: `select ${COLUMNS}, e.n, e.total
                 from (
                   select p.*, count(*) over () as total,
                          sum(p.size) over (order by p.n, p.version rows unbounded preceding) - p.size as before
                   from (
                     select e.*, s.n,
                            ${SIZE} as size
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
        }),
      );
      const last = rows.at(-1);
      if (last) yield rows.map((row) => this.toEvent(row));
      if (!last || (rows.length === last.total && last.total < CUT_PAGE_EVENTS)) {
        rest = rest.slice(wanted.length);
      } else {
        rest = rest.slice(last.n - 1);
        if (rest[0]) rest[0].after = last.version;
      }
    }
  }

  /** The database's time, the only one there is. */
  async now(): Promise<string> {
    const { rows } = await available(() => this.pool.query<{ now: string }>('select colloquy_now() as now'));
    return rows[0]?.now ?? '';
  }

  /** An import of whole streams, on a connection of its own, that the caller closes. */
  async beginImport(): Promise<LogImport> {
    // A stream is committed in one piece, and a long one takes its time.
    const client = await available(() => connect(this.url, 'import', { query_timeout: 600_000 }));
    return LogImport.begin(client, this.lanes, this.codec, (lanes) => {
      this.tail.forget(lanes);
      this.wakeUp.appended(lanes);
    });
  }

  /** What a keyed append of the last 24 hours left, if there was one. */
  async findKeyed(tenant: string, scope: string, key: string): Promise<KeyedResult | undefined> {
    const { rows } = await available(() =>
      this.pool.query<{ fingerprint: string; reference: unknown; stream_id: string; version: number }>({
        name: 'find_keyed',
        text: `select fingerprint, reference, stream_id, version from command
               where tenant = $1 and scope = $2 and key = $3 and time > colloquy_now() - interval '24 hours'`,
        values: [tenant, scope, key],
      }),
    );
    const [row] = rows;
    return (
      row && {
        fingerprint: row.fingerprint,
        reference: row.reference,
        streamId: row.stream_id,
        version: row.version,
      }
    );
  }

  async counterValue(key: string): Promise<number> {
    const { rows } = await available(() =>
      this.pool.query<{ value: number }>('select value from counter where key = $1', [key]),
    );
    return rows[0]?.value ?? 0;
  }

  /**
   * Counters whose key begins with `prefix` and which stand above a limit.
   * @param limits limits of single counters, by key; `limit` is that of all others
   */
  async countersAbove(
    prefix: string,
    limit: number,
    limits: ReadonlyMap<string, number>,
  ): Promise<{ key: string; value: number; limit: number }[]> {
    const { rows } = await available(() =>
      this.pool.query<{ key: string; value: number; limit: number }>({
        name: 'counters_above',
        text: `select c.key, c.value, coalesce(o.max, $2)::bigint as limit
               from counter c left join unnest($3::text[], $4::bigint[]) as o (key, max) on o.key = c.key collate "C"
               where c.value > coalesce(o.max, $2) and starts_with(c.key, $1)`,
        values: [prefix, limit, [...limits.keys()], [...limits.values()]],
      }),
    );
    return rows;
  }

  /** Drops keyed results that are too old to be found. */
  async pruneKeyed(): Promise<void> {
    await available(() =>
      this.pool.query(`delete from command where time <= colloquy_now() - interval '24 hours'`),
    );
  }

  private toStream(row: StateRow, since: readonly SizedEventRow[]): StoredStream {
    return {
      lane: row.lane,
      version: row.version,
      incarnation: row.incarnation,
      position: row.position,
      time: row.time,
      createdAt: row.created_at,
      lastActivityAt: row.last_activity_at,
      state: this.codec.decode(STATE, { data: row.state, sealed: row.sealed, keyId: row.key_id }),
      stateVersion: row.state_version,
      ...this.followed(since),
    };
  }

  private followed(rows: readonly SizedEventRow[]): Pick<StoredStream, 'since' | 'lag'> {
    return {
      since: rows.map((row) => this.toEvent(row)),
      lag: { events: rows.length, bytes: rows.reduce((sum, { size }) => sum + size, 0) },
    };
  }

  private toEvent(row: EventRow, unknownAsStored = false): RecordedEvent {
    const stored = this.codec.decode(row.type, { data: row.data, sealed: row.sealed, keyId: row.key_id });
    return {
      ...envelope(row),
      data: this.lifted(row, stored, unknownAsStored),
    };
  }

  private lifted(row: EventRow, stored: unknown, unknownAsStored: boolean): unknown {
    if (!this.options.upcast) return stored;
    try {
      return this.options.upcast(row.type, row.schema_version, stored as Record<string, unknown>);
    } catch (error) {
      // Written by a newer version of the service, which is being rolled out.
      if (unknownAsStored) return stored;
      throw error;
    }
  }
}

/** Undefined for what was written by a newer version of the service. */
function readable<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

const sizeOf = ({ json, sealed }: EncodedPayload): number => json?.length ?? sealed?.length ?? 0;

/** The next $3 events after the positions $2 in the lanes $1. */
const nextOfLanes = (columns: string): string => `
  select ${columns}
  from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
  cross join lateral (
    select * from event e where e.lane = reader.lane and e.position > reader.position
    order by e.position limit $3
  ) e`;

const envelope = (row: EventRow): Omit<RecordedEvent, 'data'> => ({
  id: row.id,
  type: row.type,
  schemaVersion: row.schema_version,
  tenant: row.tenant,
  streamId: row.stream_id,
  incarnation: row.incarnation,
  version: row.version,
  lane: row.lane,
  position: row.position,
  time: row.time,
  actor: row.actor,
  correlationId: row.correlation_id,
  causationId: row.causation_id,
});
