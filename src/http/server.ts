import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance, FastifyRequest, RouteHandlerMethod, RouteOptions } from 'fastify';
import { authenticatorsOf, type AuthSettings } from '../access/authenticators.js';
import { Guard } from '../access/guard.js';
import { type Backend } from './backend.js';
import { routeName } from './backend-adapter.js';
import { BodyBudget } from './body-budget.js';
import { type CorrelationIds, correlationIds, requireValidCorrelationId } from './correlation.js';
import { parseJsonBody } from './json-body.js';
import { setupOpenApi } from './openapi.js';
import { ErrorFilter, pathOf, sendError } from './errors.js';
import { surfaceOf } from './surfaces.js';
import { ApiError, renderProblem } from './problem.js';
import { type AnsweredListeners, type AnsweredRequest, watchRequests } from './request-log.js';
import { RouteTable } from './route-table.js';
import { type Unanswered } from './unanswered.js';
import { UnreadBodies } from './unread-bodies.js';
import { AllowedOrigins, SECURITY_HEADERS } from './security-headers.js';
import { SchemaPipe } from './validation.js';

export interface HttpSettings {
  readonly server: {
    /** Bytes of a request body. */
    readonly bodyLimit: number;
    /** The same of routes that take messages. */
    readonly messageLimit: number;
    /** Origins whose pages may call. */
    readonly corsOrigins: readonly string[];
  };
  readonly auth: AuthSettings;
  /** Called for each request when it has ended. */
  readonly onAnswered?: ((request: AnsweredRequest) => void) | undefined;
  /** Whether more appends of a tenant arrive than can be written. */
  readonly isBehind?: ((tenant: string) => boolean) | undefined;
  /** In place of random ones. */
  readonly correlationIds?: CorrelationIds | undefined;
  /** The application that answers an admitted request in place of this one. What it throws is the answer. */
  readonly elsewhere?:
    ((request: FastifyRequest) => Backend | undefined | Promise<Backend | undefined>) | undefined;
  /** Gets to know what waits for an answer. */
  readonly unanswered?: Unanswered | undefined;
}

/** Milliseconds in which a client must send its whole request. The time for answers is not limited. */
const REQUEST_TIMEOUT_MS = 60_000;
/** The same for its headers, which are small. */
const HEADERS_TIMEOUT_MS = 15_000;
/** How often connections are looked at for requests that take too long. */
const TIMEOUT_STEP_MS = 5_000;
const CLOSE_IDLE_MS = 50;

/** The HTTP adapter for `NestFactory.create`. Call `configureApp` on the created application. */
export function createHttpAdapter(settings: HttpSettings): FastifyAdapter {
  return new HttpAdapter(settings);
}

/** Configures validation, the answers to errors, and the documents of the API. */
export function configureApp(
  app: NestFastifyApplication,
  settings: HttpSettings & { version: string },
): void {
  configureHandlers(app);
  setupOpenApi(app, { version: settings.version, secured: settings.auth.mode === 'api-key' });
}

/** The part of `configureApp` for an application without a server. */
export function configureHandlers(app: NestFastifyApplication): void {
  app.useGlobalFilters(new ErrorFilter());
  app.useGlobalPipes(new SchemaPipe());
}

/**
 * Fastify with everything that must hold for all requests, including those that never reach Nest: authentication,
 * correlation ids, JSON as the only kind of body, and problem documents as errors.
 */
class HttpAdapter extends FastifyAdapter {
  readonly answeredListeners: AnsweredListeners = [];

