import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { BlockList, isIP } from 'node:net';
import { resolve } from 'node:path';
import { parseDocument } from 'yaml';
import { z } from 'zod';

/** The shape of a tenant id, everywhere. */
const TENANT_ID = /^[a-z0-9][a-z0-9_-]{0,62}$/;

/**
 * What may be wrong with the settings, one line each. Never carries a value that was given: keys and
 * connection URLs hold secrets, and this message ends up in logs.
 */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';

  constructor(readonly problems: readonly string[]) {
    super(['The settings are not valid:', ...problems.map((problem) => `  - ${problem}`)].join('\n'));
  }
}

// One hundred years: with more, a session's expiry leaves the range of dates that PostgreSQL and JavaScript share.
const LONGEST_MS = 100 * 365 * 24 * 3600 * 1000;

function wholeNumber(min: number, max: number) {
  const error = `must be a whole number from ${min} to ${max}`;
  return z.number({ error }).refine((n) => Number.isInteger(n) && n >= min && n <= max, { error });
}

function text(allowed: RegExp, description: string) {
  return z.string({ error: description }).regex(allowed, { error: description });
}

function choice<const T extends readonly [string, ...string[]]>(...options: T) {
  return z.enum(options, { error: `must be one of: ${options.join(', ')}` });
}

function url(description: string, ...protocols: string[]) {
  return z.string({ error: description }).refine(
    (value) => {
      const parsed = URL.canParse(value) ? new URL(value) : undefined;
      return parsed !== undefined && protocols.includes(parsed.protocol);
    },
    { error: description },
  );
}

/** A mapping that refuses keys it does not know, and says which ones it does. */
function section<T extends z.core.$ZodLooseShape>(shape: T) {
  return z.strictObject(shape, {
    error: (issue) =>
      issue.code === 'unrecognized_keys'
        ? `is not a known key; known here: ${Object.keys(shape).join(', ')}`
        : `must be a mapping with the keys: ${Object.keys(shape).join(', ')}`,
  });
}

const maxSessions = wholeNumber(1, 1_000_000_000);
const sessionTTL = wholeNumber(1, LONGEST_MS);
const capPolicy = choice('reject', 'evict');

/** One API key. Give `key` itself or its SHA-256 as hex digits, not both. */
const apiKey = section({
  /** Becomes the actor of every event that the key's holder causes. */
  name: text(/^[\w.@-]{1,64}$/, 'must be 1 to 64 letters, digits or ._@-'),
  /** The one tenant that the key may reach, or `*` for an operator's key. */
  tenant: text(
    /^(\*|[a-z0-9][a-z0-9_-]{0,62})$/,
    'must be a tenant id (1 to 63 of a-z 0-9 _ -, beginning with a letter or digit) or * for an operator',
  ),
  // A key travels in the Authorization header, which cannot carry blanks, controls or non-ASCII text.
  key: text(/^[\x21-\x7e]+$/, 'must be printable ASCII without blanks').optional(),
  sha256: text(/^[0-9a-fA-F]{64}$/, 'must be 64 hex digits').optional(),
}).refine((entry) => (entry.key === undefined) !== (entry.sha256 === undefined), {
  error: 'must have exactly one of: key, sha256',
});

