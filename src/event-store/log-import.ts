import { type Client } from 'pg';
import { jsonArray } from '../database/array-literal.js';
import { laneOf, type StreamId } from './lane.js';
import { type EncodedPayload, payloadAt, type PayloadCodec, STATE } from './payload-codec.js';

/** An event of another log, without the position that it had there. */
export interface ImportedEvent {
  readonly id: string;
  readonly type: string;
  readonly schemaVersion: number;
  readonly incarnation: number;
  readonly version: number;
  /** RFC 3339; null when the event is to be stamped with the database time at the commit. */
  readonly time: string | null;
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId: string | null;
  readonly data: unknown;
  /** The data was erased where the event comes from, and it is stored without any. */
  readonly erased?: true | undefined;
}

/** Events of one stream in the order of their versions. */
export interface ImportedPiece {
  readonly stream: StreamId;
  /** Whether these are the first events of the stream. */
  readonly begins: boolean;
  readonly events: readonly ImportedEvent[];
}

/** The end of a stream whose events were added. Times are RFC 3339. */
export interface ImportedStream extends StreamId {
  /** The number of its events. */
  readonly version: number;
  readonly incarnation: number;
  /** Time of the last event that has one. */
  readonly time: string;
  readonly createdAt: string;
  readonly lastActivityAt: string;
  /** Whether the stream ends with events without a time, and if so whether one of them counts as use of the stream. */
  readonly stamped: false | 'use' | 'no use';
  readonly state: unknown;
}

const NOTHING: EncodedPayload = { json: null, sealed: null, keyId: null };

// The table is temporary and goes away with the connection, so an import that is killed leaves nothing behind.
const TABLE = `
  create temporary table import_event (
    stream integer not null, version integer not null, incarnation integer not null, id uuid not null,
    type text not null, schema_version smallint not null, time timestamptz, actor text not null,
    correlation_id text not null, causation_id text, data jsonb, sealed bytea, key_id uuid
  )`;

/**
 * Imports whole streams into the log: pass their events to `add`, in any number of calls, then call `commit`. Without
 * the commit nothing of what was added remains, however the import ends.
 */
export class LogImport {
  private streams = 0;

  private constructor(
    private readonly client: Client,
    private readonly lanes: number,
    private readonly codec: PayloadCodec,
    private readonly onCommit: (lanes: Iterable<number>) => void,
  ) {}

  /** @param client a connection for this import alone; `close` ends it */
  static async begin(
    client: Client,
    lanes: number,
    codec: PayloadCodec,
    onCommit: (lanes: Iterable<number>) => void,
  ): Promise<LogImport> {
    await client.query(TABLE);
    return new LogImport(client, lanes, codec, onCommit);
  }

  /** The pieces of one stream must follow one another, with no piece of another stream in between. */
  async add(pieces: readonly ImportedPiece[]): Promise<void> {
    const encoded = await this.codec.encode(
      pieces.flatMap(({ stream, events }) =>
        events.filter(({ erased }) => !erased).map((event) => ({ ...stream, ...event, begins: true })),
      ),
    );
    let next = 0;
    const rows = pieces
      .flatMap(({ begins, events }) => {
        if (begins) this.streams += 1;
        const stream = this.streams;
        return events.map((event) => ({ ...event, stream }));
      })
      .map((row) => ({ ...row, payload: row.erased ? NOTHING : payloadAt(encoded, next++) }));
    const of = <T>(pick: (row: (typeof rows)[number]) => T): T[] => rows.map(pick);
    await this.client.query({
      name: 'import_add',
      text: `insert into import_event
             select r.stream, r.version, r.incarnation, r.id, r.type, r.schema_version, r.time, r.actor,
                    r.correlation_id, r.causation_id, nullif(r.data, 'null'), r.sealed, r.key_id
             from rows from (
               unnest($1::int[], $2::int[], $3::int[], $4::uuid[], $5::text[], $6::smallint[], $7::timestamptz[],
                      $8::text[], $9::text[], $10::text[], $11::bytea[], $12::uuid[]),
               jsonb_array_elements($13::jsonb)
             ) as r (stream, version, incarnation, id, type, schema_version, time, actor, correlation_id,
                     causation_id, sealed, key_id, data)`,
      values: [
        of((row) => row.stream),
        of((row) => row.version),
        of((row) => row.incarnation),
        of((row) => row.id),
        of((row) => row.type),
        of((row) => row.schemaVersion),
        of((row) => row.time),
        of((row) => row.actor),
        of((row) => row.correlationId),
        of((row) => row.causationId),
        of((row) => row.payload.sealed),
        of((row) => row.payload.keyId),
        jsonArray(of((row) => row.payload.json)),
      ],
    });
  }

  /**
   * Writes everything that was added in one commit, which is durable when the promise resolves.
   *
   * @param streams in the order in which they were added
   * @returns one entry per stream: true if it was imported, false if a stream with its id existed, which stays
   *   unchanged
   */
  async commit(streams: readonly ImportedStream[], stateVersion: number): Promise<boolean[]> {
    const lanesOf = streams.map((stream) => laneOf(stream, this.lanes));
    const lanes = [...new Set(lanesOf)].sort((a, b) => a - b);
    const states = await this.codec.encode(
      streams.map((stream) => ({ ...stream, begins: true, type: STATE, data: stream.state })),
    );
    const of = <T>(pick: (stream: ImportedStream) => T): T[] => streams.map(pick);
    const { rows } = await this.client.query<{ status: 'ok' | 'exists' }>({
      name: 'import_batch',
      text: 'select * from import_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)',
      values: [
        lanes,
        lanesOf.map((lane) => lanes.indexOf(lane) + 1),
        of((stream) => stream.tenant),
        of((stream) => stream.streamId),
        of((stream) => stream.version),
        of((stream) => stream.incarnation),
        of((stream) => stream.time),
        of((stream) => stream.createdAt),
        of((stream) => stream.lastActivityAt),
        of((stream) => stream.stamped !== false),
        of((stream) => stream.stamped === 'use'),
        jsonArray(states.map((state) => state.json)),
        stateVersion,
        states.map((state) => state.sealed),
        states.map((state) => state.keyId),
      ],
    });
    this.streams = 0;
    this.onCommit(lanes);
    return rows.map((row) => row.status === 'ok');
  }

  async close(): Promise<void> {
    // It is the import's own: one that is lost has closed itself.
    await this.client.end().catch(() => undefined);
  }
}
