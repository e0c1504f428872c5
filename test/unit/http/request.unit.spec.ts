import { createHash } from 'node:crypto';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import fc from 'fast-check';
import { z } from 'zod';
import { decodeCursor, encodeCursor } from '../../../src/http/cursor.js';
import { etag, parseIdempotencyKey, parseIfMatch } from '../../../src/http/preconditions.js';
import { startApp } from './fixture.js';

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');
const line = { role: 'user', content: 'hi' };
/** What `toThrow` matches an error with. */
const coded = (code: string, more: object = {}) => expect.objectContaining({ code, ...more }) as Error;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

describe('the caller', () => {
  let open: NestFastifyApplication;
  let keyed: NestFastifyApplication;

  beforeAll(async () => {
    open = await startApp();
    keyed = await startApp({
      auth: {
        mode: 'api-key',
        keys: [
          { name: 'alice', tenant: 'acme', sha256: sha256('alice-key') },
          { name: 'root', tenant: '*', sha256: sha256('root-key') },
        ],
      },
    });
  });
  afterAll(() => Promise.all([open.close(), keyed.close()]));

  const call = async (app: NestFastifyApplication, headers: Record<string, string>) => {
    const response = await app.inject({ method: 'POST', url: '/v1/notes/a/lines', payload: line, headers });
    return {
      status: response.statusCode,
      headers: response.headers,
      ...response.json<Record<string, unknown>>(),
    };
  };

  describe('without keys', () => {
    it('given no headers, when a request is made, then it is anonymous, of the default tenant, an operator', async () => {
      expect(await call(open, {})).toMatchObject({
        caller: { tenant: 'default', actor: 'anonymous', operator: true, ownedBy: null },
      });
    });

    it('given a tenant header, when a request is made, then it is for that tenant', async () => {
      expect(await call(open, { 'colloquy-tenant': 'b_1-c' })).toMatchObject({ caller: { tenant: 'b_1-c' } });
    });

    it.each(['', 'A', '-a', '~tenant', 'a'.repeat(64), 'a b', '*', 'a, b'])(
      'given the tenant header %j, when a request is made, then it is invalid-request',
      async (tenant) => {
        expect(await call(open, { 'colloquy-tenant': tenant })).toMatchObject({
          status: 400,
          code: 'invalid-request',
          errors: [{ pointer: '/Colloquy-Tenant', in: 'header' }],
        });
      },
    );

    it.each([
      { host: 'evil.example' },
      { host: '127.0.0.1.evil.example:3000' },
      { origin: 'https://evil.example' },
      { origin: 'null' },
      { origin: 'http://localhost.evil.example' },
    ])('given the foreign %j, when a browser sends it, then it is forbidden', async (headers) => {
      expect(await call(open, headers)).toMatchObject({ status: 403, code: 'forbidden' });
    });

    it.each([
      { host: 'localhost:3000', origin: 'http://localhost:5173' },
      { host: '127.0.0.1', origin: 'http://127.0.0.1' },
      { host: '[::1]:3000' },
    ])('given the local %j, when a request is made, then it is accepted', async (headers) => {
      expect(await call(open, headers)).toMatchObject({ status: 201 });
    });
  });

  describe('with keys', () => {
    it('given the key of a tenant, when a request is made, then it is that tenant and no operator', async () => {
      expect(await call(keyed, { authorization: 'Bearer alice-key' })).toMatchObject({
        status: 201,
        caller: { tenant: 'acme', actor: 'alice', operator: false },
      });
    });

    it('given another spelling of the scheme, when a request is made, then it is accepted', async () => {
      expect(await call(keyed, { authorization: 'bearer  alice-key' })).toMatchObject({ status: 201 });
    });

    it.each([
      {},
      { authorization: '' },
      { authorization: 'Bearer' },
      { authorization: 'Bearer wrong' },
      { authorization: 'Bearer alice-ke' },
      { authorization: 'Bearer alice-key x' },
      { authorization: 'Basic alice-key' },
      { authorization: `Bearer ${sha256('alice-key')}` },
    ])('given the headers %j, when a request is made, then it is unauthenticated', async (headers) => {
      const answer = await call(keyed, headers);
      expect(answer).toMatchObject({ status: 401, code: 'unauthenticated' });
      expect(answer.headers['www-authenticate']).toBe('Bearer');
    });

    it('given the tenant of the key in the header, when a request is made, then it is accepted; another tenant is forbidden', async () => {
      const authorization = 'Bearer alice-key';
      expect(await call(keyed, { authorization, 'colloquy-tenant': 'acme' })).toMatchObject({ status: 201 });
      expect(await call(keyed, { authorization, 'colloquy-tenant': 'other' })).toMatchObject({
        status: 403,
        code: 'forbidden',
      });
    });

    it('given an operator key, when a request is made, then the header names the tenant', async () => {
      const authorization = 'Bearer root-key';
      expect(await call(keyed, { authorization })).toMatchObject({
        caller: { tenant: 'default', actor: 'root', operator: true },
      });
      expect(await call(keyed, { authorization, 'colloquy-tenant': 'acme' })).toMatchObject({
        caller: { tenant: 'acme', actor: 'root', operator: true },
      });
    });

    it('given a route for operators, when the key of a tenant is used, then the request is forbidden; with the key of an operator it is allowed', async () => {
      const ask = (key: string) =>
        keyed
          .inject({ url: '/v1/admin', headers: { authorization: `Bearer ${key}` } })
          .then((r) => r.statusCode);
      expect(await ask('alice-key')).toBe(403);
      expect(await ask('root-key')).toBe(200);
    });

    it.each([
      '/health/live',
      '/openapi.json',
      '/docs',
      '/docs/swagger-ui.css',
      '/docs/page.js',
      '/health/live?x=1',
    ])('given the public path %s, when it is requested without a key, then it is answered', async (url) => {
      expect((await keyed.inject(url)).statusCode).toBe(200);
    });

    it.each([
      '/v1/notes',
      '/v1/nothing',
      '/nothing',
      '/docsx',
      '/healthx',
      '/metrics',
      '//docs',
      '/v1/notes?x=/docs/',
    ])('given the path %s, when it is requested without a key, then it is unauthenticated', async (url) => {
      expect((await keyed.inject({ url })).statusCode).toBe(401);
    });

    it('given no key, when a broken body is sent, then the error is about the missing key', async () => {
      const response = await keyed.inject({
        method: 'POST',
        url: '/v1/notes/a/reset',
        payload: '{',
        headers: { 'content-type': 'application/json' },
      });
      expect(response.statusCode).toBe(401);
    });
  });
});

