/** Takes the place of the event type where a payload is a stream's state. */
export const STATE = '~state';

/**
 * Identifies a payload: an event of a stream, or, with the type `STATE`, the state of the stream at that version. No
 * two payloads of the log have the same identity, so a codec can detect sealed bytes that were moved elsewhere.
 */
export interface PayloadIdentity {
  readonly tenant: string;
  readonly streamId: string;
  /** Version of the event. An append knows it beforehand, because it succeeds at this version or not at all. */
  readonly version: number;
  readonly type: string;
}

export interface Payload extends PayloadIdentity {
  /** The incarnation of the stream that the payload belongs to. */
  readonly incarnation: number;
  readonly data: unknown;
}

/**
 * A payload on its way into the log: JSON text, serialised once so that it can be measured and sent, or sealed bytes.
 */
export interface EncodedPayload {
  readonly json: string | null;
  readonly sealed: Buffer | null;
  /** UUID of the key that the sealed bytes are opened with. */
  readonly keyId: string | null;
}

export interface SealedPayload extends PayloadIdentity {
  readonly sealed: Buffer;
  readonly keyId: string | null;
}

/**
 * Every payload, whether event data or stream state, passes through the codec on its way to and from the database.
 * Erasure by destruction of keys depends on it: payloads that are stored elsewhere cannot be erased.
 *
 * Payloads that the log holds as plain JSON are read without the codec, so one log may hold both kinds.
 */
export interface PayloadCodec {
  /** @returns one encoded payload per payload, in order */
  encode(payloads: readonly Payload[]): readonly EncodedPayload[] | Promise<readonly EncodedPayload[]>;
  /** @returns one entry per payload, in order: its data, or the reason why it cannot be opened */
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

/** @throws when the codec returned fewer payloads than it was given */
export function payloadAt(encoded: readonly EncodedPayload[], index: number): EncodedPayload {
  const payload = encoded[index];
  if (!payload) throw new Error('the codec encoded fewer payloads than it was given');
  return payload;
}