const settings = section({
  llm: section({
    /** Default: `openai` when an `apiKey` or a `baseURL` is there, else `echo`. */
    provider: choice('openai', 'echo').optional(),
    /** Default: `gpt-5-mini` of openai, `echo` of echo. */
    model: text(/^\S{1,200}$/, 'must be the name of a model: 1 to 200 characters without blanks').optional(),
    apiKey: text(/^[\x21-\x7e]+$/, 'must be printable ASCII without blanks').optional(),
    /** Any server that speaks the OpenAI API. Default: OpenAI itself. */
    baseURL: url('must be an http:// or https:// URL', 'http:', 'https:').optional(),
    /** Milliseconds without a sign of the provider until a model call is given up. Default 60 000. */
    timeoutMs: wholeNumber(1, 3_600_000).default(60_000),
    /** Tokens of a prompt: the oldest turns are left out of one that would be longer. Default: no limit. */
    maxInputTokens: wholeNumber(1, 100_000_000).optional(),
    /** Bytes of one answer. Default 1 048 576 (1 MiB). */
    maxOutputBytes: wholeNumber(1, 67_108_864).default(1_048_576),
    /** Model calls at the same time in one process; more wait their turn. Default 256. */
    maxConcurrency: wholeNumber(1, 100_000).default(256),
  }).prefault({}),
  sessions: section({
    /** Active sessions per tenant. Default 100. */
    maxSessions: maxSessions.default(100),
    /** Milliseconds without a write after which a session expires. Default 3 600 000 (one hour). */
    sessionTTL: sessionTTL.default(3_600_000),
    /** What happens to a create or resume at the cap. Default `reject`. */
    capPolicy: capPolicy.default('reject'),
    /** Milliseconds after which an expired session is deleted. Default: never. */
    deleteAfter: wholeNumber(1, LONGEST_MS).optional(),
  }).prefault({}),
  storage: section({
    /** Default: the embedded PostgreSQL, in `dataDir`. */
    database: section({
      type: choice('postgresql'),
      url: url('must be a postgres:// or postgresql:// URL', 'postgres:', 'postgresql:'),
    }).optional(),
    /** Accepted so that settings written for an in-process agent load; has no meaning here. */
    cache: section({ type: z.string().optional(), url: z.string().optional() }).optional(),
    /** Where the embedded PostgreSQL keeps its files; relative to the working directory. Default `.colloquy`. */
    dataDir: text(/^[^\0]+$/, 'must be the path of a folder').default('.colloquy'),
  }).prefault({}),
  kafka: section({
    /** `host:port` each. Default: none; events wait in the log until brokers are named. */
    brokers: z
      .array(text(/^[^\s,:/]+:\d{1,5}$|^\[[0-9a-fA-F:.]+\]:\d{1,5}$/, 'must be host:port'), {
        error: 'must be a list of host:port',
      })
      .default([]),
    /** Default `colloquy.session-events`. */
    topic: text(/^(?!\.{1,2}$)[\w.-]{1,249}$/, 'must be 1 to 249 letters, digits or ._-').default(
      'colloquy.session-events',
    ),
    /** Partitions of the topic, fixed when it is created. Default 16. */
    partitions: wholeNumber(1, 1_024).default(16),
    /** Copies of each partition, when the topic is created. Default: as the brokers are set. */
    replication: wholeNumber(1, 100).optional(),
    /** Milliseconds that the topic keeps events, when it is created. Default 604 800 000 (seven days). */
    retentionMs: wholeNumber(60_000, LONGEST_MS).default(604_800_000),
    /** Bytes of the largest message, when the topic is created. Default 8 388 608 (8 MiB). */
    maxMessageBytes: wholeNumber(65_536, 104_857_600).default(8_388_608),
    /** Default `gzip`. */
    compression: choice('gzip', 'none').default('gzip'),
    /** Default false: no TLS. A mapping holds PEM texts as in Node's `tls.connect`. */
    ssl: z
      .union(
        [
          z.boolean(),
          section({
            ca: z.string().optional(),
            cert: z.string().optional(),
            key: z.string().optional(),
            servername: z.string().optional(),
            rejectUnauthorized: z.boolean().optional(),
          }),
        ],
        { error: 'must be true, false, or a mapping with: ca, cert, key, servername, rejectUnauthorized' },
      )
      .default(false),
    sasl: section({
      mechanism: choice('plain', 'scram-sha-256', 'scram-sha-512'),
      username: text(/^.{1,1024}$/, 'must be a text'),
      password: text(/^.{1,1024}$/, 'must be a text'),
    }).optional(),
  }).prefault({}),
  auth: section({
    /** Default: `api-key` when there are keys, else `none`, which only a loopback host may have. */
    mode: choice('none', 'api-key').optional(),
    keys: z.array(apiKey, { error: 'must be a list of keys' }).optional(),
  }).prefault({}),
  server: section({
    /** Default 127.0.0.1. */
    host: text(/^[^\s/]{1,255}$/, 'must be a host name or an IP address').default('127.0.0.1'),
    /** 0 takes any free port. Default 3000. */
    port: wholeNumber(0, 65_535).default(3000),
    /** Bytes of a request body. Default 1 048 576 (1 MiB). */
    bodyLimit: wholeNumber(1, 1_073_741_824).default(1_048_576),
    /** What is written to the log: that level and all above it. Requests are written at `info`. Default `info`. */
    logLevel: choice('fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent').default('info'),
    /** Milliseconds that running requests get to end at shutdown. Default 10 000. */
    shutdownGraceMs: wholeNumber(0, 3_600_000).default(10_000),
  }).prefault({}),
  /** Settings of single tenants; they stand over `sessions`, and settings made through the API over them. */
  tenants: z
    .record(
      z.string().regex(TENANT_ID, {
        error: 'is not a tenant id: 1 to 63 of a-z 0-9 _ -, beginning with a letter or digit',
      }),
      section({
        maxSessions: maxSessions.optional(),
        sessionTTL: sessionTTL.optional(),
        capPolicy: capPolicy.optional(),
      }),
      { error: 'must be a mapping of tenant ids' },
    )
    .default({}),
});

type Settings = z.output<typeof settings>;
type DeepReadonly<T> = T extends object ? { readonly [K in keyof T]: DeepReadonly<T[K]> } : T;

