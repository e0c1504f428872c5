import type { RouteHandlerMethod } from 'fastify';
import { type AnsweredListeners } from './request-log.js';
import { type Unanswered } from './unanswered.js';

declare module 'fastify' {
  interface FastifyRequest {
    /** The application that answers the request; null: that of the server which took it. */
    backend: Backend | null;
  }
}

/**
 * An application without a server. The server of another one, in the same process and with the same routes, takes its
 * requests, admits them, reads their bodies, and has it answer.
 */
export interface Backend {
  /** By `routeName`. */
  readonly handlers: ReadonlyMap<string, RouteHandlerMethod>;
  readonly answeredListeners: AnsweredListeners;
  readonly unanswered: Unanswered;
  /** Whether more appends of a tenant arrive than can be written. */
  isBehind(tenant: string): boolean;
}
