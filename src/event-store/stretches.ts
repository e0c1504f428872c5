import { type Pool } from 'pg';
import { jsonbArray } from '../database/array-literal.js';
import { binaryRows } from '../database/binary-rows.js';
import { rowsOf } from '../database/query.js';
import { KeyDestroyed, type PayloadCodec, type SealedPayload } from './payload-codec.js';

/** Most events of a stretch that has sealed ones: they pass through this process, which holds all of them at once. */
const OPENED_EVENTS = 4_000;
/** Most sealed bytes of such a stretch, which has at least one event. */
const OPENED_BYTES = 4 * 1024 * 1024;

/** The next events of a lane, for a statement that applies them without moving all of them out of the database. */
export interface Stretch {
  /** Position of the last one. */
  readonly end: number;
  /**
   * SQL for the events as a table for a `from`, with the columns `tenant, stream_id, incarnation, version, type, time,
   * data`. Those whose data was erased are not in it.
   */
  readonly events: string;
  /** The parameters of that SQL, from $1 on. */
  readonly values: readonly unknown[];
}

const PLAIN = `(select tenant, stream_id, incarnation, version, type, time, data from event
  where lane = $1 and position > $2 and position <= $3)`;

/** The data of sealed events comes back as $4, in the order of their positions, which have no gaps. */
const OPENED = `(select e.tenant, e.stream_id, e.incarnation, e.version, e.type, e.time,
    coalesce(e.data, opened.data) as data
  from event e join unnest($4::jsonb[]) with ordinality as opened (data, nth) on e.position = $2::bigint + opened.nth
  where e.lane = $1 and e.position > $2 and e.position <= $3 and (e.data is not null or opened.data is not null))`;

type Known = Readonly<Record<string, readonly number[]>>;

/** SQL condition: the event's type and schema version are among these, which come from the code of the reader. */
const isKnown = (known: Known): string =>
  Object.entries(known)
    .map(([type, versions]) => `type = '${type}' and schema_version in (${versions.join()})`)
    .join(' or ') || 'false';

/** Reads lanes for those who apply events inside the database. */
export class Stretches {
  constructor(
    private readonly pool: Pool,
    private readonly codec: PayloadCodec,
  ) {}

  /**
   * The next events of a lane that the reader understands. Where they are plain, nothing leaves the database; of sealed
   * ones this process gets the sealed bytes, and gives back what they say.
   *
   * @param limit of plain events; there are fewer where some are sealed, and it ends before what cannot be read
   * @param schemaVersions event type → schema versions that the reader understands
   * @returns undefined when there are none, or when the first one is of another type or version, or cannot be opened
   * @throws what is no fault of a payload: DatabaseUnavailable, NoKeys, MasterKeyRefused
   */
  async next(
    lane: number,
    after: number,
    limit: number,
    schemaVersions: Known,
  ): Promise<Stretch | undefined> {
    const end = await this.plainEnd(lane, after, limit, schemaVersions);
    if (end > after) return { end, events: PLAIN, values: [lane, after, end] };
    const opened = await this.opened(lane, after, schemaVersions);
    if (opened.length === 0) return undefined;
    const last = after + opened.length;
    return { end: last, events: OPENED, values: [lane, after, last, jsonbArray(opened)] };
  }

  /** The position up to which the events are plain and known. */
  private async plainEnd(lane: number, after: number, limit: number, known: Known): Promise<number> {
    const [row] = await rowsOf<{ end: number | null }>(this.pool, {
      // In a sealed log the first look ends at the first event, however long the stretch could be.
      text: `select coalesce(
               (select position - 1 from event
                where lane = $1 and position > $2 and position <= $2::bigint + $3::bigint
                  and not (data is not null and (${isKnown(known)}))
                order by position limit 1),
               (select max(position) from event
                where lane = $1 and position > $2 and position <= $2::bigint + $3::bigint)) as end`,
      values: [lane, after, limit],
    });
    return row?.end ?? after;
  }

  /** The position up to which the events are known, and not too many to be held. */
  private async sealedEnd(lane: number, after: number, known: Known): Promise<number> {
    for (let limit = OPENED_EVENTS; ; limit >>= 1) {
      const [row] = await rowsOf<{ end: number | null; bytes: number | null }>(this.pool, {
        text: `select coalesce(min(position) filter (where not (${isKnown(known)})) - 1, max(position)) as end,
                      sum(octet_length(sealed)) as bytes
               from event where lane = $1 and position > $2 and position <= $2::bigint + $3::bigint`,
        values: [lane, after, limit],
      });
      // A sum for each event would cost more than another look at half of them where they are large.
      if (limit === 1 || (row?.bytes ?? 0) <= OPENED_BYTES) return row?.end ?? after;
    }
  }

  /** JSON text of the next events, null for one that is plain or was erased; up to the first that cannot be opened. */
  private async opened(lane: number, after: number, known: Known): Promise<(Buffer | null)[]> {
    const end = await this.sealedEnd(lane, after, known);
    if (end === after) return [];
    const payloads = await binaryRows(
      this.pool,
      `select tenant, stream_id, version, type, key_id::text, sealed from event
       where lane = ${lane} and position > ${after} and position <= ${end} order by position`,
      (fields) => ({
        tenant: fields.text(),
        streamId: fields.text(),
        version: fields.integer(),
        type: fields.text(),
        keyId: fields.textOrNull(),
        sealed: fields.bytesOrNull(),
      }),
    );
    const sealed = payloads.filter((payload): payload is SealedPayload => payload.sealed !== null);
    const results = (await this.codec.openText(sealed)).values();
    const opened: (Buffer | null)[] = [];
    for (const payload of payloads) {
      const result = payload.sealed ? results.next().value : undefined;
      if (result?.status === 'rejected' && !(result.reason instanceof KeyDestroyed)) break;
      opened.push(result?.status === 'fulfilled' ? result.value : null);
    }
    return opened;
  }
}
