import { z } from 'zod';
import { FEWEST_CONNECTIONS } from '../database/connection-shares.js';
import { hostsOf } from '../database/hosts.js';

/** The shape of a tenant id, everywhere. */
const TENANT_ID = /^[a-z0-9][a-z0-9_-]{0,62}$/;

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

const isUrl = (value: string, ...protocols: string[]): boolean =>
  URL.canParse(value) && protocols.includes(new URL(value).protocol);

function url(description: string, ...protocols: string[]) {
  return z
    .string({ error: description })
    .refine((value) => isUrl(value, ...protocols), { error: description });
}

const POSTGRES_URL = 'must be a postgres:// or postgresql:// URL';

/** Several hosts stand in one URL as libpq has it: `postgres://user:password@a:5432,b:5432/name`. */
const postgresUrl = z
  .string({ error: POSTGRES_URL })
  .refine((value) => isUrl(hostsOf(value).url, 'postgres:', 'postgresql:'), { error: POSTGRES_URL });

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
const deleteAfter = wholeNumber(1, LONGEST_MS);
const eraseAfter = wholeNumber(1, LONGEST_MS);

/** What one tenant or one key may do at most. Default: no limit. */
const limit = {
  /** Default: no limit. */
  requestsPerSecond: wholeNumber(1, 1_000_000).optional(),
  /** Replies that are generated at the same time. Default: no limit. */
  generations: wholeNumber(0, 1_000_000).optional(),
  /** Streams of events that are read at the same time. Default: no limit. */
  streams: wholeNumber(0, 1_000_000).optional(),
};

/** The name of a claim of a token. */
const claim = text(/^.{1,200}$/, 'must be the name of a claim');

/** Tokens of an issuer (JWT) with which apps and browsers talk to the service. */
const jwt = section({
  /** The claim `iss` of each token. */
  issuer: text(/^\S{1,1000}$/, 'must be the issuer of the tokens, as their claim iss has it'),
  /** Of which the claim `aud` of each token must name one. */
  audience: z.union(
    [text(/^\S{1,1000}$/, 'must be a text'), z.array(text(/^\S{1,1000}$/, 'must be a text')).min(1)],
    {
      error: 'must be the audience of the tokens, or a list of some',
    },
  ),
  /** Where the issuer publishes its keys. Give this or `publicKey`, not both. */
  jwksUrl: url('must be an http:// or https:// URL', 'http:', 'https:').optional(),
  /** The one public key: PEM, beginning with `-----BEGIN PUBLIC KEY-----`. */
  publicKey: text(/^\s*-----BEGIN PUBLIC KEY-----/, 'must be a public key in PEM').optional(),
  /** The tenant of all tokens. Default: the claim `claims.tenant` names it. */
  tenant: text(TENANT_ID, 'must be a tenant id').optional(),
  claims: section({
    /** Default `tenant`. */
    tenant: claim.default('tenant'),
    /** Scopes, separated by blanks or as a list. Default `scope`. */
    scopes: claim.default('scope'),
    /** Whose sessions the scopes that end in `:own` are for. Default `sub`. */
    owner: claim.default('sub'),
  }).prefault({}),
}).refine((given) => (given.jwksUrl === undefined) !== (given.publicKey === undefined), {
  error: 'must have exactly one of: jwksUrl, publicKey',
});

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

const cell = section({
  /** Never changes: the directory of tenants names it. */
  name: text(
    /^[a-z0-9][a-z0-9-]{0,30}$/,
    'must be a name: 1 to 31 of a-z 0-9 -, beginning with a letter or digit',
  ),
  url: postgresUrl,
  directUrl: postgresUrl.optional(),
  replicas: z.array(postgresUrl, { error: 'must be a list of URLs' }).default([]),
  weight: wholeNumber(0, 1_000).default(1),
});

