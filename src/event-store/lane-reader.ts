import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';
import { Coalescer } from './coalescer.js';
import { endOfTurn } from './end-of-turn.js';
import { type EventDecoder } from './event-decoder.js';
import { EVENT_COLUMNS, type EventRow, HELD_SIZE, PAGE_BYTES, PAYLOAD_SIZE } from './event-rows.js';
import { type StreamId } from './lane.js';
import { type LogTail } from './log-tail.js';
import { type LaneEvent, type RecordedEvent, type StoredEvent } from './recorded-event.js';

/** SQL for a page of lanes: at most $3 events of each, and no more once there are $4 bytes of it. */
const pageOfLanes = `
  select ${EVENT_COLUMNS}, e.bytes >= $4 as "isFull"
  from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
  cross join lateral (
    select * from (
      select s.*, sum(s.size) over (order by s.position rows unbounded preceding) as bytes
      from (
        select e.*, ${HELD_SIZE} as size from event e
        where e.lane = reader.lane and e.position > reader.position
        order by e.position limit $3
      ) s
    ) e where e.bytes - e.size < $4
  ) e`;

/** The last position of each lane, in their order; 0 where it is empty. */
export const LANE_ENDS = { name: 'lane_ends', text: 'select position from lane_ends() order by lane' };

/** Where an event is said to be. */
export interface EventPlace {
  readonly lane: number;
  readonly position: number;
  readonly id: string;
}

/** Where an event is and whom it concerns, without its payload. */
export type EventHead = Pick<RecordedEvent, 'lane' | 'position' | 'tenant' | 'streamId' | 'time'> & {
  /** Of its payload as it is stored. */
  readonly bytes: number;
};

/** Reads lanes in the order of their positions. Everything that follows the log reads through this class. */
export class LaneReader {
  /** Reads requested in this turn of the event loop, by the positions that they start from. */
  private readonly asked = new Map<string, Promise<readonly LaneEvent[]>>();

  private readonly endsOfLanes = new Coalescer<void, readonly number[]>(async (asked) => {
    const ends = await this.readEnds();
    return asked.map(() => ends);
  });

  constructor(
    private readonly pool: Pool,
    private readonly decoder: EventDecoder,
    private readonly tail: LogTail<RecordedEvent>,
  ) {}

  /**
   * Like `read`, for readers that keep up with the log: events that this process has just appended come from memory.
   * The result may lack events that other nodes appended to a lane after those; the notification of those nodes wakes
   * the readers again.
   */
  async follow(after: ReadonlyMap<number, number>, limit: number): Promise<readonly LaneEvent[]> {
    const recent: LaneEvent[] = [];
    const unknown = new Map<number, number>();
    for (const [lane, position] of after) {
      const events = this.tail.after(lane, position, limit);
      const last = events?.at(-1);
      if (!events || !last) unknown.set(lane, position);
      else if (events.length < limit) recent.push(...events);
      else recent.push(...events.slice(0, -1), { ...last, hasMore: true });
    }
    if (unknown.size === 0) return recent;
    const stored = await this.read(unknown, limit);
    return recent.length === 0 ? stored : [...recent, ...stored];
  }

  /**
   * The events of a stream behind one position of its lane, up to another one, if this process has just appended all
   * events in between; else undefined.
   */
  recent(
    lane: number,
    { tenant, streamId }: StreamId,
    after: number,
    to: number,
  ): RecordedEvent[] | undefined {
    const events = this.tail.between(lane, after, to);
    return events?.filter((event) => event.streamId === streamId && event.tenant === tenant);
  }

  /**
   * The next events of several lanes, in order within each lane, at most `limit` per lane, and fewer where they are
   * large: `hasMore` tells of the last one of a lane whether there may be more. An event that this code cannot read is marked instead of thrown, so that it does not hold up the events beside it.
   *
   * Reads that start from the same positions in the same turn of the event loop share one query, because all followers
   * of the log are woken together.
   *
   * @param after lane → the last position that the reader has
   */
  read(after: ReadonlyMap<number, number>, limit: number): Promise<readonly LaneEvent[]> {
    const place = `${limit}/${[...after].join()}`;
    let read = this.asked.get(place);
    if (!read) {
      read = endOfTurn().then(() => {
        this.asked.delete(place);
        return this.readNow(after, limit);
      });
      this.asked.set(place, read);
    }
    return read;
  }

  private async readNow(after: ReadonlyMap<number, number>, limit: number): Promise<LaneEvent[]> {
    const rows = await rowsOf<EventRow & { isFull: boolean }>(this.pool, {
      name: 'read_lanes',
      text: pageOfLanes,
      values: [[...after.keys()], [...after.values()], limit, Math.ceil(PAGE_BYTES / after.size)],
    });
    const events = await this.decoder.laneEvents(rows);
    let count = 0;
    return events.map((event, index) => {
      count += 1;
      const isLast = rows[index + 1]?.lane !== event.lane;
      const hasMore = isLast && (count === limit || rows[index]?.isFull === true);
      if (isLast) count = 0;
      return hasMore ? { ...event, hasMore } : event;
    });
  }

