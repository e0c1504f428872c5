import type { HttpAdapterHost } from '@nestjs/core';
import type { FastifyInstance, FastifyRequest } from 'fastify';

/** A request that has been answered. */
export interface AnsweredRequest {
  readonly requestId: string;
  readonly method: string;
  /** The pattern of the route, e.g. `/v1/sessions/:id`; `unmatched` for a path that leads nowhere. */
  readonly route: string;
  readonly status: number;
  /**
   * Milliseconds from the arrival of the headers to the end of the answer, which for a stream is the end of the stream.
   */
  readonly ms: number;
  readonly tenant?: string | undefined;
  /** The name of the API key, or `anonymous`. */
  readonly key?: string | undefined;
  readonly session?: string | undefined;
  /** Whether the client disconnected before the answer was complete. */
  readonly aborted: boolean;
}

/** The fields of a line of the log about a request, as JSON, each with a comma before it. */
export class RequestLines {
  /** There are few, and they make most of a line. */
  private readonly known = new Map<string, { readonly start: string; readonly end: string }>();

  fieldsOf({ requestId, ms, tenant, key, session, aborted, ...kind }: AnsweredRequest): string {
    const { start, end } = this.kindOf(kind);
    const ofSession = session === undefined ? '' : `,"session":${JSON.stringify(session)}`;
    const caller =
      tenant === undefined
        ? ''
        : `,"tenant":${JSON.stringify(tenant)},"key":${JSON.stringify(key ?? '')}${ofSession}`;
    return `,"requestId":${JSON.stringify(requestId)}${start},"ms":${ms}${caller},"aborted":${aborted}${end}`;
  }

  private kindOf({ method, route, status }: Pick<AnsweredRequest, 'method' | 'route' | 'status'>) {
    const name = `${method} ${route} ${status}`;
    let kind = this.known.get(name);
    if (!kind) {
      const start = `,"method":${JSON.stringify(method)},"route":${JSON.stringify(route)},"status":${status}`;
      this.known.set(name, (kind = { start, end: `,"msg":${JSON.stringify(name)}` }));
    }
    return kind;
  }
}

/** Are called for each request of an application when it has ended, in whatever way. */
export type AnsweredListeners = ((request: AnsweredRequest) => void)[];

/** What adapters have that tell of requests. */
interface Watched {
  readonly answeredListeners: AnsweredListeners;
}

/** The listeners of an application; undefined for one that gets no requests. */
export const answeredListenersOf = ({
  httpAdapter,
}: Partial<HttpAdapterHost>): AnsweredListeners | undefined =>
  (httpAdapter as Partial<Watched> | null | undefined)?.answeredListeners;

/**
 * To be called before any route is added, because Fastify ignores later hooks for unmatched paths.
 * @param listeners of the application that has the server
 * @param tell called for the requests of all applications
 */
export function watchRequests(
  fastify: FastifyInstance,
  listeners: AnsweredListeners,
  tell: (request: AnsweredRequest) => void = () => undefined,
): void {
  fastify.addHook('onRequest', (request, reply, done) => {
    const began = performance.now();
    const { raw } = reply;
    // `close` also comes for answers that a handler took over, such as streams of events, and for those that broke off.
    raw.once('close', () => {
      const answered: AnsweredRequest = {
        requestId: request.id,
        method: request.method,
        route: request.routeOptions.url ?? 'unmatched',
        status: raw.statusCode,
        ms: Math.round((performance.now() - began) * 1000) / 1000,
        ...callerOf(request),
        aborted: !raw.writableFinished,
      };
      tell(answered);
      for (const listen of request.backend?.answeredListeners ?? listeners) listen(answered);
    });
    done();
  });
}

function callerOf({ caller, params, routeOptions }: FastifyRequest): Partial<AnsweredRequest> {
  if (!caller) return {};
  const { id } = (params ?? {}) as { id?: string };
  const isOfSession = id !== undefined && routeOptions.url?.startsWith('/v1/sessions/') === true;
  return { tenant: caller.tenant, key: caller.actor, ...(isOfSession && { session: id }) };
}
