import { type IncomingMessage } from 'node:http';
import {
  type Attributes,
  type Context,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
  TraceFlags,
  type Tracer,
} from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { defaultResource, resourceFromAttributes } from '@opentelemetry/resources';
import { BasicTracerProvider, BatchSpanProcessor } from '@opentelemetry/sdk-trace-base';
import { boundedCache } from './bounded-cache.js';
import { type Telemetry } from './event-store/telemetry.js';
import { tracePlaceOf } from './event-store/traceparent.js';
import { type AnsweredRequest } from './http/request-log.js';
import { version } from './version.js';

/** Requests whose place in their trace is known though their correlation id does not tell it. */
const KNOWN_REQUESTS = 10_000;
/** What is left is sent within this time, or lost. */
const CLOSE_MS = 2_000;
/** Most spans that a batch of a read model or of the relay makes: thousands of events would make as many. */
const SPANS_OF_A_BATCH = 100;

/**
 * Spans of requests, and of what comes of them: decisions, appends, calls of models, read models, the relay. The correlation id of a
 * request for which the client names none is its `traceparent`, so that each event leads to the trace that caused it, also on
 * other nodes and behind Kafka. All spans but those of requests are made when their work is over, from telemetry: nothing has to be
 * passed through the code that works.
 */
export class Traces {
  private readonly provider: BasicTracerProvider;
  private readonly tracer: Tracer;
  /** By correlation id. */
  private readonly requests = new Map<string, Span>();
  private readonly places = boundedCache<string, Context>(KNOWN_REQUESTS);

  constructor() {
    const service = process.env['OTEL_SERVICE_NAME'] ?? 'colloquy';
    this.provider = new BasicTracerProvider({
      resource: defaultResource().merge(
        resourceFromAttributes({ 'service.name': service, 'service.version': version }),
      ),
      // Sampler, limits and pauses are those of the standard variables.
      spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
    });
    this.tracer = this.provider.getTracer('colloquy', version);
  }

  /**
   * Begins the span of a request.
   * @param correlationId that the client has named
   * @returns the correlation id
   */
  begin({ headers, method }: IncomingMessage, correlationId: string | undefined): string {
    const { traceparent } = headers;
    const parent = typeof traceparent === 'string' ? contextOf(traceparent) : undefined;
    const span = this.tracer.startSpan(
      method ?? 'request',
      { kind: SpanKind.SERVER },
      parent ?? ROOT_CONTEXT,
    );
    const { traceId, spanId, traceFlags } = span.spanContext();
    const id = correlationId ?? `00-${traceId}-${spanId}-${traceFlags.toString(16).padStart(2, '0')}`;
    this.requests.set(id, span);
    if (correlationId !== undefined) this.places.set(id, trace.setSpan(ROOT_CONTEXT, span));
    return id;
  }

  /** Ends the span of a request. */
  answered({ requestId, method, route, status, tenant, session, aborted }: AnsweredRequest): void {
    const span = this.requests.get(requestId);
    if (!span) return;
    this.requests.delete(requestId);
    span.updateName(`${method} ${route}`);
    span.setAttributes({
      'http.request.method': method,
      'http.route': route,
      'http.response.status_code': status,
      ...(tenant !== undefined && { 'colloquy.tenant': tenant }),
      ...(session !== undefined && { 'colloquy.session': session }),
      ...(aborted && { 'colloquy.aborted': true }),
    });
    if (status >= 500) span.setStatus({ code: SpanStatusCode.ERROR });
    span.end();
  }

  listen(telemetry: Telemetry): void {
    telemetry.on('decided', ({ command, correlationId, ms }) => {
      this.over(`decide ${command}`, correlationId, ms);
    });
    telemetry.on('appended', ({ outcome, correlationId, waitMs, commitMs }) => {
      const attributes = { 'colloquy.outcome': outcome, 'colloquy.wait_ms': waitMs };
      this.over('append', correlationId, waitMs + commitMs, { attributes });
    });
    telemetry.on('modelCalled', ({ correlationId, model, outcome, ms, inputTokens, outputTokens }) => {
      if (correlationId === undefined) return;
      this.over(`chat ${model}`, correlationId, ms, {
        kind: SpanKind.CLIENT,
        attributes: {
          'gen_ai.operation.name': 'chat',
          'gen_ai.request.model': model,
          'gen_ai.usage.input_tokens': inputTokens,
          'gen_ai.usage.output_tokens': outputTokens,
          'colloquy.outcome': outcome,
        },
      });
    });
    telemetry.on('projected', ({ projection, ms, causes }) => {
      for (const id of requestsOf(causes())) this.over(`project ${projection}`, id, ms);
    });
    telemetry.on('published', ({ topic, ms, causes }) => {
      const attributes = { 'messaging.system': 'kafka', 'messaging.destination.name': topic };
      for (const id of requestsOf(causes()))
        this.over(`publish ${topic}`, id, ms, { kind: SpanKind.PRODUCER, attributes });
    });
  }

  /** Sends what is left. */
  async close(): Promise<void> {
    // A collector that is away must not keep the service from stopping.
    const late = new Promise((resolve) => setTimeout(resolve, CLOSE_MS).unref());
    await Promise.race([this.provider.shutdown().catch(() => undefined), late]);
  }

  /** A span that has just ended. */
  private over(
    name: string,
    correlationId: string,
    ms: number,
    options: { readonly kind?: SpanKind; readonly attributes?: Attributes } = {},
  ): void {
    const context = this.places.get(correlationId) ?? contextOf(correlationId);
    if (!context || !isSampled(context)) return;
    const end = Date.now();
    this.tracer.startSpan(name, { ...options, startTime: end - ms }, context).end(end);
  }
}

/** The correlation ids of events, each once, as far as a batch makes spans. */
const requestsOf = (causes: readonly string[]): Iterable<string> =>
  new Set(causes.slice(0, SPANS_OF_A_BATCH));

/** Undefined for what is no `traceparent`. */
function contextOf(traceparent: string): Context | undefined {
  const place = tracePlaceOf(traceparent);
  if (!place) return undefined;
  const { traceId, spanId, isSampled } = place;
  const traceFlags = isSampled ? TraceFlags.SAMPLED : TraceFlags.NONE;
  return trace.setSpanContext(ROOT_CONTEXT, { traceId, spanId, traceFlags, isRemote: true });
}

/** Whether anybody wants the trace. */
const isSampled = (context: Context): boolean =>
  ((trace.getSpanContext(context)?.traceFlags ?? 0) & TraceFlags.SAMPLED) !== 0;
