import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';
import { type EventLog } from '../event-store/log.js';
import { NoteSigner, verifierKey } from './signed-note.js';

/** A key of the notary, without its private half. */
export interface NotaryKey {
  /** 8 hex digits, as signatures of it begin. */
  readonly id: string;
  readonly name: string;
  /** As verifiers of signed notes take it: `name+id+base64`. */
  readonly verifier: string;
  /** RFC 3339. */
  readonly createdAt: string;
  /** Null for the one that signs. */
  readonly retiredAt: string | null;
}

/** Nothing can be signed without a master key. */
export class NoNotaryKey extends Error {
  override readonly name = 'NoNotaryKey';

  constructor() {
    super(
      'nothing can be signed: there is no master key that the key of the notary could be kept under. Set ' +
        'COLLOQUY_MASTER_KEY; `plain,<key>` leaves conversations as they are stored now (docs/proof.md)',
    );
  }
}

/**
 * The keys that the notary signs with. The private half lies in the database like the keys of payloads, wrapped by the
 * master key: whoever has the database alone cannot sign. Without a master key there is none.
 */
export class NotaryKeys {
  private known: { readonly id: string; readonly signer: NoteSigner } | undefined;

  constructor(
    private readonly pool: Pool,
    private readonly log: EventLog,
  ) {}

  /**
   * The key that signs, which is made when there is none yet; undefined without a master key.
   * @throws DatabaseUnavailable, MasterKeyRefused
   */
  async signer(): Promise<NoteSigner | undefined> {
    const { secrets } = this.log;
    if (!secrets) return undefined;
    const row = (await this.inUse()) ?? (await this.make());
    if (this.known?.id !== row.id) {
      const seed = (await secrets.get([row.secret])).get(row.secret);
      if (!seed) throw new Error(`the private half of the notary's key ${row.id} is gone`);
      this.known = { id: row.id, signer: new NoteSigner(row.name, seed) };
    }
    return this.known.signer;
  }

  /** Lets another key sign from now on. The former one stays known. @throws NoNotaryKey */
  async rotate(): Promise<NotaryKey[]> {
    await this.signer();
    await this.make(true);
    return this.list();
  }

  /** All keys, the oldest first. */
  async list(): Promise<NotaryKey[]> {
    const rows = await rowsOf<Omit<NotaryKey, 'verifier'> & { publicKey: Buffer }>(this.pool, {
      text: `select id, name, public_key as "publicKey", created_at as "createdAt", retired_at as "retiredAt"
             from notary_key order by created_at, id`,
    });
    return rows.map(({ publicKey, ...key }) => ({ ...key, verifier: verifierKey(key.name, publicKey) }));
  }

  private async inUse(): Promise<KeyRow | undefined> {
    const [row] = await rowsOf<KeyRow>(this.pool, {
      name: 'notary_key_in_use',
      text: 'select id, name, secret from notary_key where retired_at is null',
    });
    return row;
  }

  /** Makes a key, unless another node has made one meanwhile. */
  private async make(replaces = false): Promise<KeyRow> {
    const { secrets } = this.log;
    if (!secrets) throw new NoNotaryKey();
    const { id: secret, key } = await secrets.create();
    const signer = new NoteSigner(`colloquy/${this.log.id}`, key);
    await rowsOf(this.pool, {
      text: `with retired as (
               update notary_key set retired_at = colloquy_now() where retired_at is null and $5 returning id
             ) insert into notary_key (id, name, public_key, secret)
               select $1, $2, $3, $4 from (select count(*) from retired) as r
               on conflict do nothing`,
      values: [signer.id, signer.name, signer.publicKey, secret, replaces],
    });
    const row = await this.inUse();
    if (!row) throw new Error('the notary has no key');
    return row;
  }
}

interface KeyRow {
  readonly id: string;
  readonly name: string;
  readonly secret: string;
}