/** An API key as the service keeps it: the key itself is gone, only its hash stays. */
export interface ApiKeyConfig {
  readonly name: string;
  /** A tenant id, or `*` for an operator. */
  readonly tenant: string;
  /** 64 lower-case hex digits. */
  readonly sha256: string;
}

/** The settings in force: complete, deeply frozen. Times are milliseconds, sizes bytes. */
export type Config = DeepReadonly<{
  llm: Settings['llm'] & { provider: 'openai' | 'echo'; model: string };
  sessions: Settings['sessions'];
  /** `dataDir` is absolute. Without `database` the embedded PostgreSQL is used. */
  storage: Pick<Settings['storage'], 'database' | 'dataDir'>;
  kafka: Settings['kafka'];
  auth: { mode: 'none' | 'api-key'; keys: ApiKeyConfig[] };
  server: Settings['server'];
  /** Has no prototype: a tenant may be called `constructor`. */
  tenants: Settings['tenants'];
  /** What the operator should hear at startup, one sentence each. */
  warnings: string[];
}>;

/** The token under which Nest gives the settings to whoever needs them: `@Inject(SETTINGS) settings: Config`. */
export const SETTINGS = Symbol('settings');

type Environment = Readonly<Record<string, string | undefined>>;

/** What a variable sets, and how its text becomes the value that the schema then checks. */
const VARIABLES: readonly {
  name: string;
  path: readonly [string, ...string[]];
  read?: (raw: string) => unknown;
}[] = [
  { name: 'HOST', path: ['server', 'host'] },
  { name: 'PORT', path: ['server', 'port'], read: number },
  { name: 'LOG_LEVEL', path: ['server', 'logLevel'] },
  { name: 'DATABASE_URL', path: ['storage', 'database'], read: (raw) => ({ type: 'postgresql', url: raw }) },
  { name: 'COLLOQUY_DATA_DIR', path: ['storage', 'dataDir'] },
  { name: 'KAFKA_BROKERS', path: ['kafka', 'brokers'], read: list },
  { name: 'OPENAI_API_KEY', path: ['llm', 'apiKey'] },
  { name: 'OPENAI_BASE_URL', path: ['llm', 'baseURL'] },
  { name: 'LLM_MODEL', path: ['llm', 'model'] },
  { name: 'MAX_SESSIONS', path: ['sessions', 'maxSessions'], read: number },
  { name: 'SESSION_TTL_MS', path: ['sessions', 'sessionTTL'], read: number },
  { name: 'SESSION_CAP_POLICY', path: ['sessions', 'capPolicy'] },
  { name: 'COLLOQUY_API_KEYS', path: ['auth', 'keys'], read: (raw) => list(raw).map(keyEntry) },
];

// Text that is no plain number stays text, so that the schema refuses it: Number('') is 0 and Number('0x10') is 16.
function number(raw: string): unknown {
  return /^\d+$/.test(raw) ? Number(raw) : raw;
}

function list(raw: string): string[] {
  return raw
    .split(',')
    .map((entry) => entry.trim())
    .filter((entry) => entry !== '');
}

// The key is what follows the second colon, whatever colons it has itself.
function keyEntry(entry: string): unknown {
  const [name, tenant, ...key] = entry.split(':');
  return { name, tenant, key: key.join(':') };
}

/**
 * Reads the settings: the defaults, over them `colloquy.yml` in `cwd` (or the file that `COLLOQUY_CONFIG`
 * names), over it the environment, over it `overrides`. A variable that is set to nothing counts as not set.
 *
 * @param source.overrides what a program sets in code, in the shape of the file; undefined members are skipped
 * @throws ConfigError naming every unknown key and bad value
 */
