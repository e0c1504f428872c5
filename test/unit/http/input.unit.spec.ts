import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { InputError } from '../../../src/http/problem.js';
import { parseJsonBody } from '../../../src/http/json-body.js';
import { startApp } from './fixture.js';

const bytes = (text: string) => Buffer.from(text);
const thrownBy = (run: () => unknown): unknown => {
  try {
    run();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
};

describe('parseJsonBody', () => {
  it('given an empty body, when it is parsed, then the result is undefined', () => {
    expect(parseJsonBody(Buffer.alloc(0))).toBeUndefined();
  });

  it.each([
    'null',
    '0',
    '"a"',
    '[]',
    '{"a":{"b":[1,"x",null,true]}}',
    '{"constructor":"text"}',
    '{"prototype":{}}',
  ])('given the JSON %s, when it is parsed, then it is that value', (text) => {
    expect(parseJsonBody(bytes(text))).toEqual(JSON.parse(text));
  });

  it('given a byte order mark, when the text is parsed, then the mark is ignored', () => {
    expect(parseJsonBody(bytes('\uFEFF{"a":1}'))).toEqual({ a: 1 });
  });

  it.each(['{', ' ', 'undefined', '{"a":}', "{'a':1}", '[1,]', '{"a":1}x', '"\n"'])(
    'given the text %j, when it is parsed, then it is invalid-json',
    (text) => {
      expect(thrownBy(() => parseJsonBody(bytes(text)))).toMatchObject({ code: 'invalid-json' });
    },
  );

  it('given broken JSON, when it is refused, then the message does not quote it', () => {
    expect(thrownBy(() => parseJsonBody(bytes('{"a": secret}')))).toMatchObject({
      message: expect.not.stringContaining('secret') as string,
    });
  });

  it.each([
    ['an invalid byte', [0x22, 0xff, 0x22]],
    ['an overlong encoding', [0x22, 0xc0, 0x80, 0x22]],
    ['an encoded surrogate', [0x22, 0xed, 0xa0, 0x80, 0x22]],
    ['a cut character', [0x22, 0xe2, 0x82, 0x22]],
  ])('given %s, when the body is parsed, then it is invalid-json', (_, content) => {
    expect(thrownBy(() => parseJsonBody(Buffer.from(content)))).toMatchObject({ code: 'invalid-json' });
  });

  it.each([
    '{"__proto__":{"a":1}}',
    '{"a":[{"__proto__":null}]}',
    '{"\\u005f_proto__":{}}',
    '{"constructor":{"prototype":{"a":1}}}',
    '{"a":{"\\u0063onstructor":{"prototype":{}}}}',
  ])('given %s that reaches into prototypes, when it is parsed, then it is invalid-json', (text) => {
    expect(thrownBy(() => parseJsonBody(bytes(text)))).toMatchObject({ code: 'invalid-json' });
  });

  it.each([
    ['U+0000', '{"a":["x",{"b/c":"\\u0000"}]}', '/a/1/b~1c'],
    ['a lone high surrogate', '{"a":"\\ud800"}', '/a'],
    ['a lone low surrogate', '{"a":"x\\uDC00y"}', '/a'],
    ['two high surrogates', '["\\ud83d\\ud83d\\ude00"]', '/0'],
    ['U+0000 in a key', '{"a":{"x\\u0000":1}}', '/a'],
    ['a lone surrogate in a key', '{"\\udfff":1}', ''],
    ['U+0000 as the whole body', '"\\u0000"', ''],
  ])('given %s, when it is parsed, then the pointer tells where it is', (_, text, pointer) => {
    expect(thrownBy(() => parseJsonBody(bytes(text)))).toMatchObject({
      code: 'invalid-request',
      details: { errors: [{ pointer, in: 'body', detail: expect.stringContaining('U+0000') as string }] },
    });
  });

  it.each(['"\\ud83d\\ude00"', '"\\\\u0000"', '"\\u00e9"', '{"\\ud83d\\ude00":"😀"}'])(
    'given the sound escapes %s, when they are parsed, then they are text',
    (text) => {
      expect(parseJsonBody(bytes(text))).toEqual(JSON.parse(text));
    },
  );

  it('given nesting of 64 levels, when it is parsed, then it is accepted; 65 levels are refused', () => {
    const nested = (levels: number) => bytes('[{"a":'.repeat(levels / 2) + '1' + '}]'.repeat(levels / 2));
    expect(parseJsonBody(nested(64))).toBeDefined();
    expect(thrownBy(() => parseJsonBody(nested(66)))).toMatchObject({
      code: 'invalid-request',
      details: { errors: [{ pointer: '/0/a'.repeat(32) }] },
    });
  });

  it('given half a million levels, when they are parsed, then the stack does not overflow', () => {
    const text = '['.repeat(500_000) + ']'.repeat(500_000);
    expect(thrownBy(() => parseJsonBody(bytes(text)))).toMatchObject({ code: 'invalid-request' });
  });
});

describe('validation', () => {
  let app: NestFastifyApplication;

  beforeAll(async () => {
    app = await startApp();
  });
  afterAll(() => app.close());

  const post = async (payload: unknown, url = '/v1/notes/a/lines') => {
    const response = await app.inject({
      method: 'POST',
      url,
      payload: JSON.stringify(payload),
      headers: { 'content-type': 'application/json' },
    });
    return {
      status: response.statusCode,
      ...response.json<{ code?: string; detail?: string; errors?: InputError[] }>(),
    };
  };
  const where = ({ errors = [] }: { errors?: InputError[] }) =>
    errors.map((error) => `${error.in} ${error.pointer}`);

  it('given a valid request, when it is sent, then the handler gets the parsed values', async () => {
    expect(await post({ role: 'user', content: 'hi' })).toMatchObject({
      status: 201,
      id: 'a',
      body: { role: 'user', content: 'hi' },
    });
  });

  it.each([
    ['a wrong value', { role: 'robot', content: 'x' }, ['body /role']],
    ['a missing field', { role: 'user' }, ['body /content']],
    ['an unknown field', { role: 'user', content: 'x', colour: 1 }, ['body /colour']],
    [
      'several unknown fields',
      { role: 'user', content: 'x', 'a/b': 1, 'c~d': 2 },
      ['body /a~1b', 'body /c~0d'],
    ],
    [
      'a fault in the second alternative',
      {
        lines: [
          { role: 'user', content: '' },
          { role: 'x', content: '' },
        ],
      },
      ['body /lines/1/role'],
    ],
    ['a fault in a part', { role: 'user', content: [{ type: 'text', text: 5 }] }, ['body /content/0/text']],
    ['an empty list', { lines: [] }, ['body /lines']],
    [
      'two faults',
      {
        lines: [
          { role: 'x', content: '' },
          { role: 'user', content: '', extra: 1 },
        ],
      },
      ['body /lines/0/role', 'body /lines/1/extra'],
    ],
    ['no kind of content', { role: 'user', content: 5 }, ['body /content']],
    ['nothing of either alternative', {}, ['body /lines']],
    ['a body that is no object', [], ['body ']],
    ['null', null, ['body ']],
  ])('given %s, when it is sent, then the pointers tell where', async (_, payload, pointers) => {
    const answer = await post(payload);
    expect(answer).toMatchObject({ status: 400, code: 'invalid-request' });
    expect(where(answer)).toEqual(pointers);
  });

  it('given a message without any valid kind of content, when it is refused, then the error names each kind', async () => {
    const { errors } = await post({ role: 'user', content: 5 });
    expect(errors?.[0]?.detail).toMatch(/string.*or.*array/);
  });

  it('given a route that needs a body, when there is none, then the error points to the body', async () => {
    const response = await app.inject({ method: 'POST', url: '/v1/notes/a/lines' });
    expect(where(response.json())).toEqual(['body ']);
  });

  it('given hundreds of faults, when the request is refused, then fifty are listed and all are counted', async () => {
    const lines = Array.from({ length: 300 }, () => ({ role: 'x', content: '' }));
    const answer = await post({ lines });
    expect(answer.errors).toHaveLength(50);
    expect(answer.detail).toContain('300');
  });

  it('given an invalid path parameter, when it is used, then the error points to the path', async () => {
    expect(where(await post({ role: 'user', content: '' }, '/v1/notes/A_b/lines'))).toEqual(['path /id']);
  });

  it.each([
    ['limit=0', ['query /limit']],
    ['limit=abc', ['query /limit']],
    ['limit=201', ['query /limit']],
    ['limit=1&limit=2', ['query /limit']],
    ['q=a&q=b', ['query /q']],
    ['colour=1', ['query /colour']],
    ['q=%00', ['query /q']],
    ['q=a%00&q=b', ['query /q/0']],
    ['__proto__=1', ['query /__proto__']],
  ])('given the query %s, when it is used, then the error points to the query', async (query, pointers) => {
    const response = await app.inject(`/v1/notes?${query}`);
    expect(response.statusCode).toBe(400);
    expect(where(response.json())).toEqual(pointers);
  });

  it('given a query without limit, when it is used, then the default applies', async () => {
    expect((await app.inject('/v1/notes?q=%F0%9F%98%80')).json()).toEqual({ limit: 50, q: '😀' });
  });

  it.each([
    {},
    { 'content-type': 'application/json' },
    { 'content-type': 'application/json; charset=utf-8' },
  ])(
    'given a route with an optional body, when it is called without a body and with the headers %j, then the handler runs',
    async (headers) => {
      const response = await app.inject({ method: 'POST', url: '/v1/notes/a/reset', headers });
      expect(response.statusCode).toBe(200);
      expect(response.json()).toEqual({ options: 'no body' });
    },
  );

  it('given a route with an optional body, when there is a body, then it is used', async () => {
    expect(await post({}, '/v1/notes/a/reset')).toMatchObject({ status: 200, options: { reason: 'none' } });
  });

  it('given broken JSON, when it is sent, then it is invalid-json', async () => {
    const response = await app.inject({
      method: 'POST',
      url: '/v1/notes/a/reset',
      payload: '{"a":',
      headers: { 'content-type': 'application/json' },
    });
    expect(response.statusCode).toBe(400);
    expect(response.json()).toMatchObject({ code: 'invalid-json', status: 400 });
  });

  it('given a DELETE with an empty JSON body, when it is sent, then the handler runs', async () => {
    const response = await app.inject({
      method: 'DELETE',
      url: '/v1/notes/a',
      headers: { 'content-type': 'application/json' },
    });
    expect(response.statusCode).toBe(204);
  });
});
