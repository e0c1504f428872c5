import { envelope, type EventRow } from './event-rows.js';
import { type PayloadCodec, type PayloadIdentity, STATE } from './payload-codec.js';
import { type LaneEvent, type RecordedEvent, type StoredEvent } from './recorded-event.js';

/** Lifts stored data to the current schema version of its type; throws for a type or version that it does not know. */
export type Upcast = (
  type: string,
  schemaVersion: number,
  data: Record<string, unknown>,
) => Record<string, unknown>;

/** The columns of a stream's state as it was at `version`. */
interface StateColumns {
  readonly tenant: string;
  readonly stream_id: string;
  readonly version: number;
  readonly state: unknown;
  readonly sealed: Buffer | null;
  readonly key_id: string | null;
}

/** The same of any payload; `data` is null where it is sealed. */
interface PayloadRow {
  readonly tenant: string;
  readonly stream_id: string;
  readonly version: number;
  readonly type: string;
  readonly data: unknown;
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
   * @throws what `upcast` throws, unless that is `unknownAsStored`; why a payload cannot be opened
   */
  async events(rows: readonly EventRow[], unknownAsStored = false): Promise<RecordedEvent[]> {
    const payloads = await this.opened(rows);
    return rows.map((row, index) => ({
      ...envelope(row),
      data: this.lifted(row, dataOf(payloads[index]), unknownAsStored),
    }));
  }

  /** An event that cannot be read is marked and not thrown: it must not hold up the other events of its lane. */
  async laneEvents(rows: readonly EventRow[]): Promise<LaneEvent[]> {
    const payloads = await this.opened(rows);
    return rows.map((row, index) => {
      try {
        return { ...envelope(row), data: this.lifted(row, dataOf(payloads[index]), false) };
      } catch (error) {
        return { ...envelope(row), data: undefined, unreadable: error as Error };
      }
    });
  }

  /** @param rows with their data as text of JSON */
  async storedEvents(rows: readonly (EventRow & { readonly data: string | null })[]): Promise<StoredEvent[]> {
    const payloads = await this.opened(rows);
    return rows.map((row, index) => ({
      ...envelope(row),
      json: row.sealed ? JSON.stringify(dataOf(payloads[index])) : (row.data ?? 'null'),
    }));
  }

  /** @returns the states in the order of their rows, each with its data or why it cannot be opened */
  states(rows: readonly StateColumns[]): Promise<readonly Opened[]> {
    return this.opened(rows.map((row) => ({ ...row, type: STATE, data: row.state })));
  }

  /** Plain rows, which are all of them without a sealing codec, cost nothing here. */
  private async opened(rows: readonly PayloadRow[]): Promise<readonly Opened[]> {
    const sealed = rows.flatMap(({ sealed, key_id: keyId, ...row }) =>
      sealed ? [{ ...identityOf(row), sealed, keyId }] : [],
    );
    if (sealed.length === 0) return rows;
    const results = await this.codec.open(sealed);
    let next = 0;
    return rows.map((row) => {
      if (!row.sealed) return row;
      const result = results[next];
      next += 1;
      if (!result) throw new Error('the codec opened fewer payloads than it was given');
      return result.status === 'fulfilled' ? { data: result.value } : { reason: result.reason as unknown };
    });
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

/** A payload that was opened, or why it was not. */
export type Opened = { readonly data: unknown } | { readonly reason: unknown };

/** @throws why the payload cannot be opened */
export function dataOf(payload: Opened | undefined): unknown {
  if (!payload) throw new Error('no payload');
  if ('reason' in payload) {
    throw payload.reason instanceof Error ? payload.reason : new Error(String(payload.reason));
  }
  return payload.data;
}

const identityOf = (row: Omit<PayloadRow, 'sealed' | 'key_id'>): PayloadIdentity => ({
  tenant: row.tenant,
  streamId: row.stream_id,
  version: row.version,
  type: row.type,
});
