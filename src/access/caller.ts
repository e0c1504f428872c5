import { hash, timingSafeEqual } from 'node:crypto';
import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { ApiError, invalidRequest } from '../http/problem.js';

/** On whose behalf a request is made. */
export interface Caller {
  /** The tenant whose sessions the request is about. */
  readonly tenant: string;
  /** Who did it, as events record it: the name of the API key, or `anonymous`. */
  readonly actor: string;
  /** Whether `/admin` is allowed. */
  readonly operator: boolean;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Null on the paths that need no key. */
    caller: Caller | null;
  }
}

export interface AuthSettings {
  readonly mode: 'none' | 'api-key';
  readonly keys: readonly { readonly name: string; readonly tenant: string; readonly sha256: string }[];
}

const TENANT_HEADER = 'colloquy-tenant';
const TENANT_ID = /^[a-z0-9][a-z0-9_-]{0,62}$/;
const DEFAULT_TENANT = 'default';

/**
 * Tells the caller of a request; null on an open path.
 *
 * @throws ApiError `unauthenticated` without a valid key, `forbidden` for another tenant than the key's,
 * `invalid-request` for a tenant header that is no tenant id
 */
export type Authenticate = (request: FastifyRequest) => Caller | null;

export function createAuthenticator({ mode, keys }: AuthSettings): Authenticate {
  if (mode === 'none') {
    const isLocal = createLocalCheck();
    return (request) => {
      if (isOpen(request.raw.url)) {
        return null;
      }
      if (!isLocal(request.headers.host) || !isLocal(request.headers.origin?.replace(/^https?:\/\//, ''))) {
        throw new ApiError(
          'forbidden',
          'Without API keys this server only answers requests made to and from the local host: set COLLOQUY_API_KEYS.',
        );
      }
      return { tenant: namedTenant(request) ?? DEFAULT_TENANT, actor: 'anonymous', operator: true };
    };
  }
  const known = keys.map(({ name, tenant, sha256 }) => ({ name, tenant, hash: Buffer.from(sha256, 'hex') }));
  return (request) => {
    if (isOpen(request.raw.url)) {
      return null;
    }
    const presented = /^bearer +([\x21-\x7e]+)$/i.exec(request.headers.authorization ?? '')?.[1];
    if (presented === undefined) {
      throw unauthenticated('Send an API key: "Authorization: Bearer <key>".');
    }
    const presentedHash = Buffer.from(hash('sha256', presented), 'hex');
    // All keys are compared, and each in full: the time taken tells nothing about them.
    let holder: (typeof known)[number] | undefined;
    for (const key of known) {
      if (timingSafeEqual(key.hash, presentedHash)) {
        holder = key;
      }
    }
    if (holder === undefined) {
      throw unauthenticated('The API key is not known.');
    }
    const tenant = namedTenant(request);
    if (holder.tenant === '*') {
      return { tenant: tenant ?? DEFAULT_TENANT, actor: holder.name, operator: true };
    }
    if (tenant !== undefined && tenant !== holder.tenant) {
      throw new ApiError(
        'forbidden',
        'The API key belongs to another tenant than the header Colloquy-Tenant names.',
      );
    }
    return { tenant: holder.tenant, actor: holder.name, operator: false };
  };
}

/** @throws ApiError `forbidden` for everybody but operators */
export function requireOperator(caller: Caller): void {
  if (!caller.operator) {
    throw new ApiError('forbidden', 'This needs the API key of an operator.');
  }
}

/** The caller of a request on any path but the open ones. */
export function callerOf(request: FastifyRequest): Caller {
  if (request.caller === null) {
    throw new Error('A route on an open path has no caller');
  }
  return request.caller;
}

/** The caller of the request, as a parameter of a handler. */
export const Caller = createParamDecorator((_: unknown, context: ExecutionContext) =>
  callerOf(context.switchToHttp().getRequest<FastifyRequest>()),
);

/**
 * By the path as it was sent, before any decoding: a path that merely decodes to an open one needs a key, never
 * the other way round, because routes are matched without resolving dots or doubled slashes.
 */
function isOpen(url = ''): boolean {
  const end = url.indexOf('?');
  const path = end === -1 ? url : url.slice(0, end);
  return (
    path.startsWith('/health/') ||
    path === '/openapi.json' ||
    path === '/asyncapi.json' ||
    path === '/schemas' ||
    path.startsWith('/schemas/') ||
    path === '/docs' ||
    path.startsWith('/docs/')
  );
}

function unauthenticated(detail: string): ApiError {
  return new ApiError('unauthenticated', detail, { headers: { 'www-authenticate': 'Bearer' } });
}

function namedTenant(request: FastifyRequest): string | undefined {
  const header = request.headers[TENANT_HEADER];
  if (header === undefined) {
    return undefined;
  }
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

/**
 * Without keys, being on this machine is the only credential, and every web page that its user opens has it too.
 * A page of a foreign site sends its own Origin, and one that had its name pointed at 127.0.0.1 (DNS rebinding)
 * sends that name as Host. Names seen last are remembered, so a busy client costs a comparison.
 */
function createLocalCheck(): (authority: string | undefined) => boolean {
  let lastLocal: string | undefined;
  return (authority) => {
    if (authority === undefined || authority === lastLocal) {
      return true;
    }
    const isLocal = /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?$/i.test(authority);
    if (isLocal) {
      lastLocal = authority;
    }
    return isLocal;
  };
}