describe('the correlation id', () => {
  let app: NestFastifyApplication;

  beforeAll(async () => {
    app = await startApp();
  });
  afterAll(() => app.close());

  const call = (headers: Record<string, string>) =>
    app.inject({ method: 'POST', url: '/v1/notes/a/lines', payload: line, headers });

  it.each(['a', 'Order:1.2_3-x', 'x'.repeat(128)])(
    'given %s, when it is sent, then it is echoed and handed on',
    async (id) => {
      const response = await call({ 'x-correlation-id': id });
      expect(response.headers['x-correlation-id']).toBe(id);
      expect(response.json()).toMatchObject({ correlationId: id });
    },
  );

  it('given none, when a request is made, then it has a new one each time', async () => {
    const ids = (await Promise.all([call({}), call({})])).map(
      (response) => response.headers['x-correlation-id'],
    );
    expect(ids[0]).toMatch(UUID);
    expect(ids[1]).toMatch(UUID);
    expect(ids[0]).not.toBe(ids[1]);
  });

  it.each(['', 'a b', 'ä', 'x'.repeat(129), 'a,b'])(
    'given %j, when it is sent, then it is invalid-request',
    async (id) => {
      const response = await call({ 'x-correlation-id': id });
      expect(response.statusCode).toBe(400);
      expect(response.json()).toMatchObject({ errors: [{ pointer: '/X-Correlation-Id', in: 'header' }] });
      expect(response.headers['x-correlation-id']).toMatch(UUID);
    },
  );

  it('given a handler that declares only caller and correlation id, when it is called, then it gets both', async () => {
    const response = await app.inject({ url: '/v1/admin', headers: { 'x-correlation-id': 'here' } });
    expect(response.json()).toEqual({
      caller: { tenant: 'default', actor: 'anonymous', operator: true, ownedBy: null },
      correlationId: 'here',
    });
  });

  it('given an unknown path, when it is answered, then the answer holds the correlation id as well', async () => {
    const response = await app.inject({ url: '/v1/nothing', headers: { 'x-correlation-id': 'here' } });
    expect(response.headers['x-correlation-id']).toBe('here');
  });
});

