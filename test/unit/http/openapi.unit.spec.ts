import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { startApp } from './fixture.js';

type Json = Record<string, unknown>;
interface Document {
  openapi: string;
  info: { version: string };
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, Json>; securitySchemes?: Json };
}
interface Operation {
  operationId: string;
  summary?: string;
  parameters: { name?: string; in?: string; required?: boolean; schema?: Json; $ref?: string }[];
  requestBody?: { required: boolean; content: Record<string, { schema: Json }> };
  responses: Record<
    string,
    {
      description: string;
      headers?: Json;
      content?: Record<
        string,
        { schema: Json; example?: string; examples?: Record<string, { value: Json }> }
      >;
    }
  >;
  security?: Json[];
}

describe('the OpenAPI document', () => {
  let app: NestFastifyApplication;
  let document: Document;
  const operation = (method: string, path: string) => {
    const found = document.paths[path]?.[method];
    if (found === undefined) {
      throw new Error(`${method} ${path} is not documented`);
    }
    return found;
  };

  beforeAll(async () => {
    app = await startApp({
      auth: { mode: 'api-key', keys: [{ name: 'a', tenant: 'a', sha256: '0'.repeat(64) }] },
    });
    document = (await app.inject('/openapi.json')).json();
  });
  afterAll(() => app.close());

  it('given the service, when its document is read, then it is OpenAPI 3.1 of this version', () => {
    expect(document.openapi).toBe('3.1.0');
    expect(document.info.version).toBe('1.2.3');
  });

  it('given a body schema, when it is documented, then strictness and alternatives are those of the validation', () => {
    expect(operation('post', '/v1/notes/{id}/lines').requestBody).toEqual({
      required: true,
      content: {
        'application/json': {
          schema: {
            anyOf: [
              { $ref: '#/components/schemas/Line' },
              {
                type: 'object',
                required: ['lines'],
                additionalProperties: false,
                properties: {
                  lines: {
                    type: 'array',
                    minItems: 1,
                    maxItems: 1000,
                    items: { $ref: '#/components/schemas/Line' },
                  },
                },
              },
            ],
          },
        },
      },
    });
    expect(document.components.schemas.Line).toMatchObject({
      additionalProperties: false,
      required: ['role', 'content'],
    });
  });

  it('given a body that may be left out, when it is documented, then it is not required', () => {
    const body = operation('post', '/v1/notes/{id}/reset').requestBody;
    expect(body).toEqual({
      required: false,
      content: { 'application/json': { schema: { $ref: '#/components/schemas/OptionsInput' } } },
    });
  });

  it('given a default, when the schema is used in a request and in an answer, then each has a component of its own', () => {
    expect(document.components.schemas.OptionsInput).not.toHaveProperty('required');
    expect(document.components.schemas.Options).toMatchObject({ required: ['reason'] });
  });

  it('given every reference, when it is followed, then its target exists', () => {
    const refs = [...JSON.stringify(document).matchAll(/"\$ref":"([^"]+)"/g)].map((match) => match[1] ?? '');
    expect(refs.length).toBeGreaterThan(5);
    for (const ref of refs) {
      const target = ref
        .slice(2)
        .split('/')
        .reduce<unknown>((value, key) => (value as Json | undefined)?.[key], document);
      expect({ ref, target: typeof target }).toEqual({ ref, target: 'object' });
    }
  });

  it('given path, query and headers, when they are documented, then each is a parameter', () => {
    const names = (parameters: Operation['parameters']) =>
      parameters.map((p) => p.$ref ?? `${p.in ?? ''} ${p.name ?? ''}`);
    expect(names(operation('post', '/v1/notes/{id}/lines').parameters).sort()).toEqual([
      '#/components/parameters/CorrelationId',
      '#/components/parameters/Tenant',
      'header Idempotency-Key',
      'header If-Match',
      'path id',
    ]);
    const limit = operation('get', '/v1/notes').parameters.find(({ name }) => name === 'limit');
    expect(limit).toMatchObject({
      in: 'query',
      required: false,
      schema: { default: 50, minimum: 1, maximum: 200 },
    });
  });

  it('given answers and problem codes, when they are documented, then each status has its schema', () => {
    const { responses, summary } = operation('post', '/v1/notes/{id}/lines');
    expect(summary).toBe('Adds lines');
    expect(Object.keys(responses)).toEqual([
      '200',
      '201',
      '400',
      '401',
      '403',
      '404',
      '412',
      '413',
      '415',
      '429',
      '500',
      '503',
    ]);
    expect(responses['201']?.content).toEqual({
      'application/json': { schema: { $ref: '#/components/schemas/Note' } },
    });
    expect(responses['201']?.headers).toHaveProperty('ETag');
    expect(responses['200']).toEqual({ description: 'Nothing was new.' });
    expect(responses['404']?.content?.['application/problem+json']?.schema).toEqual({
      allOf: [
        { $ref: '#/components/schemas/Problem' },
        { properties: { code: { enum: ['session-not-found'] } } },
      ],
    });
  });

  it('given an error code, when it is documented, then its problem is shown', () => {
    const content = operation('post', '/v1/notes/{id}/lines').responses['404']?.content;
    expect(content?.['application/problem+json']?.examples).toEqual({
      'session-not-found': {
        value: {
          type: 'urn:colloquy:problem:session-not-found',
          title: 'There is no such session',
          status: 404,
          detail: 'There is no such session.',
          code: 'session-not-found',
        },
      },
    });
  });

  it('given a stream of events, when it is documented, then each event has its schema, and the text an example', () => {
    const { content = {} } = operation('get', '/v1/notes/stream').responses['200'] ?? {};
    expect(Object.keys(content)).toEqual(['text/event-stream']);
    const event = (name: string, schema: string) => ({
      title: name,
      type: 'object',
      required: ['id', 'event', 'data'],
      properties: {
        id: { type: 'string' },
        event: { const: name },
        data: {
          type: 'string',
          contentMediaType: 'application/json',
          contentSchema: { $ref: `#/components/schemas/${schema}` },
        },
      },
    });
    expect(content['text/event-stream']).toEqual({
      schema: { oneOf: [event('note', 'Note'), event('failed', 'Problem')] },
      example: 'id: 1\nevent: note\ndata: {}\n\n',
    });
  });

  it('given routes with and without a key, when they are documented, then only the former require one', () => {
    expect(operation('get', '/v1/notes').security).toEqual([{ apiKey: [] }]);
    expect(operation('get', '/health/live').security).toBeUndefined();
    expect(document.components.securitySchemes).toHaveProperty('apiKey');
  });

  it('given several answers, when the handler sets no status, then the status is that of the first one', async () => {
    const open = await startApp();
    const response = await open.inject({
      method: 'POST',
      url: '/v1/notes/a/lines',
      payload: { role: 'user', content: '' },
    });
    expect(response.statusCode).toBe(201);
    await open.close();
  });

  it('given the page of the API, when it is opened, then everything that it loads comes from this service', async () => {
    const page = await app.inject('/docs');
    expect(page.headers['content-security-policy']).toContain("default-src 'self'");
    const assets = [...page.body.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1] ?? '');
    expect(assets).toHaveLength(4);
    for (const asset of assets) {
      const response = await app.inject(asset);
      expect({ asset, status: response.statusCode, empty: response.rawPayload.length === 0 }).toEqual({
        asset,
        status: 200,
        empty: false,
      });
    }
  });
});
