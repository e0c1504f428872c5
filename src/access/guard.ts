import type { FastifyInstance, FastifyRequest } from 'fastify';
import { ApiError } from '../http/problem.js';
import { type Authenticator, unauthenticated } from './authenticators.js';
import { type Caller } from './caller.js';

/**
 * Authenticates and authorizes requests before their bodies are read, so that nobody without a key makes the server
 * parse a megabyte. It denies by default: every route declares what it needs (`@Requires`, `@Public`, or
 * `config.access` of a route that is added to Fastify directly), and a route without a declaration keeps the service
 * from starting.
 */
export class Guard {
  constructor(private readonly authenticators: readonly Authenticator[]) {}

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

  /**
   * Authenticates the caller of a request and checks the scope that the route needs.
   * @throws ApiError `unauthenticated`, `forbidden`; `invalid-request` for a tenant header that is no tenant id
   */
  async admit(request: FastifyRequest): Promise<void> {
    const { access } = request.routeOptions.config;
    if (access === 'public') {
      // A public route answers everybody, including callers with missing or wrong credentials.
      request.caller = await this.identify(request).catch(() => null);
      return;
    }
    // Unknown paths need a caller as well, so that strangers cannot find out which paths exist.
    const caller = await this.identify(request);
    if (!caller) throw unauthenticated('Send an API key: "Authorization: Bearer <key>".');
    if (access && !caller.scopes.has(access.scope)) {
      throw new ApiError(
        'forbidden',
        access.scope === 'admin'
          ? 'This needs the API key of an operator.'
          : `This needs the scope ${access.scope}.`,
      );
    }
    request.caller = caller;
  }

  private async identify(request: FastifyRequest): Promise<Caller | null> {
    for (const authenticator of this.authenticators) {
      const known = authenticator(request);
      const caller = known instanceof Promise ? await known : known;
      if (caller) return caller;
    }
    return null;
  }
}