describe('cursors', () => {
  const payload = z.strictObject({ after: z.string(), n: z.number() });

  it('given any payload and scope, when it is encoded, then it decodes to the same', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary' }),
        fc.string({ unit: 'binary' }),
        fc.integer(),
        (scope, after, n) => {
          expect(decodeCursor(scope, encodeCursor(scope, { after, n }), payload)).toEqual({ after, n });
        },
      ),
      { numRuns: 50 },
    );
  });

  it('given a cursor, when it is encoded, then it needs no escaping in a query', () => {
    expect(encodeCursor('s', { after: 'ä??>>', n: 1 })).toMatch(/^[A-Za-z0-9_-]+$/);
  });

  const valid = encodeCursor('acme/list', { after: 'x', n: 1 });
  it.each([
    ['another scope', 'acme/other', valid],
    ['another split of the scope', 'acme/list\0', valid],
    ['a changed end', 'acme/list', `${valid.slice(0, -2)}AA`],
    ['a changed beginning', 'acme/list', `A${valid.slice(1)}x`],
    ['padding', 'acme/list', `${valid}=`],
    ['a stray character', 'acme/list', `${valid}!`],
    ['a blank', 'acme/list', ` ${valid}`],
    ['nothing', 'acme/list', ''],
    ['rubbish', 'acme/list', 'hello'],
    ['a hostile length', 'acme/list', 'A'.repeat(100_000)],
    ['a payload of another shape', 'acme/list', encodeCursor('acme/list', { after: 'x' })],
  ])('given %s, when it is decoded, then it is invalid-cursor', (_, scope, text) => {
    expect(() => decodeCursor(scope, text, payload)).toThrow(coded('invalid-cursor'));
  });
});

describe('preconditions', () => {
  it.each([
    [undefined, undefined],
    ['*', '*'],
    ['"12"', [12]],
    [etag(7), [7]],
    ['"1", "2"', [1, 2]],
    [' ,"1" ,, "2",', [1, 2]],
    ['W/"12"', []],
    ['W/"1", "2"', [2]],
    ['"abc"', []],
    ['"a,b", "3"', [3]],
    ['""', []],
    ['"007"', []],
    ['"0"', []],
    ['"1e3"', []],
    ['"99999999999999999999"', []],
  ])('given If-Match %j, when it is parsed, then it is %j', (header, expected) => {
    expect(parseIfMatch(header)).toEqual(expected);
  });

  it.each([
    '',
    ' ',
    ',',
    '12',
    '"12',
    '12"',
    '*, "1"',
    '"1" "2"',
    'w/"1"',
    '"1"x',
    '"\n"',
    `"${'1'.repeat(20)}`,
  ])('given the malformed If-Match %j, when it is parsed, then it is invalid-request', (header) => {
    expect(() => parseIfMatch(header)).toThrow(
      coded('invalid-request', { details: { errors: [expect.objectContaining({ in: 'header' })] } }),
    );
  });

  it('given a hostile If-Match, when it is parsed, then it does not take long', () => {
    const started = process.hrtime.bigint();
    expect(() => parseIfMatch(`${'"a" '.repeat(4_000)},${' \t,'.repeat(100_000)}x`)).toThrow();
    expect(Number(process.hrtime.bigint() - started) / 1e6).toBeLessThan(500);
  });

  it.each([undefined, 'k', 'a b', '~'.repeat(255)])(
    'given the Idempotency-Key %j, when it is parsed, then it stands',
    (key) => {
      expect(parseIdempotencyKey(key)).toBe(key);
    },
  );

  it.each(['', 'x'.repeat(256), 'ä', 'a\tb', '\x7f'])(
    'given the Idempotency-Key %j, when it is parsed, then it is invalid-request',
    (key) => {
      expect(() => parseIdempotencyKey(key)).toThrow(coded('invalid-request'));
    },
  );

  it('given both headers, when a handler declares them, then it gets them parsed', async () => {
    const app = await startApp();
    const response = await app.inject({
      method: 'POST',
      url: '/v1/notes/a/lines',
      payload: line,
      headers: { 'if-match': '"3"', 'idempotency-key': 'k' },
    });
    expect(response.json()).toMatchObject({ ifMatch: [3], idempotencyKey: 'k' });
    const refused = await app.inject({
      method: 'POST',
      url: '/v1/notes/a/lines',
      payload: line,
      headers: { 'if-match': '3' },
    });
    expect(refused.statusCode).toBe(400);
    await app.close();
  });
});
