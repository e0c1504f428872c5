import { type HttpAdapterHost } from '@nestjs/core';
import { FastifyAdapter } from '@nestjs/platform-fastify';
import type { FastifyInstance, RouteHandlerMethod } from 'fastify';
import { type AnsweredListeners } from './request-log.js';

/** Fastify makes a route for HEAD of each one for GET, with the same handler, so both have one name. */
export const routeName = (method: string, url: string): string =>
  `${method === 'HEAD' ? 'GET' : method} ${url}`;

/**
 * The HTTP adapter of an application without a server: keeps its handlers. A router and contexts of routes like those of
 * the server would take a megabyte for each application, and each request would go through the same hooks twice.
 */
export class BackendAdapter extends FastifyAdapter {
  readonly answeredListeners: AnsweredListeners = [];

  /** @param lastRequest asked when it is to close. Resolves when it gets no more requests; until then it waits. */
  constructor(
    private readonly lastRequest: () => Promise<void> | undefined,
    readonly handlers = new Map<string, RouteHandlerMethod>(),
  ) {
    super(collectorOf(handlers));
  }

  override init(): Promise<void> {
    return Promise.resolve();
  }

  override registerParserMiddleware(): void {
    // The server has parsed the body.
  }

  override setErrorHandler(): ReturnType<FastifyAdapter['setErrorHandler']> {
    return this.getInstance();
  }

  override setNotFoundHandler(): ReturnType<FastifyAdapter['setNotFoundHandler']> {
    return this.getInstance();
  }

  override async close(): Promise<void> {
    await this.lastRequest();
  }
}

/** What the adapter needs of Fastify to give it routes, as controllers have them. Nest's middleware would need more. */
const collectorOf = (handlers: Map<string, RouteHandlerMethod>): FastifyInstance =>
  ({
    // By this the adapter knows that it need not make an instance.
    server: {},
    initialConfig: {},
    supportedMethods: ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'],
    addHook: () => undefined,
    route: (route: { method: string; url: string; handler: RouteHandlerMethod }) => {
      handlers.set(routeName(route.method, route.url), route.handler);
    },
  }) as unknown as FastifyInstance;

/** The server of an application; undefined for one without, as are those of cells, of commands and of some tests. */
export function serverOf({ httpAdapter }: Partial<HttpAdapterHost>): FastifyInstance | undefined {
  const adapter = httpAdapter as HttpAdapterHost['httpAdapter'] | null | undefined;
  return adapter instanceof BackendAdapter ? undefined : adapter?.getInstance<FastifyInstance>();
}
