import { canonicalJson } from '../canonical-json.js';
import { COMMITMENT, commitmentTo, SALT, SALT_BYTES } from '../commitment.js';
import {
  nameOf,
  NotAuthentic,
  type Payload,
  type PayloadIdentity,
  type SealedPayload,
  UnknownForm,
} from '../payload-codec.js';
import { type Cipher, decrypt, encrypt, Randomness } from './ciphers.js';

interface Form {
  readonly cipher: Cipher;
  /** Whether it is that of an event: before its JSON is a salt, and at the end, for all to see, a commitment to both. */
  readonly hasCommitment: boolean;
}

/**
 * What the first byte of sealed payloads says. The commitment (`commitment.ts`) lies here and not in a column of its own
 * because it goes wherever the sealed bytes go: into copies of tenants, exports and Kafka.
 */
const FORMS: readonly (Form | undefined)[] = [
  undefined,
  { cipher: 'aes-256-gcm', hasCommitment: false },
  { cipher: 'aes-256-gcm', hasCommitment: true },
  { cipher: 'chacha20-poly1305', hasCommitment: false },
  { cipher: 'chacha20-poly1305', hasCommitment: true },
];

const formOf = (cipher: Cipher, hasCommitment: boolean): number =>
  FORMS.findIndex((form) => form?.cipher === cipher && form.hasCommitment === hasCommitment);

/** The identity of the payload is authenticated along, so that it opens as no other one. */
export function seal(payload: Payload, key: Buffer, cipher: Cipher): Buffer {
  const isEvent = !isInternal(payload);
  const text = isEvent
    ? salts.draw().toString('base64url') + canonicalJson(payload.data)
    : JSON.stringify(payload.data ?? null);
  const sealed = encrypt(cipher, text, key, identityOf(payload), isEvent ? COMMITMENT : 0);
  sealed[0] = formOf(cipher, isEvent);
  if (isEvent) sealed.write(commitmentTo(text), sealed.length - COMMITMENT, 'hex');
  return sealed;
}

/** The cipher of sealed bytes; undefined for a form that a later version has made. */
export const cipherOf = (sealed: Buffer): Cipher | undefined => FORMS[sealed[0] ?? 0]?.cipher;

/** The JSON text of what is sealed, in UTF-8. @throws NotAuthentic, UnknownForm */
export function unseal(payload: SealedPayload, key: Buffer): Buffer {
  const { text, hasCommitment } = opened(payload, key);
  return hasCommitment ? text.subarray(SALT) : text;
}

/** What the commitment is to: the salt and the JSON text; null where there is none. @throws NotAuthentic, UnknownForm */
export function committedIn(payload: SealedPayload, key: Buffer): string | null {
  const { text, hasCommitment } = opened(payload, key);
  return hasCommitment ? text.toString() : null;
}

/** What is sealed, in UTF-8. @throws NotAuthentic, UnknownForm */
function opened(payload: SealedPayload, key: Buffer): { text: Buffer; hasCommitment: boolean } {
  const { sealed } = payload;
  const form = FORMS[sealed[0] ?? 0];
  if (!form) throw new UnknownForm(payload);
  const { cipher, hasCommitment } = form;
  const end = sealed.length - (hasCommitment ? COMMITMENT : 0);
  const text = decrypt(cipher, sealed, end, key, identityOf(payload));
  if (!text)
    throw new NotAuthentic(`${nameOf(payload)} does not authenticate: it was changed, or is that of another`);
  return { text, hasCommitment };
}

/** SQL expression for the commitment at the end of sealed bytes, as hex digits; null where there is none. */
export const commitmentIn = (sealed: string): string =>
  `case when get_byte(${sealed}, 0) in (${FORMS.flatMap((form, byte) => (form?.hasCommitment ? byte : [])).join()})
        then encode(substring(${sealed} from octet_length(${sealed}) - ${COMMITMENT - 1}), 'hex') end`;

/** Whether it is not an event: states and pieces of replies are proven to nobody, and have types that events cannot have. */
const isInternal = ({ type }: PayloadIdentity): boolean => type.startsWith('~');

const identityOf = ({ tenant, streamId, version, type }: PayloadIdentity): string =>
  JSON.stringify([tenant, streamId, version, type]);

const salts = new Randomness(SALT_BYTES);
