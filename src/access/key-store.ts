import { createHash, randomBytes } from 'node:crypto';
import { type Pool } from 'pg';
import { available } from '../database/connection.js';
import { usualScopes } from './caller.js';
import { type ApiKey, type NewKey } from './keys.schemas.js';

/** Another key of the tenant has the name. */
export class NameTaken extends Error {
  override readonly name = 'NameTaken';
  readonly code = 'name-taken';
  constructor(tenant: string, name: string) {
    super(`tenant ${tenant} has a key named ${name}: revoke it first, or take another name`);
  }
}

/** Keys begin with it, so that scanners find those that were published by mistake. */
export const KEY_PREFIX = 'clq_';
const UNIQUE_VIOLATION = '23505';

export const sha256Of = (secret: string): Buffer => createHash('sha256').update(secret).digest();

const time = (column: string): string =>
  `to_char(${column} at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`;
const KEY = `id, tenant, name, scopes, ${time('created_at')} as "createdAt", created_by as "createdBy",
  ${time('expires_at')} as "expiresAt", ${time('revoked_at')} as "revokedAt"`;

/** The keys in the database. Each call throws DatabaseUnavailable when that cannot be reached. */
export class KeyStore {
  constructor(private readonly pool: Pool) {}

  /**
   * @returns the key, and the secret that its holder presents, which nobody can learn again
   * @param by who makes it
   * @throws NameTaken
   */
  async create(
    { tenant, name, scopes, expiresAt }: NewKey,
    by: string,
  ): Promise<ApiKey & { readonly key: string }> {
    const key = KEY_PREFIX + randomBytes(32).toString('base64url');
    const id = `key_${randomBytes(12).toString('hex')}`;
    try {
      const [created] = await this.query<ApiKey>(
        `insert into api_key (id, tenant, name, sha256, scopes, created_by, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7) returning ${KEY}`,
        [id, tenant, name, sha256Of(key), scopes ?? [...usualScopes(tenant)], by, expiresAt ?? null],
      );
      if (!created) throw new Error('the key was not returned');
      return { ...created, key };
    } catch (error) {
      throw (error as { code?: unknown }).code === UNIQUE_VIOLATION ? new NameTaken(tenant, name) : error;
    }
  }

  /** Keys in the order of their creation, those that were revoked or have run out as well. */
  async list({
    tenant,
    after,
    limit,
  }: {
    readonly tenant?: string | undefined;
    readonly after?: Pick<ApiKey, 'createdAt' | 'id'> | undefined;
    readonly limit: number;
  }): Promise<ApiKey[]> {
    return this.query<ApiKey>(
      `select ${KEY} from api_key
       where ($1::text is null or tenant = $1)
         and ($2::timestamptz is null
              or (date_trunc('milliseconds', created_at), id) > ($2, $3::text collate "C"))
       order by date_trunc('milliseconds', created_at), id limit $4`,
      [tenant ?? null, after?.createdAt ?? null, after?.id ?? null, limit],
    );
  }

  /** Revokes a key; one that is revoked stays as it is. @returns undefined when there is none */
  async revoke(id: string, by: string): Promise<ApiKey | undefined> {
    const [revoked] = await this.query<ApiKey>(
      `update api_key set revoked_at = coalesce(revoked_at, colloquy_now()), revoked_by = coalesce(revoked_by, $2)
       where id = $1 returning ${KEY}`,
      [id, by],
    );
    return revoked;
  }

  /** The keys of these hashes (SHA-256) that hold now, by the clock of the database; one place for each hash. */
  async valid(hashes: readonly Buffer[]): Promise<(ApiKey | undefined)[]> {
    const found = await this.query<ApiKey & { readonly sha256: Buffer }>(
      `select ${KEY}, sha256 from api_key
       where sha256 = any ($1) and revoked_at is null and (expires_at is null or expires_at > colloquy_now())`,
      [hashes],
    );
    return hashes.map((hash) => found.find(({ sha256 }) => sha256.equals(hash)));
  }

  private async query<Row>(text: string, values: unknown[]): Promise<Row[]> {
    return available(async () => (await this.pool.query(text, values)).rows as Row[]);
  }
}
