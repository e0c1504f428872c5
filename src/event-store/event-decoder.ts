import { envelope, type EventRow } from './event-rows.js';
import { type PayloadCodec, STATE, type StoredPayload } from './payload-codec.js';
import { type LaneEvent, type RecordedEvent, type StoredEvent } from './recorded-event.js';

/** Lifts stored data to the current schema version of its type; throws for a type or version that it does not know. */
export type Upcast = (
  type: string,
  schemaVersion: number,
  data: Record<string, unknown>,
) => Record<string, unknown>;

/** The columns of a payload, of an event or of a state. */
interface PayloadRow {
  readonly sealed: Buffer | null;
  readonly key_id: string | null;
}

/** Makes events and states of rows: opens their payloads, and lifts what an older version of the service wrote. */
export class EventDecoder {
  constructor(
    private readonly codec: PayloadCodec,
    private readonly upcast: Upcast | undefined,
  ) {}

  /**
   * @param unknownAsStored data of a type or version that this code does not know comes as it is stored
   * @throws what `upcast` throws, unless that is `unknownAsStored`
   */
  event(row: EventRow, unknownAsStored = false): RecordedEvent {
    const stored = this.codec.decode(row.type, payloadOf(row, row.data));
    return { ...envelope(row), data: this.lifted(row, stored, unknownAsStored) };
  }

  /** An event that cannot be read is marked and not thrown: it must not hold up the other events of its lane. */
  laneEvent(row: EventRow): LaneEvent {
    try {
      return this.event(row);
    } catch (error) {
      return { ...envelope(row), data: undefined, unreadable: error as Error };
    }
  }

  /** @param row with its data as text of JSON */
  storedEvent(row: EventRow & { readonly data: string | null }): StoredEvent {
    const json = row.sealed
      ? JSON.stringify(this.codec.decode(row.type, payloadOf(row, null)))
      : (row.data ?? 'null');
    return { ...envelope(row), json };
  }

  state(row: PayloadRow & { readonly state: unknown }): unknown {
    return this.codec.decode(STATE, payloadOf(row, row.state));
  }

  private lifted(row: EventRow, stored: unknown, unknownAsStored: boolean): unknown {
    if (!this.upcast) return stored;
    try {
      return this.upcast(row.type, row.schema_version, stored as Record<string, unknown>);
    } catch (error) {
      // A newer version of the service wrote it, which is being rolled out.
      if (unknownAsStored) return stored;
      throw error;
    }
  }
}

const payloadOf = (row: PayloadRow, data: unknown): StoredPayload => ({
  data,
  sealed: row.sealed,
  keyId: row.key_id,
});
