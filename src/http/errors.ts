import { Catch, Logger, type ArgumentsHost, type ExceptionFilter } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { stackOf } from '../logging.js';
import { ApiError, isUnexpected } from './problem.js';
import { surfaceOf } from './surfaces.js';

const logger = new Logger('Http');

/**
 * Answers `error` in the form of the surface that the request belongs to. An error whose text no client should see is
 * logged with its stack and answered as an internal error.
 */
export function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const path = pathOf(request);
  const answer = surfaceOf(request.server.surfaces, path).renderError(withLimit(error, request), path);
  // A client that disconnected while it sent its body is no error of the server.
  const isGone = request.raw.destroyed && !request.raw.complete;
  if (isUnexpected(error) && !isGone) {
    logger.error(`${request.method} ${path} failed, correlation id ${request.id}`, stackOf(error));
  }
  if (reply.sent || reply.raw.headersSent) {
    // The status of a stream that has begun cannot be changed. Closing the connection at least keeps the stream from
    // looking complete. What was written is sent first, at the end of the event loop's turn.
    if (!reply.raw.writableEnded) setImmediate(() => reply.raw.destroy());
    return;
  }
  void reply
    .code(answer.status)
    .headers(answer.headers)
    .header('x-correlation-id', request.id)
    .send(answer.body);
}

/** Adds the limit and the setting behind it to the error of a body that is too large. */
function withLimit(error: unknown, { routeOptions: { bodyLimit, config } }: FastifyRequest): unknown {
  if ((error as { code?: unknown } | undefined)?.code !== 'FST_ERR_CTP_BODY_TOO_LARGE') return error;
  return new ApiError(
    'body-too-large',
    `The body is larger than ${bodyLimit} bytes, which is the limit of this server (server.${config.takesMessages ? 'messageLimit' : 'bodyLimit'}).`,
  );
}

/** The path without the query, because search texts and cursors do not belong into logs and error bodies. */
export function pathOf(request: FastifyRequest): string {
  const url = request.raw.url ?? '/';
  const end = url.indexOf('?');
  return end === -1 ? url : url.slice(0, end);
}

/**
 * Answers the errors of Nest's handlers, pipes and guards. Errors of Fastify itself reach `sendError` through its
 * hooks.
 */
@Catch()
export class ErrorFilter implements ExceptionFilter {
  catch(error: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    sendError(error, http.getRequest<FastifyRequest>(), http.getResponse<FastifyReply>());
  }
}
