/** An event as the log holds it: the envelope of the design, times as RFC 3339. */
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
}

/** An event as it is stored: its data as JSON, in the schema version that it was written in. */
export type StoredEvent = Omit<RecordedEvent, 'data'> & { readonly json: string };

/** What a lane holds at a position: an event, or with `unreadable` one that this code cannot read, without its data. */
export type LaneEvent = RecordedEvent & { readonly unreadable?: Error };
