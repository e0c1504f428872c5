import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';

/** What a caller may do. Each route needs one of these, or is open to everybody. */
export const SCOPES = [
  'sessions:read',
  'sessions:write',
  'generate',
  'audit:read',
  'erase',
  'admin',
] as const;
export type Scope = (typeof SCOPES)[number];

export const ALL_SCOPES: ReadonlySet<Scope> = new Set(SCOPES);
export const ALL_BUT_ADMIN: ReadonlySet<Scope> = new Set(SCOPES.filter((scope) => scope !== 'admin'));

/** On whose behalf a request is made. */
export interface Caller {
  /** The tenant whose sessions the request is about. */
  readonly tenant: string;
  /** Who did it, as events record it: the name of the API key, or `anonymous`. */
  readonly actor: string;
  readonly scopes: ReadonlySet<Scope>;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Null where nobody has to say who they are, and has not. */
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
