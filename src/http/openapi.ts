import { createReadStream } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { HttpCode, type INestApplication } from '@nestjs/common';
import { ModulesContainer } from '@nestjs/core';
import type { FastifyInstance } from 'fastify';
import type { OpenAPIObject } from '@nestjs/swagger';
import { z } from 'zod';
import { requirementOf } from '../access/requirement.js';
import { FIRST_CELL } from '../config.js';
import { TENANT_ID } from '../domain/tenant.js';
import { ApiError, PROBLEMS, type ProblemCode } from './problem.js';
import { CELL_HEADER, subjectOf } from './subject.js';
import { addedSurfaceOf, type Surface } from './surfaces.js';

interface Answer {
  readonly status: number;
  readonly schema: z.ZodType | null;
  readonly options: AnswerOptions;
}

export interface AnswerOptions {
  /** One sentence on what the route does, for the page. */
  readonly summary?: string;
  /** What this answer means, when the status does not say it. */
  readonly description?: string;
  /** The codes of this route. Those of authentication, validation and body parsing are added by themselves. */
  readonly problems?: readonly ProblemCode[];
  /** The answer carries `ETag: "<version>"`. */
  readonly etag?: boolean;
  /** The route answers as `text/event-stream` too, if asked; without a schema it answers nothing else. */
  readonly stream?: true | EventStream;
}

export interface EventStream {
  /** What the `data` of each event holds, by the event's name. */
  readonly events: Readonly<Record<string, z.ZodType | 'Problem'>>;
  /** How such a stream looks. */
  readonly example: string;
}

interface Header {
  readonly name: string;
  readonly description: string;
  readonly schema: object;
}

const ANSWERS = Symbol('answers');
const HEADERS = Symbol('headers');

/**
 * Says what a route answers on success, and sets that status. A route with several answers has the decorator
 * several times: the first one listed is what it answers unless the handler sets another status.
 *
 * @param schema of the body; null for an answer without one. Schemas with `.meta({ id })` are named components
 */
export function Answers(
  status: number,
  schema: z.ZodType | null,
  options: AnswerOptions = {},
): MethodDecorator {
  return (target, key, descriptor) => {
    // Decorators are applied from the last to the first: the first one's status is the one that stays.
    HttpCode(status)(target, key, descriptor);
    addMetadata(ANSWERS, { status, schema, options } satisfies Answer, target, key);
  };
}

/** Documents a request header on every route that has a parameter decorator made with it. */
export function documentHeader(header: Header): ParameterDecorator {
  return (target, key) => {
    if (key !== undefined) {
      addMetadata(HEADERS, header, target, key);
    }
  };
}

function addMetadata(kind: symbol, value: unknown, target: object, key: string | symbol): void {
  Reflect.defineMetadata(kind, [value, ...metadata(kind, target, key)], target, key);
}

function metadata<T>(kind: symbol, target: object, key: string | symbol): T[] {
  return (Reflect.getOwnMetadata(kind, target, key) as T[] | undefined) ?? [];
}

/**
 * Serves the OpenAPI 3.1 document at `/openapi.json` and its page at `/docs`. Both come from the schemas that
 * validate, are made at the first request, and load nothing from elsewhere.
 */
export function setupOpenApi(app: INestApplication, options: { version: string; secured: boolean }): void {
  const fastify = app.getHttpAdapter().getInstance() as FastifyInstance;
  let document: Promise<string> | undefined;
  fastify.get('/openapi.json', OPEN, async (_request, reply) => {
    document ??= buildDocument(app, options).then((built) => JSON.stringify(built));
    return reply.type('application/json').send(await document);
  });

  fastify.get('/docs', OPEN, (_request, reply) => {
    // The policy holds the page to this server, whatever a later version of the UI would like to fetch.
    void reply
      .header(
        'content-security-policy',
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
      )
      .type('text/html')
      .send(PAGE);
  });
  fastify.get('/docs/page.js', OPEN, (_request, reply) => reply.type('text/javascript').send(PAGE_SCRIPT));
  for (const [file, type] of Object.entries(UI_FILES)) {
    fastify.get(`/docs/${file}`, OPEN, (_request, reply) =>
      reply.type(type).send(createReadStream(join(uiFolder(), file))),
    );
  }
}

/** These routes hold no data, so they need no key. */
const OPEN = { config: { access: 'public' } } as const;

const UI_FILES = {
  'swagger-ui.css': 'text/css',
  'swagger-ui-bundle.js': 'text/javascript',
  'favicon-32x32.png': 'image/png',
};

