import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance } from 'fastify';
import { authenticatorsOf, type AuthSettings } from '../access/authenticators.js';
import { Guard } from '../access/guard.js';
import { BodyBudget } from './body-budget.js';
import { correlationIdOf, requireValidCorrelationId } from './correlation.js';
import { parseJsonBody } from './json-body.js';
import { setupOpenApi } from './openapi.js';
import { ErrorFilter, sendError } from './errors.js';
import { ApiError, renderProblem } from './problem.js';
import { type AnsweredRequest, onAnswered, watchRequests } from './request-log.js';
import { RouteTable } from './route-table.js';
import { SchemaPipe } from './validation.js';

export interface HttpSettings {
  readonly server: {
    /** Bytes of a request body. */
    readonly bodyLimit: number;
  };
  readonly auth: AuthSettings;
  /** Told of each request when it is over. */
  readonly onAnswered?: ((request: AnsweredRequest) => void) | undefined;
}

/** Milliseconds in which a client must have sent its whole request. Answers may take as long as they like. */
const REQUEST_TIMEOUT_MS = 60_000;
const CLOSE_IDLE_MS = 50;

/** The HTTP side of the service, to be given to `NestFactory.create`; `configureApp` does the rest. */
export function createHttpAdapter(settings: HttpSettings): FastifyAdapter {
  return new HttpAdapter(settings);
}

/** What Nest needs to know: how to validate, how to answer errors, and the documents of the API. */
export function configureApp(
  app: NestFastifyApplication,
  settings: HttpSettings & { version: string },
): void {
  app.useGlobalFilters(new ErrorFilter());
  app.useGlobalPipes(new SchemaPipe());
  setupOpenApi(app, { version: settings.version, secured: settings.auth.mode === 'api-key' });
}

/**
 * Fastify with everything that must hold for every request, also for one that never reaches Nest: identity,
 * correlation, JSON and nothing else as body, problems as errors.
 */
class HttpAdapter extends FastifyAdapter {
  constructor({ server, auth, onAnswered: tell }: HttpSettings) {
    super({
      bodyLimit: server.bodyLimit,
      requestTimeout: REQUEST_TIMEOUT_MS,
      // Longer than any id, so that ids that are too long reach the validation that says so.
      routerOptions: { maxParamLength: 512 },
      genReqId: correlationIdOf,
      frameworkErrors: sendError,
      clientErrorHandler: answerMalformedRequest,
      // Requests on open connections are answered while the server closes; Fastify's own refusal is no problem.
      return503OnClosing: false,
    });
    const fastify: FastifyInstance = this.getInstance();

    watchRequests(fastify);
    if (tell) onAnswered(fastify, tell);
    fastify.decorate('surfaces', []);
    const routes = new RouteTable();
    fastify.addHook('onRoute', ({ method, url }) => {
      routes.add(method, url);
    });
    fastify.setErrorHandler((error, request, reply) => {
      sendError(error, request, reply);
    });
    fastify.setNotFoundHandler((request, reply) => {
      sendError(routes.unmatched(request), request, reply);
    });

    // JSON only. Fastify's own parsers also take text/plain, with which a web page may send requests to any host.
    fastify.removeAllContentTypeParsers();
    fastify.addContentTypeParser<Buffer>(
      'application/json',
      { parseAs: 'buffer' },
      (_request, body, done) => {
        try {
          done(null, parseJsonBody(body));
        } catch (error) {
          done(error as Error);
        }
      },
    );

    // Closing waits for connections, and one that was busy when it began would be kept open after its answer for over
    // a minute. Clients are told to leave with the answer; who does not is cut off.
    let closing = false;
    fastify.addHook('preClose', (done) => {
      closing = true;
      const { server: http } = fastify;
      const timer = setInterval(() => {
        http.closeIdleConnections();
      }, CLOSE_IDLE_MS);
      http.once('close', () => {
        clearInterval(timer);
      });
      done();
    });
    fastify.addHook('onSend', (_request, reply, payload, done) => {
      if (closing) reply.header('connection', 'close');
      done(null, payload);
    });

    const guard = new Guard(authenticatorsOf(auth));
    guard.install(fastify);
    fastify.addHook('onRequest', async (request, reply) => {
      reply.header('x-correlation-id', request.id);
      requireValidCorrelationId(request);
      await guard.admit(request);
      // Here already: Fastify looks at the body first, and fails over methods that it half knows.
      if (request.is404) throw routes.unmatched(request);
    });
    new BodyBudget().install(fastify);
  }

  // Nest would set its own over those of the constructor, after which errors of Fastify were no problems any more.
  override setErrorHandler(): ReturnType<FastifyAdapter['setErrorHandler']> {
    return this.getInstance();
  }

  override setNotFoundHandler(): ReturnType<FastifyAdapter['setNotFoundHandler']> {
    return this.getInstance();
  }

  override registerParserMiddleware(): void {
    // Nest's parsers for JSON and forms stay out.
  }
}

const CLIENT_ERRORS: Partial<Record<string, string>> = {
  HPE_HEADER_OVERFLOW: 'The headers are larger than this server accepts.',
  ERR_HTTP_REQUEST_TIMEOUT: 'The request did not arrive in time.',
};

/** Bytes that Node could not read as a request never become one: the answer goes straight to the socket. */
function answerMalformedRequest(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) {
    return;
  }
  if (socket.writable) {
    const detail = CLIENT_ERRORS[error.code ?? ''] ?? 'This is not a valid HTTP request.';
    const { status, headers, body } = renderProblem(new ApiError('invalid-request', detail), undefined);
    const lines = Object.entries({
      ...headers,
      'content-length': String(Buffer.byteLength(body)),
      connection: 'close',
    }).map(([name, value]) => `${name}: ${value}`);
    socket.write([`HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}`, ...lines, '', body].join('\r\n'));
  }
  socket.destroy(error);
}
