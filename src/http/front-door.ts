import type { IncomingMessage } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { type Caller } from '../access/caller.js';

/** Requests that the application which took them has admitted and given to another one, in the same process. */
const handed = new WeakMap<IncomingMessage, { readonly from: FastifyRequest; readonly caller: Caller }>();

/**
 * Gives an admitted request to another application, which answers it. Its body must not have been read. The other one
 * neither authenticates nor counts it again.
 */
export function handOver(request: FastifyRequest, reply: FastifyReply, to: FastifyInstance): void {
  const { caller } = request;
  if (!caller) throw new Error('a request without a caller belongs to no cell');
  handed.set(request.raw, { from: request, caller });
  reply.hijack();
  to.routing(request.raw, reply.raw);
}

/** Whether this application has given the request away. */
export const isHandedOver = (request: FastifyRequest): boolean => handed.get(request.raw)?.from === request;

/** What the application that took a request knows of it; undefined for one that nobody has given away. */
export function takenBy(raw: IncomingMessage): { readonly id: string; readonly caller: Caller } | undefined {
  const known = handed.get(raw);
  return known && { id: known.from.id, caller: known.caller };
}