const PAGE = `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>Colloquy</title>
    <link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
    <link rel="stylesheet" href="/docs/swagger-ui.css">
  </head>
  <body>
    <div id="page"></div>
    <script src="/docs/swagger-ui-bundle.js"></script>
    <script src="/docs/page.js"></script>
  </body>
</html>
`;

const PAGE_SCRIPT = `SwaggerUIBundle({ url: '/openapi.json', dom_id: '#page', deepLinking: true, validatorUrl: null });\n`;

/** The UI's files come with @nestjs/swagger, wherever npm has put them; its own way to serve them needs a plugin. */
function uiFolder(): string {
  const require = createRequire(createRequire(__filename).resolve('@nestjs/swagger'));
  return (require('swagger-ui-dist/absolute-path.js') as () => string)();
}

type SchemaObject = Record<string, unknown>;

/** What is used here of an operation in the document. */
interface Operation {
  operationId: string;
  tags?: string[];
  summary?: string;
  parameters?: object[];
  requestBody?: { required?: boolean; content: Record<string, { schema: SchemaObject; examples?: object }> };
  responses: Record<string, object>;
  security?: object[];
  'x-required-scope'?: string;
}

const ref = (kind: string, name: string) => ({ $ref: `#/components/${kind}/${name}` });

async function buildDocument(
  app: INestApplication,
  { version, secured }: { version: string; secured: boolean },
): Promise<OpenAPIObject> {
  // Loaded only now: it takes longer to load than the rest of the service takes to start.
  const { DocumentBuilder, SwaggerModule } = await import('@nestjs/swagger');
  const components = new Components();
  const base = new DocumentBuilder()
    .setOpenAPIVersion('3.1.0')
    .setTitle('Colloquy')
    .setDescription('Conversation sessions of LLM applications, kept as events.')
    .setVersion(version)
    .build();
  const document = SwaggerModule.createDocument(app, base, {
    operationIdFactory: operationId,
    standardSchemaConverter: (schema, { schemaType }) =>
      schema instanceof z.ZodType ? { schema: components.convert(schema, schemaType) } : undefined,
  });

  const handlers = handlersByOperation(app);
  const { surfaces } = app.getHttpAdapter().getInstance() as FastifyInstance;
  for (const [path, item] of Object.entries(document.paths)) {
    for (const operation of Object.values(item as Record<string, Operation>)) {
      const handler = handlers.get(operation.operationId);
      if (handler !== undefined) {
        const surface = addedSurfaceOf(surfaces, path);
        complete(operation, handler, components, secured, surface);
        if (subjectOf(path) === 'cell') operation.parameters?.push(ref('parameters', 'Cell'));
      }
    }
  }
  document.components = {
    ...document.components,
    schemas: { ...components.schemas, Problem: PROBLEM_SCHEMA },
    parameters: { Tenant: TENANT_PARAMETER, Cell: CELL_PARAMETER, CorrelationId: CORRELATION_PARAMETER },
    ...(secured ? { securitySchemes: { apiKey: { type: 'http', scheme: 'bearer' } } } : {}),
  };
  return document;
}

/** What a request may be answered before its handler is reached. */
const OF_CALLERS = [
  'unauthenticated',
  'forbidden',
  'rate-limited',
  'issuer-unavailable',
  'database-unavailable',
] as const satisfies readonly ProblemCode[];

