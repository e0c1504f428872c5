import type { FastifyInstance, FastifyRequest } from 'fastify';
import { ApiError, invalidRequest, unauthenticated } from '../http/problem.js';
import { TENANT_ID } from '../domain/tenant.js';
import { type Authenticator } from './authenticators.js';
import { ALL_TENANTS, type Caller, DEFAULT_TENANT, type Identity, type Scope } from './caller.js';
import { type Limits } from './limits.js';
import { OWN, type Requirement } from './requirement.js';

const TENANT_HEADER = 'colloquy-tenant';

declare module 'fastify' {
  interface FastifyInstance {
    guard: Guard;
  }
}

/**
 * Authenticates and authorizes requests before their bodies are read, so that nobody without a key makes the server
 * parse a megabyte. It denies by default: every route declares what it needs (`@Requires`, `@Public`, or
 * `config.access` of a route that is added to Fastify directly), and a route without a declaration keeps the service
 * from starting.
 */
export class Guard {
  private readonly authenticators: Authenticator[];
  /** Nothing is limited until there are limits. */
  private limits: Limits | undefined;

  constructor(authenticators: readonly Authenticator[]) {
    this.authenticators = [...authenticators];
  }

  /** To be called before any route is added. */
  install(fastify: FastifyInstance): void {
    fastify.decorateRequest('caller', null);
    fastify.addHook('onRoute', ({ method, url, config }) => {
      if (config?.access !== undefined) return;
      throw new Error(
        `${String(method)} ${url} does not say who may call it: put @Requires(scope) or @Public() on its handler`,
      );
    });
  }

  /** Adds ways to authenticate, which are tried behind those that there are, and limits that hold from then on. */
  extend(authenticators: readonly Authenticator[], limits: Limits): void {
    this.authenticators.push(...authenticators);
    this.limits = limits;
  }

  /**
   * Authenticates the caller of a request, checks the scope that the route needs, and counts the request.
   * @throws ApiError `unauthenticated`, `forbidden`, `rate-limited`; `invalid-request` for a tenant header that is no
   *   tenant id; `database-unavailable` and `issuer-unavailable` when nobody can tell who calls
   */
  async admit(request: FastifyRequest): Promise<void> {
    const { access } = request.routeOptions.config;
    if (access === 'public') {
      // A public route answers everybody, including callers with missing or wrong credentials.
      request.caller = await this.identify(request)
        .then((identity) => (identity ? callerFor(request, identity, undefined) : null))
        .catch(() => null);
      return;
    }
    // Unknown paths need a caller as well, so that strangers cannot find out which paths exist.
    const identity = await this.identify(request);
    if (!identity) {
      throw unauthenticated(
        credentialOf(request) === undefined
          ? 'Send an API key or a token: "Authorization: Bearer <key>".'
          : 'The API key or token is not known, or it has run out or was revoked.',
      );
    }
    const caller = callerFor(request, identity, access);
    request.caller = caller;
    const counted = this.limits?.request(caller);
    if (counted) await counted;
  }

  /** Takes a place among the streams that a caller may have open. @returns what gives it back */
  async enterStream(caller: Caller): Promise<() => void> {
    return this.limits ? this.limits.enter('streams', caller) : () => undefined;
  }

  private async identify(request: FastifyRequest): Promise<Identity | null> {
    const credential = credentialOf(request);
    for (const authenticator of this.authenticators) {
      const known = authenticator(request, credential);
      const identity = known instanceof Promise ? await known : known;
      if (identity) return identity;
    }
    return null;
  }
}

/**
 * The bearer token of a request, if it has one. Which characters it has is not looked at here: each way to authenticate
 * knows the form of its own, and tokens that are known need not be looked through at each request.
 */
function credentialOf({ headers: { authorization } }: FastifyRequest): string | undefined {
  const scheme = authorization && /^bearer +(?=[^ ])/i.exec(authorization);
  return scheme ? authorization.slice(scheme[0].length) : undefined;
}

/** What an identity may do on a route. @throws ApiError `forbidden`, `invalid-request` */
function callerFor(
  request: FastifyRequest,
  { tenant: ofIdentity, actor, scopes, own }: Identity,
  access: Exclude<Requirement, 'public'> | undefined,
): Caller {
  const named = namedTenant(request);
  if (ofIdentity !== ALL_TENANTS && named !== undefined && named !== ofIdentity) {
    throw new ApiError(
      'forbidden',
      'The credentials are of another tenant than the header Colloquy-Tenant names.',
    );
  }
  const tenant = ofIdentity === ALL_TENANTS ? (named ?? DEFAULT_TENANT) : ofIdentity;
  const whole: Caller = { tenant, actor, scopes, ownedBy: null };
  if (!access) return whole;
  const takesOwners = access.scope.endsWith(OWN);
  const scope = (takesOwners ? access.scope.slice(0, -OWN.length) : access.scope) as Scope;
  if (scopes.has(scope)) return whole;
  if (!own?.scopes.has(scope)) {
    throw new ApiError(
      'forbidden',
      scope === 'admin' ? 'This needs the API key of an operator.' : `This needs the scope ${scope}.`,
    );
  }
  if (!takesOwners) {
    throw new ApiError(
      'forbidden',
      `This is about all sessions of the tenant: it needs the scope ${scope}, without ${OWN}.`,
    );
  }
  return { tenant, actor, scopes, ownedBy: own.owner };
}

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
