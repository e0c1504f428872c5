import { type ServerResponse } from 'node:http';
import type { FastifyReply, FastifyRequest } from 'fastify';
import helmet from 'helmet';

/** The usual headers of `helmet`, for answers that no browser should show as a page. They are the same for all answers. */
export const SECURITY_HEADERS: Readonly<Record<string, string>> = headersOf(
  helmet({
    contentSecurityPolicy: {
      useDefaults: false,
      directives: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
    },
    xFrameOptions: { action: 'deny' },
  }),
);

/** The headers that a middleware sets, found out once instead of for each answer. */
function headersOf(middleware: ReturnType<typeof helmet>): Record<string, string> {
  const headers: Record<string, string> = {};
  const response = {
    setHeader: (name: string, value: string) => (headers[name.toLowerCase()] = value),
    removeHeader: () => undefined,
  } as unknown as ServerResponse;
  middleware({} as Parameters<typeof middleware>[0], response, (error) => {
    if (error) throw error as Error;
  });
  return headers;
}

const METHODS = 'GET, HEAD, POST, PUT, PATCH, DELETE';
/** What a page may send. The key or token is a header, so that no cookie is ever sent along. */
const REQUEST_HEADERS =
  'authorization, content-type, if-match, idempotency-key, last-event-id, x-correlation-id, colloquy-tenant, colloquy-cell, openai-beta, openai-organization, openai-project';
const ANSWER_HEADERS = 'etag, location, retry-after, x-correlation-id, x-error-code, x-request-id';
const PREFLIGHT_SECONDS = '600';

/** Which pages of other origins may call (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol). */
export class AllowedOrigins {
  private readonly origins: ReadonlySet<string>;

  /** @param origins as a browser sends them, e.g. `https://app.example.com`; `*` stands for all */
  constructor(origins: readonly string[]) {
    this.origins = new Set(origins);
  }

  /** Tells the browser whether the page may read the answer. @returns whether the request only asks that beforehand */
  answer({ method, headers }: FastifyRequest, reply: FastifyReply): boolean {
    if (this.origins.size === 0) return false;
    const { origin } = headers;
    // Caches must not give the answer for one origin to another.
    reply.header('vary', 'Origin');
    const isAllowed = origin !== undefined && (this.origins.has(origin) || this.origins.has('*'));
    if (!isAllowed) return false;
    reply
      .header('access-control-allow-origin', origin)
      .header('access-control-expose-headers', ANSWER_HEADERS);
    if (method !== 'OPTIONS' || headers['access-control-request-method'] === undefined) return false;
    reply
      .header('access-control-allow-methods', METHODS)
      .header('access-control-allow-headers', REQUEST_HEADERS)
      .header('access-control-max-age', PREFLIGHT_SECONDS);
    return true;
  }
}
