import { Catch, Logger, type ArgumentsHost, type ExceptionFilter } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { isUnexpected } from './problem.js';
import { surfaceOf } from './surfaces.js';

const logger = new Logger('Http');

/**
 * Answers `error` in the form of the surface that the request belongs to. What no client should see is logged with its
 * stack, and answered as an error of the server.
 */
export function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const path = pathOf(request);
  const answer = surfaceOf(request.server.surfaces, path).renderError(error, path);
  // A client that went away while it sent its body is its own affair.
  const isGone = request.raw.destroyed && !request.raw.complete;
  if (isUnexpected(error) && !isGone) {
    logger.error(`${request.method} ${path} failed, correlation id ${request.id}`, stackOf(error));
  }
  if (reply.sent || reply.raw.headersSent) {
    // A stream that has begun has no status left to change. Cut, it at least does not look complete; what was written
    // goes out first, at the end of the event loop's turn.
    if (!reply.raw.writableEnded) setImmediate(() => reply.raw.destroy());
    return;
  }
  void reply
    .code(answer.status)
    .headers(answer.headers)
    .header('x-correlation-id', request.id)
    .send(answer.body);
}

/** Without the query, whose search texts and cursors do not belong into logs and error bodies. */
export function pathOf(request: FastifyRequest): string {
  const url = request.raw.url ?? '/';
  const end = url.indexOf('?');
  return end === -1 ? url : url.slice(0, end);
}

/** Stacks only: other properties of an error may hold message texts and keys. */
function stackOf(error: unknown): string {
  if (!(error instanceof Error)) {
    return 'thrown without a stack';
  }
  const stack = error.stack ?? error.message;
  return error.cause instanceof Error ? `${stack}\nCaused by: ${stackOf(error.cause)}` : stack;
}

/** What Nest's handlers, pipes and guards throw. Errors of Fastify itself come to `sendError` by its own hooks. */
@Catch()
export class ErrorFilter implements ExceptionFilter {
  catch(error: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    sendError(error, http.getRequest<FastifyRequest>(), http.getResponse<FastifyReply>());
  }
}
