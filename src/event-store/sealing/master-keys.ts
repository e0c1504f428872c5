import { createCipheriv, createDecipheriv, createHash, createHmac } from 'node:crypto';

/** In place of the first master key: new payloads stay plain, and those that are sealed are opened. */
export const PLAIN = 'plain';

const BYTES = 32;
const FORMAT = 1;
const TAG = 16;
/** A wrapping key encrypts nothing but the one key that it was derived for, so that no two nonces are needed. */
const NONCE = Buffer.alloc(12);

/** A data key as the database holds it. */
export interface WrappedKey {
  readonly id: string;
  /** Id of the master key that wraps it. */
  readonly master: string;
  readonly wrapped: Buffer;
}

/** Payloads are sealed under a master key that this process does not have, or that is not the one it is said to be. */
export class MasterKeyRefused extends Error {
  override readonly name = 'MasterKeyRefused';
}

/**
 * The keys that wrap the keys of payloads. They come from the settings and are in no database: whoever has a copy of the
 * database alone cannot read what is sealed. The first one wraps, all of them unwrap, so that one can be exchanged for
 * another while nodes with either setting run.
 */
export class MasterKeys {
  private readonly keys: ReadonlyMap<string, Buffer>;
  /** Id of the one that wraps; undefined when there is none at all. */
  readonly first: string | undefined;
  /** Whether new payloads are to be sealed. Other secrets are wrapped also where they are not. */
  readonly seals: boolean;

  /** @param texts each of them base64 of 32 bytes; the first may be `plain` */
  constructor(texts: readonly string[]) {
    const keys = texts.filter((text) => text !== PLAIN).map((text) => Buffer.from(text, 'base64'));
    if (keys.some((key) => key.length !== BYTES))
      throw new MasterKeyRefused(`a master key must be base64 of ${BYTES} bytes`);
    this.keys = new Map(keys.map((key) => [idOf(key), key]));
    this.first = this.ids[0];
    this.seals = this.first !== undefined && texts[0] !== PLAIN;
  }

  get ids(): string[] {
    return [...this.keys.keys()];
  }

  has(id: string): boolean {
    return this.keys.has(id);
  }

  /** @throws MasterKeyRefused when there is none that wraps */
  wrap(id: string, key: Buffer): WrappedKey {
    const master = this.first;
    if (master === undefined) throw new MasterKeyRefused('there is no master key that wraps');
    const cipher = createCipheriv('aes-256-gcm', this.wrappingKey(master, id), NONCE);
    const text = Buffer.concat([cipher.update(key), cipher.final()]);
    return { id, master, wrapped: Buffer.concat([Buffer.of(FORMAT), cipher.getAuthTag(), text]) };
  }

  /** @throws MasterKeyRefused when the master key is not known, or the row was changed */
  unwrap({ id, master, wrapped }: WrappedKey): Buffer {
    if (wrapped[0] !== FORMAT)
      throw new MasterKeyRefused(`the data key ${id} has a form that this version does not know`);
    try {
      const cipher = createDecipheriv('aes-256-gcm', this.wrappingKey(master, id), NONCE);
      cipher.setAuthTag(wrapped.subarray(1, 1 + TAG));
      return Buffer.concat([cipher.update(wrapped.subarray(1 + TAG)), cipher.final()]);
    } catch (error) {
      if (error instanceof MasterKeyRefused) throw error;
      throw new MasterKeyRefused(`the data key ${id} was changed: the master key ${master} does not open it`);
    }
  }

  /**
   * A key of its own for each data key, derived from the master key: none opens as another one, and random nonces of
   * AES-GCM under one key would meet after some thousand million, when a large installation has as many sessions.
   */
  private wrappingKey(master: string, id: string): Buffer {
    const key = this.keys.get(master);
    if (!key)
      throw new MasterKeyRefused(
        `the data key ${id} is wrapped by the master key ${master}, which this process does not have`,
      );
    return createHmac('sha256', key).update(`colloquy data key ${id}`).digest();
  }
}

/** Tells a master key from others without telling it: 16 hex digits. */
const idOf = (key: Buffer): string =>
  createHash('sha256').update('colloquy master key').update(key).digest('hex').slice(0, 16);
