import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { createParamDecorator, type ExecutionContext } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { invalidRequest } from './problem.js';

const HEADER = 'x-correlation-id';
const VALID = /^[A-Za-z0-9._:-]{1,128}$/;

/** Gives a request its correlation id: that of the client, if it has named one, or a new one. */
export type CorrelationIds = (request: IncomingMessage, named: string | undefined) => string;

const newIds: CorrelationIds = (_request, named) => named ?? randomUUID();

/** Fastify's id of a request: the client's correlation id if it is well-formed, else a new UUID. */
export const correlationIds =
  (ids: CorrelationIds = newIds) =>
  (request: IncomingMessage): string => {
    const header = request.headers[HEADER];
    return ids(request, typeof header === 'string' && VALID.test(header) ? header : undefined);
  };

/** @throws ApiError `invalid-request` for a header that is not a valid correlation id */
export function requireValidCorrelationId(request: FastifyRequest): void {
  const header = request.headers[HEADER];
  if (header !== undefined && header !== request.id) {
    throw invalidRequest([
      { pointer: '/X-Correlation-Id', in: 'header', detail: 'must be 1 to 128 letters, digits or . _ : -' },
    ]);
  }
}

/** The correlation id of the request, as a parameter of a handler. Every answer carries it as a header. */
export const CorrelationId = createParamDecorator(
  (_: unknown, context: ExecutionContext): string => context.switchToHttp().getRequest<FastifyRequest>().id,
);
