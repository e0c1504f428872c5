import type { FastifyInstance, FastifyRequest } from 'fastify';
import { ApiError } from '../http/problem.js';
import { type Authenticator, unauthenticated } from './authenticators.js';
import { type Caller } from './caller.js';

/**
 * Lets requests in by who makes them, before their bodies are read: nobody without a key makes the server parse a
 * megabyte. It denies by default: a route says what it asks of its caller (`@Requires`, `@Public`, or `config.access` of
 * a route that Fastify is given directly), and one that does not keeps the service from starting.
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
   * Finds out who makes a request, and lets it in.
   * @throws ApiError `unauthenticated`, `forbidden`; `invalid-request` for a tenant header that is no tenant id
   */
  async admit(request: FastifyRequest): Promise<void> {
    const { access } = request.routeOptions.config;
    if (access === 'public') {
      // Who says nothing, or something wrong, is nobody in particular: the route answers everybody.
      request.caller = await this.identify(request).catch(() => null);
      return;
    }
    // A path that leads nowhere is nobody's business either, so a caller is asked for first.
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