/** Adds what the decorators of a handler say to the operation that Swagger has read from its routes and schemas. */
function complete(
  operation: Operation,
  handler: Handler,
  components: Components,
  isGuarded: boolean,
  surface: Surface | undefined,
): void {
  const access = requirementOf(...handler);
  const secured = isGuarded && access !== 'public';
  if (surface) operation.tags = [surface.document.tag];
  const answers = metadata<Answer>(ANSWERS, ...handler);
  const headers = metadata<Header>(HEADERS, ...handler);
  operation.parameters = [
    ...(operation.parameters ?? []),
    ...headers.map((header) => ({ in: 'header', required: false, ...header })),
    ...(secured ? [ref('parameters', 'Tenant')] : []),
    ref('parameters', 'CorrelationId'),
  ];
  if (access !== undefined && access !== 'public') operation['x-required-scope'] = access.scope;
  if (secured) {
    operation.security = [{ apiKey: [] }];
  }
  const body = operation.requestBody;
  const content = body?.content['application/json'];
  if (body !== undefined && content !== undefined) {
    const { [OPTIONAL]: optional, [EXAMPLES]: examples, ...schema } = content.schema;
    body.required = optional === undefined;
    content.schema = schema;
    if (Array.isArray(examples)) {
      content.examples = Object.fromEntries(
        examples.map((value: unknown, index) => [`example ${index + 1}`, { value }]),
      );
    }
  }

  const summary = answers.find(({ options }) => options.summary !== undefined)?.options.summary;
  if (summary !== undefined) {
    operation.summary = summary;
  }
  if (answers.length > 0) {
    operation.responses = {};
  }
  for (const { status, schema, options } of answers) {
    const content = {
      ...(schema !== null && { 'application/json': { schema: components.convert(schema, 'output') } }),
      ...(options.stream !== undefined && { 'text/event-stream': eventStream(options.stream, components) }),
    };
    operation.responses[status] = {
      description: options.description ?? '',
      ...(options.etag === true ? { headers: { ETag: { schema: { type: 'string' } } } } : {}),
      ...(Object.keys(content).length > 0 && { content }),
    };
  }
  const codes = new Set<ProblemCode>([
    ...answers.flatMap(({ options }) => options.problems ?? []),
    // Of the header X-Correlation-Id at least, which every request may carry.
    'invalid-request',
    ...(body === undefined ? [] : (['invalid-json', 'body-too-large', 'unsupported-media-type'] as const)),
    ...(secured ? OF_CALLERS : []),
    'internal-error',
  ]);
  // Whatever is written for a tenant can meet its move.
  if (codes.has('overloaded')) codes.add('moving');
  if (surface) {
    documentErrors(operation, surface, codes, components);
    return;
  }
  for (const status of new Set([...codes].map((code) => PROBLEMS[code].status))) {
    const ofStatus = [...codes].filter((code) => PROBLEMS[code].status === status);
    operation.responses[status] = {
      description: ofStatus.map((code) => `\`${code}\`: ${PROBLEMS[code].title}.`).join(' '),
      content: {
        'application/problem+json': {
          schema: { allOf: [ref('schemas', 'Problem'), { properties: { code: { enum: ofStatus } } }] },
          examples: Object.fromEntries(ofStatus.map((code) => [code, { value: exampleOf(code) }])),
        },
      },
    };
  }
}

/** The errors of a surface with a form of its own, by the statuses that it gives them. */
function documentErrors(
  operation: Operation,
  { document, renderError }: Surface,
  codes: ReadonlySet<ProblemCode>,
  components: Components,
): void {
  const schema = components.convert(document.errors, 'output');
  const known = new Map<number, { description: string; examples: Record<string, object> }>();
  for (const code of codes) {
    const { title } = PROBLEMS[code];
    const { status, body } = renderError(new ApiError(code, `${title}.`), undefined);
    const value: unknown = document.contentType === 'application/json' ? JSON.parse(body) : body;
    const before = known.get(status);
    known.set(status, {
      description: before ? `${before.description} ${title}.` : `${title}.`,
      examples: { ...before?.examples, [code]: { value } },
    });
  }
  for (const [status, { description, examples }] of known)
    operation.responses[status] = { description, content: { [document.contentType]: { schema, examples } } };
}

/**
 * The schema of a stream is that of one event of it. OpenAPI 3.1 does not say so, and its tools read it like this;
 * 3.2 has `itemSchema` for it, with the same content. What the text of `data` holds is told by `contentSchema`.
 */
function eventStream(stream: true | EventStream, components: Components): object {
  const fields = { id: { type: 'string' }, event: { type: 'string' }, data: { type: 'string' } };
  if (stream === true) return { schema: { type: 'object', properties: fields } };
  const events = Object.entries(stream.events).map(([event, data]) => ({
    title: event,
    type: 'object',
    required: ['id', 'event', 'data'],
    properties: {
      ...fields,
      event: { const: event },
      data: {
        ...fields.data,
        contentMediaType: 'application/json',
        contentSchema: data === 'Problem' ? ref('schemas', data) : components.convert(data, 'output'),
      },
    },
  }));
  return { schema: { oneOf: events }, example: stream.example };
}

const exampleOf = (code: ProblemCode) => ({
  type: `urn:colloquy:problem:${code}`,
  title: PROBLEMS[code].title,
  status: PROBLEMS[code].status,
  detail: `${PROBLEMS[code].title}.`,
  code,
});

type Handler = [prototype: object, key: string];

function operationId(controller: string, method: string): string {
  return `${controller.replace(/Controller$/, '')}_${method}`;
}

