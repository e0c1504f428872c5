import {
  type AnsweredEvent,
  type ConsumedEvent,
  fromAnswer,
  type Placed,
  type UnknownEvent,
} from './contract.js';
import { sessionKey } from './places.js';

/** The Colloquy service, from which events are fetched that the topic does not hold. */
export interface EventApi {
  /** e.g. `http://127.0.0.1:3000` */
  readonly url: string;
  readonly apiKey?: string | undefined;
}

/** Most events of one request; the service allows no more. */
const MAX_EVENTS = 200;
const REQUEST_TIMEOUT_MS = 30_000;

/**
 * The events of a session after version `after`, up to and including `last.version`, in order. One answer at a time is
 * in memory, and it is no larger than `maxBytes` bytes unless a single event is.
 * @throws Error when the service does not return each of them
 */
export async function* fetchEvents(
  api: EventApi | undefined,
  last: Placed,
  after: number,
  maxBytes: number,
): AsyncGenerator<ConsumedEvent | UnknownEvent> {
  const { version } = last;
  const key = sessionKey(last);
  const what = `versions ${after + 1} to ${version} of ${key}`;
  if (!api)
    throw new Error(`${what} are not on the topic; name the service in \`api\` to have them fetched there`);
  let maxEvents = MAX_EVENTS;
  for (let reached = after; reached < version;) {
    const limit = Math.min(maxEvents, version - reached);
    const answer = await request(api, { ...last, after: reached, limit }, limit > 1 ? maxBytes : Infinity);
    if (answer === undefined) {
      maxEvents = Math.floor(limit / 2);
      continue;
    }
    if (answer.length === 0) throw new Error(`${what} could not be fetched: ${api.url} has none`);
    for (const event of answer) {
      if (event.version !== reached + 1)
        throw new Error(`the service answered version ${event.version} of ${key} after ${reached}`);
      reached = event.version;
      yield fromAnswer(event);
    }
    // Later events may be smaller again, so the number grows back.
    maxEvents = Math.min(MAX_EVENTS, 2 * maxEvents);
  }
}

/**
 * The last version that a session has of the generations of the log before one, and 0 when it has nothing of them.
 * @param upTo a version that it had then
 * @throws Error when the service cannot be asked
 */
export async function lastVersionBefore(
  api: EventApi | undefined,
  session: { readonly tenant: string; readonly sessionId: string },
  upTo: number,
  generation: number,
): Promise<number> {
  if (!api) {
    throw new Error(
      `the log was set back, and what is left of ${sessionKey(session)} is not known; name the service in \`api\` to have it asked`,
    );
  }
  for (let before = upTo; before > 0; before -= MAX_EVENTS) {
    const after = Math.max(0, before - MAX_EVENTS);
    const events = await request(api, { ...session, after, limit: before - after }, Infinity);
    const kept = events?.filter((event) => event.logGeneration < generation).at(-1);
    if (kept) return kept.version;
  }
  return 0;
}

interface AskOptions {
  readonly fetch?: typeof fetch | undefined;
  readonly headers?: Readonly<Record<string, string>>;
}

/**
 * Asks the service about something of a tenant.
 * @throws Error when no answer comes in time
 */
export function ask(
  { url, apiKey }: EventApi,
  tenant: string,
  path: string,
  { fetch: send = fetch, headers = {} }: AskOptions = {},
): Promise<Response> {
  return send(`${url}${path}`, {
    headers: {
      ...headers,
      'colloquy-tenant': tenant,
      ...(apiKey !== undefined && { authorization: `Bearer ${apiKey}` }),
    },
    signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
  });
}

/** @returns undefined when the answer is larger than `maxBytes` */
async function request(
  api: EventApi,
  {
    tenant,
    sessionId,
    after,
    limit,
  }: Pick<Placed, 'tenant' | 'sessionId'> & { readonly after: number; readonly limit: number },
  maxBytes: number,
): Promise<AnsweredEvent[] | undefined> {
  const path = `/v1/sessions/${encodeURIComponent(sessionId)}/events?after=${after}&limit=${limit}`;
  const response = await ask(api, tenant, path);
  if (!response.ok) {
    const problem = await response.text();
    // Nothing of the session is left. Other servers answer 404 as well, and know nothing of it.
    if (response.status === 404 && problem.includes('"session-not-found"')) return [];
    throw new Error(
      `events of ${sessionKey({ tenant, sessionId })} could not be fetched: ${api.url}${path} answered ${response.status}`,
    );
  }
  const body = await readUpTo(response, maxBytes);
  return body === undefined ? undefined : (JSON.parse(body) as { data: AnsweredEvent[] }).data;
}

/** The body as text; undefined when it is larger than `maxBytes`, in which case the rest is not received. */
async function readUpTo(response: Response, maxBytes: number): Promise<string | undefined> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  const stream = (response.body ?? []) as AsyncIterable<Uint8Array>;
  // Leaving the loop early cancels the body.
  for await (const chunk of stream) {
    bytes += chunk.byteLength;
    if (bytes > maxBytes) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}