export function loadConfig(source: { env: Environment; cwd: string; overrides?: object }): Config {
  const { env, cwd } = source;
  const file = readSettingsFile(env, cwd);
  const given = (name: string) => (env[name] === '' ? undefined : env[name]);

  const merged = copyOf(file.content);
  const problems: string[] = [];
  for (const { name, path, read } of VARIABLES) {
    const raw = given(name)?.trim();
    if (raw !== undefined) {
      setAt(merged, path, read === undefined ? raw : read(raw));
    }
  }
  if (given('COLLOQUY_API_KEYS') !== undefined) {
    setAt(merged, ['auth', 'mode'], 'api-key');
  }
  for (const [key, value] of Object.entries(source.overrides ?? {})) {
    overlay(merged, key, value);
  }

  /** Names a setting the way its author knows it: by variable, or by dotted path. */
  const nameOf = (path: readonly PropertyKey[]): string => {
    const dotted = path.map(String).join('.');
    const variable = VARIABLES.find(
      (candidate) =>
        given(candidate.name) !== undefined && candidate.path.every((part, i) => part === path[i]),
    );
    if (variable !== undefined && !isSetIn(source.overrides, variable.path)) {
      const [entry, ...rest] = path.slice(variable.path.length);
      return typeof entry === 'number'
        ? [variable.name, `entry ${entry + 1}`, ...rest.map(String)].join(', ')
        : variable.name;
    }
    // What is missing belongs to the file that has the section around it.
    const isOfFile = isSetIn(file.content, path) || isSetIn(file.content, path.slice(0, -1));
    return isOfFile && !isSetIn(source.overrides, path) ? `${dotted} (${file.name})` : dotted;
  };

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

  if (storage.cache !== undefined) {
    warnings.push('storage.cache has no meaning here: everything is kept in PostgreSQL.');
  }

  const keys = (auth.keys ?? []).map(({ name, tenant, key, sha256 }) => ({
    name,
    tenant,
    sha256: key === undefined ? (sha256 ?? '').toLowerCase() : createHash('sha256').update(key).digest('hex'),
  }));
  const mode = auth.mode ?? (keys.length > 0 ? 'api-key' : 'none');
  if (mode === 'api-key' && keys.length === 0) {
    problems.push(
      `${nameOf(['auth', 'keys'])} must name at least one key in mode api-key: nobody could call`,
    );
  }
  if (mode === 'none' && keys.length > 0) {
    problems.push(
      `${nameOf(['auth', 'mode'])} must be api-key when there are auth.keys: none would ignore them`,
    );
  }
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
    llm: { ...llm, provider, model: llm.model ?? (provider === 'openai' ? 'gpt-5-mini' : 'echo') },
    sessions,
    storage: {
      dataDir: resolve(cwd, storage.dataDir),
      ...(storage.database === undefined ? {} : { database: storage.database }),
    },
    kafka,
    auth: { mode, keys },
    server,
    tenants: Object.assign(Object.create(null) as Settings['tenants'], tenants),
    warnings,
  });
}

/** The parsed file, or an empty mapping when there is none and none was asked for. */
function readSettingsFile(env: Environment, cwd: string): { name: string; content: Record<string, unknown> } {
  const named = env.COLLOQUY_CONFIG;
  const asked = named !== undefined && named !== '';
  const name = asked ? named : 'colloquy.yml';
  let source: string;
  try {
    source = readFileSync(resolve(cwd, name), 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unreadable';
    if (code === 'ENOENT' && !asked) {
      return { name, content: {} };
    }
    throw new ConfigError([`${asked ? `COLLOQUY_CONFIG: ${name}` : name} cannot be read (${code})`]);
  }
  const document = parseDocument(source);
  if (document.errors.length > 0) {
    throw new ConfigError(
      document.errors.map(({ code, linePos }) => {
        const [{ line, col }] = linePos ?? [{ line: 1, col: 1 }];
        // The parser's own message quotes the file, and with it the secrets.
        return `${name}, line ${line}, column ${col}: is not valid YAML (${code})`;
      }),
    );
  }
  let content: unknown;
  try {
    content = document.toJS();
  } catch {
    throw new ConfigError([`${name}: has an alias that cannot be resolved`]);
  }
  if (content === null || content === undefined) {
    return { name, content: {} };
  }
  if (!isMapping(content)) {
    throw new ConfigError([
      `${name}: must be a mapping with the keys: ${Object.keys(settings.shape).join(', ')}`,
    ]);
  }
  // A section whose keys are all commented out reads as null.
  const filled = Object.entries(content).filter(([, value]) => value !== null);
  return { name, content: Object.fromEntries(filled) };
}

function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function copyOf(value: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(value).map(([key, member]) => [key, isMapping(member) ? copyOf(member) : member]),
  );
}

function setAt(target: Record<string, unknown>, [key, ...rest]: readonly string[], value: unknown): void {
  if (key === undefined) {
    return;
  }
  if (rest.length === 0) {
    target[key] = value;
    return;
  }
  const inner = target[key];
  // A section that is no mapping stays as it is, for the schema to refuse.
  if (inner === undefined || isMapping(inner)) {
    setAt((target[key] = inner ?? {}), rest, value);
  }
}

function overlay(target: Record<string, unknown>, key: string, value: unknown): void {
  const inner = target[key];
  if (isMapping(value) && isMapping(inner)) {
    for (const [innerKey, innerValue] of Object.entries(value)) {
      overlay(inner, innerKey, innerValue);
    }
  } else if (value !== undefined) {
    target[key] = isMapping(value) ? copyOf(value) : value;
  }
}

function isSetIn(value: unknown, path: readonly PropertyKey[]): boolean {
  let current = value;
  for (const part of path) {
    current = typeof current === 'object' && current !== null ? Reflect.get(current, part) : undefined;
  }
  return current !== undefined;
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
