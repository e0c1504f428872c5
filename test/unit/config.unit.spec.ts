import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ConfigError, loadConfig } from '../../src/config.js';

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

const KEY = Buffer.alloc(32, 1).toString('base64');

describe('settings', () => {
  let cwd: string;

  beforeEach(() => {
    cwd = mkdtempSync(join(tmpdir(), 'colloquy-config-'));
  });
  afterEach(() => {
    rmSync(cwd, { recursive: true });
  });

  const load = (yaml?: string, env: Record<string, string> = {}, overrides?: object) => {
    if (yaml !== undefined) {
      writeFileSync(join(cwd, 'colloquy.yml'), yaml);
    }
    return loadConfig({ env, cwd, ...(overrides === undefined ? {} : { overrides }) });
  };
  const problemsOf = (yaml?: string, env?: Record<string, string>, overrides?: object): readonly string[] => {
    try {
      load(yaml, env, overrides);
    } catch (error) {
      if (error instanceof ConfigError) {
        for (const problem of error.problems) {
          expect(error.message).toContain(problem);
        }
        return error.problems;
      }
      throw error;
    }
    throw new Error('nothing was refused');
  };

  it('given no settings, when they are loaded, then the defaults apply', () => {
    expect(load()).toEqual({
      llm: {
        provider: 'echo',
        model: 'echo',
        timeoutMs: 60_000,
        maxOutputBytes: 1_048_576,
        maxConcurrency: 256,
        systemMessages: 'in-place',
        returnReasoning: {},
        maxAttachedBytes: 33_554_432,
      },
      sessions: { maxSessions: 100, sessionTTL: 3_600_000, capPolicy: 'reject' },
      storage: { dataDir: join(cwd, '.colloquy'), cipher: 'chacha20-poly1305', maxConnections: 30 },
      kafka: {
        brokers: [],
        topic: 'colloquy.session-events',
        partitions: 16,
        retentionMs: 604_800_000,
        maxMessageBytes: 8_388_608,
        compression: 'gzip',
        payload: 'plain',
        ssl: false,
      },
      auth: { mode: 'none', keys: [] },
      server: {
        host: '127.0.0.1',
        port: 3000,
        processes: 1,
        bodyLimit: 1_048_576,
        messageLimit: 16_777_216,
        logLevel: 'info',
        corsOrigins: [],
        limits: { tenant: {}, key: {} },
        drainMs: 0,
        shutdownGraceMs: 10_000,
      },
      tenants: {},
      warnings: [],
    });
  });

  it('given a file with every setting, when it is loaded, then every setting applies', () => {
    const config = load(`
llm: { provider: openai, model: gpt-5, apiKey: sk-1, baseURL: "http://127.0.0.1:9/v1", timeoutMs: 5, maxInputTokens: 7, maxOutputBytes: 9, maxConcurrency: 2, systemMessages: in-place }
sessions: { maxSessions: 1000, sessionTTL: 86400000, capPolicy: evict, deleteAfter: 86400000, eraseAfter: 3600000 }
storage:
  cache: { type: redis, url: "redis://localhost:6379" }
  database:
    type: postgresql
    url: "postgres://u:p@pooler/x"
    directUrl: "postgres://u:p@db/x"
    replicas: ["postgres://u:p@replica/x"]
  dataDir: data
kafka:
  brokers: ["a:9092", "[::1]:9093"]
  topic: t
  partitions: 4
  replication: 3
  retentionMs: 60000
  maxMessageBytes: 65536
  compression: none
  payload: sealed
  ssl: { ca: pem }
  sasl: { mechanism: plain, username: u, password: p }
auth:
  mode: api-key
  keys:
    - { name: alice, tenant: acme, key: alice-key }
    - { name: root, tenant: "*", sha256: ${sha256('root-key').toUpperCase()} }
  jwt:
    issuer: https://issuer.example
    audience: colloquy
    jwksUrl: https://issuer.example/keys
    claims: { tenant: org, owner: user }
server:
  { host: 0.0.0.0, port: 8080, bodyLimit: 10, messageLimit: 20, shutdownGraceMs: 0, corsOrigins: ["https://app.example"], limits: { tenant: { generations: 3 }, key: { requestsPerSecond: 5 } } }
tenants:
  acme: { maxSessions: 5, sessionTTL: 1, capPolicy: evict, deleteAfter: 2, eraseAfter: 3, limits: { streams: 0 } }
  constructor: {}
`);
    expect(config).toMatchObject({
      llm: {
        provider: 'openai',
        model: 'gpt-5',
        apiKey: 'sk-1',
        baseURL: 'http://127.0.0.1:9/v1',
        timeoutMs: 5,
        maxInputTokens: 7,
        maxOutputBytes: 9,
        maxConcurrency: 2,
        systemMessages: 'in-place',
        returnReasoning: {},
        maxAttachedBytes: 33_554_432,
      },
      sessions: {
        maxSessions: 1000,
        sessionTTL: 86_400_000,
        capPolicy: 'evict',
        deleteAfter: 86_400_000,
        eraseAfter: 3_600_000,
      },
      storage: {
        database: {
          url: 'postgres://u:p@db/x',
          pooledUrl: 'postgres://u:p@pooler/x',
          replicas: ['postgres://u:p@replica/x'],
        },
        redis: { url: 'redis://localhost:6379' },
        dataDir: join(cwd, 'data'),
      },
      kafka: {
        brokers: ['a:9092', '[::1]:9093'],
        topic: 't',
        partitions: 4,
        replication: 3,
        retentionMs: 60_000,
        maxMessageBytes: 65_536,
        compression: 'none',
        payload: 'sealed',
        ssl: { ca: 'pem' },
        sasl: { mechanism: 'plain', username: 'u', password: 'p' },
      },
      server: {
        ...{ host: '0.0.0.0', port: 8080, bodyLimit: 10, messageLimit: 20, shutdownGraceMs: 0 },
        corsOrigins: ['https://app.example'],
        limits: { tenant: { generations: 3 }, key: { requestsPerSecond: 5 } },
      },
    });
    expect({ ...config.tenants }).toEqual({
      acme: {
        maxSessions: 5,
        sessionTTL: 1,
        capPolicy: 'evict',
        deleteAfter: 2,
        eraseAfter: 3,
        limits: { streams: 0 },
      },
      constructor: {},
    });
    expect(config.warnings).toEqual([]);
  });

  it('given a cache of a type that has no meaning here, when it is loaded, then the operator is told', () => {
    const config = load('storage: { cache: { type: in-memory } }');
    expect(config.storage).not.toHaveProperty('redis');
    expect(config.warnings).toEqual([expect.stringContaining('storage.cache')]);
  });

  it('given the database, its replicas and Redis in the environment, when they are loaded, then they apply', () => {
    const { storage } = load(undefined, {
      DATABASE_URL: 'postgres://pooler/x',
      DATABASE_DIRECT_URL: 'postgres://db/x',
      DATABASE_REPLICA_URLS: 'postgres://one/x, postgres://two/x',
      REDIS_URL: 'rediss://r',
    });
    expect(storage).toMatchObject({
      database: {
        url: 'postgres://db/x',
        pooledUrl: 'postgres://pooler/x',
        replicas: ['postgres://one/x', 'postgres://two/x'],
      },
      redis: { url: 'rediss://r' },
    });
  });

  it('given cells in the environment, when they are loaded, then each has its name and database, and the first one its weight', () => {
    const { storage } = load(undefined, {
      DATABASE_URL: 'postgres://db/x',
      DATABASE_WEIGHT: '0',
      DATABASE_CELLS: 'two=postgres://u:a=b@two-a,two-b/x  three=postgres://three/x',
    });
    expect(storage).toMatchObject({
      database: { url: 'postgres://db/x', weight: 0 },
      cells: [
        { name: 'two', url: 'postgres://u:a=b@two-a,two-b/x', weight: 1 },
        { name: 'three', url: 'postgres://three/x', weight: 1 },
      ],
    });
  });

  it.each([
    [{ DATABASE_URL: 'postgres://db/x', DATABASE_CELLS: 'two' }, 'DATABASE_CELLS'],
    [{ DATABASE_CELLS: 'two=postgres://two/x' }, 'DATABASE_URL'],
    [
      { DATABASE_URL: 'postgres://db/x', DATABASE_CELLS: 'two=postgres://a/x two=postgres://b/x' },
      'DATABASE_CELLS',
    ],
    [{ DATABASE_URL: 'postgres://db/x', DATABASE_CELLS: 'default=postgres://a/x' }, 'is taken: default'],
    [
      { DATABASE_URL: 'postgres://db/x', DATABASE_REPLICA_URLS: 'http://r' },
      'DATABASE_REPLICA_URLS, entry 1',
    ],
    [{ DATABASE_URL: 'postgres://db/x', DATABASE_DIRECT_URL: 'db' }, 'DATABASE_DIRECT_URL'],
    [{ DATABASE_DIRECT_URL: 'postgres://db/x' }, 'storage.database.url'],
    [{ REDIS_URL: 'http://r' }, 'REDIS_URL'],
  ])('given %p, when it is loaded, then the error names %s', (env, name) => {
    expect(() => load(undefined, env)).toThrow(name);
  });

  it('given API keys, when they are loaded, then only their hashes are kept', () => {
    const config = load(undefined, { COLLOQUY_API_KEYS: 'alice:acme:alice:key, root:*:root-key' });
    expect(config.auth).toEqual({
      mode: 'api-key',
      keys: [
        { name: 'alice', tenant: 'acme', sha256: sha256('alice:key') },
        { name: 'root', tenant: '*', sha256: sha256('root-key') },
      ],
    });
    expect(JSON.stringify(config)).not.toContain('alice:key');
  });

  it('given every environment variable, when settings are loaded, then the variables override the file', () => {
    const config = load(
      `
llm: { model: from-file }
sessions: { maxSessions: 1, sessionTTL: 1, capPolicy: reject }
storage: { dataDir: file, database: { type: postgresql, url: "postgres://file/x" } }
kafka: { brokers: ["file:1"], topic: kept }
auth: { mode: none }
server: { host: localhost, port: 1 }
`,
      {
        HOST: '0.0.0.0',
        PORT: '0',
        DATABASE_URL: 'postgresql://env/x',
        COLLOQUY_DATA_DIR: '/somewhere',
        KAFKA_BROKERS: 'a:1, b:2,',
        OPENAI_API_KEY: 'sk-env',
        OPENAI_BASE_URL: 'https://env/v1',
        LLM_MODEL: 'from-env',
        MAX_SESSIONS: '7',
        SESSION_TTL_MS: '8',
        SESSION_CAP_POLICY: 'evict',
        COLLOQUY_API_KEYS: 'a:b:c',
      },
    );
    expect(config).toMatchObject({
      llm: { provider: 'openai', model: 'from-env', apiKey: 'sk-env', baseURL: 'https://env/v1' },
      sessions: { maxSessions: 7, sessionTTL: 8, capPolicy: 'evict' },
      storage: { database: { url: 'postgresql://env/x' }, dataDir: '/somewhere' },
      kafka: { brokers: ['a:1', 'b:2'], topic: 'kept' },
      auth: { mode: 'api-key', keys: [{ name: 'a', tenant: 'b' }] },
      server: { host: '0.0.0.0', port: 0 },
    });
  });

  it('given an empty variable, when settings are loaded, then it counts as not set', () => {
    const blank = {
      HOST: '',
      PORT: '',
      DATABASE_URL: '',
      OPENAI_API_KEY: '',
      COLLOQUY_API_KEYS: '',
      COLLOQUY_CONFIG: '',
    };
    expect(load(undefined, blank)).toEqual(load());
  });

  it('given overrides, when settings are loaded, then defined ones override environment and file', () => {
    const config = load(
      'sessions: { maxSessions: 1, sessionTTL: 2 }',
      { MAX_SESSIONS: '3', LLM_MODEL: 'env' },
      {
        sessions: { maxSessions: 4 },
        llm: { model: undefined, apiKey: 'sk-code' },
      },
    );
    expect(config.sessions).toMatchObject({ maxSessions: 4, sessionTTL: 2 });
    expect(config.llm).toMatchObject({ provider: 'openai', model: 'env', apiKey: 'sk-code' });
    expect(problemsOf(undefined, { MAX_SESSIONS: '3' }, { sessions: { maxSessions: 0 } })).toEqual([
      expect.stringMatching(/^sessions\.maxSessions must be/),
    ]);
  });

  it.each([
    [{}, 'echo', 'echo'],
    [{ OPENAI_API_KEY: 'k' }, 'openai', 'gpt-5-mini'],
    [{ OPENAI_BASE_URL: 'http://localhost:1' }, 'openai', 'gpt-5-mini'],
    [{ LLM_MODEL: 'x' }, 'echo', 'x'],
  ])(
    'given the environment %j, when settings are loaded, then provider and model are %s and %s',
    (env, provider, model) => {
      expect(load(undefined, env).llm).toMatchObject({ provider, model });
    },
  );

  it('given provider echo and an API key, when they are loaded, then the provider stays echo', () => {
    expect(load('llm: { provider: echo }', { OPENAI_API_KEY: 'k' }).llm.provider).toBe('echo');
  });

  it('given keys in the file and no mode, when they are loaded, then the mode is api-key', () => {
    expect(load('auth: { keys: [{ name: a, tenant: b, key: c }] }').auth.mode).toBe('api-key');
  });

  it('given empty sections, when settings are loaded, then the defaults apply', () => {
    expect(load('sessions:\nserver:\n')).toEqual(load(''));
  });

  it('given COLLOQUY_CONFIG, when it names a file, then that file is read; when the file does not exist, the error says so', () => {
    writeFileSync(join(cwd, 'other.yml'), 'sessions: { maxSessions: 9 }');
    expect(load('sessions: { maxSessions: 1 }', { COLLOQUY_CONFIG: 'other.yml' }).sessions.maxSessions).toBe(
      9,
    );
    expect(problemsOf(undefined, { COLLOQUY_CONFIG: 'gone.yml' })).toEqual([
      'COLLOQUY_CONFIG: gone.yml cannot be read (ENOENT)',
    ]);
  });

  it('given loaded settings, when code tries to change them, then it cannot', () => {
    const config = load(
      'auth: { keys: [{ name: a, tenant: b, key: c }] }\ntenants: { a: { maxSessions: 1 } }',
    );
    expect(Object.isFrozen(config)).toBe(true);
    expect(Object.isFrozen(config.sessions)).toBe(true);
    expect(Object.isFrozen(config.auth.keys[0])).toBe(true);
    expect(Object.isFrozen(config.tenants.a)).toBe(true);
  });

  it('given a tenant with the name of a member of every object, when it has no settings, then none are found', () => {
    expect(load().tenants.constructor).toBeUndefined();
  });

  it.each([
    ['colour: 1', /^colour \(colloquy\.yml\) is not a known key; known here: llm, sessions, storage/],
    [
      'sessions: { ttl: 1 }',
      /^sessions\.ttl \(colloquy\.yml\) is not a known key; known here: maxSessions, sessionTTL, capPolicy, deleteAfter, eraseAfter$/,
    ],
    [
      'sessions: { maxSessions: 0 }',
      /^sessions\.maxSessions \(colloquy\.yml\) must be a whole number from 1/,
    ],
    ['sessions: { maxSessions: "5" }', /^sessions\.maxSessions .*whole number/],
    ['sessions: { sessionTTL: 1.5 }', /^sessions\.sessionTTL .*whole number/],
    ['sessions: { capPolicy: drop }', /^sessions\.capPolicy .*must be one of: reject, evict/],
    ['sessions: [1]', /^sessions .*must be a mapping with the keys: maxSessions/],
    ['llm: { provider: claude }', /^llm\.provider .*must be one of: openai, echo/],
    ['llm: { provider: openai }', /^llm\.provider .*needs llm\.apiKey \(or OPENAI_API_KEY\)/],
    ['llm: { baseURL: "ftp://x" }', /^llm\.baseURL .*must be an http/],
    [
      'storage: { database: { type: mysql, url: "postgres://x/y" } }',
      /^storage\.database\.type .*must be one of: postgresql/,
    ],
    ['storage: { database: { type: postgresql } }', /^storage\.database\.url .*must be a postgres/],
    ['storage: { masterKey: c2hvcnQ= }', /^storage\.masterKey .*must be base64 of 32 bytes/],
    [`storage: { masterKey: "${KEY},plain" }`, /^storage\.masterKey .*must be base64 of 32 bytes/],
    ['storage: { maxConnections: 9 }', /^storage\.maxConnections .*from 10 to /],
    ['kafka: { brokers: "a:1" }', /^kafka\.brokers .*must be a list of host:port/],
    ['kafka: { brokers: [a] }', /^kafka\.brokers\.0 .*must be host:port/],
    ['kafka: { topic: "a b" }', /^kafka\.topic /],
    ['server: { port: 65536 }', /^server\.port .*from 0 to 65535/],
    ['server: { host: 5 }', /^server\.host .*must be a host name/],
    ['tenants: { Acme: {} }', /^tenants\.Acme .*is not a tenant id/],
    ['tenants: { acme: { ttl: 1 } }', /^tenants\.acme\.ttl .*is not a known key/],
    ['auth: { mode: open }', /^auth\.mode .*must be one of: none, api-key/],
    ['auth: { mode: api-key, keys: [] }', /^auth\.keys .*at least one key/],
    [`auth: { jwt: { issuer: i, audience: a } }`, /^auth\.jwt .*exactly one of: jwksUrl, publicKey/],
    [
      `auth: { jwt: { issuer: i, audience: a, publicKey: "-----BEGIN PUBLIC KEY-----" } }`,
      /^auth\.jwt\.publicKey .*cannot be read|^auth\.jwt\.publicKey .*no public key/,
    ],
    [
      `auth: { mode: none, jwt: { issuer: i, audience: a, jwksUrl: "https://i.example" } }`,
      /^auth\.mode .*must be api-key/,
    ],
    ['server: { limits: { key: { streams: -1 } } }', /^server\.limits\.key\.streams .*whole number/],
    ['auth: { mode: none, keys: [{ name: a, tenant: b, key: c }] }', /^auth\.mode .*must be api-key/],
    ['auth: { keys: [{ name: a, tenant: b }] }', /^auth\.keys\.0 .*exactly one of: key, sha256/],
    ['auth: { keys: [{ name: a, tenant: B, key: c }] }', /^auth\.keys\.0\.tenant .*must be a tenant id/],
    ['auth: { keys: [{ name: "a b", tenant: b, key: c }] }', /^auth\.keys\.0\.name /],
    ['auth: { keys: [{ name: a, tenant: b, sha256: abc }] }', /^auth\.keys\.0\.sha256 .*64 hex digits/],
    [
      'auth: { keys: [{ name: a, tenant: b, key: c }, { name: d, tenant: e, key: c }] }',
      /^auth\.keys\.1 .*same key as entry 1/,
    ],
    ['just text', /^colloquy\.yml: must be a mapping/],
    ['a: 1\na: 2', /^colloquy\.yml, line 2, column 1: is not valid YAML \(DUPLICATE_KEY\)/],
    ['server: { port: ', /^colloquy\.yml, line 1, column \d+: is not valid YAML/],
  ])('given the file %j, when it is loaded, then the error names the key', (yaml, problem) => {
    expect(problemsOf(yaml)).toEqual([expect.stringMatching(problem)]);
  });

  it.each([
    [{ PORT: 'http' }, /^PORT must be a whole number from 0 to 65535/],
    [{ PORT: '-1' }, /^PORT /],
    [{ PORT: '0x10' }, /^PORT /],
    [{ MAX_SESSIONS: '1e3' }, /^MAX_SESSIONS must be a whole number/],
    [{ SESSION_TTL_MS: '0' }, /^SESSION_TTL_MS must be a whole number/],
    [{ SESSION_CAP_POLICY: 'x' }, /^SESSION_CAP_POLICY must be one of: reject, evict/],
    [{ DATABASE_URL: 'mysql://u:p@h/d' }, /^DATABASE_URL must be a postgres/],
    [{ KAFKA_BROKERS: 'a:1,b' }, /^KAFKA_BROKERS, entry 2 must be host:port/],
    [{ OPENAI_BASE_URL: 'x' }, /^OPENAI_BASE_URL must be an http/],
    [{ COLLOQUY_API_KEYS: 'a:b:c,alice' }, /^COLLOQUY_API_KEYS, entry 2, tenant must be a tenant id/],
    [{ COLLOQUY_API_KEYS: 'a:b:' }, /^COLLOQUY_API_KEYS, entry 1, key must be printable/],
    [{ COLLOQUY_API_KEYS: ',' }, /^COLLOQUY_API_KEYS must name at least one key/],
  ])('given the environment %j, when it is loaded, then the error names the variable', (env, problem) => {
    expect(problemsOf(undefined, env as Record<string, string>)).toContainEqual(
      expect.stringMatching(problem),
    );
  });

  it('given several problems, when settings are loaded, then the error lists all of them', () => {
    const problems = problemsOf('a: 1\nsessions: { b: 2, maxSessions: no }', { PORT: 'x' });
    expect(problems.map((problem) => problem.split(' ')[0])).toEqual(
      expect.arrayContaining(['a', 'sessions.b', 'sessions.maxSessions', 'PORT']),
    );
    expect(problems).toHaveLength(4);
  });

  it('given secrets in wrong places, when settings are loaded, then the error does not show them', () => {
    const yaml = `
llm: { apiKey: "sk hidden", baseURL: "hidden://x" }
storage: { database: { type: postgresql, url: "http://user:hidden@db" }, masterKey: hidden }
auth: { keys: [{ name: a, tenant: b, key: "hidden key" }, "hidden"] }
`;
    expect(problemsOf(yaml).join()).not.toContain('hidden');
    expect(problemsOf('llm: { apiKey: *hidden }').join()).not.toContain('hidden');
    expect(problemsOf('llm: { apiKey: "hidden }').join()).not.toContain('hidden');
    expect(
      problemsOf(undefined, {
        COLLOQUY_API_KEYS: 'hidden',
        DATABASE_URL: 'hidden',
        COLLOQUY_MASTER_KEY: 'hidden',
      }).join(),
    ).not.toContain('hidden');
  });

  it('given master keys, when settings are loaded, then they are in the order in which they stand', () => {
    expect(load().storage).not.toHaveProperty('masterKeys');
    const { masterKeys } = load(undefined, { COLLOQUY_MASTER_KEY: ` plain , ${KEY},${KEY} ` }).storage;
    expect(masterKeys).toEqual(['plain', KEY, KEY]);
  });

  describe('without API keys', () => {
    it.each([
      '127.0.0.1',
      '127.9.9.9',
      '::1',
      '[::1]',
      '0:0:0:0:0:0:0:1',
      '::ffff:127.0.0.1',
      'localhost',
      'LOCALHOST',
    ])('given the loopback host %s, when settings are loaded, then it is accepted', (host) => {
      expect(load(undefined, { HOST: host }).server.host).toBe(host);
    });

    it.each([
      '0.0.0.0',
      '::',
      '192.168.1.5',
      '128.0.0.1',
      'example.com',
      'localhost.example.com',
      '127.0.0.1.nip.io',
    ])(
      'given the host %s, which other machines can reach, when settings are loaded, then it is refused with advice',
      (host) => {
        expect(problemsOf(undefined, { HOST: host })).toEqual([
          expect.stringMatching(/^HOST must be a loopback address .*COLLOQUY_API_KEYS=name:tenant:key/),
        ]);
      },
    );

    it('given API keys, when the host is one that other machines can reach, then it is accepted', () => {
      expect(load(undefined, { HOST: '0.0.0.0', COLLOQUY_API_KEYS: 'a:b:c' }).server.host).toBe('0.0.0.0');
    });
  });
});