  constructor(settings: HttpSettings) {
    const { server, auth, onAnswered: tell, isBehind, elsewhere, unanswered } = settings;
    super({
      bodyLimit: server.bodyLimit,
      requestTimeout: REQUEST_TIMEOUT_MS,
      http: { headersTimeout: HEADERS_TIMEOUT_MS, connectionsCheckingInterval: TIMEOUT_STEP_MS },
      // Longer than any id, so that ids that are too long reach the validation, which says so.
      routerOptions: { maxParamLength: 512 },
      genReqId: correlationIds(settings.correlationIds),
      frameworkErrors: sendError,
      clientErrorHandler: answerMalformedRequest,
      // Requests on open connections are answered while the server closes. Fastify's own refusal would not be a problem
      // document.
      return503OnClosing: false,
    });
    const fastify: FastifyInstance = this.getInstance();

    fastify.decorateRequest('backend', null);
    watchRequests(fastify, this.answeredListeners, tell);
    unanswered?.install(fastify);
    fastify.decorate('surfaces', []);
    const routes = new RouteTable();
    fastify.addHook('onRoute', (route) => {
      routes.add(route.method, route.url, route.config?.access === 'public');
      if (route.config?.takesMessages) route.bodyLimit = Math.max(server.messageLimit, server.bodyLimit);
      if (elsewhere) route.handler = handlerOfAll(route);
    });
    fastify.setErrorHandler((error, request, reply) => {
      sendError(error, request, reply);
    });
    fastify.setNotFoundHandler((request, reply) => {
      sendError(routes.unmatched(request), request, reply);
    });

    // JSON only: Fastify's own parsers also accept text/plain, which web pages may send to any host.
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

    closeInTime(fastify);
    fastify.decorate('isDraining', false);

    const guard = new Guard(authenticatorsOf(auth));
    fastify.decorate('guard', guard);
    guard.install(fastify);
    const origins = new AllowedOrigins(server.corsOrigins);
    fastify.addHook('onRequest', async (request, reply) => {
      reply.headers(SECURITY_HEADERS).header('x-correlation-id', request.id);
      // A browser asks beforehand without the key.
      if (origins.answer(request, reply)) return reply.code(204).send();
      const { requestIdHeader } = surfaceOf(fastify.surfaces, pathOf(request));
      if (requestIdHeader !== undefined) reply.header(requestIdHeader, request.id);
      requireValidCorrelationId(request);
      // Unmatched requests are refused here, because Fastify would read their bodies first, and fails with 500 for some
      // methods.
      if (request.is404 && routes.isPublic(request)) throw routes.unmatched(request);
      await guard.admit(request);
      if (request.is404) throw routes.unmatched(request);
      if (!elsewhere || request.routeOptions.config.access === 'public') return;
      const found = elsewhere(request);
      const backend = found instanceof Promise ? await found : found;
      if (!backend) return;
      request.backend = backend;
      backend.unanswered.enter(request, reply);
    });
    new BodyBudget(isBehind ?? (() => false)).install(fastify);
    new UnreadBodies().install(fastify);
  }

  // Nest would replace the handlers of the constructor, and errors of Fastify would no longer be answered as problems.
  override setErrorHandler(): ReturnType<FastifyAdapter['setErrorHandler']> {
    return this.getInstance();
  }

  override setNotFoundHandler(): ReturnType<FastifyAdapter['setNotFoundHandler']> {
    return this.getInstance();
  }

  override registerParserMiddleware(): void {
    // Nest's own parsers for JSON and forms are not wanted.
  }
}

/** The handler of a route for the requests of all applications. */
function handlerOfAll({ method, url, handler }: RouteOptions): RouteHandlerMethod {
  const name = routeName(String(method), url);
  return function (request, reply) {
    const { backend } = request;
    if (!backend) return handler.call(this, request, reply);
    const theirs = backend.handlers.get(name);
    // This application would answer for a database that has nothing to do with the request.
    if (!theirs) throw new Error(`the application that is to answer has no route ${name}`);
    return theirs.call(this, request, reply);
  };
}

declare module 'fastify' {
  interface FastifyInstance {
    /** The service was told to stop, and answers as before until balancers have noticed: a closed port fails requests. */
    isDraining: boolean;
  }
}

/**
 * Closing waits for all connections, and one with a running request would stay open for over a minute after its answer.
 * Therefore answers ask clients to close their connections, and connections without a request are closed.
 */
function closeInTime(fastify: FastifyInstance): void {
  const { server: http } = fastify;
  const sockets = new Set<Socket>();
  http.on('connection', (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  let closing = false;
  fastify.addHook('preClose', (done) => {
    closing = true;
    const timer = setInterval(() => {
      http.closeIdleConnections();
      // Clients open connections ahead of their requests. To Node those on which nothing has come yet are not idle.
      for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy();
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
}

const CLIENT_ERRORS: Partial<Record<string, string>> = {
  HPE_HEADER_OVERFLOW: 'The headers are larger than this server accepts.',
  ERR_HTTP_REQUEST_TIMEOUT: 'The request did not arrive in time.',
};

/** Answers bytes that Node cannot parse as a request. There is no request or reply object, only the socket. */
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
