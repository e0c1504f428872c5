import type { IncomingMessage } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { type Caller } from '../access/caller.js';

/**
 * On requests that the application which took them has admitted and given to another one, in the same process. It is looked
 * at several times for each request, and a property costs less than a WeakMap (ADR 53).
 */
const HANDED = Symbol('handed over');
type Handed = IncomingMessage & { [HANDED]?: { readonly from: FastifyRequest; readonly caller: Caller } };

/**
 * Gives an admitted request to another application, which answers it. Its body must not have been read. The other one
 * neither authenticates nor counts it again.
 */
export function handOver(request: FastifyRequest, reply: FastifyReply, to: FastifyInstance): void {
  const { caller } = request;
  if (!caller) throw new Error('a request without a caller belongs to no cell');
  (request.raw as Handed)[HANDED] = { from: request, caller };
  reply.hijack();
  to.routing(request.raw, reply.raw);
}

/** Whether this application has given the request away. */
export const isHandedOver = (request: FastifyRequest): boolean =>
  (request.raw as Handed)[HANDED]?.from === request;

/** What the application that took a request knows of it; undefined for one that nobody has given away. */
export function takenBy(raw: IncomingMessage): { readonly id: string; readonly caller: Caller } | undefined {
  const known = (raw as Handed)[HANDED];
  return known && { id: known.from.id, caller: known.caller };
}
