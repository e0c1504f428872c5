import { createHash, createPublicKey } from 'node:crypto';
import { BlockList, isIP } from 'node:net';
import { resolve } from 'node:path';
import { ConfigError } from './config/config-error.js';
import { type Settings, settings } from './config/schema.js';
import { gatherSettings, type Source } from './config/sources.js';

export { ConfigError };

type DeepReadonly<T> = T extends object ? { readonly [K in keyof T]: DeepReadonly<T[K]> } : T;

/** An API key as the service keeps it: the key itself is gone, only its hash stays. */
export interface ApiKeyConfig {
  readonly name: string;
  /** A tenant id, or `*` for an operator. */
  readonly tenant: string;
  /** 64 lower-case hex digits. */
  readonly sha256: string;
}

/** Which tokens (JWT) are taken. */
export interface TokenSettings {
  readonly issuer: string;
  readonly audience: readonly string[];
  /** Where the issuer publishes its keys, or else the one key: SPKI as PEM. */
  readonly keys: { readonly url: string } | { readonly pem: string };
  /** The tenant of all tokens; without it the claim says it. */
  readonly tenant?: string | undefined;
  readonly claims: { readonly tenant: string; readonly scopes: string; readonly owner: string };
}

/** Where the database is. */
export interface DatabaseConfig {
  /** Leads straight to the server. */
  readonly url: string;
  /** Leads there through a pooler in transaction mode. */
  readonly pooledUrl?: string | undefined;
  /** Lead to its streaming replicas. */
  readonly replicas: readonly string[];
}

/** The cell that `storage.database` itself names. It has the directory of tenants, and knows all callers. */
export const FIRST_CELL = 'default';

/** The database of another cell. */
export interface CellConfig extends DatabaseConfig {
  readonly name: string;
  /** Its part of the tenants that are new; 0: none. */
  readonly weight: number;
}

/** The settings in force: complete, deeply frozen. Times are milliseconds, sizes bytes. */
export type Config = DeepReadonly<{
  llm: Settings['llm'] & {
    provider: 'openai' | 'echo';
    model: string;
    systemMessages: 'in-place' | 'first';
  };
  sessions: Settings['sessions'];
  /** `dataDir` is absolute. Without `database` the embedded PostgreSQL is used, and without `redis` no Redis. */
  storage: Pick<Settings['storage'], 'cipher' | 'dataDir' | 'maxConnections'> & {
    /** That of the only cell, or of the first one. */
    database?: (DatabaseConfig & { weight?: number | undefined }) | undefined;
    /** The name of the cell whose database it is, unless it is the first. */
    cell?: string | undefined;
    /** The others. */
    cells?: CellConfig[] | undefined;
    redis?: { url: string } | undefined;
    /** Each base64 of 32 bytes, but for a first one that is `plain`; the first one seals, all of them open. */
    masterKeys?: string[] | undefined;
  };
  kafka: Settings['kafka'];
  auth: { mode: 'none' | 'api-key'; keys: ApiKeyConfig[]; jwt?: TokenSettings | undefined };
  server: Settings['server'];
  /** Has no prototype: a tenant may be called `constructor`. */
  tenants: Settings['tenants'];
  /** What the operator should hear at startup, one sentence each. */
  warnings: string[];
}>;

/** The token under which Nest gives the settings to whoever needs them: `@Inject(SETTINGS) settings: Config`. */
export const SETTINGS = Symbol('settings');

/**
 * Reads the settings: the defaults, over them `colloquy.yml` in `cwd` (or the file that `COLLOQUY_CONFIG`
 * names), over it the environment, over it `overrides`. A variable that is set to nothing counts as not set.
 *
 * @param source.overrides what a program sets in code, in the shape of the file; undefined members are skipped
 * @throws ConfigError naming every unknown key and bad value
 */
