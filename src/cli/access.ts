import 'reflect-metadata';
import { createPrivateKey, createPublicKey, generateKeyPairSync } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { SignJWT } from 'jose';
import { KeyStore } from '../access/key-store.js';
import { type ApiKey, NewKey } from '../access/keys.schemas.js';
import { grant } from '../database/grant.js';
import { migrate } from '../database/migrate.js';
import { migrations, rights } from '../migrations.js';
import { cellsOfSettings, withDatabase, withPool } from './database.js';

/** Brings the schema of the database of a cell up to date, or of all of them. */
export async function migrateDatabase(cell?: string): Promise<void> {
  for (const one of cell === undefined ? cellsOfSettings() : [cell])
    await withDatabase({ create: true, cell: one }, ({ url }) => migrate(url, migrations));
}

/** Gives a role what the service needs, in a cell or in all of them. */
export async function grantTo(role: string, cell?: string): Promise<void> {
  for (const one of cell === undefined ? cellsOfSettings() : [cell])
    await withDatabase({ create: false, cell: one }, async ({ url }) => {
      await migrate(url, migrations);
      await grant(url, role, rights);
    });
}

/** @throws Error that says what is wrong with what was asked for */
export async function createKey(
  asked: Readonly<Record<string, unknown>>,
): Promise<ApiKey & { readonly key: string }> {
  const parsed = NewKey.safeParse(asked);
  if (!parsed.success) {
    const faults = parsed.error.issues.map(({ path, message }) => `${path[0]?.toString() ?? ''} ${message}`);
    throw new Error(faults.join('\n'));
  }
  return withKeys((store) => store.create(parsed.data, me()));
}

/** All keys, those that were revoked or have run out as well. */
export const listKeys = (tenant: string | undefined): Promise<ApiKey[]> =>
  withKeys(async (store) => {
    const all: ApiKey[] = [];
    for (;;) {
      const page = await store.list({ tenant, after: all.at(-1), limit: 1_000 });
      all.push(...page);
      if (page.length < 1_000) return all;
    }
  });

/** @throws Error when there is no such key */
export const revokeKey = (id: string): Promise<ApiKey> =>
  withKeys(async (store) => {
    const revoked = await store.revoke(id, me());
    if (!revoked) throw new Error(`there is no key ${id}: colloquy keys list shows their ids`);
    return revoked;
  });

/** Who is recorded as the maker of a key. */
const me = (): string => `cli:${userInfo().username}`;

const withKeys = <T>(work: (store: KeyStore) => Promise<T>): Promise<T> =>
  withPool({ create: true }, (pool) => work(new KeyStore(pool)));

export interface TokenOptions {
  /** File of the private key, in PEM. It is made if there is none. */
  readonly signingKey: string;
  readonly issuer: string;
  readonly audience: string;
  readonly tenant: string;
  readonly subject: string;
  readonly scope: string;
  /** Seconds. */
  readonly expiresIn: number;
}

/** A token for trying out, signed by a key of one's own, and the settings by which the service takes it. */
export async function makeToken(options: TokenOptions): Promise<{ token: string; settings: string }> {
  const { signingKey, issuer, audience, tenant, subject, scope, expiresIn } = options;
  const key = createPrivateKey(await readOrMake(signingKey));
  const algorithms: Readonly<Record<string, string>> = { ed25519: 'EdDSA', rsa: 'RS256', ec: 'ES256' };
  const algorithm = algorithms[key.asymmetricKeyType ?? ''];
  if (algorithm === undefined)
    throw new Error(`${signingKey} is a key of the type ${key.asymmetricKeyType}: use ed25519, rsa or ec`);
  const token = await new SignJWT({ tenant, scope })
    .setProtectedHeader({ alg: algorithm })
    .setIssuer(issuer)
    .setAudience(audience)
    .setSubject(subject)
    .setIssuedAt()
    .setExpirationTime(`${expiresIn}s`)
    .sign(key);
  const publicKey = createPublicKey(key).export({ type: 'spki', format: 'pem' }) as string;
  const lines = publicKey.trim().split('\n');
  const settings = [
    'auth:',
    '  jwt:',
    `    issuer: ${JSON.stringify(issuer)}`,
    `    audience: ${JSON.stringify(audience)}`,
    '    publicKey: |',
    ...lines.map((line) => `      ${line}`),
  ].join('\n');
  return { token, settings };
}

async function readOrMake(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  const { privateKey } = generateKeyPairSync('ed25519');
  const pem = privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;
  // Whoever reads it can call as anybody.
  await writeFile(file, pem, { mode: 0o600, flag: 'wx' });
  return pem;
}