  /**
   * Like `read`, but with the data as stored JSON, for readers that pass events on without looking at their data.
   *
   * @param leaveSealed whether sealed data is passed on sealed
   */
  async readStored(
    after: ReadonlyMap<number, number>,
    limit: number,
    leaveSealed = false,
  ): Promise<StoredEvent[]> {
    const rows = await rowsOf<EventRow & { data: string | null; copied: boolean }>(this.pool, {
      name: 'read_stored',
      text: `select ${EVENT_COLUMNS.replace('e.data,', 'e.data::text as data,')},
                    -- Most logs have no absences, which is looked at once, and not for each event.
                    (select exists (select from tenant_absence)) and exists (
                      select from tenant_absence a
                      where a.tenant = e.tenant and e.position > a.closed[e.lane + 1]
                        and (a.opened is null or e.position <= a.opened[e.lane + 1])) as copied
             from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
             cross join lateral (
               select * from event e where e.lane = reader.lane and e.position > reader.position
               order by e.position limit $3
             ) e`,
      values: [[...after.keys()], [...after.values()], limit],
    });
    return this.decoder.storedEvents(rows, leaveSealed);
  }

  /**
   * The sizes of the next events of some lanes, summed over the lanes: entry n is that of the (n + 1)th event of each.
   *
   * @param after lane → the last position that the reader has
   */
  async sizes(after: ReadonlyMap<number, number>, limit: number): Promise<number[]> {
    const rows = await rowsOf<{ nth: number; bytes: string }>(this.pool, {
      name: 'lane_sizes',
      text: `select e.position - reader.position as nth,
                    -- A small payload has about the same size as text; only one that may be compressed is expanded.
                    sum(coalesce(case when pg_column_size(e.data) < 1000 then pg_column_size(e.data)
                                      else octet_length(e.data::text) end, octet_length(e.sealed), 0)) as bytes
             from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
             cross join lateral (
               select * from event e where e.lane = reader.lane and e.position > reader.position
               order by e.position limit $3
             ) e
             group by 1 order by 1`,
      values: [[...after.keys()], [...after.values()], limit],
    });
    // A lane's numbers have no gaps, so the rows are 1, 2, 3 … up to the longest lane.
    return rows.map(({ bytes }) => Number(bytes));
  }

  /**
   * What stands at the given positions and behind them, each lane in order. A lane in which nothing stands at its
   * position itself, although that is not 0, has been set back since.
   * @param from by lane: the last position that the reader has
   * @param limit of what is behind it, per lane
   */
  heads(from: ReadonlyMap<number, number>, limit: number): Promise<EventHead[]> {
    return rowsOf<EventHead>(this.pool, {
      name: 'read_heads',
      text: `select e.lane, e.position, e.tenant, e.stream_id as "streamId", e.time, ${PAYLOAD_SIZE} as bytes
             from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
             cross join lateral (
               select * from event e where e.lane = reader.lane and e.position >= reader.position
               order by e.position limit $3
             ) e order by e.lane, e.position`,
      values: [[...from.keys()], [...from.values()], limit + 1],
    });
  }

  /**
   * Age in seconds of the oldest event after these positions; 0 when there is none.
   *
   * @param after lane → the last position that the reader has
   */
  async lagSeconds(after: ReadonlyMap<number, number>): Promise<number> {
    const [row] = await rowsOf<{ seconds: number | null }>(this.pool, {
      name: 'lag_seconds',
      text: `select greatest(extract(epoch from colloquy_now() - min(e.time)), 0)::float8 as seconds
             from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
             cross join lateral (
               select e.time from event e where e.lane = reader.lane and e.position > reader.position
               order by e.position limit 1
             ) e`,
      values: [[...after.keys()], [...after.values()]],
    });
    return row?.seconds ?? 0;
  }

  /** @returns the ids of those events that are not where they are said to be */
  async missing(places: readonly EventPlace[]): Promise<Set<string>> {
    const rows = await rowsOf<{ id: string }>(this.pool, {
      name: 'missing_events',
      text: `select said.id from unnest($1::smallint[], $2::bigint[], $3::text[]) as said (lane, "position", id)
             where not exists (
               select from event e
               where e.lane = said.lane and e.position = said.position and e.id::text = said.id)`,
      values: [
        places.map(({ lane }) => lane),
        places.map(({ position }) => position),
        places.map(({ id }) => id),
      ],
    });
    return new Set(rows.map(({ id }) => id));
  }

  /** The last position of every lane, by lane number. */
  async ends(): Promise<number[]> {
    // Each caller gets an array of its own, because some go on from it.
    return [...(await this.endsOfLanes.ask())];
  }

  private async readEnds(): Promise<number[]> {
    const rows = await rowsOf<{ position: number }>(this.pool, LANE_ENDS);
    return rows.map((row) => row.position);
  }
}
