import { createPublicKey, type KeyObject } from 'node:crypto';
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  customFetch,
  errors,
  type JWTPayload,
  type JWTVerifyGetKey,
  jwtVerify,
} from 'jose';
import { boundedCache } from '../bounded-cache.js';
import { type TokenSettings } from '../config.js';
import { owner as ownerSchema } from '../domain/session.events.js';
import { TENANT_ID } from '../domain/tenant.js';
import { ApiError, unauthenticated } from '../http/problem.js';
import { ALL_TENANTS, type Identity, type Scope, SCOPES } from './caller.js';

/** Signatures by a secret that we would share with the issuer are not among them, and `none` is not. */
const ALGORITHMS = [
  ...['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'],
  ...['ES256', 'ES384', 'ES512', 'EdDSA', 'Ed25519'],
];
/** Clocks of issuers differ from ours by so much. */
const CLOCK_TOLERANCE_S = 5;
/** A signature that was checked is not checked again for so long, if the token does not run out before. */
const CHECKED_MS = 30_000;
const CHECKED_TOKENS = 10_000;
/** Characters at the end of a token, all of its signature, by which it is looked for. */
const SIGNED = 64;
const JWKS_TIMEOUT_MS = 3_000;
/** Longest name that is recorded of a subject. */
const ACTOR = /^\P{Cc}{1,255}$/u;
const OWN = ':own';
const FORM = /^[\w-]+\.[\w-]+\.[\w-]+$/;

interface Checked {
  readonly token: string;
  readonly identity: Identity;
  readonly until: number;
}

/**
 * Callers by JSON Web Tokens (RFC 7519) of one issuer, signed by an asymmetric key. The subject is the actor of what the
 * caller does. A scope that ends in `:own` holds for the sessions of one owner.
 */
export class Tokens {
  /**
   * By the end of their signatures, and compared as a whole: each request brings its token as a new string, and to hash all
   * of it takes longer than all else that is done to know who calls.
   */
  private readonly checked = boundedCache<string, Checked>(CHECKED_TOKENS);
  private readonly checking = new Map<string, Promise<Identity>>();
  private readonly verify: (token: string) => Promise<JWTPayload>;

  /** @param onFailure receives the error when the issuer's keys cannot be fetched */
  constructor(
    private readonly settings: TokenSettings,
    private readonly onFailure: (error: unknown) => void,
  ) {
    const { issuer, audience, keys } = settings;
    const options = {
      issuer,
      audience: [...audience],
      algorithms: ALGORITHMS,
      clockTolerance: CLOCK_TOLERANCE_S,
      requiredClaims: ['exp', 'sub'],
    };
    if ('pem' in keys) {
      const key: KeyObject = createPublicKey(keys.pem);
      this.verify = async (token) => (await jwtVerify(token, key, options)).payload;
    } else {
      const published = this.publishedKeys(keys.url);
      this.verify = async (token) => (await jwtVerify(token, published, options)).payload;
    }
  }

  /**
   * @returns undefined for a credential that has not the form of a token, so that it is something else
   * @throws ApiError `unauthenticated`; `issuer-unavailable` when the keys of the issuer cannot be fetched
   */
  identify(token: string): Identity | Promise<Identity> | undefined {
    const known = this.checked.get(token.slice(-SIGNED));
    if (known?.token === token && known.until > Date.now()) return known.identity;
    if (!FORM.test(token)) return undefined;
    const checking = this.checking.get(token) ?? this.check(token);
    this.checking.set(token, checking);
    return checking;
  }

  private async check(token: string): Promise<Identity> {
    try {
      const claims = await this.verify(token);
      const identity = this.identityOf(claims);
      const until = Math.min(Date.now() + CHECKED_MS, (claims.exp ?? 0) * 1_000);
      this.checked.set(token.slice(-SIGNED), { token, identity, until });
      return identity;
    } catch (error) {
      if (error instanceof ApiError) throw error;
      if (error instanceof errors.JOSEError)
        throw unauthenticated(`The token is not valid: ${error.message}.`);
      throw error;
    } finally {
      this.checking.delete(token);
    }
  }

  /** The keys that the issuer publishes. While they cannot be fetched, those that were fetched before are used. */
  private publishedKeys(url: string): JWTVerifyGetKey {
    const remote = createRemoteJWKSet(new URL(url), {
      timeoutDuration: JWKS_TIMEOUT_MS,
      // An address that redirects could lead into the network of the service.
      [customFetch]: (address, init) => fetch(address, { ...init, redirect: 'error' }),
    });
    return async (header, token) => {
      try {
        return await remote(header, token);
      } catch (error) {
        if (error instanceof errors.JWKSNoMatchingKey || error instanceof errors.JWKSMultipleMatchingKeys)
          throw error;
        this.onFailure(error);
        const before = remote.jwks();
        if (before) return createLocalJWKSet(before)(header, token);
        throw new ApiError('issuer-unavailable', 'The keys of the issuer of tokens cannot be fetched.', {
          cause: error,
        });
      }
    };
  }

  private identityOf(payload: JWTPayload): Identity {
    const { claims, tenant: fixed } = this.settings;
    const tenant = fixed ?? payload[claims.tenant];
    if (typeof tenant !== 'string' || (tenant !== ALL_TENANTS && !TENANT_ID.test(tenant)))
      throw unauthenticated(`The token names no tenant: its claim ${claims.tenant} must be a tenant id.`);
    const { sub: actor = '' } = payload;
    if (!ACTOR.test(actor)) throw unauthenticated('The token names no subject of 1 to 255 characters.');
    const named = namesIn(payload[claims.scopes]);
    const scopes = new Set<Scope>(SCOPES.filter((scope) => named.has(scope)));
    // Whoever reaches one tenant administrates nothing: these routes are about all tenants.
    if (tenant !== ALL_TENANTS) scopes.delete('admin');
    const own = SCOPES.filter((scope) => named.has(scope + OWN));
    if (own.length === 0) return { tenant, actor, scopes };
    const owner = ownerSchema.safeParse(payload[claims.owner]);
    if (!owner.success) throw unauthenticated(`The token names no owner: its claim ${claims.owner} is none.`);
    return { tenant, actor, scopes, own: { owner: owner.data, scopes: new Set(own) } };
  }
}

/** The names in a claim: separated by blanks (RFC 8693), or a list. */
function namesIn(claim: unknown): ReadonlySet<string> {
  const names: unknown[] = typeof claim === 'string' ? claim.split(' ') : Array.isArray(claim) ? claim : [];
  return new Set(names.filter((name) => typeof name === 'string'));
}
