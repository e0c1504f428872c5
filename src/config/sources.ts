import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseDocument } from 'yaml';
import { ConfigError } from './config-error.js';
import { settings } from './schema.js';

export type Environment = Readonly<Record<string, string | undefined>>;

/** What a variable sets, and how its text becomes the value that the schema then checks. */
export const VARIABLES: readonly {
  name: string;
  path: readonly [string, ...string[]];
  read?: (raw: string) => unknown;
}[] = [
  { name: 'HOST', path: ['server', 'host'] },
  { name: 'PORT', path: ['server', 'port'], read: number },
  { name: 'COLLOQUY_PROCESSES', path: ['server', 'processes'], read: number },
  { name: 'COLLOQUY_CORS_ORIGINS', path: ['server', 'corsOrigins'], read: list },
  { name: 'LOG_LEVEL', path: ['server', 'logLevel'] },
  { name: 'DATABASE_URL', path: ['storage', 'database'], read: (raw) => ({ type: 'postgresql', url: raw }) },
  { name: 'DATABASE_DIRECT_URL', path: ['storage', 'database', 'directUrl'] },
  { name: 'DATABASE_REPLICA_URLS', path: ['storage', 'database', 'replicas'], read: list },
  { name: 'DATABASE_CELLS', path: ['storage', 'database', 'cells'], read: cellEntries },
  { name: 'DATABASE_WEIGHT', path: ['storage', 'database', 'weight'], read: number },
  { name: 'REDIS_URL', path: ['storage', 'cache'], read: (raw) => ({ type: 'redis', url: raw }) },
  { name: 'COLLOQUY_DATA_DIR', path: ['storage', 'dataDir'] },
  { name: 'COLLOQUY_MASTER_KEY', path: ['storage', 'masterKey'] },
  { name: 'KAFKA_BROKERS', path: ['kafka', 'brokers'], read: list },
  { name: 'OPENAI_API_KEY', path: ['llm', 'apiKey'] },
  { name: 'OPENAI_BASE_URL', path: ['llm', 'baseURL'] },
  { name: 'LLM_MODEL', path: ['llm', 'model'] },
  { name: 'MAX_SESSIONS', path: ['sessions', 'maxSessions'], read: number },
  { name: 'SESSION_TTL_MS', path: ['sessions', 'sessionTTL'], read: number },
  { name: 'SESSION_CAP_POLICY', path: ['sessions', 'capPolicy'] },
  { name: 'COLLOQUY_API_KEYS', path: ['auth', 'keys'], read: (raw) => list(raw).map(keyEntry) },
  { name: 'COLLOQUY_JWT_ISSUER', path: ['auth', 'jwt', 'issuer'] },
  { name: 'COLLOQUY_JWT_AUDIENCE', path: ['auth', 'jwt', 'audience'], read: list },
  { name: 'COLLOQUY_JWT_JWKS_URL', path: ['auth', 'jwt', 'jwksUrl'] },
  { name: 'COLLOQUY_JWT_PUBLIC_KEY', path: ['auth', 'jwt', 'publicKey'] },
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

// Separated by blanks, because a URL that names several hosts has commas.
function cellEntries(raw: string): unknown {
  return raw
    .split(/\s+/)
    .filter(Boolean)
    .map((entry) => {
      const [name = '', ...url] = entry.split('=');
      return { name, url: url.join('=') };
    });
}

export interface Source {
  readonly env: Environment;
  readonly cwd: string;
  /** What a program sets in code, in the shape of the file; undefined members are skipped. */
  readonly overrides?: object;
}

/** Settings as they were given, not checked yet. */
export interface GivenSettings {
  /** In the shape of the file: the file, over it the environment, over it the overrides. */
  readonly merged: Record<string, unknown>;
  /** Names a setting as its author knows it: by variable, or by dotted path with the file it stands in. */
  readonly nameOf: (path: readonly PropertyKey[]) => string;
}

/** @throws ConfigError when the settings file cannot be read or parsed */
export function gatherSettings(source: Source): GivenSettings {
  const { env, cwd } = source;
  const file = readSettingsFile(env, cwd);
  const given = (name: string) => (env[name] === '' ? undefined : env[name]);

  const merged = copyOf(file.content);
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

  const nameOf = (path: readonly PropertyKey[]): string => {
    const dotted = path.map(String).join('.');
    // The last one that fits: of two variables for parts of one section, the narrower stands behind.
    const variable = VARIABLES.findLast(
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
  return { merged, nameOf };
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