export function loadConfig(source: Source): Config {
  const { merged, nameOf } = gatherSettings(source);
  const problems: string[] = [];
  const parsed = settings.safeParse(merged);
  if (!parsed.success) {
    for (const issue of parsed.error.issues) {
      const paths =
        issue.code === 'unrecognized_keys' ? issue.keys.map((key) => [...issue.path, key]) : [issue.path];
      // What is wrong with a record's key is told inside the issue; its own message says only "invalid key".
      const message =
        issue.code === 'invalid_key' ? (issue.issues[0]?.message ?? issue.message) : issue.message;
      problems.push(...paths.map((path) => `${nameOf(path)} ${message}`));
    }
    throw new ConfigError(problems);
  }

  const { llm, sessions, storage, kafka, auth, server, tenants } = parsed.data;
  const warnings: string[] = [];

  const provider =
    llm.provider ?? (llm.apiKey !== undefined || llm.baseURL !== undefined ? 'openai' : 'echo');
  if (provider === 'openai' && llm.apiKey === undefined && llm.baseURL === undefined) {
    problems.push(
      `${nameOf(['llm', 'provider'])} openai needs llm.apiKey (or OPENAI_API_KEY), or llm.baseURL (or OPENAI_BASE_URL) of a server that asks for none; leave the provider out to use the built-in echo model`,
    );
  }

  const { database, cache } = storage;
  if (cache?.type === 'redis' && cache.url === undefined)
    problems.push(`${nameOf(['storage', 'cache', 'url'])} must be a redis:// or rediss:// URL`);
  if (cache !== undefined && cache.type !== 'redis')
    warnings.push(`storage.cache has no meaning with the type ${cache.type}: only redis has one.`);

  const cellNames = [FIRST_CELL, ...(database?.cells ?? []).map(({ name }) => name)];
  cellNames.forEach((name, index) => {
    if (cellNames.indexOf(name) < index)
      problems.push(
        `${nameOf(['storage', 'database', 'cells', index - 1])} has a name that is taken: ${name}`,
      );
  });

  if (auth.keys?.length === 0 && auth.mode !== 'none') {
    problems.push(
      `${nameOf(['auth', 'keys'])} must name at least one key, or be left out: with auth.mode api-key, keys of the database are taken without it`,
    );
  }
  const keys = (auth.keys ?? []).map(({ name, tenant, key, sha256 }) => ({
    name,
    tenant,
    sha256: key === undefined ? (sha256 ?? '').toLowerCase() : createHash('sha256').update(key).digest('hex'),
  }));
  const mode = auth.mode ?? (keys.length > 0 || auth.jwt ? 'api-key' : 'none');
  if (mode === 'none' && (keys.length > 0 || auth.jwt)) {
    problems.push(
      `${nameOf(['auth', 'mode'])} must be api-key when there are auth.keys or auth.jwt: none would ignore them`,
    );
  }
  if (auth.jwt?.publicKey !== undefined && !isPublicKey(auth.jwt.publicKey))
    problems.push(`${nameOf(['auth', 'jwt', 'publicKey'])} is no public key that can be read`);
  keys.forEach(({ sha256 }, index) => {
    const first = keys.findIndex((other) => other.sha256 === sha256);
    if (first < index) {
      problems.push(
        `${nameOf(['auth', 'keys', index])} has the same key as entry ${first + 1}: nobody could tell who calls`,
      );
    }
  });
  if (mode === 'none' && !isLoopback(server.host)) {
    problems.push(
      `${nameOf(['server', 'host'])} must be a loopback address (127.0.0.0/8, ::1 or localhost) while auth.mode is none: from elsewhere anyone could read and change every session. Set COLLOQUY_API_KEYS=name:tenant:key (or auth.keys), or HOST=127.0.0.1`,
    );
  }

  if (problems.length > 0) {
    throw new ConfigError(problems);
  }
  return deepFreeze({
    llm: {
      ...llm,
      provider,
      model: llm.model ?? (provider === 'openai' ? 'gpt-5-mini' : 'echo'),
      systemMessages: llm.systemMessages ?? (llm.baseURL === undefined ? 'in-place' : 'first'),
    },
    sessions,
    storage: {
      dataDir: resolve(source.cwd, storage.dataDir),
      cipher: storage.cipher,
      maxConnections: storage.maxConnections,
      ...(database && { database: databaseOf(database) }),
      ...(database &&
        database.cells.length > 0 && {
          database: { ...databaseOf(database), weight: database.weight },
          cells: database.cells.map(({ name, weight, ...cell }) => ({ ...databaseOf(cell), name, weight })),
        }),
      ...(storage.masterKey !== undefined && { masterKeys: storage.masterKey.split(/\s*,\s*/) }),
      ...(cache?.type === 'redis' && cache.url !== undefined && { redis: { url: cache.url } }),
    },
    kafka,
    auth: { mode, keys, jwt: auth.jwt && tokenSettings(auth.jwt) },
    server,
    tenants: Object.assign(Object.create(null) as Settings['tenants'], tenants),
    warnings,
  });
}

const databaseOf = ({
  url,
  directUrl,
  replicas,
}: {
  readonly url: string;
  readonly directUrl?: string | undefined;
  readonly replicas: string[];
}): DatabaseConfig => ({
  url: directUrl ?? url,
  ...(directUrl !== undefined && { pooledUrl: url }),
  replicas,
});

function isPublicKey(pem: string): boolean {
  try {
    return createPublicKey(pem).type === 'public';
  } catch {
    return false;
  }
}

function tokenSettings({
  issuer,
  audience,
  jwksUrl,
  publicKey = '',
  tenant,
  claims,
}: NonNullable<Settings['auth']['jwt']>): TokenSettings {
  return {
    issuer,
    audience: typeof audience === 'string' ? [audience] : audience,
    keys: jwksUrl === undefined ? { pem: publicKey } : { url: jwksUrl },
    tenant,
    claims,
  };
}

function isLoopback(host: string): boolean {
  const address = host.replace(/^\[(.*)\]$/, '$1');
  if (isIP(address) === 0) {
    return address.toLowerCase() === 'localhost';
  }
  const loopback = new BlockList();
  loopback.addSubnet('127.0.0.0', 8, 'ipv4');
  loopback.addAddress('::1', 'ipv6');
  return loopback.check(address, isIP(address) === 4 ? 'ipv4' : 'ipv6');
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) {
    Object.values(value).forEach(deepFreeze);
    Object.freeze(value);
  }
  return value;
}
