import fc from 'fast-check';

/** A JSON Schema of OpenAPI 3.1, with the keywords that are used here. */
interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly allOf?: readonly Schema[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly format?: string;
  readonly example?: unknown;
}

interface Parameter {
  readonly name: string;
  readonly in: 'path' | 'query' | 'header';
  readonly required?: boolean;
  readonly schema?: Schema;
}

interface Operation {
  readonly parameters?: readonly Parameter[];
  readonly requestBody?: { readonly content: Readonly<Record<string, { readonly schema?: Schema }>> };
  readonly responses: Readonly<Record<string, unknown>>;
}

export interface OpenApi {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components?: { readonly schemas?: Readonly<Record<string, Schema>> };
}

export interface GeneratedRequest {
  /** The path as in the document, e.g. `/v1/sessions/{id}`. */
  readonly route: string;
  readonly method: string;
  /** The path with the values of its parameters, percent-encoded. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | undefined;
}

/** Statuses that the document gives for an operation. */
export const documentedStatuses = (document: OpenApi, { route, method }: GeneratedRequest): string[] =>
  Object.keys(document.paths[route]?.[method.toLowerCase()]?.responses ?? {});

/**
 * Few ids, so that requests concern the same sessions: one request creates what another changes, resets and deletes.
 */
const ids = fc.constantFrom('a', 'b', 'c', 'default');
const TIMES = [
  '2026-11-22T10:00:00Z',
  '2026-11-22T10:00:00.123456789+15:59',
  '2026-11-22T10:00:00-15:59',
  '2026-11-22T10:00:00+16:00',
  '2026-11-22T10:00:00-23:59',
  '0000-01-01T00:00:00Z',
  '0001-01-01T00:00:00+15:59',
  '9999-12-31T23:59:59-15:59',
  '2026-02-30T00:00:00Z',
  '2026-11-22T23:59:60Z',
  '2026-11-22T10:00:00.1234567890Z',
  `2026-11-22T10:00:00.${'1'.repeat(150)}Z`,
];
/** Texts that a schema may accept, but a database, a header or a path may not. */
const oddTexts = fc.constantFrom(
  '',
  ' ',
  '\u0000',
  '\ud800',
  '🙂',
  '%',
  '%00',
  '../..',
  "'; drop table event; --",
  '__proto__',
  'null',
  '~tenant',
  '-1',
  '1e309',
  '9223372036854775808',
  'x'.repeat(300),
  'x'.repeat(5_000),
  ...TIMES,
);
const numbers = fc.constantFrom(
  0,
  -1,
  1,
  0.5,
  2,
  199,
  200,
  201,
  1_000,
  2_147_483_646,
  2_147_483_647,
  2_147_483_648,
  9_007_199_254_740_991,
  1e21,
  1e308,
  -1e308,
  1e-320,
);
/** Any JSON, including values that no schema allows. */
const anyJson: fc.Arbitrary<unknown> = fc.oneof(
  oddTexts,
  numbers,
  fc.constantFrom(null, true, false, [], {}, [[[[]]]], { __proto__x: 1 }),
  fc.jsonValue({ maxDepth: 3 }),
);

/**
 * Generates values for the schemas of a document: either valid ones, or ones at and past the bounds, with random JSON
 * among them.
 */
class Values {
  constructor(
    private readonly document: OpenApi,
    private readonly areValid: boolean,
  ) {}

  of(schema: Schema | undefined, depth = 0): fc.Arbitrary<unknown> {
    if (!schema || depth > 6) return this.areValid ? ids : anyJson;
    const valid = this.valid(schema, depth);
    return this.areValid
      ? valid
      : fc.oneof({ weight: 24, arbitrary: valid }, { weight: 1, arbitrary: anyJson });
  }

  private valid(schema: Schema, depth: number): fc.Arbitrary<unknown> {
    if (schema.$ref !== undefined) {
      return this.of(this.document.components?.schemas?.[schema.$ref.split('/').at(-1) ?? ''], depth + 1);
    }
    if (schema.const !== undefined) return fc.constant(schema.const);
    if (schema.enum) return fc.constantFrom(...schema.enum);
    const branches = schema.anyOf ?? schema.oneOf ?? schema.allOf;
    if (branches) return fc.oneof(...branches.map((branch) => this.of(branch, depth + 1)));
    const types = typeof schema.type === 'string' ? [schema.type] : (schema.type ?? []);
    return types.length === 0 ? anyJson : fc.oneof(...types.map((type) => this.ofType(type, schema, depth)));
  }

