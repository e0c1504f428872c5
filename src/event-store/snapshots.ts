import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';
import { dataOf, type EventDecoder } from './event-decoder.js';
import { type StreamId } from './lane.js';
import { type LogGenerations } from './log-generations.js';
import { KeyDestroyed, KeyMissing, payloadAt, type PayloadCodec, STATE } from './payload-codec.js';

interface SnapshotRow {
  tenant: string;
  stream_id: string;
  version: number;
  state: unknown;
  sealed: Buffer | null;
  key_id: string | null;
}

/** Earlier states of streams, so that a state at an old version is folded from few events. */
export class Snapshots {
  constructor(
    private readonly pool: Pool,
    private readonly laneOf: (stream: StreamId) => number,
    private readonly codec: PayloadCodec,
    private readonly decoder: EventDecoder,
    private readonly generations: LogGenerations,
  ) {}

  /** The latest snapshot of a stream at or before a version; undefined when there is none that can be used. */
  async load(stream: StreamId, stateVersion: number, upTo: number): Promise<unknown> {
    const [row] = await rowsOf<SnapshotRow>(this.pool, {
      name: 'load_snapshot',
      text: `select tenant, stream_id, version, state, sealed, key_id from stream_snapshot
               where tenant = $1 and stream_id = $2 and state_version = $3 and version <= $4
               order by version desc limit 1`,
      values: [stream.tenant, stream.streamId, stateVersion, upTo],
    });
    try {
      return row && dataOf((await this.decoder.states([row]))[0]);
    } catch (error) {
      // It was stored while the log was set back, together with its key, or is being erased. The events are there.
      if (error instanceof KeyMissing || error instanceof KeyDestroyed) return undefined;
      throw error;
    }
  }

  /** Stores the state of a stream at a version, unless a snapshot of that version exists, or the version was erased. */
  async save(
    stream: StreamId,
    stateVersion: number,
    incarnation: number,
    state: { readonly version: number },
  ): Promise<void> {
    const { version } = state;
    const payload = { ...stream, version, type: STATE, incarnation, data: state };
    const { current } = this.generations;
    const { json, sealed, keyId } = payloadAt(await this.codec.encode([payload]), 0);
    // State and key are of a log that is no more.
    if (this.generations.current !== current) return;
    await rowsOf(this.pool, {
      name: 'save_snapshot',
      // What is sealed goes away with the key of its event, so the state at that event must have no other one: a key that
      // was given out after the event was erased would bring back what it held.
      text: `insert into stream_snapshot (tenant, stream_id, state_version, version, state, sealed, key_id)
             select $1, $2, $3, $4::int, $5::jsonb, $6::bytea, $7::uuid
             where exists (
               select from event e where e.lane = $8 and e.tenant = $1 and e.stream_id = $2 and e.version = $4::int
                 and (e.key_id is null or exists (
                   select from data_key k where k.id = e.key_id and k.id = $7::uuid and k.wrapped is not null))
             ) on conflict do nothing`,
      values: [
        ...[stream.tenant, stream.streamId, stateVersion, version, json, sealed, keyId],
        this.laneOf(stream),
      ],
    });
  }
}
