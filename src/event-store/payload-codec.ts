/** Stands for the type of a stream's state where a payload's type is named. */
export const STATE = '~state';

/** What the log stores of a payload: readable JSON, or sealed bytes and the key that opens them. */
export interface StoredPayload {
  readonly data: unknown;
  readonly sealed: Buffer | null;
  readonly keyId: string | null;
}

/** The same on its way into the log: JSON as text, made once and then weighed and sent. */
export interface EncodedPayload {
  readonly json: string | null;
  readonly sealed: Buffer | null;
  readonly keyId: string | null;
}

/**
 * The one door between payloads and the database, for event data and for stream states alike.
 * Erasure by key destruction will live behind it: whoever stores a payload elsewhere cannot erase it.
 */
export interface PayloadCodec {
  encode(type: string, data: unknown): EncodedPayload;
  decode(type: string, stored: StoredPayload): unknown;
}

/** Stores payloads as they are. */
export const plainCodec: PayloadCodec = {
  encode: (_type, data) => ({ json: data === null ? null : JSON.stringify(data), sealed: null, keyId: null }),
  decode: (_type, { data }) => data,
};
