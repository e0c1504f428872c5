import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';
import { commitmentTo, plainCommitment, SALT } from './commitment.js';
import { ENVELOPE_COLUMNS, envelope, type EventRow, HELD_SIZE } from './event-rows.js';
import { type StreamId } from './lane.js';
import { type PayloadCodec } from './payload-codec.js';
import { type RecordedEvent } from './recorded-event.js';
import { commitmentIn } from './sealing/sealed-bytes.js';

/** An event without its data, and with what it commits to. */
export type CommittedEvent = Omit<RecordedEvent, 'data' | 'erased'> & {
  /** 64 hex digits; null for an event that was sealed before there were commitments. */
  readonly commitment: string | null;
};

/** The data of an event as what its commitment is to. */
export interface Opening {
  readonly lane: number;
  readonly position: number;
  readonly commitment: string | null;
  /** Of sealed data that can be opened and has a commitment. */
  readonly salt: string | null;
  /** Why the data is not what the commitment says, if it is not. */
  readonly fault: string | null;
}

type LeafRow = Omit<EventRow, 'sealed' | 'key_id'> & {
  readonly isSealed: boolean;
  readonly commitment: string | null;
};

/** Most bytes of plain data that are read of a lane at once; of sealed data only the commitment is read. */
const PAGE_BYTES = 4 * 1024 * 1024;

/** Reads what can be proven of events: their envelopes and commitments. Nothing is opened for it. */
export class LeafReader {
  constructor(
    private readonly pool: Pool,
    private readonly laneOf: (stream: StreamId) => number,
    private readonly codec: PayloadCodec,
  ) {}

  /**
   * The next events of several lanes, in order within each lane, at most `limit` per lane, and fewer where they are
   * large.
   *
   * @param after lane → the last position that the reader has
   */
  async read(after: ReadonlyMap<number, number>, limit: number): Promise<CommittedEvent[]> {
    const rows = await rowsOf<LeafRow>(this.pool, {
      name: 'read_leaves',
      text: `select ${ENVELOPE_COLUMNS}, e.data, e.sealed is not null as "isSealed", ${commitmentIn('e.sealed')} as commitment
             from unnest($1::smallint[], $2::bigint[]) as reader (lane, "position")
             cross join lateral (
               select * from (
                 select s.*, sum(s.size) over (order by s.position rows unbounded preceding) as bytes
                 from (
                   select e.*, case when e.data is null then 0 else ${HELD_SIZE} end as size from event e
                   where e.lane = reader.lane and e.position > reader.position
                   order by e.position limit $3
                 ) s
               ) e where e.bytes - e.size < $4
             ) e order by e.lane, e.position`,
      values: [[...after.keys()], [...after.values()], limit, PAGE_BYTES],
    });
    return rows.map(committedEvent);
  }

  /** What the events of a stream commit to, up to a version. */
  commitments(
    { tenant, streamId }: StreamId,
    version: number,
  ): Promise<{ readonly version: number; readonly commitment: string | null }[]> {
    return rowsOf(this.pool, {
      name: 'commitments',
      text: `select version, ${commitmentIn('e.sealed')} as commitment from event e
             where lane = $1 and tenant = $2 and stream_id = $3 and version <= $4 and sealed is not null
             order by version`,
      values: [this.laneOf({ tenant, streamId }), tenant, streamId, version],
    });
  }

  /** Opens the data of events, and holds it against their commitments. Positions without an event are left out. */
  async openings(places: readonly Readonly<Record<'lane' | 'position', number>>[]): Promise<Opening[]> {
    const rows = await rowsOf<LeafRow & { sealed: Buffer | null; key_id: string | null }>(this.pool, {
      name: 'open_leaves',
      text: `select ${ENVELOPE_COLUMNS}, e.data, e.sealed is not null as "isSealed", ${commitmentIn('e.sealed')} as commitment,
                    e.sealed, e.key_id
             from unnest($1::smallint[], $2::bigint[]) as place (lane, "position")
             join event e on e.lane = place.lane and e.position = place.position`,
      values: [places.map(({ lane }) => lane), places.map(({ position }) => position)],
    });
    const sealed = rows.flatMap((row) =>
      row.sealed
        ? {
            tenant: row.tenant,
            streamId: row.stream_id,
            version: row.version,
            type: row.type,
            sealed: row.sealed,
            keyId: row.key_id,
          }
        : [],
    );
    const opened = [...(sealed.length > 0 ? await this.codec.committed(sealed) : [])];
    return rows.map((row) => {
      const { lane, position } = row;
      const { commitment } = committedEvent(row);
      if (!row.isSealed) return { lane, position, commitment, salt: null, fault: null };
      const result = opened.shift();
      if (!result) throw new Error('the codec opened fewer payloads than it was given');
      if (result.status === 'rejected') {
        const isDestroyed = (result.reason as { code?: unknown }).code === 'key-destroyed';
        const fault = isDestroyed ? null : (result.reason as Error).message;
        return { lane, position, commitment, salt: null, fault };
      }
      const text = result.value;
      const isIt = text === null || commitmentTo(text) === commitment;
      const fault = isIt ? null : 'its data is not what it commits to';
      return { lane, position, commitment, salt: text?.slice(0, SALT) ?? null, fault };
    });
  }
}

const committedEvent = (row: LeafRow): CommittedEvent => ({
  ...envelope(row),
  commitment: row.isSealed ? row.commitment : plainCommitment(row.data),
});
