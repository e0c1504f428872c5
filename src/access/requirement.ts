import { applyDecorators } from '@nestjs/common';
import { RouteConfig } from '@nestjs/platform-fastify';
import { type Scope } from './caller.js';

/** The end of scopes that hold for the sessions of one owner alone. */
export const OWN = ':own';
/** A scope, or `<scope>:own`: the same, or that scope for the sessions of one owner. */
export type RequiredScope = Scope | `${Scope}${typeof OWN}`;

/** What a route needs of its caller: a scope, or nothing. */
export type Requirement = { readonly scope: RequiredScope } | 'public';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** A route without it keeps the service from starting. */
    access?: Requirement;
    /** The body may be as large as a message with a photograph in it. */
    takesMessages?: boolean;
  }
}

const REQUIREMENT = Symbol('what a route asks of its caller');

/**
 * The route answers only callers with this scope; others get 403, or 401 without credentials. With `:own` it answers
 * also callers who have the scope for the sessions of one owner alone, and has to keep to `caller.ownedBy`.
 *
 * @param body `messages`: its limit is `server.messageLimit` instead of `server.bodyLimit`
 */
export const Requires = (scope: RequiredScope, body?: 'messages'): MethodDecorator =>
  declared({ scope }, body === 'messages');

/** The route answers everybody. The handler still learns the caller of a request with valid credentials. */
export const Public = (): MethodDecorator => declared('public');

/** The requirement that a handler declares, for the API documents. */
export const requirementOf = (prototype: object, key: string): Requirement | undefined =>
  Reflect.getMetadata(REQUIREMENT, prototype, key) as Requirement | undefined;

function declared(access: Requirement, takesMessages = false): MethodDecorator {
  const remember: MethodDecorator = (target, key) => {
    Reflect.defineMetadata(REQUIREMENT, access, target, key);
  };
  // The guard and the server read this from Fastify's route, before the body is read and before Nest handles the request.
  return applyDecorators(RouteConfig({ access, ...(takesMessages && { takesMessages }) }), remember);
}
