import { connect } from 'node:net';
import type { AddressInfo } from 'node:net';
import { Logger } from '@nestjs/common';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { PROBLEMS } from '../../../src/http/problem.js';
import { startApp } from './fixture.js';

describe('problems', () => {
  let app: NestFastifyApplication;
  let logged: jest.SpyInstance<void, string[]>;

  beforeAll(async () => {
    app = await startApp({ bodyLimit: 2_000 });
    logged = jest.spyOn(Logger.prototype, 'error').mockImplementation(() => undefined) as typeof logged;
  });
  beforeEach(() => logged.mockClear());
  afterAll(async () => {
    await app.close();
    logged.mockRestore();
  });

  const failing = (how: string) => app.inject({ method: 'PATCH', url: `/v1/notes/a/fail/${how}?q=secret` });

  it('given an error of another layer with a known code, when it is thrown, then it is that problem with its details', async () => {
    const response = await failing('domain');
    expect(response.statusCode).toBe(429);
    expect(response.headers['content-type']).toMatch(/^application\/problem\+json/);
    expect(response.json()).toEqual({
      type: 'urn:colloquy:problem:session-limit-reached',
      title: PROBLEMS['session-limit-reached'].title,
      status: 429,
      detail: 'Two of two are active.',
      code: 'session-limit-reached',
      instance: '/v1/notes/a/fail/domain',
      activeSessions: 2,
      maxSessions: 2,
    });
    expect(logged).not.toHaveBeenCalled();
  });

  it.each(['busy', 'overloaded', 'lagging', 'database'])(
    'given the passing trouble %s, when it is answered, then it says when to come back',
    async (how) => {
      expect((await failing(how)).headers['retry-after']).toBe('1');
    },
  );

  it('given a problem that is not temporary, when it is answered, then there is no Retry-After', async () => {
    expect((await failing('domain')).headers).not.toHaveProperty('retry-after');
  });

  it('given details with names of standard members, when they are answered, then the standard members are kept', async () => {
    expect((await failing('override')).json()).toMatchObject({
      status: 409,
      code: 'legal-hold',
      detail: 'Held.',
    });
  });

  it.each(['unknown-code', 'prototype', 'system', 'postgres', 'plain', 'string', 'nest'])(
    'given the unforeseen error %s, when it is thrown, then nothing of it is shown and its stack is logged',
    async (how) => {
      const response = await failing(how);
      expect(response.statusCode).toBe(500);
      expect(response.json<{ code: string }>().code).toBe('internal-error');
      expect(response.body).not.toMatch(/hidden|\bat .*:\d+/);
      expect(logged).toHaveBeenCalledTimes(1);
      expect(logged.mock.calls[0]?.[0]).toContain(response.headers['x-correlation-id']);
      expect(logged.mock.calls[0]?.[0]).not.toContain('secret');
    },
  );

  it('given an error with a cause, when it is logged, then both stacks are logged', async () => {
    await failing('plain');
    expect(logged.mock.calls[0]?.[1]).toMatch(/hidden text[^]*Caused by: [^]*deeper hidden text/);
  });

  it('given headers of an ApiError, when it is thrown, then they are sent', async () => {
    const response = await failing('api');
    expect(response.statusCode).toBe(429);
    expect(response.headers['retry-after']).toBe('7');
  });

  it('given an unknown path, when it is requested, then it is not-found', async () => {
    const response = await app.inject('/v1/nothing?x=1');
    expect(response.statusCode).toBe(404);
    expect(response.json()).toMatchObject({ code: 'not-found', instance: '/v1/nothing' });
    expect(response.headers).not.toHaveProperty('allow');
  });

  it.each([
    ['PUT', '/v1/notes', 'GET, HEAD'],
    ['GET', '/v1/notes/a/lines', 'POST'],
    ['HEAD', '/v1/notes/a/lines', 'POST'],
    ['OPTIONS', '/v1/notes/%61/re%73et', 'POST'],
    ['POST', '/v1/notes/stream', 'DELETE, GET, HEAD'],
  ] as const)(
    'given a path with other methods, when %s %s is sent, then it is method-not-allowed with Allow: %s',
    async (method, url, allow) => {
      const response = await app.inject({ method, url });
      expect(response.statusCode).toBe(405);
      expect(response.headers).toMatchObject({
        allow,
        'content-type': expect.stringMatching(/problem\+json/) as string,
      });
      if (method !== 'HEAD') {
        expect(response.json()).toMatchObject({ code: 'method-not-allowed', status: 405 });
      }
    },
  );

  it.each([
    ['POST', '/v1/notes//reset'],
    ['GET', '/v1/notes//reset'],
    ['GET', '/v1/notes/vanished'],
    ['GET', '/v1/notes/'],
  ] as const)(
    'given a path that leads nowhere, when %s %s is sent, then it is not-found',
    async (method, url) => {
      const response = await app.inject({ method, url });
      expect(response.statusCode).toBe(404);
      expect(response.json()).toMatchObject({ code: 'not-found' });
    },
  );

  it.each([
    ['badly encoded', '/v1/notes/%zz/lines'],
    ['overlong', `/v1/notes/${'a'.repeat(600)}/lines`],
  ])('given a path that is %s, when it is requested, then it is invalid-request', async (_, url) => {
    const response = await app.inject({ method: 'POST', url, payload: {} });
    expect(response.statusCode).toBe(400);
    expect(response.json()).toMatchObject({ code: 'invalid-request' });
    expect(response.headers['content-type']).toMatch(/problem\+json/);
    expect(response.headers['x-correlation-id']).toBeDefined();
  });

  it('given an id of 300 characters, when it is used, then validation answers and not the router', async () => {
    const response = await app.inject({
      method: 'POST',
      url: `/v1/notes/${'a'.repeat(300)}/lines`,
      payload: { role: 'user', content: '' },
    });
    expect(response.json()).toMatchObject({ errors: [{ pointer: '/id', in: 'path' }] });
  });

  it('given a body over the limit, when it is sent, then it is body-too-large', async () => {
    const response = await app.inject({
      method: 'POST',
      url: '/v1/notes/a/reset',
      payload: { reason: 'x'.repeat(2_000) },
    });
    expect(response.statusCode).toBe(413);
    expect(response.json()).toMatchObject({
      code: 'body-too-large',
      detail: 'The body is larger than 2000 bytes, which is the limit of this server (server.bodyLimit).',
    });
  });

  it.each([
    undefined,
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    'nonsense',
  ])('given a body of content type %s, when it is sent, then it is unsupported-media-type', async (type) => {
    const response = await app.inject({
      method: 'POST',
      url: '/v1/notes/a/reset',
      payload: '{"reason":"x"}',
      headers: type === undefined ? {} : { 'content-type': type },
    });
    expect(response.statusCode).toBe(415);
    expect(response.json()).toMatchObject({ code: 'unsupported-media-type' });
  });

  describe('over a real connection', () => {
    let port: number;

    beforeAll(async () => {
      await app.listen(0, '127.0.0.1');
      port = (app.getHttpServer().address() as AddressInfo).port;
    });

    const exchange = (request: string) =>
      new Promise<string>((resolve, reject) => {
        let received = '';
        const socket = connect(port, '127.0.0.1', () => socket.write(request));
        socket.setEncoding('utf8').on('data', (chunk: string) => (received += chunk));
        socket.on('close', () => {
          resolve(received);
        });
        socket.on('error', (error: NodeJS.ErrnoException) => {
          if (error.code !== 'ECONNRESET') {
            reject(error);
          }
        });
      });

    it.each([
      ['no HTTP', 'HELLO\r\n\r\n'],
      [
        'a malformed content length',
        'POST /v1/notes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1x\r\n\r\n',
      ],
      [
        'headers over the limit',
        `GET /v1/notes HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'a'.repeat(20_000)}\r\n\r\n`,
      ],
    ])('given %s, when it arrives, then the answer is a problem', async (_, request) => {
      const answer = await exchange(request);
      expect(answer).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n/);
      const [head = '', body = ''] = answer.split('\r\n\r\n');
      expect(head).toContain('content-type: application/problem+json');
      expect(JSON.parse(body)).toMatchObject({ code: 'invalid-request', status: 400 });
    });

    it('given a stream that has begun, when its handler fails, then the connection is cut and the error logged', async () => {
      const answer = await exchange('GET /v1/notes/stream HTTP/1.1\r\nHost: localhost\r\n\r\n');
      expect(answer).toContain('data: 1');
      // A complete chunked answer ends with an empty chunk.
      expect(answer).not.toContain('\r\n0\r\n');
      expect(logged).toHaveBeenCalledTimes(1);
    });

    it('given a client that disconnects while it sends, when the service notices, then it logs no error', async () => {
      await new Promise<void>((resolve) => {
        const socket = connect(port, '127.0.0.1', () => {
          socket.write(
            'POST /v1/notes/a/reset HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{',
            () => socket.destroy(),
          );
        });
        socket.on('close', () => {
          resolve();
        });
      });
      // This request is answered after the broken one was handled, because both share one event loop.
      await exchange('GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n');
      expect(logged).not.toHaveBeenCalled();
    });
  });
});