  private ofType(type: string, schema: Schema, depth: number): fc.Arbitrary<unknown> {
    switch (type) {
      case 'string': {
        const { minLength = 0, maxLength = 40, example, format } = schema;
        const max = Math.min(maxLength, 2_000);
        if (this.areValid) {
          if (format === 'date-time') return fc.constant('2099-11-22T10:00:00.123456789+15:59');
          return fc.oneof(ids, fc.constant('y'.repeat(Math.max(minLength, 1))), fc.constant('y'.repeat(max)));
        }
        return fc.oneof(
          ids,
          ...(typeof example === 'string' ? [fc.constant(example)] : []),
          ...(format === 'date-time' ? [fc.constantFrom(...TIMES)] : []),
          fc.string({
            unit: 'grapheme',
            minLength: Math.min(minLength, max),
            maxLength: Math.min(max, 40),
          }),
          fc.constantFrom(...[minLength, max, max + 1].map((length) => 'y'.repeat(length))),
          oddTexts,
        );
      }
      case 'integer':
      case 'number': {
        const { minimum = 0, maximum = 1_000 } = schema;
        if (this.areValid)
          return fc.constantFrom(Math.max(minimum, 1), Math.min(Math.max(minimum, 1) + 1, maximum));
        return fc.oneof(fc.constantFrom(minimum - 1, minimum, minimum + 1, maximum, maximum + 1), numbers);
      }
      case 'boolean':
        return fc.boolean();
      case 'null':
        return fc.constant(null);
      case 'array': {
        const { minItems = 0, items } = schema;
        return fc.array(this.of(items, depth + 1), { minLength: minItems, maxLength: minItems + 3 });
      }
      case 'object': {
        const entries = Object.entries(schema.properties ?? {});
        if (entries.length === 0)
          return fc.oneof(fc.constant({}), fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 2 })));
        return fc.record(
          Object.fromEntries(entries.map(([name, property]) => [name, this.of(property, depth + 1)])),
          { requiredKeys: (schema.required ?? []).filter((name) => schema.properties?.[name]) },
        );
      }
      default:
        return anyJson;
    }
  }
}

const asText = (value: unknown): string => (typeof value === 'string' ? value : JSON.stringify(value));
/** Header values are limited to visible ASCII, because `fetch` refuses others. */
const asHeader = (value: unknown): string =>
  asText(value)
    .replace(/[^\x20-\x7e]/g, '')
    .trim()
    .slice(0, 2_000);
const asSegment = (value: unknown): string => {
  const text = asText(value).toWellFormed();
  // Every client removes segments of dots from a path.
  return text === '' || /^\.+$/.test(text) ? 'a' : encodeURIComponent(text);
};

const HEADERS: Readonly<Record<string, fc.Arbitrary<string>>> = {
  'if-match': fc.constantFrom('*', '"1"', '"0"', '"2147483648"', 'W/"1"', '1', '"a", "b"', ''),
  'idempotency-key': fc.oneof(ids, oddTexts.map(asHeader)),
  'x-correlation-id': fc.oneof(ids, oddTexts.map(asHeader)),
  'last-event-id': oddTexts.map(asHeader),
  'colloquy-tenant': fc.constantFrom('default', 'acme', '', '*', 'UPPER', 'x'.repeat(64)),
  'colloquy-cell': fc.constantFrom('default', 'cell', 'nowhere', ''),
  accept: fc.constantFrom('application/json', 'text/event-stream', '*/*', 'text/html', ''),
};

/** Generates requests to every operation of an OpenAPI document, including those that are added later. */
export function requestsOf(document: OpenApi): fc.Arbitrary<GeneratedRequest> {
  const operations = Object.entries(document.paths).flatMap(([route, methods]) =>
    Object.entries(methods).flatMap(([method, operation]) =>
      [true, false].map((areValid) =>
        requestOf(new Values(document, areValid), areValid, route, method, operation),
      ),
    ),
  );
  return fc.oneof(...operations);
}

function requestOf(
  values: Values,
  areValid: boolean,
  route: string,
  method: string,
  { parameters = [], requestBody }: Operation,
): fc.Arbitrary<GeneratedRequest> {
  const of = (place: Parameter['in'], { isRequired = false } = {}) =>
    fc.record(
      Object.fromEntries(
        parameters
          .filter((one) => one.in === place)
          .map((one) => [one.name, one.in === 'path' && areValid ? ids : values.of(one.schema)]),
      ),
      isRequired ? {} : { requiredKeys: [] },
    );
  const json = Object.values(requestBody?.content ?? {})[0]?.schema;
  const body = fc.oneof(
    { weight: 20, arbitrary: values.of(json).map((value) => JSON.stringify(value)) },
    {
      weight: 1,
      arbitrary: fc.constantFrom('', '{', '[1,]', '"\\ud800"', '{"a":1e999}', '['.repeat(200), 'null'),
    },
  );
  return fc
    .record({
      path: of('path', { isRequired: true }),
      query: of('query'),
      headers: areValid ? fc.constant({}) : fc.record(HEADERS, { requiredKeys: [] }),
      type: fc.oneof(
        { weight: 20, arbitrary: fc.constant('application/json') },
        {
          weight: 1,
          arbitrary: fc.constantFrom('text/plain', 'application/json; charset=latin1', 'a/b', ''),
        },
      ),
      body,
    })
    .map(({ path, query, headers, type, body: text }) => {
      const place = route.replace(/\{(\w+)\}/g, (_, name: string) =>
        asSegment((path as Record<string, unknown>)[name] ?? 'a'),
      );
      const search = new URLSearchParams(
        Object.entries(query).map(
          ([name, value]) => [name, asText(value).toWellFormed()] as [string, string],
        ),
      ).toString();
      const isBodied = method !== 'get' && method !== 'head';
      return {
        route,
        method: method.toUpperCase(),
        path: place + (search === '' ? '' : `?${search}`),
        headers: { ...headers, ...(isBodied && json && type !== '' && { 'content-type': type }) },
        body: isBodied && json ? text : undefined,
      };
    });
}
