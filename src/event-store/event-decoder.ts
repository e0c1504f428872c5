import { envelope, type EventRow } from './event-rows.js';
import { KeyDestroyed, type PayloadCodec, type PayloadIdentity, STATE } from './payload-codec.js';
import { type LaneEvent, type RecordedEvent, type StoredEvent } from './recorded-event.js';
import { Erased } from './refusals.js';

/** Lifts stored data to the current schema version of its type. Throws for an unknown type or version. */
export type Upcast = (
  type: string,
  schemaVersion: number,
  data: Record<string, unknown>,
) => Record<string, unknown>;

/** The columns of a stream's state, as of `version`. */
interface StateColumns {
  readonly tenant: string;
  readonly stream_id: string;
  readonly version: number;
  readonly incarnation?: number;
  readonly state: unknown;
  readonly sealed: Buffer | null;
  readonly key_id: string | null;
}

/** The payload columns of an event or a state; `data` is null where the payload is sealed. */
interface PayloadRow {
  readonly tenant: string;
  readonly stream_id: string;
  readonly version: number;
  readonly type: string;
  readonly incarnation?: number;
  readonly data: unknown;
  readonly sealed: Buffer | null;
  readonly key_id: string | null;
}

/** What a reader takes besides events that this code can read. */
export interface Tolerance {
  /** Returns data of an unknown type or version as it is stored, instead of throwing. */
  readonly unknownAsStored?: boolean | undefined;
  /** Returns events whose data was erased, marked and without it, instead of throwing. */
  readonly erasedToo?: boolean | undefined;
}

/** Turns rows into events and states: opens their payloads and upcasts what an older version of the service wrote. */
export class EventDecoder {
  constructor(
    private readonly codec: PayloadCodec,
    private readonly upcast: Upcast | undefined,
  ) {}

  /**
   * @throws what `upcast` throws, or the reason why a payload cannot be opened; Erased
   */
  async events(
    rows: readonly EventRow[],
    { unknownAsStored = false, erasedToo = false }: Tolerance = {},
  ): Promise<RecordedEvent[]> {
    const payloads = await this.opened(rows, true);
    return rows.map((row, index) => {
      const payload = payloads[index];
      if (!isErased(payload))
        return { ...envelope(row), data: this.lifted(row, dataOf(payload), unknownAsStored) };
      if (!erasedToo) throw new Erased(row.version);
      return { ...envelope(row), ...ERASED };
    });
  }

  /** Marks events that cannot be read instead of throwing, because they must not hold up the rest of their lane. */
  async laneEvents(rows: readonly EventRow[]): Promise<LaneEvent[]> {
    const payloads = await this.opened(rows);
    return rows.map((row, index) => {
      const payload = payloads[index];
      if (isErased(payload)) return { ...envelope(row), ...ERASED };
      try {
        return { ...envelope(row), data: this.lifted(row, dataOf(payload), false) };
      } catch (error) {
        return { ...envelope(row), data: undefined, unreadable: error as Error };
      }
    });
  }

  /**
   * @param rows with `data` as JSON text
   * @param leaveSealed whether sealed data stays sealed, for which no keys are needed; nobody knows then what was erased
   */
  async storedEvents(
    rows: readonly (EventRow & { readonly data: string | null; readonly copied: boolean })[],
    leaveSealed: boolean,
  ): Promise<StoredEvent[]> {
    const payloads = leaveSealed ? rows : await this.opened(rows, false, (json) => json);
    return rows.map((row, index) => {
      const payload = payloads[index];
      const { copied: isCopy, sealed: bytes, key_id: keyId } = row;
      if (leaveSealed && bytes && keyId !== null)
        return { ...envelope(row), isCopy, json: 'null', sealed: { keyId, bytes } };
      if (isErased(payload)) return { ...envelope(row), isCopy, json: 'null', erased: true };
      const json = row.sealed ? (dataOf(payload) as string) : (row.data ?? 'null');
      return { ...envelope(row), isCopy, json };
    });
  }

  /** @returns one entry per row, in order: the state's data, or the reason why it cannot be opened */
  states(rows: readonly StateColumns[]): Promise<readonly Opened[]> {
    return this.opened(
      rows.map((row) => ({ ...row, type: STATE, data: row.state })),
      true,
    );
  }

  /**
   * Without a sealing codec all rows are plain and pass through at no cost.
   *
   * @param isOfStreams whether the rows are read for the sake of their streams, and not of a whole log
   * @param read makes data of what was sealed, which is JSON text
   */
  private async opened(
    rows: readonly PayloadRow[],
    isOfStreams = false,
    read: (json: string) => unknown = JSON.parse,
  ): Promise<readonly Opened[]> {
    const sealed = rows.flatMap((row) =>
      row.sealed
        ? {
            ...identityOf(row),
            incarnation: isOfStreams ? row.incarnation : undefined,
            sealed: row.sealed,
            keyId: row.key_id,
          }
        : [],
    );
    if (sealed.length === 0) return rows;
    const results = await this.codec.openText(sealed);
    let next = 0;
    return rows.map((row) => {
      if (!row.sealed) return row;
      const result = results[next];
      next += 1;
      if (!result) throw new Error('the codec opened fewer payloads than it was given');
      return result.status === 'fulfilled'
        ? { data: read(result.value.toString()) }
        : { reason: result.reason as unknown };
    });
  }

  private lifted(row: EventRow, stored: unknown, unknownAsStored: boolean): unknown {
    if (!this.upcast) return stored;
    try {
      return this.upcast(row.type, row.schema_version, stored as Record<string, unknown>);
    } catch (error) {
      // The event was written by a newer version of the service, for instance during a rolling update.
      if (unknownAsStored) return stored;
      throw error;
    }
  }
}

/** The data of a payload, or the reason why it could not be opened. */
export type Opened = { readonly data: unknown } | { readonly reason: unknown };

const ERASED = { data: null, erased: true } as const;

/**
 * Whether nobody can read the payload of an event any more: its key was destroyed, or it came without its data from a log
 * in which that had happened. No event is stored with nothing as its data.
 */
const isErased = (payload: Opened | undefined): boolean =>
  payload !== undefined &&
  ('reason' in payload ? payload.reason instanceof KeyDestroyed : payload.data === null);

/** @throws the reason why the payload could not be opened */
export function dataOf(payload: Opened | undefined): unknown {
  if (!payload) throw new Error('no payload');
  if ('reason' in payload) {
    throw payload.reason instanceof Error ? payload.reason : new Error(String(payload.reason));
  }
  return payload.data;
}

const identityOf = (row: PayloadRow): PayloadIdentity => ({
  tenant: row.tenant,
  streamId: row.stream_id,
  version: row.version,
  type: row.type,
});
