import { hash, timingSafeEqual } from 'node:crypto';
import type { FastifyRequest } from 'fastify';
import { ApiError } from '../http/problem.js';
import { ALL_SCOPES, ALL_TENANTS, type Identity, usualScopes } from './caller.js';
import { KEY_PREFIX } from './key-store.js';
import { type ApiKey } from './keys.schemas.js';
import { type KnownKeys } from './known-keys.js';
import { type Tokens } from './tokens.js';

/**
 * One way to authenticate a caller, e.g. by a key of the settings, or as a program on the local machine.
 *
 * @param credential the bearer token of the request, if it has one
 * @returns undefined when the request carries nothing that is known here
 * @throws ApiError when it does, and that is not valid or not allowed
 */
export type Authenticator = (
  request: FastifyRequest,
  credential: string | undefined,
) => Identity | undefined | Promise<Identity | undefined>;

export interface AuthSettings {
  readonly mode: 'none' | 'api-key';
  readonly keys: readonly { readonly name: string; readonly tenant: string; readonly sha256: string }[];
}

/** The authenticators that need nothing but these settings, in the order in which they are tried. */
export const authenticatorsOf = ({ mode, keys }: AuthSettings): readonly Authenticator[] =>
  mode === 'none' ? [localMachine()] : [settingsKeys(keys)];

/**
 * Authenticates by the keys of the settings. Keys of a tenant have all scopes but `admin`, keys of operators have all.
 */
function settingsKeys(keys: AuthSettings['keys']): Authenticator {
  const known = keys.map(({ name, tenant, sha256 }) => ({
    hash: Buffer.from(sha256, 'hex'),
    identity: { tenant, actor: name, scopes: usualScopes(tenant) },
  }));
  return (_request, credential) => {
    if (credential === undefined || known.length === 0) return undefined;
    const presentedHash = Buffer.from(hash('sha256', credential), 'hex');
    // All keys are compared, each in constant time, so that the time taken reveals nothing about them.
    let holder: (typeof known)[number] | undefined;
    for (const key of known) if (timingSafeEqual(key.hash, presentedHash)) holder = key;
    return holder?.identity;
  };
}

/** Authenticates by the keys in the database. */
export function databaseKeys(known: KnownKeys): Authenticator {
  return (_request, credential) => {
    if (!credential?.startsWith(KEY_PREFIX)) return undefined;
    const found = known.find(credential);
    return found instanceof Promise ? found.then(identityOf) : identityOf(found);
  };
}

const identityOf = (key: ApiKey | undefined): Identity | undefined =>
  key && { tenant: key.tenant, actor: key.name, scopes: new Set(key.scopes) };

/** Authenticates by tokens of an issuer. */
export const tokensOf =
  (tokens: Tokens): Authenticator =>
  (_request, credential) =>
    credential === undefined ? undefined : tokens.identify(credential);

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
    return { tenant: ALL_TENANTS, actor: 'anonymous', scopes: ALL_SCOPES };
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
