/** Stands for the type of a stream's state where a payload's type is named. */
export const STATE = '~state';

/**
 * What a payload is the payload of: an event of a stream, or with the type `STATE` the state that the stream had at
 * that version. No two payloads of the log have the same identity, so that sealed bytes which were moved to another
 * place can be told by it.
 */
export interface PayloadIdentity {
  readonly tenant: string;
  readonly streamId: string;
  /** Of the event. An append knows it beforehand: it succeeds at this version or not at all. */
  readonly version: number;
  readonly type: string;
}

export interface Payload extends PayloadIdentity {
  /** The incarnation of the stream that it belongs to. */
  readonly incarnation: number;
  readonly data: unknown;
}

/** A payload on its way into the log: JSON as text, made once and then weighed and sent, or sealed bytes. */
export interface EncodedPayload {
  readonly json: string | null;
  readonly sealed: Buffer | null;
  /** UUID of the key that opens the sealed bytes. */
  readonly keyId: string | null;
}

export interface SealedPayload extends PayloadIdentity {
  readonly sealed: Buffer;
  readonly keyId: string | null;
}

/**
 * The one door between payloads and the database, for event data and for stream states alike. Erasure by destruction of
 * keys depends on it: whoever stores a payload elsewhere cannot erase it.
 *
 * What the log holds as plain JSON is read without the codec, so that one log may hold both kinds.
 */
export interface PayloadCodec {
  /** @returns one for each payload, in their order */
  encode(payloads: readonly Payload[]): readonly EncodedPayload[] | Promise<readonly EncodedPayload[]>;
  /** @returns for each payload, in their order, its data or why it cannot be opened */
  open(payloads: readonly SealedPayload[]): Promise<readonly PromiseSettledResult<unknown>[]>;
}

/** Stores payloads as they are. */
export const plainCodec: PayloadCodec = {
  encode: (payloads) =>
    payloads.map(({ data }) => ({
      json: data === null ? null : JSON.stringify(data),
      sealed: null,
      keyId: null,
    })),
  open: (payloads) =>
    Promise.allSettled(
      payloads.map(({ tenant, streamId, version }) =>
        Promise.reject(
          new Error(
            `the payload of ${tenant}/${streamId} at version ${version} is sealed, and this process has no keys`,
          ),
        ),
      ),
    ),
};

/** @throws when the codec gave back fewer payloads than it was given */
export function payloadAt(encoded: readonly EncodedPayload[], index: number): EncodedPayload {
  const payload = encoded[index];
  if (!payload) throw new Error('the codec encoded fewer payloads than it was given');
  return payload;
}
