import { applyDecorators } from '@nestjs/common';
import { RouteConfig } from '@nestjs/platform-fastify';
import { type Scope } from './caller.js';

/** What a route asks of its caller: a scope, or nothing. */
export type Requirement = { readonly scope: Scope } | 'public';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** A route without one does not start. */
    access?: Requirement;
  }
}

const REQUIREMENT = Symbol('what a route asks of its caller');

/** Only callers with this scope get in; to others the route answers 403, and 401 to those who do not say who they are. */
export const Requires = (scope: Scope): MethodDecorator => declared({ scope });

/** Everybody gets in. Whoever says who they are is known to the handler nevertheless. */
export const Public = (): MethodDecorator => declared('public');

/** What the handler of a route declares, for the documents. */
export const requirementOf = (prototype: object, key: string): Requirement | undefined =>
  Reflect.getMetadata(REQUIREMENT, prototype, key) as Requirement | undefined;

function declared(access: Requirement): MethodDecorator {
  const remember: MethodDecorator = (target, key) => {
    Reflect.defineMetadata(REQUIREMENT, access, target, key);
  };
  // The guard reads it from Fastify's route, before the body is read and before Nest sees the request.
  return applyDecorators(RouteConfig({ access }), remember);
}
