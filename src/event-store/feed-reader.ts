import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';
import { type EventDecoder } from './event-decoder.js';
import { EVENT_COLUMNS, type EventRow } from './event-rows.js';
import { type StreamId } from './lane.js';
import { type LanePosition } from './position-tokens.js';
import { type RecordedEvent } from './recorded-event.js';

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

/** An event of the page, or for a lane how far the scan came and whether there is more behind that. */
interface ScanRow {
  lane: number;
  position: number | null;
  is_event: boolean;
  more: boolean;
}

/** Events that a page of a feed looks at when a filter may pass over most of them; it may then hold few or none. */
const FEED_SCAN = 20_000;
const SCAN_FEED = readFileSync(join(__dirname, 'feed.sql'), 'utf8');

/** Reads the events of one tenant across lanes and streams, filtered. */
export class FeedReader {
  constructor(
    private readonly pool: Pool,
    private readonly laneOf: (stream: StreamId) => number,
    private readonly decoder: EventDecoder,
  ) {}

  /**
   * A tenant's next events, merged by time; those of a lane always in its order.
   * @param after by lane: the last position that the reader has; only these lanes are read.
   */
  async read(
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
    const found = await rowsOf<ScanRow>(this.pool, {
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
    });
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
  async readAt(places: readonly LanePosition[]): Promise<RecordedEvent[]> {
    const rows = await rowsOf<EventRow>(this.pool, {
      name: 'read_at',
      text: `select ${EVENT_COLUMNS}
               from unnest($1::smallint[], $2::bigint[]) with ordinality as w (lane, "position", n)
               cross join lateral (
                 select * from event e where e.lane = w.lane and e.position = w.position limit 1
               ) e order by w.n`,
      values: [places.map((one) => one.lane), places.map((one) => one.position)],
    });
    return this.decoder.events(rows, { unknownAsStored: true, erasedToo: true });
  }
}
