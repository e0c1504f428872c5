import { signal } from '@preact/signals';
import { createParser } from 'eventsource-parser';
import { credentials, isSignedOut } from './access.js';
import { asProblem, isAbort, type Problem, problemOf, unreachable } from './problem.js';
import { type components, type paths } from './types.js';

type Method = 'get' | 'post' | 'put' | 'patch' | 'delete';
type Operation<P extends keyof paths, M extends Method> = NonNullable<paths[P][M]>;
type PathFor<M extends Method> = {
  [P in keyof paths]: Operation<P, M> extends { responses: unknown } ? P : never;
}[keyof paths];

type Part<O, Name extends string> = O extends { parameters: infer P }
  ? P extends Partial<Record<Name, infer V>>
    ? NonNullable<V>
    : never
  : never;
type Body<O> = O extends { requestBody?: infer B }
  ? NonNullable<B> extends { content: { 'application/json': infer T } }
    ? T
    : never
  : never;
type AnswerOf<O> = O extends { responses: infer R }
  ? { [S in keyof R]: R[S] extends { content: { 'application/json': infer T } } ? T : undefined }[keyof R]
  : never;

interface CallOptions<O> {
  readonly path?: Part<O, 'path'>;
  readonly query?: Part<O, 'query'>;
  readonly body?: Partial<Body<O>> | Body<O>;
  /** Which cell is asked, for operations that are about a cell; else the first one answers. */
  readonly cell?: [Part<O, 'header'>] extends [never] ? never : string | undefined;
  readonly signal?: AbortSignal;
}

type Schemas = components['schemas'];
export type Session = Schemas['Session'];
export type Message = Schemas['Message'];
export type Event = Schemas['Event'];
export type State = Schemas['SessionState'];
export type Diff = Schemas['Diff'];
export type Generation = Schemas['Generation'];
export type Generated = Schemas['Generated'];
export type Usage = Schemas['TenantUsage'];
export type Content = Message['content'];

/** What the whole page should say: that nobody answers, or that an answer is waited for. */
export const trouble = signal<Problem | undefined>(undefined);

const TRIES = 6;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;

/**
 * Calls an operation of the API. Reads are repeated while the service is away or its read models are behind.
 * @throws Problem; DOMException `AbortError`
 */
export async function call<M extends Method, P extends PathFor<M>>(
  method: M,
  path: P,
  options: CallOptions<Operation<P, M>> = {},
): Promise<AnswerOf<Operation<P, M>>> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      const response = await send(method, path, options);
      trouble.value = undefined;
      const text = await response.text();
      return (text === '' ? undefined : JSON.parse(text)) as AnswerOf<Operation<P, M>>;
    } catch (error) {
      if (isAbort(error)) throw error;
      const problem = asProblem(error);
      if (problem.isPassing) trouble.value = problem;
      if (method !== 'get' || !problem.isPassing || attempt === TRIES) throw problem;
      await pause(problem.retryAfterMs ?? FIRST_PAUSE_MS * 2 ** attempt, options.signal);
    }
  }
}

export interface ServerEvent {
  readonly id: string | undefined;
  readonly event: string;
  readonly data: unknown;
}

/**
 * Calls an operation that answers with a stream of events, and gives each of them as it arrives, until the stream ends.
 * @throws Problem; DOMException `AbortError`
 */
export async function stream<M extends 'get' | 'post', P extends PathFor<M>>(
  method: M,
  path: P,
  options: CallOptions<Operation<P, M>>,
  onEvent: (event: ServerEvent) => void,
  lastEventId?: string,
): Promise<void> {
  const response = await send(method, path, options, {
    accept: 'text/event-stream',
    ...(lastEventId !== undefined && { 'last-event-id': lastEventId }),
  });
  trouble.value = undefined;
  const parser = createParser({
    onEvent: ({ id, event, data }) => {
      onEvent({ id, event: event ?? '', data: JSON.parse(data) });
    },
  });
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const piece = await reader?.read().catch((error: unknown) => {
      throw isAbort(error) ? error : unreachable();
    });
    if (!piece || piece.done) return;
    parser.feed(piece.value);
  }
}

/**
 * Follows a stream of events for ever, through every loss of the connection: it is taken up again where it ended.
 * @returns when it is aborted
 * @throws Problem that waiting does not mend, such as 403
 */
export async function follow<P extends PathFor<'get'>>(
  path: P,
  options: CallOptions<Operation<P, 'get'>> & { readonly signal: AbortSignal },
  onEvent: (event: ServerEvent) => void,
): Promise<void> {
  let last: string | undefined;
  for (let failures = 0; !options.signal.aborted;) {
    try {
      const began = performance.now();
      const heard = (event: ServerEvent): void => {
        last = event.id ?? last;
        failures = 0;
        onEvent(event);
      };
      await stream('get', path, options, heard, last);
      // The service ends its streams when it stops; one that ends at once would be asked for without a pause.
      if (performance.now() - began > LONGEST_PAUSE_MS) failures = 0;
      failures += 1;
    } catch (error) {
      if (isAbort(error)) return;
      const problem = asProblem(error);
      const isBusy = problem.status === 429;
      if (!problem.isPassing && !isBusy) throw problem;
      if (!isBusy) trouble.value = problem;
      failures += 1;
    }
    await pause(FIRST_PAUSE_MS * 2 ** Math.min(failures, 4), options.signal).catch(() => undefined);
  }
}

interface Request {
  readonly path?: unknown;
  readonly query?: unknown;
  readonly body?: unknown;
  readonly cell?: string | undefined;
  readonly signal?: AbortSignal;
}
type Values = Readonly<Record<string, string | number | undefined>>;

async function send(
  method: Method,
  path: string,
  { path: parts, query, body, cell, signal: aborted }: Request,
  headers: Record<string, string> = {},
): Promise<Response> {
  const named = path.replace(/\{(\w+)\}/g, (_, name: string) =>
    encodeURIComponent((parts as Values)[name] ?? ''),
  );
  const asked = new URLSearchParams();
  for (const [name, value] of Object.entries((query ?? {}) as Values))
    if (value !== undefined && value !== '') asked.set(name, String(value));
  const response = await fetch(named + (asked.size > 0 ? `?${asked.toString()}` : ''), {
    method: method.toUpperCase(),
    headers: {
      ...credentials(),
      ...(cell !== undefined && { 'colloquy-cell': cell }),
      ...(body !== undefined && { 'content-type': 'application/json' }),
      ...headers,
    },
    ...(body !== undefined && { body: JSON.stringify(body) }),
    ...(aborted && { signal: aborted }),
    cache: 'no-store',
    credentials: 'omit',
  }).catch((error: unknown) => {
    throw isAbort(error) ? error : unreachable();
  });
  if (response.ok) return response;
  const problem = await problemOf(response);
  if (problem.status === 401) isSignedOut.value = true;
  throw problem;
}

function pause(ms: number, aborted: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (): void => {
      clearTimeout(timer);
      window.removeEventListener('online', done);
      resolve();
    };
    const timer = setTimeout(done, Math.min(ms, LONGEST_PAUSE_MS));
    // Somebody whose network comes back does not want to wait for the end of a pause.
    window.addEventListener('online', done);
    aborted?.addEventListener('abort', () => {
      clearTimeout(timer);
      window.removeEventListener('online', done);
      reject(new DOMException('aborted', 'AbortError'));
    });
  });
}
