import { request as rawRequest } from 'node:http';

/** A JSON object whose fields a test looks at one by one. */
export type Fields = Readonly<Record<string, unknown>>;

export interface Answer<Body = Fields> {
  readonly status: number;
  readonly headers: Headers;
  /** The parsed body; an empty object when there was none. */
  readonly body: Body;
  readonly text: string;
}

/** The body of every error (RFC 9457). */
export interface Problem extends Fields {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly code: string;
  readonly detail: string;
  readonly errors?: readonly { readonly pointer: string; readonly in: string; readonly detail: string }[];
}

type HeaderFields = Readonly<Record<string, string>>;

/** A client of one node that adds no headers by itself. */
export interface Api {
  readonly url: string;
  get<Body = Fields>(path: string, headers?: HeaderFields): Promise<Answer<Body>>;
  post<Body = Fields>(path: string, body?: unknown, headers?: HeaderFields): Promise<Answer<Body>>;
  put<Body = Fields>(path: string, body?: unknown, headers?: HeaderFields): Promise<Answer<Body>>;
  patch<Body = Fields>(path: string, body?: unknown, headers?: HeaderFields): Promise<Answer<Body>>;
  delete<Body = Fields>(path: string, headers?: HeaderFields, body?: unknown): Promise<Answer<Body>>;
  /** Sends the bytes unchanged, without a content type unless `headers` has one. */
  send(
    method: string,
    path: string,
    body: string | Uint8Array<ArrayBuffer> | undefined,
    headers?: HeaderFields,
  ): Promise<Answer>;
}

/** @param always headers of every request, such as an API key */
export function apiOf(url: string, always: HeaderFields = {}): Api {
  const send = async <Body>(
    method: string,
    path: string,
    body: string | Uint8Array<ArrayBuffer> | undefined,
    headers: HeaderFields = {},
  ): Promise<Answer<Body>> => {
    const response = await fetch(url + path, {
      method,
      headers: { ...always, ...headers },
      ...(body !== undefined && {
        // `fetch` would add a content type to a text.
        body: typeof body === 'string' ? Buffer.from(body) : body,
      }),
    });
    const text = await response.text();
    const isJson = /\bjson\b/.test(response.headers.get('content-type') ?? '');
    return {
      status: response.status,
      headers: response.headers,
      body: (isJson && text !== '' ? JSON.parse(text) : {}) as Body,
      text,
    };
  };
  const sendJson = <Body>(method: string, path: string, body: unknown, headers: HeaderFields = {}) =>
    body === undefined
      ? send<Body>(method, path, undefined, headers)
      : send<Body>(method, path, JSON.stringify(body), { 'content-type': 'application/json', ...headers });
  return {
    url,
    send,
    get: (path, headers) => send('GET', path, undefined, headers),
    post: (path, body, headers) => sendJson('POST', path, body, headers),
    put: (path, body, headers) => sendJson('PUT', path, body, headers),
    patch: (path, body, headers) => sendJson('PATCH', path, body, headers),
    delete: (path, headers, body) => sendJson('DELETE', path, body, headers),
  };
}

/** Sends what `fetch` refuses to send: any path and any `Host` header. */
export function getRaw(
  url: string,
  path: string,
  headers: HeaderFields,
): Promise<{ status: number; text: string }> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    rawRequest({ hostname, port, path, headers, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      response.once('end', () => {
        resolve({ status: response.statusCode ?? 0, text });
      });
    })
      .once('error', reject)
      .end();
  });
}

/**
 * Checks what holds for every error: the status that belongs to its code, a problem as the body, and no internals of
 * the server in it.
 * @param pointer pointer that one of its `errors` must have
 */
export function expectProblem(
  answer: Answer<unknown>,
  status: number,
  code: string,
  pointer?: string,
): Problem {
  const problem = answer.body as Problem;
  expect({ status: answer.status, code: problem.code, detail: problem.detail }).toEqual({
    status,
    code,
    detail: expect.any(String) as string,
  });
  expect(answer.headers.get('content-type')).toMatch(/^application\/problem\+json/);
  expect(problem).toMatchObject({ type: `urn:colloquy:problem:${code}`, status });
  expect(problem.title).toEqual(expect.any(String));
  expect(answer.text).not.toMatch(/node_modules|\.js:\d|\.ts:\d|select |insert /i);
  if (pointer !== undefined) expect(problem.errors?.map((one) => one.pointer)).toContain(pointer);
  return problem;
}

/**
 * Calls `look` again until it resolves to a value other than undefined and false, for at most `limitMs` milliseconds.
 */
export async function eventually<T>(
  look: () => Promise<T | undefined | false>,
  limitMs = 10_000,
): Promise<T> {
  const deadline = performance.now() + limitMs;
  for (;;) {
    const seen = await look();
    if (seen !== undefined && seen !== false) return seen;
    if (performance.now() > deadline) throw new Error(`it did not come true within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
