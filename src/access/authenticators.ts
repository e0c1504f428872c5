import { hash, timingSafeEqual } from 'node:crypto';
import type { FastifyRequest } from 'fastify';
import { ApiError, invalidRequest } from '../http/problem.js';
import { ALL_BUT_ADMIN, ALL_SCOPES, type Caller } from './caller.js';

/**
 * One way to authenticate a caller, e.g. by a key of the settings, or as a program on the local machine.
 *
 * @returns undefined when the request carries nothing of this kind
 * @throws ApiError when it does, and that is not valid or not allowed
 */
export type Authenticator = (request: FastifyRequest) => Caller | undefined | Promise<Caller | undefined>;

export interface AuthSettings {
  readonly mode: 'none' | 'api-key';
  readonly keys: readonly { readonly name: string; readonly tenant: string; readonly sha256: string }[];
}

/** The authenticators for these settings, in the order in which they are tried. */
export const authenticatorsOf = ({ mode, keys }: AuthSettings): readonly Authenticator[] =>
  mode === 'none' ? [localMachine()] : [settingsKeys(keys)];

const TENANT_HEADER = 'colloquy-tenant';
const TENANT_ID = /^[a-z0-9][a-z0-9_-]{0,62}$/;
const DEFAULT_TENANT = 'default';
/** The tenant in the entry of an operator's key, which may reach all tenants. */
const ALL_TENANTS = '*';

/**
 * Authenticates by the keys of the settings. Keys of a tenant have all scopes but `admin`, keys of operators have all.
 */
function settingsKeys(keys: AuthSettings['keys']): Authenticator {
  const known = keys.map(({ name, tenant, sha256 }) => ({ name, tenant, hash: Buffer.from(sha256, 'hex') }));
  return (request) => {
    const presented = presentedKey(request);
    if (presented === undefined) return undefined;
    const presentedHash = Buffer.from(hash('sha256', presented), 'hex');
    // All keys are compared, each in constant time, so that the time taken reveals nothing about them.
    let holder: (typeof known)[number] | undefined;
    for (const key of known) if (timingSafeEqual(key.hash, presentedHash)) holder = key;
    if (holder === undefined) throw unauthenticated('The API key is not known.');
    const tenant = namedTenant(request);
    if (holder.tenant === ALL_TENANTS) {
      return { tenant: tenant ?? DEFAULT_TENANT, actor: holder.name, scopes: ALL_SCOPES };
    }
    if (tenant !== undefined && tenant !== holder.tenant) {
      throw new ApiError(
        'forbidden',
        'The API key belongs to another tenant than the header Colloquy-Tenant names.',
      );
    }
    return { tenant: holder.tenant, actor: holder.name, scopes: ALL_BUT_ADMIN };
  };
}

/** The bearer token of a request, if it has one. */
const presentedKey = (request: FastifyRequest): string | undefined =>
  /^bearer +([\x21-\x7e]+)$/i.exec(request.headers.authorization ?? '')?.[1];

/**
 * Without keys, running on this machine is the only credential, and web pages that its user opens have it as well. They
 * are refused by their headers: a page of another site sends its own Origin, and a page whose name points to 127.0.0.1
 * (DNS rebinding) sends that name as Host.
 */
function localMachine(): Authenticator {
  const isLocal = createLocalCheck();
  return (request) => {
    if (!isLocal(request.headers.host) || !isLocal(request.headers.origin?.replace(/^https?:\/\//, ''))) {
      throw new ApiError(
        'forbidden',
        'Without API keys this server only answers requests made to and from the local host: set COLLOQUY_API_KEYS.',
      );
    }
    return { tenant: namedTenant(request) ?? DEFAULT_TENANT, actor: 'anonymous', scopes: ALL_SCOPES };
  };
}

/** Remembers the names that were checked last, so that repeated checks are cheap. */
function createLocalCheck(): (authority: string | undefined) => boolean {
  let lastLocal: string | undefined;
  return (authority) => {
    if (authority === undefined || authority === lastLocal) return true;
    const isLocal = /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?$/i.test(authority);
    if (isLocal) lastLocal = authority;
    return isLocal;
  };
}

export const unauthenticated = (detail: string): ApiError =>
  new ApiError('unauthenticated', detail, { headers: { 'www-authenticate': 'Bearer' } });

function namedTenant(request: FastifyRequest): string | undefined {
  const header = request.headers[TENANT_HEADER];
  if (header === undefined) return undefined;
  if (typeof header !== 'string' || !TENANT_ID.test(header)) {
    throw invalidRequest([
      {
        pointer: '/Colloquy-Tenant',
        in: 'header',
        detail: 'must be a tenant id: 1 to 63 of a-z 0-9 _ -, beginning with a letter or digit',
      },
    ]);
  }
  return header;
}
