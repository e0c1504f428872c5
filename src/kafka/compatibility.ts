import { type JsonSchema } from './documents.js';

/*
 * Which changes of a published schema break a consumer that was written for the old one. The rule is strict: within a
 * version everything that a consumer may rely on (that a field is present, its type, its values, its limits) stays as
 * it is, and only optional fields may be added.
 */

/** Keywords that say nothing about which values are valid. */
const NOT_VALIDATING = new Set([
  '$schema',
  '$id',
  'title',
  'description',
  'example',
  'examples',
  'x-personal',
]);
const COMPARED_IN_DEPTH = new Set([
  'properties',
  'required',
  'items',
  'anyOf',
  'oneOf',
  'additionalProperties',
]);

/** @returns one line per change that breaks a consumer; empty when there is none. */
export function breakingChanges(published: JsonSchema, current: JsonSchema, at = ''): string[] {
  const where = at === '' ? '/' : at;
  const problems: string[] = [];
  const keywords = new Set([...Object.keys(published), ...Object.keys(current)]);
  for (const keyword of keywords) {
    if (NOT_VALIDATING.has(keyword) || COMPARED_IN_DEPTH.has(keyword)) continue;
    if (JSON.stringify(published[keyword]) !== JSON.stringify(current[keyword])) {
      problems.push(`${where} ${keyword}: was ${text(published[keyword])}, is ${text(current[keyword])}`);
    }
  }

  const oldFields = properties(published);
  const newFields = properties(current);
  const wasRequired = names(published['required']);
  const isRequired = names(current['required']);
  for (const [name, old] of Object.entries(oldFields)) {
    const now = newFields[name];
    if (!now) {
      problems.push(`${at}/${name} is gone`);
      continue;
    }
    if (wasRequired.has(name) && !isRequired.has(name))
      problems.push(`${at}/${name} is no longer always there`);
    // Events that were recorded before may lack the field.
    if (!wasRequired.has(name) && isRequired.has(name)) problems.push(`${at}/${name} has become required`);
    problems.push(...breakingChanges(old, now, `${at}/${name}`));
  }
  for (const name of Object.keys(newFields)) {
    if (!Object.hasOwn(oldFields, name) && isRequired.has(name))
      problems.push(`${at}/${name} is new and required: events recorded before do not have it`);
  }

  for (const keyword of ['items', 'additionalProperties', 'anyOf', 'oneOf'] as const) {
    const before = parts(published[keyword]);
    const after = parts(current[keyword]);
    if (before.length !== after.length) {
      problems.push(`${where} ${keyword}: had ${before.length} alternatives, has ${after.length}`);
      continue;
    }
    before.forEach((old, index) => {
      problems.push(...breakingChanges(old, after[index] ?? {}, `${at}/${keyword}/${index}`));
    });
  }
  return problems;
}

const properties = (schema: JsonSchema): Record<string, JsonSchema> =>
  (schema['properties'] ?? {}) as Record<string, JsonSchema>;
const names = (value: unknown): Set<string> => new Set(Array.isArray(value) ? (value as string[]) : []);
const text = (value: unknown): string => (value === undefined ? 'absent' : JSON.stringify(value));

function parts(value: unknown): JsonSchema[] {
  if (Array.isArray(value)) return value as JsonSchema[];
  return typeof value === 'object' && value !== null ? [value as JsonSchema] : [];
}