/** All settings, in the shape of the settings file, with their defaults. */
export const settings = section({
  llm: section({
    /** Who answers. Default: `openai` when an `apiKey` or a `baseURL` is there, else `echo`. */
    provider: choice('openai', 'echo').optional(),
    /** The model where a request names none. Default: `gpt-5-mini` of openai, `echo` of echo. */
    model: text(/^\S{1,200}$/, 'must be the name of a model: 1 to 200 characters without blanks').optional(),
    /** Of the provider. Default: none. */
    apiKey: text(/^[\x21-\x7e]+$/, 'must be printable ASCII without blanks').optional(),
    /** Any server that speaks chat completions: vLLM, Ollama, … Default: OpenAI itself. */
    baseURL: url('must be an http:// or https:// URL', 'http:', 'https:').optional(),
    /**
     * Milliseconds without a sign of the provider until a model call is given up; retries are part of it. Comments in its
     * stream (`: keep-alive`) keep a call alive five times as long. Default 60 000.
     */
    timeoutMs: wholeNumber(1, 3_600_000).default(60_000),
    /** Tokens of a prompt: the oldest turns are left out of one that would be longer. Default: no limit. */
    maxInputTokens: wholeNumber(1, 100_000_000).optional(),
    /** Bytes of one answer. Default 1 048 576 (1 MiB). */
    maxOutputBytes: wholeNumber(1, 67_108_864).default(1_048_576),
    /** Model calls at the same time in one process; more wait their turn. Default 256. */
    maxConcurrency: wholeNumber(1, 100_000).default(256),
    /**
     * Where system messages go in a prompt: where they stand in the history, or all of them into one message in front, as
     * the templates of many models want it. Default: `first` with a `baseURL`, else `in-place`.
     */
    systemMessages: choice('in-place', 'first').optional(),
    /**
     * Model, or `*` for all others → the member of a message in which its provider wants to have its reasoning back.
     * Default: reasoning is not sent back, because most providers refuse it.
     */
    returnReasoning: z
      .record(z.string(), choice('reasoning_content', 'reasoning'), {
        error: 'must be a mapping of models to reasoning_content or reasoning',
      })
      .default({}),
    /** Bytes of pictures and files inside of one prompt; the oldest beyond are named instead. Default 33 554 432 (32 MiB). */
    maxAttachedBytes: wholeNumber(0, 1_073_741_824).default(33_554_432),
  }).prefault({}),
  sessions: section({
    /** Active sessions of each tenant. Default 100. */
    maxSessions: maxSessions.default(100),
    /** Milliseconds without a write after which a session expires. Default 3 600 000 (one hour). */
    sessionTTL: sessionTTL.default(3_600_000),
    /** What happens to a create or resume at the cap; with `evict` the least recently used session leaves. Default `reject`. */
    capPolicy: capPolicy.default('reject'),
    /** Milliseconds after its expiry after which a session is deleted, unless it is under legal hold. Default: never. */
    deleteAfter: deleteAfter.optional(),
    /**
     * Milliseconds after its end, be it deletion or expiry, after which a session is erased, unless it is under legal hold
     * or that is called off ([retention](erasure.md#retention)). Default: never.
     */
    eraseAfter: eraseAfter.optional(),
  }).prefault({}),
  storage: section({
    /** Default: the embedded PostgreSQL, in `dataDir`. */
    database: section({
      /** Default `postgresql`: 15 to 18. */
      type: choice('postgresql').default('postgresql'),
      /**
       * May name several hosts (`postgres://user:password@a:5432,b:5432/name`), of which the one that takes writes is used; or
       * may lead through a pooler in transaction mode, such as PgBouncer; then `directUrl` is needed as well.
       */
      url: z
        .string({ error: 'must be a postgres:// or postgresql:// URL; DATABASE_URL sets it, too' })
        .pipe(postgresUrl),
      /** Past the pooler, for what needs a session of its own. Default: `url` does not lead through a pooler. */
      directUrl: postgresUrl.optional(),
      /** Streaming replicas, which answer queries on read models. Default: none. */
      replicas: z.array(postgresUrl, { error: 'must be a list of URLs' }).default([]),
      /**
       * Further databases, each with a log of its own; a tenant lives in one of them
       * ([cells](#cells)). Default: none, one database has everything.
       */
      cells: z.array(cell, { error: 'must be a list of cells' }).default([]),
      /** The part of new tenants that this database gets, as the first of several cells. Default 1. */
      weight: wholeNumber(0, 1_000).default(1),
    }).optional(),
    /** What nodes tell each other without the database. Default: nothing. Types other than `redis` have no meaning here. */
    cache: section({
      type: text(/^[\w-]{1,64}$/, 'must be redis'),
      url: url('must be a redis:// or rediss:// URL', 'redis:', 'rediss:').optional(),
    }).optional(),
    /** Where the embedded PostgreSQL keeps its files; relative to the working directory. Default `.colloquy`. */
    dataDir: text(/^[^\0]+$/, 'must be the path of a folder').default('.colloquy'),
    /**
     * Seals what is said in the database: base64 of 32 random bytes (`openssl rand -base64 32`). Of several, separated by
     * commas, the first one seals and all of them open; `plain` in place of the first: nothing more is sealed
     * ([master key](#master-key)). Default: with the embedded PostgreSQL, the file `master.key` in `dataDir`, which is made at
     * the first start; else nothing is sealed.
     */
    masterKey: text(
      /^(plain|[A-Za-z0-9+/]{43}=)(\s*,\s*[A-Za-z0-9+/]{43}=)*$/,
      'must be base64 of 32 bytes, or several of these separated by commas, of which the first may be plain',
    ).optional(),
    /**
     * Seals payloads from now on; those of the other one are opened as before. `aes-256-gcm` for those whose rules name it
     * (FIPS 140): it takes three times the time for a short message ([ADR 55](adr/0055-short-texts-are-sealed-in-webassembly.md)).
     * Default `chacha20-poly1305`.
     */
    cipher: choice('chacha20-poly1305', 'aes-256-gcm').default('chacha20-poly1305'),
    /** Connections to PostgreSQL that one process holds at most, over all its pools. Default 30. */
    maxConnections: wholeNumber(FEWEST_CONNECTIONS, 10_000).default(30),
  }).prefault({}),
  kafka: section({
    /** Default: none; events wait in the log until brokers are named. */
    brokers: z
      .array(text(/^[^\s,:/]+:\d{1,5}$|^\[[0-9a-fA-F:.]+\]:\d{1,5}$/, 'must be host:port'), {
        error: 'must be a list of host:port',
      })
      .default([]),
    /** One for each service. Default `colloquy.session-events`. */
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
    /** Of the messages. Default `gzip`. */
    compression: choice('gzip', 'none').default('gzip'),
    /**
     * With `sealed`, what is sealed in the log is published sealed, so that an erasure reaches every copy
     * ([events.md](events.md#sealed-values)); it needs a master key. Default `plain`.
     */
    payload: choice('plain', 'sealed').default('plain'),
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
    /** How to sign in at the brokers. Default: not at all. */
    sasl: section({
      mechanism: choice('plain', 'scram-sha-256', 'scram-sha-512'),
      username: text(/^.{1,1024}$/, 'must be a text'),
      password: text(/^.{1,1024}$/, 'must be a text'),
    }).optional(),
  }).prefault({}),
  auth: section({
    /**
     * Default: `api-key` when there are keys or `jwt`, else `none`, which only a loopback host may have. With `api-key`, keys of
     * the database are taken as well.
     */
    mode: choice('none', 'api-key').optional(),
    /** Each has `name`, `tenant` (`*`: an operator) and `key` or `sha256`; the variable has `name:tenant:key`, comma-separated. */
    keys: z.array(apiKey, { error: 'must be a list of keys' }).optional(),
    /** Default: no tokens. */
    jwt: jwt.optional(),
  }).prefault({}),
  server: section({
    /** The address that is listened on. Default 127.0.0.1. */
    host: text(/^[^\s/]{1,255}$/, 'must be a host name or an IP address').default('127.0.0.1'),
    /** 0 takes any free port. Default 3000. */
    port: wholeNumber(0, 65_535).default(3000),
    /** Processes that share the port, or `auto`: one for each processor. Default 1. */
    processes: z
      .union([z.literal('auto'), wholeNumber(1, 256)], {
        error: 'must be a whole number from 1 to 256, or auto',
      })
      .default(1),
    /** Bytes of a request body. Default 1 048 576 (1 MiB). */
    bodyLimit: wholeNumber(1, 1_073_741_824).default(1_048_576),
    /**
     * The same where messages are taken, which may have photographs in them as `data:` URLs. A process holds 64 MiB of bodies at
     * a time, and answers 503 `overloaded` past that. Default 16 777 216 (16 MiB).
     */
    messageLimit: wholeNumber(1, 1_073_741_824).default(16_777_216),
    /** What is written to the log: that level and all above it. Requests are written at `info`. Default `info`. */
    logLevel: choice('fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent').default('info'),
    /** Origins whose pages may call the service from a browser (CORS), or `*` for all. Default: none. */
    corsOrigins: z
      .array(text(/^(\*|https?:\/\/[^\s/]+)$/, 'must be an origin, such as https://app.example.com, or *'), {
        error: 'must be a list of origins',
      })
      .default([]),
    /** Counted in Redis for all processes together if there is one, else by each process for itself. */
    limits: section({
      /** Of each tenant. */
      tenant: section(limit).prefault({}),
      /** Of each key, and of each subject of tokens. */
      key: section(limit).prefault({}),
    }).prefault({}),
    /**
     * Milliseconds for which a node that is told to stop answers as before, except that `/health/ready` is 503: more than
     * balancers need to notice. Default 0.
     */
    drainMs: wholeNumber(0, 600_000).default(0),
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
        /** Default: `sessions.maxSessions`; so with the next four. */
        maxSessions: maxSessions.optional(),
        sessionTTL: sessionTTL.optional(),
        capPolicy: capPolicy.optional(),
        deleteAfter: deleteAfter.optional(),
        eraseAfter: eraseAfter.optional(),
        /** In place of `server.limits.tenant`. */
        limits: section(limit).optional(),
      }),
      { error: 'must be a mapping of tenant ids' },
    )
    .default({}),
});

export type Settings = z.output<typeof settings>;