function handlersByOperation(app: INestApplication): Map<string, Handler> {
  const handlers = new Map<string, Handler>();
  for (const module of app.get(ModulesContainer).values()) {
    for (const { metatype } of module.controllers.values()) {
      const prototype = metatype?.prototype as object | undefined;
      for (const key of prototype === undefined ? [] : Object.getOwnPropertyNames(prototype)) {
        handlers.set(operationId(metatype?.name ?? '', key), [prototype as object, key]);
      }
    }
  }
  return handlers;
}

/** Marks the schema of a body that may be left out, until `complete` has read it. */
const OPTIONAL = 'x-optional';
/** Carries a body's examples past Swagger, which would keep the first one only. */
const EXAMPLES = 'x-examples';

/** The schemas with an id, each once. */
class Components {
  readonly schemas: Record<string, SchemaObject> = {};

  /** The JSON Schema of a zod schema; its parts that have an id become references to components. */
  convert(schema: z.ZodType, io: 'input' | 'output'): SchemaObject {
    // As a property, so that a schema with an id of its own becomes a reference too.
    const wrapper = z.object({ it: schema });
    const wrapped = z.toJSONSchema(wrapper, { io, unrepresentable: 'any' });
    const definitions = JSON.stringify(wrapped.$defs ?? {});
    // Defaults make a schema look different to who sends it and to who gets it: one name cannot stand for both.
    const isTwofold =
      io === 'input' &&
      definitions !==
        JSON.stringify(z.toJSONSchema(wrapper, { io: 'output', unrepresentable: 'any' }).$defs ?? {});
    const nameOf = (id: string) => (isTwofold ? `${id}Input` : id);
    const withReferences = (json: string) =>
      JSON.parse(
        json.replaceAll(/"#\/\$defs\/([^"]+)"/g, (_, id: string) => `"#/components/schemas/${nameOf(id)}"`),
      ) as Record<string, SchemaObject>;
    for (const [id, definition] of Object.entries(withReferences(definitions))) {
      this.schemas[nameOf(id)] = definition;
    }
    const { it = {} } = withReferences(JSON.stringify(wrapped.properties));
    if (io === 'output') return it;
    const { examples, ...input } = it;
    return {
      ...input,
      ...(examples !== undefined && { [EXAMPLES]: examples }),
      ...(schema.safeParse(undefined).success && { [OPTIONAL]: true }),
    };
  }
}

const PROBLEM_SCHEMA: SchemaObject = {
  description: 'RFC 9457 problem details.',
  type: 'object',
  required: ['type', 'title', 'status', 'detail', 'code'],
  properties: {
    type: { type: 'string', description: '`urn:colloquy:problem:<code>`' },
    title: { type: 'string' },
    status: { type: 'integer' },
    detail: { type: 'string', description: 'For people; programs go by `code`.' },
    code: { type: 'string', enum: Object.keys(PROBLEMS) },
    instance: { type: 'string', description: 'The path of the request.' },
    errors: {
      type: 'array',
      description: 'Of `invalid-request`: what is wrong, and where.',
      items: {
        type: 'object',
        required: ['pointer', 'in', 'detail'],
        properties: {
          pointer: { type: 'string', description: 'A JSON pointer (RFC 6901).' },
          in: { type: 'string', enum: ['body', 'query', 'path', 'header'] },
          detail: { type: 'string' },
        },
      },
    },
  },
};

const TENANT_PARAMETER = {
  in: 'header' as const,
  name: 'Colloquy-Tenant',
  required: false,
  description: 'The tenant that an operator acts for. A key of one tenant may only name that one.',
  schema: { type: 'string', pattern: TENANT_ID.source, default: 'default' },
};

/** Without a pattern: a service of one cell does not look at it, and would take names that do not fit. */
const CELL_PARAMETER = {
  in: 'header' as const,
  name: CELL_HEADER,
  required: false,
  description:
    'The cell that an operator asks, one of `GET /v1/admin/cells`; without it the first one answers. Where there are several, ' +
    'a name that none has is 400 `invalid-request`; where there is one, the header has no meaning.',
  schema: { type: 'string', default: FIRST_CELL },
};

const CORRELATION_PARAMETER = {
  in: 'header' as const,
  name: 'X-Correlation-Id',
  required: false,
  description: 'Is echoed, logged and kept with the events; made up when it is missing.',
  schema: { type: 'string', pattern: '^[A-Za-z0-9._:-]{1,128}$' },
};
