import { Catch, Logger, type ArgumentsHost, type ExceptionFilter } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { stackOf } from '../logging.js';
import { ApiError, isUnexpected } from './problem.js';
import { surfaceOf } from './surfaces.js';

const logger = new Logger('Http');

/**
 * Answers `error` in the form of the surface that the request belongs to. What no client should see is logged with its
 * stack, and answered as an error of the server.
 */
export function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const path = pathOf(request);
  const answer = surfaceOf(request.server.surfaces, path).renderError(withLimit(error, request), path);
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

/** A body that is too large is told how large it may be, and by which setting. */
function withLimit(error: unknown, { routeOptions: { bodyLimit } }: FastifyRequest): unknown {
  if ((error as { code?: unknown } | undefined)?.code !== 'FST_ERR_CTP_BODY_TOO_LARGE') return error;
  return new ApiError(
    'body-too-large',
    `The body is larger than ${bodyLimit} bytes, which is the limit of this server (server.bodyLimit).`,
  );
}

/** Without the query, whose search texts and cursors do not belong into logs and error bodies. */
export function pathOf(request: FastifyRequest): string {
  const url = request.raw.url ?? '/';
  const end = url.indexOf('?');
  return end === -1 ? url : url.slice(0, end);
}

/** What Nest's handlers, pipes and guards throw. Errors of Fastify itself come to `sendError` by its own hooks. */
@Catch()
export class ErrorFilter implements ExceptionFilter {
  catch(error: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    sendError(error, http.getRequest<FastifyRequest>(), http.getResponse<FastifyReply>());
  }
}
