import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { breakingChanges } from '../../../src/kafka/compatibility.js';
import { asyncApi, eventsPage, type JsonSchema, jsonSchemas } from '../../../src/kafka/documents.js';

const ROOT = join(__dirname, '../../..');
const published = new Map(
  readdirSync(join(ROOT, 'schemas')).map((name) => [
    name,
    JSON.parse(readFileSync(join(ROOT, 'schemas', name), 'utf8')) as JsonSchema,
  ]),
);

describe('the published contract', () => {
  it.each(Object.entries(jsonSchemas()))('breaks no consumer of %s', (name, schema) => {
    const before = published.get(name);
    expect(before ? breakingChanges(before, schema) : []).toEqual([]);
  });

  it('equals what the code generates; `npm run docs:events` updates it', () => {
    for (const [name, schema] of Object.entries(jsonSchemas())) expect(published.get(name)).toEqual(schema);
    expect(readFileSync(join(ROOT, 'docs/events.md'), 'utf8')).toBe(eventsPage());
  });

  it('keeps the schemas of earlier versions', () => {
    for (const name of Object.keys(jsonSchemas())) {
      const [, type, version] = /^(\w+)\.v(\d+)\.json$/.exec(name) ?? [];
      for (let old = 1; old < Number(version); old += 1)
        expect(published.has(`${type ?? ''}.v${old}.json`)).toBe(true);
    }
  });

  it('has an AsyncAPI description whose references all have a target', () => {
    const document = asyncApi(
      { topic: 'events', partitions: 3, retentionMs: 60_000, maxMessageBytes: 100_000 },
      '1.2.3',
    );
    const text = JSON.stringify(document);
    const references = [...text.matchAll(/"\$ref":"#\/([^"]+)"/g)].map(([, path = '']) => path);
    expect(references.length).toBeGreaterThan(20);
    for (const path of references) {
      const target = path
        .split('/')
        .reduce<unknown>((at, key) => (at as Record<string, unknown> | undefined)?.[key], document);
      expect({ path, found: target !== undefined }).toEqual({ path, found: true });
    }
    expect(document).toMatchObject({
      asyncapi: '3.0.0',
      channels: { sessionEvents: { address: 'events', bindings: { kafka: { partitions: 3 } } } },
    });
  });
});

describe('a change of a schema', () => {
  const before: JsonSchema = {
    type: 'object',
    properties: { id: { type: 'string', maxLength: 10 }, kind: { type: 'string', enum: ['a', 'b'] } },
    required: ['id'],
  };
  const properties = before['properties'] as Record<string, JsonSchema>;

  it.each<[string, JsonSchema]>([
    ['a new optional field', { ...before, properties: { ...properties, more: { type: 'number' } } }],
    ['another description', { ...before, description: 'new words' }],
  ])('breaks no consumer: %s', (_, after) => {
    expect(breakingChanges(before, after)).toEqual([]);
  });

  it.each<[string, JsonSchema]>([
    ['a field that goes', { ...before, properties: { id: properties['id'] } }],
    [
      'a field of another type',
      { ...before, properties: { ...properties, id: { type: 'number', maxLength: 10 } } },
    ],
    ['a required field that becomes optional', { ...before, required: [] }],
    ['an optional field that becomes required', { ...before, required: ['id', 'kind'] }],
    [
      'a new required field',
      { ...before, properties: { ...properties, more: {} }, required: ['id', 'more'] },
    ],
    [
      'a new value of an enum',
      { ...before, properties: { ...properties, kind: { type: 'string', enum: ['a', 'b', 'c'] } } },
    ],
    ['a looser limit', { ...before, properties: { ...properties, id: { type: 'string', maxLength: 99 } } }],
    ['a further alternative', { ...before, anyOf: [{ required: ['id'] }] }],
  ])('breaks a consumer: %s', (_, after) => {
    expect(breakingChanges(before, after)).not.toEqual([]);
  });
});
