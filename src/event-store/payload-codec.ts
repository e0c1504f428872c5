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
  /** Whether the log has nothing of the incarnation yet; left out where that is not known. */
  readonly begins?: boolean | undefined;
  /** The incarnation whose key seals it, as of a version; default: the one that the payload belongs to. */
  readonly keyOf?:
    | {
        readonly tenant: string;
        readonly streamId: string;
        readonly incarnation: number;
        readonly version: number;
      }
    | undefined;
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
  /** Of the stream that the payload belongs to, if whoever reads it is likely to append to that stream. */
  readonly incarnation?: number | undefined;
  readonly sealed: Buffer;
  readonly keyId: string | null;
}

/** The key of a payload was destroyed: nobody can read it any more. */
export class KeyDestroyed extends Error {
  override readonly name = 'KeyDestroyed';
  readonly code = 'key-destroyed';

  constructor(
    readonly payload: PayloadIdentity,
    readonly keyId: string,
  ) {
    super(`${nameOf(payload)} cannot be read any more: its key ${keyId} was destroyed`);
  }
}

/** The database has no key of that id. */
export class KeyMissing extends Error {
  override readonly name = 'KeyMissing';
  readonly code = 'key-missing';

  constructor(
    readonly payload: PayloadIdentity,
    readonly keyId: string | null,
  ) {
    super(`${nameOf(payload)} cannot be read: the database has no key ${keyId ?? 'for it'}`);
  }
}

/** What is sealed was changed, or belongs to another event. */
export class NotAuthentic extends Error {
  override readonly name = 'NotAuthentic';
}

/**
 * A later version of the service sealed it, in a form that this one does not know. Whoever follows the log stops there, as
 * without keys: nodes of that version can read it.
 */
export class UnknownForm extends Error {
  override readonly name = 'UnknownForm';
  readonly code = 'upgrade-in-progress';

  constructor(payload: PayloadIdentity) {
    super(
      `${nameOf(payload)} was sealed by a newer version. Nodes of that version can answer; upgrade this one as well.`,
    );
  }
}

/**
 * This process has no keys at all. It is no fault of the payload, so it is not the error of one payload: whoever follows
 * the log stops there, and goes on when the process was started with the right settings.
 */
export class NoKeys extends Error {
  override readonly name = 'NoKeys';

  constructor(payload: PayloadIdentity) {
    super(`${nameOf(payload)} is sealed, and this process has no keys`);
  }
}

/** Names a payload without telling anything of it. */
export const nameOf = ({ tenant, streamId, version }: PayloadIdentity): string =>
  `the payload of ${tenant}/${streamId} at version ${version}`;

/**
 * Every payload, whether event data or stream state, passes through the codec on its way to and from the database.
 * Erasure by destruction of keys depends on it: payloads that are stored elsewhere cannot be erased.
 *
 * Payloads that the log holds as plain JSON are read without the codec, so one log may hold both kinds.
 */
export interface PayloadCodec {
  /** @returns one encoded payload per payload, in order */
  encode(payloads: readonly Payload[]): readonly EncodedPayload[] | Promise<readonly EncodedPayload[]>;
  /**
   * @returns one entry per payload, in order: its data as JSON text in UTF-8, or the reason why it cannot be opened
   * @throws what is no fault of a payload: DatabaseUnavailable, NoKeys, MasterKeyRefused, UnknownForm
   */
  openText(payloads: readonly SealedPayload[]): Promise<readonly PromiseSettledResult<Buffer>[]>;
  /**
   * What the payloads commit to (`commitment.ts`): salt and data, as text; null for one that was sealed without it.
   * @throws as `openText`
   */
  committed(payloads: readonly SealedPayload[]): Promise<readonly PromiseSettledResult<string | null>[]>;
}

function refused([payload]: readonly SealedPayload[]): Promise<[]> {
  return payload ? Promise.reject(new NoKeys(payload)) : Promise.resolve([]);
}

/** Stores payloads as they are. */
export const plainCodec: PayloadCodec = {
  encode: (payloads) =>
    payloads.map(({ data }) => ({
      json: data === null ? null : JSON.stringify(data),
      sealed: null,
      keyId: null,
    })),
  openText: refused,
  committed: refused,
};

/** @throws when the codec returned fewer payloads than it was given */
export function payloadAt(encoded: readonly EncodedPayload[], index: number): EncodedPayload {
  const payload = encoded[index];
  if (!payload) throw new Error('the codec encoded fewer payloads than it was given');
  return payload;
}
