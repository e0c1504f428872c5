/** An event as the log holds it: envelope and data. Times are RFC 3339. */
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
  /** Set when the data was erased: then it is null, whatever its type says. */
  readonly erased?: true;
}

/** Data that was left sealed, and the id (UUID) of the key that opens it. */
export interface SealedData {
  readonly keyId: string;
  readonly bytes: Buffer;
}

/** An event as it is stored: its data is JSON text in the schema version in which it was written. */
export type StoredEvent = Omit<RecordedEvent, 'data'> & {
  readonly json: string;
  /** Set where the reader wanted sealed data as it is: then the JSON text is `null`. */
  readonly sealed?: SealedData;
  /** Whether it came from another log, with its tenant. */
  readonly isCopy: boolean;
};

/** An event at a position of a lane, as those who follow lanes get it. */
export type LaneEvent = RecordedEvent & {
  /** Set when this code cannot read the event, which then has no data. */
  readonly unreadable?: Error;
  /** Set on the last event of a lane in a page when the lane may have more. */
  readonly hasMore?: true;
};
