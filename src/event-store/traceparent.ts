/**
 * The place of a request in a trace of several services, as W3C Trace Context writes it
 * (https://www.w3.org/TR/trace-context/#traceparent-header).
 */
export interface TracePlace {
  /** 32 hex digits. */
  readonly traceId: string;
  /** 16 hex digits: the span of the request. */
  readonly spanId: string;
  readonly isSampled: boolean;
}

const TRACEPARENT = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})$/;
const LENGTH = 55;

/** Undefined for a text that is no `traceparent`. While requests are traced, correlation ids are. */
export function tracePlaceOf(text: string): TracePlace | undefined {
  if (text.length !== LENGTH) return undefined;
  const [, traceId, spanId, flags] = TRACEPARENT.exec(text) ?? [];
  if (traceId === undefined || spanId === undefined || flags === undefined) return undefined;
  return { traceId, spanId, isSampled: (Number.parseInt(flags, 16) & 1) === 1 };
}
