import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';

/** The permissions of callers. Each route needs one of them, unless it is public. */
export const SCOPES = [
  'sessions:read',
  'sessions:write',
  'generate',
  'audit:read',
  'erase',
  'admin',
] as const;
export type Scope = (typeof SCOPES)[number];

/** The tenant of operators, who reach all tenants. Only they can have the scope `admin`. */
export const ALL_TENANTS = '*';
/** The tenant of requests that name none, where they may name any. */
export const DEFAULT_TENANT = 'default';

export const ALL_SCOPES: ReadonlySet<Scope> = new Set(SCOPES);
const ALL_BUT_ADMIN: ReadonlySet<Scope> = new Set(SCOPES.filter((scope) => scope !== 'admin'));

/** The scopes of a key for which none are named. */
export const usualScopes = (tenant: string): ReadonlySet<Scope> =>
  tenant === ALL_TENANTS ? ALL_SCOPES : ALL_BUT_ADMIN;

/** Who presents valid credentials, and what they allow. */
export interface Identity {
  /** A tenant, or `*` for an operator. */
  readonly tenant: string;
  /** The actor that events record: the name of the API key, the subject of the token, or `anonymous`. */
  readonly actor: string;
  readonly scopes: ReadonlySet<Scope>;
  /** Scopes that hold for the sessions of one owner alone. */
  readonly own?: { readonly owner: string; readonly scopes: ReadonlySet<Scope> } | undefined;
}

/** The authenticated caller of a request, as far as the route lets it reach. */
export interface Caller {
  /** The tenant whose sessions the request is about. */
  readonly tenant: string;
  /** The owner whose sessions alone the request may reach; null: all sessions of the tenant. */
  readonly ownedBy: string | null;
  readonly actor: string;
  readonly scopes: ReadonlySet<Scope>;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Null on public routes, for callers without credentials. */
    caller: Caller | null;
  }
}

/** The caller of a request to a route that needs a scope. */
export function callerOf(request: FastifyRequest): Caller {
  if (request.caller === null) throw new Error('A route that is open to everybody has no caller');
  return request.caller;
}

/** The caller of the request, as a parameter of a handler. */
export const Caller = createParamDecorator((_: unknown, context: ExecutionContext) =>
  callerOf(context.switchToHttp().getRequest<FastifyRequest>()),
);
