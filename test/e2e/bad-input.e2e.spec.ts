import { createHash } from 'node:crypto';
import { connect } from 'node:net';
import { type FakeOpenAi } from '../support/fake-openai.js';
import { type Answer, type Api, apiOf, expectProblem, getRaw } from '../support/http.js';
import { createWorld, say, stored, user, type World } from './fixture.js';

const MIB = 1_048_576;
const JSON_TYPE = { 'content-type': 'application/json' };

/** Each bad request is refused with a 4xx problem and changes nothing in the database. */
describe('bad input', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;
  let before: Record<string, unknown>;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    ({ api } = await world.node());
    await api.post('/v1/sessions', { id: 's' });
    await say(api, 's', 'hello');
    await api.post('/v1/sessions', { id: 's' }, { 'colloquy-tenant': 'other' });
    await say(apiOf(api.url, { 'colloquy-tenant': 'other' }), 's', 'of another tenant');
    before = await stored(world.database);
  });
  afterEach(async () => {
    expect(await stored(world.database)).toEqual(before);
    expect(model.requests).toEqual([]);
  });
  afterAll(() => world.end());

  const deep = (levels: number): unknown => (levels === 0 ? 1 : { a: deep(levels - 1) });
  const long = (length: number): string => 'x'.repeat(length);

  describe('bodies', () => {
    const create: [what: string, body: unknown, pointer: string][] = [
      ['an unknown field', { id: 'x', colour: 'red' }, '/colour'],
      ['an unknown field that is a path', { 'a/b~c': 1 }, '/a~1b~0c'],
      ['a list', [], ''],
      ['a text', 'hello', ''],
      ['null', null, ''],
      ['a number as id', { id: 7 }, '/id'],
      ['null as id', { id: null }, '/id'],
      ['an empty id', { id: '' }, '/id'],
      ['an id of 129 characters', { id: long(129) }, '/id'],
      ['a reserved id', { id: '~tenant' }, '/id'],
      ['an id with a blank', { id: 'a b' }, '/id'],
      ['an id with a slash', { id: 'a/b' }, '/id'],
      ['an id with a line feed at the end', { id: 'a\n' }, '/id'],
      ['an id in another script', { id: 'élan' }, '/id'],
      ['an id that begins with a dot', { id: '..' }, '/id'],
      ['an empty title', { title: '' }, '/title'],
      ['a title of 301 characters', { title: long(301) }, '/title'],
      ['a title that is a list', { title: ['x'] }, '/title'],
      ['null as title', { title: null }, '/title'],
      ['metadata that is a list', { metadata: [] }, '/metadata'],
      ['metadata that is a text', { metadata: '{}' }, '/metadata'],
      ['metadata too large', { metadata: { a: long(16_384) } }, '/metadata'],
      ['metadata too large in bytes, not in characters', { metadata: { a: '€'.repeat(6_000) } }, '/metadata'],
      ['nesting that is too deep', { metadata: deep(65) }, `/metadata${'/a'.repeat(63)}`],
      ['U+0000 in a value', { metadata: { a: 'x\0' } }, '/metadata/a'],
      ['U+0000 in a key', { metadata: { 'x\0': 1 } }, '/metadata'],
      ['half of a surrogate pair', { title: '\ud83d' }, '/title'],
    ];
    it.each(create)('given %s, when a session is created with it, then 400', async (_, body, pointer) => {
      expectProblem(await api.post('/v1/sessions', body), 400, 'invalid-request', pointer);
    });

    const message: [what: string, body: unknown, pointer: string][] = [
      ['nothing', undefined, ''],
      ['an empty object', {}, '/messages'],
      ['no role', { content: 'x' }, '/role'],
      ['an unknown role', { role: 'robot', content: 'x' }, '/role'],
      ['no content', { role: 'user' }, '/content'],
      ['empty content', { role: 'user', content: '' }, '/content'],
      ['a number as content', { role: 'user', content: 1 }, '/content'],
      ['no part of content', { role: 'user', content: [] }, '/content'],
      [
        'an unknown kind of part',
        { role: 'user', content: [{ type: 'sound', url: 'x' }] },
        '/content/0/type',
      ],
      [
        'an unknown field in a part',
        { role: 'user', content: [{ type: 'text', text: 'x', a: 1 }] },
        '/content/0/a',
      ],
      ['101 parts', { role: 'user', content: Array(101).fill({ type: 'text', text: 'x' }) }, '/content'],
      ['an id of its own', { role: 'user', content: 'x', messageId: 'mine' }, '/messageId'],
      ['a status', { role: 'assistant', content: 'x', status: 'incomplete' }, '/status'],
      ['tool calls of a user', { role: 'user', content: 'x', toolCalls: [] }, '/toolCalls'],
      [
        'a tool call without a name',
        { role: 'assistant', content: '', toolCalls: [{ id: 'c', arguments: '' }] },
        '/toolCalls/0/name',
      ],
      [
        'arguments that are no text',
        { role: 'assistant', content: '', toolCalls: [{ id: 'c', name: 'f', arguments: {} }] },
        '/toolCalls/0/arguments',
      ],
      [
        'two tool calls with one id',
        {
          role: 'assistant',
          content: '',
          toolCalls: [
            { id: 'c', name: 'f', arguments: '' },
            { id: 'c', name: 'f', arguments: '' },
          ],
        },
        '/toolCalls/1/id',
      ],
      ['a user who only thinks', { role: 'user', content: [{ type: 'reasoning', text: 'x' }] }, '/content'],
      [
        'an image that is nowhere',
        { role: 'user', content: [{ type: 'image', url: 'not a url' }] },
        '/content/0/url',
      ],
      [
        'a file on a disk',
        { role: 'user', content: [{ type: 'file', url: 'file:///etc/passwd' }] },
        '/content/0/url',
      ],
      [
        'extensions that are too large',
        { ...user('x'), extensions: { a: 'x'.repeat(65_536) } },
        '/extensions',
      ],
      ['extensions of a bad name', { ...user('x'), extensions: { 'a b': 1 } }, '/extensions/a b'],
      ['a tool result that names no call', { role: 'tool', content: 'x' }, '/toolCallId'],
      ['a tool result without a call', { role: 'tool', content: 'x', toolCallId: 'c' }, '/toolCallId'],
      ['an empty list', { messages: [] }, '/messages'],
      ['a list and a message', { messages: [user('x')], role: 'user' }, '/role'],
      [
        'a wrong one among good ones',
        { messages: [user('x'), { role: 'user', content: 3 }] },
        '/messages/1/content',
      ],
      [
        'a result before its call',
        {
          messages: [
            { role: 'tool', content: 'x', toolCallId: 'c' },
            { role: 'assistant', content: '', toolCalls: [{ id: 'c', name: 'f', arguments: '' }] },
          ],
        },
        '/messages/0/toolCallId',
      ],
      ['U+0000', { messages: [user('x'), user('a\0b')] }, '/messages/1/content'],
      ['half of a surrogate pair', user('\udc00 alone'), '/content'],
    ];
    it.each(message)('given %s, when it is appended as a message, then 400', async (_, body, pointer) => {
      const answer = await api.post('/v1/sessions/s/messages', body);
      const problem = expectProblem(answer, 400, 'invalid-request');
      expect(problem.errors?.map((one) => one.pointer)).toContain(pointer);
    });

    const generate: [what: string, body: unknown, pointer: string][] = [
      ['an unknown field', { message: 'x', surprise: 1 }, '/surprise'],
      ['an empty message', { message: '' }, '/message'],
      ['a number as message', { message: 1 }, '/message'],
      ['a message without content', { message: { role: 'user' } }, '/message/content'],
      [
        'a message with open tool calls',
        { message: { role: 'assistant', content: '', toolCalls: [{ id: 'c', name: 'f', arguments: '' }] } },
        '/message/toolCalls',
      ],
      [
        'a tool result without a call',
        { message: { role: 'tool', content: 'x', toolCallId: 'c' } },
        '/message/toolCallId',
      ],
      ['a model with a blank', { message: 'x', model: 'a b' }, '/model'],
      ['empty instructions', { message: 'x', instructions: '' }, '/instructions'],
      ['no tools', { message: 'x', tools: [] }, '/tools'],
      ['a tool without a name', { message: 'x', tools: [{ description: 'x' }] }, '/tools/0/name'],
      ['a tool twice', { message: 'x', tools: [{ name: 'f' }, { name: 'f' }] }, '/tools'],
    ];
    it.each(generate)('given %s, when a reply is requested, then 400', async (_, body, pointer) => {
      expectProblem(await api.post('/v1/sessions/s/generate', body), 400, 'invalid-request', pointer);
    });

    it('given an empty history, when a reply is requested without a message, then 400', async () => {
      await api.post('/v1/sessions', { id: 'empty' });
      before = await stored(world.database);
      expectProblem(await api.post('/v1/sessions/empty/generate', {}), 400, 'invalid-request', '/message');
    });

    const others: [method: 'post' | 'patch', path: string, body: unknown, pointer: string][] = [
      ['patch', '/v1/sessions/s', { title: '' }, '/title'],
      ['patch', '/v1/sessions/s', { metadata: null }, '/metadata'],
      ['patch', '/v1/sessions/s', { metadata: { a: long(16_384) } }, '/metadata'],
      ['patch', '/v1/sessions/s', { legalHold: 'yes' }, '/legalHold'],
      ['patch', '/v1/sessions/s', [], ''],
      ['post', '/v1/sessions/s/reset', { reason: 1 }, '/reason'],
      ['post', '/v1/sessions/s/reset', { reason: long(1001) }, '/reason'],
      ['post', '/v1/sessions/s/reset', { why: 'x' }, '/why'],
      ['post', '/v1/chat', {}, '/message'],
      ['post', '/v1/chat', { message: '' }, '/message'],
      ['post', '/v1/chat', { message: 'x', sessionId: '' }, '/sessionId'],
      ['post', '/v1/chat', { message: 'x', sessionId: null }, '/sessionId'],
      ['post', '/v1/chat', { message: 'x', sessionId: long(129) }, '/sessionId'],
      ['post', '/v1/chat', { message: 'x', model: 'y' }, '/model'],
    ];
    it.each(others.map((one) => [one[3], ...one] as const))(
      'given a wrong %s in %s %s, then 400',
      async (_, method, path, body, pointer) => {
        expectProblem(await api[method](path, body), 400, 'invalid-request', pointer);
      },
    );

    it('given a wrong reason, when a session is deleted, then 400 and the session stays', async () => {
      expectProblem(
        await api.delete('/v1/sessions/s', {}, { reason: '' }),
        400,
        'invalid-request',
        '/reason',
      );
    });

    it('given a body with very many faults, when it is sent, then the length of the answer is bounded', async () => {
      const answer = await api.post('/v1/sessions/s/messages', {
        messages: Array(1000).fill({ role: 'user' }),
      });
      expect(expectProblem(answer, 400, 'invalid-request').errors).toHaveLength(50);
    });
  });

  describe('bytes', () => {
    const post = (body: string | Uint8Array<ArrayBuffer>, headers: Record<string, string> = JSON_TYPE) =>
      api.send('POST', '/v1/sessions/s/messages', body, headers);

    it.each([
      ['cut off', '{"role":"user","content":"x"'],
      ['a word', 'hello'],
      ['two values', '{}{}'],
      ['a trailing comma', '{"role":"user","content":"x",}'],
      ['NaN', '{"role":"user","content":NaN}'],
      ['a raw U+0000', '{"role":"user","content":"a\0b"}'],
      ['a prototype', '{"role":"user","content":"x","__proto__":{"a":1}}'],
    ])('given a body that is no JSON (%s), when it is sent, then 400 invalid-json', async (_, body) => {
      const problem = expectProblem(await post(body), 400, 'invalid-json');
      expect(problem.detail).not.toContain('role');
    });

    it('given bytes that are not UTF-8, when they are sent, then 400 invalid-json', async () => {
      const bytes = Buffer.concat([
        Buffer.from('{"role":"user","content":"'),
        Buffer.from([0xff, 0xfe]),
        Buffer.from('"}'),
      ]);
      expectProblem(await post(new Uint8Array(bytes)), 400, 'invalid-json');
    });

    it('given escapes of characters that cannot be stored, when they are sent, then 400 names the field', async () => {
      for (const escape of ['\\u0000', '\\ud83d', '\\uDC00x', '\\ud83d\\ud83d']) {
        const answer = await post(`{"role":"user","content":"a${escape}b"}`);
        expectProblem(answer, 400, 'invalid-request', '/content');
      }
    });

    it('given a deeply nested document, when it is sent, then 400, and the process does not crash', async () => {
      const levels = 100_000;
      const body = `{"metadata":{"a":${'['.repeat(levels)}${']'.repeat(levels)}}}`;
      expectProblem(await api.send('PATCH', '/v1/sessions/s', body, JSON_TYPE), 400, 'invalid-request');
      expect((await api.get('/health/live')).status).toBe(200);
    });

    it('given a body of more than 16 MiB, when it is sent with or without a content-length, then 413', async () => {
      const body = JSON.stringify(user(long(16 * MIB)));
      expectProblem(await post(body), 413, 'body-too-large');
      const chunked = await fetch(`${api.url}/v1/sessions/s/messages`, {
        method: 'POST',
        headers: JSON_TYPE,
        body: new Blob([body]).stream(),
        duplex: 'half',
      });
      expect(chunked.status).toBe(413);
      expect(await chunked.json()).toMatchObject({ code: 'body-too-large' });
    });

    it.each([
      ['text/plain', '{"role":"user","content":"x"}'],
      ['application/x-www-form-urlencoded', 'role=user&content=x'],
      ['multipart/form-data; boundary=x', '--x--'],
      ['application/xml', '<message/>'],
    ])('given a body of type %s, then 415', async (type, body) => {
      expectProblem(await post(body, { 'content-type': type }), 415, 'unsupported-media-type');
    });

    it('given a body without a type, then 415', async () => {
      expectProblem(await post('{"role":"user","content":"x"}', {}), 415, 'unsupported-media-type');
    });
  });

  describe('paths and queries', () => {
    it.each([
      ['/v1/sessions/%zz', ''],
      ['/v1/sessions/%', ''],
      ['/v1/sessions/%E9', ''],
      ['/v1/sessions/s%00', '/id'],
      ['/v1/sessions/~tenant', '/id'],
      ['/v1/sessions/~tenant/events', '/id'],
      ['/v1/sessions/a%2Fb', '/id'],
      ['/v1/sessions/a%20b/messages', '/id'],
      [`/v1/sessions/${long(129)}`, '/id'],
      [`/v1/sessions/${long(129)}/events`, '/id'],
      ['/v1/sessions/%ED%A0%80', ''],
    ])('given the path %s, then 400', async (path, pointer) => {
      const { status, text } = await getRaw(api.url, path, {});
      const problem = JSON.parse(text) as { code: string; errors?: { pointer: string }[] };
      expect([status, problem.code]).toEqual([400, 'invalid-request']);
      if (pointer !== '') expect(problem.errors?.map((one) => one.pointer)).toEqual([pointer]);
    });

    it('given an id in a path that is too long for any route, when it is requested, then a 4xx problem', async () => {
      const answer = await api.get(`/v1/sessions/${long(5_000)}`);
      expect(answer.status).toBeGreaterThanOrEqual(400);
      expect(answer.status).toBeLessThan(500);
      expect(answer.headers.get('content-type')).toContain('problem+json');
    });

    it.each([
      ['/v1/sessions?limit=0', '/limit'],
      ['/v1/sessions?limit=201', '/limit'],
      ['/v1/sessions?limit=-1', '/limit'],
      ['/v1/sessions?limit=1.5', '/limit'],
      ['/v1/sessions?limit=ten', '/limit'],
      ['/v1/sessions?limit=', '/limit'],
      ['/v1/sessions?limit=1&limit=2', '/limit'],
      ['/v1/sessions?status=deleted', '/status'],
      ['/v1/sessions?q=', '/q'],
      [`/v1/sessions?q=${long(201)}`, '/q'],
      ['/v1/sessions?q=a%00b', '/q'],
      ['/v1/sessions?tenant=other', '/tenant'],
      ['/v1/sessions?metadata.=x', '/metadata.'],
      ['/v1/sessions?metadata=x', '/metadata'],
      ['/v1/sessions?metadata.a=x&metadata.a=y', '/metadata.a'],
      ['/v1/sessions?metadata.a=x%00', '/metadata.a'],
      ['/v1/sessions?consistency=maybe', '/consistency'],
      ['/v1/sessions?cursor=', '/cursor'],
      ['/v1/sessions/s?fields=id', '/fields'],
      ['/v1/sessions/s?consistency=', '/consistency'],
      ['/v1/sessions/s/messages?order=up', '/order'],
      ['/v1/sessions/s/messages?incarnation=0', '/incarnation'],
      ['/v1/sessions/s/messages?incarnation=one', '/incarnation'],
      ['/v1/sessions/s/messages?limit=1000', '/limit'],
      ['/v1/sessions/s/messages?after=1', '/after'],
      ['/v1/sessions/s/messages?at=1&at=2', '/at'],
      ['/v1/sessions/s/events?after=-1', '/after'],
      ['/v1/sessions/s/events?after=x', '/after'],
      ['/v1/sessions/s/events?after=2147483648', '/after'],
      ['/v1/sessions/s/events?after=9007199254740991', '/after'],
      ['/v1/sessions/s/events?cursor=x', '/cursor'],
      ['/v1/sessions/s/usage?day=today', '/day'],
      ['/v1/sessions?order=newest', '/order'],
      ['/v1/usage?by=model', '/by'],
      ['/v1/usage?from=yesterday', '/from'],
      ['/v1/usage?to=2026-02-30', '/to'],
      ['/v1/usage?from=2026-02-02&to=2026-02-01', '/to'],
      ['/v1/usage?from=2024-01-01&to=2026-01-01', '/from'],
      ['/v1/usage?limit=1', '/limit'],
    ])('given GET %s, then 400 names the parameter', async (path, pointer) => {
      const problem = expectProblem(await api.get(path), 400, 'invalid-request', pointer);
      expect(problem.errors?.[0]?.in).toBe('query');
    });

    it('given forged cursors, when they are used, then 400, even with a correct checksum', async () => {
      /** Makes cursors as the service does. The checksum is no secret. */
      const forged = (scope: string, payload: object): string => {
        const json = JSON.stringify(payload);
        const checksum = createHash('sha256').update(`${scope}\0${json}`).digest('base64url').slice(0, 16);
        return checksum + Buffer.from(json).toString('base64url');
      };
      const lists = JSON.stringify(['sessions', 'default', 'all', null, {}]);
      const messages = JSON.stringify(['messages', { tenant: 'default', sessionId: 's' }, 'asc', null, null]);
      expect(
        (
          await api.get(
            `/v1/sessions?cursor=${forged(lists, { createdAt: '2020-01-01T00:00:00.000Z', id: 'a' })}`,
          )
        ).status,
      ).toBe(200);
      for (const cursor of [
        'x',
        'AAAAAAAAAAAAAAAAe30',
        '..%2F..%2Fetc',
        '%F0%9F%8C%8D',
        long(2048),
        forged(lists, {}),
        forged(lists, { createdAt: 'now', id: 'a' }),
        forged(lists, { createdAt: '0000-01-01T00:00:00.000Z', id: 'a' }),
        forged(lists, { createdAt: '2020-01-01T00:00:00.000Z', id: 'a\0' }),
        forged(lists, { createdAt: '2020-01-01T00:00:00.000Z', id: { a: 1 } }),
        forged(JSON.stringify(['sessions', 'other', 'all', null, {}]), {
          createdAt: '2020-01-01T00:00:00.000Z',
          id: 'a',
        }),
      ]) {
        expectProblem(await api.get(`/v1/sessions?cursor=${cursor}`), 400, 'invalid-cursor');
      }
      for (const cursor of [
        'x',
        forged(messages, { start: 1 }),
        forged(messages, { start: 1, at: null, after: 2147483648 }),
        forged(messages, { start: 1, at: 2147483648, after: 1 }),
        forged(messages, { start: 1, at: null, after: '1' }),
      ]) {
        expectProblem(await api.get(`/v1/sessions/s/messages?cursor=${cursor}`), 400, 'invalid-cursor');
      }
      // A cursor that the service cannot have issued must not show the history of another session.
      expectProblem(
        await api.get(`/v1/sessions/s/messages?cursor=${forged(messages, { start: 7, at: null, after: 7 })}`),
        410,
        'cursor-expired',
      );
    });

    it('given a cursor of another tenant, when it is used, then 400', async () => {
      const tenant = { 'colloquy-tenant': 'other' };
      await api.post('/v1/sessions', { id: 't' }, tenant);
      await say(apiOf(api.url, tenant), 's', 'more');
      before = await stored(world.database);
      const list = await api.get<{ nextCursor: string }>('/v1/sessions?limit=1', tenant);
      expectProblem(
        await api.get(`/v1/sessions?limit=1&cursor=${list.body.nextCursor}`),
        400,
        'invalid-cursor',
      );
      const page = await api.get<{ nextCursor: string }>('/v1/sessions/s/messages?limit=1', tenant);
      expectProblem(
        await api.get(`/v1/sessions/s/messages?cursor=${page.body.nextCursor}`),
        400,
        'invalid-cursor',
      );
    });

    it.each([
      ['PUT', '/v1/sessions', 'GET, HEAD, POST'],
      ['DELETE', '/v1/sessions', 'GET, HEAD, POST'],
      ['POST', '/v1/sessions/s', 'DELETE, GET, HEAD, PATCH'],
      ['PUT', '/v1/sessions/s', 'DELETE, GET, HEAD, PATCH'],
      ['GET', '/v1/sessions/s/reset', 'POST'],
      ['DELETE', '/v1/sessions/s/messages', 'GET, HEAD, POST'],
      ['POST', '/v1/sessions/s/events', 'GET, HEAD'],
      ['GET', '/v1/sessions/s/generate', 'POST'],
      ['GET', '/v1/chat', 'POST'],
      ['POST', '/health/live', 'GET, HEAD'],
      ['POST', '/openapi.json', 'GET, HEAD'],
    ])('given %s %s, then 405 with Allow: %s', async (method, path, allow) => {
      const answer = await api.send(method, path, undefined);
      expectProblem(answer, 405, 'method-not-allowed');
      expect(answer.headers.get('allow')).toBe(allow);
    });

    it.each([
      '/',
      '/v1',
      '/v1/',
      '/v2/sessions',
      '/v1/Sessions',
      '/v1/sessions/',
      '/v1/sessions/s/',
      '/v1/sessions/s/nothing',
      '/v1/sessions//messages',
      '/v1/sessions/s/messages/1/parts',
      '/sessions',
      '/docs/../../package.json',
      '/docs/%2e%2e/package.json',
      '/health',
      '/favicon.ico',
    ])('given GET %s, then 404', async (path) => {
      const { status, text } = await getRaw(api.url, path, {});
      expect([status, (JSON.parse(text) as { code: string }).code]).toEqual([404, 'not-found']);
    });
  });

  describe('headers and connections', () => {
    it.each([
      ['/X-Correlation-Id', { 'x-correlation-id': 'a b' }],
      ['/X-Correlation-Id', { 'x-correlation-id': long(129) }],
      ['/Colloquy-Tenant', { 'colloquy-tenant': 'Upper' }],
      ['/Colloquy-Tenant', { 'colloquy-tenant': '' }],
      ['/Colloquy-Tenant', { 'colloquy-tenant': long(64) }],
      ['/Colloquy-Tenant', { 'colloquy-tenant': 'a/b' }],
      ['/If-Match', { 'if-match': 'two' }],
      ['/Idempotency-Key', { 'idempotency-key': '' }],
    ])('given a wrong header %s %j, then 400', async (pointer, headers) => {
      expectProblem(
        await api.post('/v1/sessions/s/messages', user('x'), headers),
        400,
        'invalid-request',
        pointer,
      );
    });

    it('given bytes that are not HTTP, when they are sent, then the answer is a problem, and the service goes on', async () => {
      const { hostname, port } = new URL(api.url);
      const answers: string[] = [];
      for (const bytes of [
        'hello\r\n\r\n',
        `GET / HTTP/1.1\r\nHost: x\r\nX: ${long(20_000)}\r\n\r\n`,
        'POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n',
      ]) {
        answers.push(
          await new Promise<string>((resolve) => {
            let text = '';
            const socket = connect(Number(port), hostname, () => socket.write(bytes));
            socket.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
            socket.once('close', () => {
              resolve(text);
            });
            // A client that goes on sending after the answer is disconnected.
            socket.once('error', () => undefined);
          }),
        );
      }
      for (const answer of answers) {
        expect(answer).toMatch(/^HTTP\/1\.1 4\d\d /);
        expect(answer).toContain('application/problem+json');
      }
      expect((await api.get('/health/live')).status).toBe(200);
    });

    it('given a client that disconnects in the middle of its body, when the service notices, then nothing is stored, and others are served', async () => {
      const { hostname, port } = new URL(api.url);
      const socket = connect(Number(port), hostname);
      await new Promise((resolve) => socket.once('connect', resolve));
      socket.write(
        'POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"id":',
      );
      socket.destroy();
      expect((await api.get('/v1/sessions/s')).status).toBe(200);
    });
  });

  it('given all requests of this file, when the log of the service is read, then it holds no error', async () => {
    const answer: Answer = await api.get('/health/ready');
    expect(answer.body).toMatchObject({ status: 'ok' });
    expect(world.output()).not.toMatch(/"level":"(error|fatal)"|at .*\.js:\d/);
  });
});
