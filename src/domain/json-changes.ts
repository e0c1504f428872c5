import { z } from 'zod';
import { type Json } from './session.events.js';

/** A change of a JSON value: where, and what stands there then. Without a value the member is taken away. */
export type JsonChange = [path: (string | number)[]] | [path: (string | number)[], value: Json];

const path = z.array(z.union([z.string(), z.int()])).max(64);
/** Changes that came from outside: anybody may write what is kept beside a message. */
export const jsonChanges = z.array(z.union([z.tuple([path]), z.tuple([path, z.custom<Json>()])]));

type JsonObject = Record<string, Json>;
const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * What makes one JSON value of another. A form that is put together anew from what it means loses what was not understood;
 * with these changes it comes back to the letter. Arrays of different lengths are replaced as a whole.
 */
export function changesBetween(from: Json, to: Json, path: (string | number)[] = []): JsonChange[] {
  if (isObject(from) && isObject(to)) {
    const names = new Set([...Object.keys(from), ...Object.keys(to)]);
    return [...names].flatMap((name): JsonChange[] => {
      const before = Object.hasOwn(from, name) ? from[name] : undefined;
      const after = Object.hasOwn(to, name) ? to[name] : undefined;
      const at = [...path, name];
      if (after === undefined) return [[at]];
      return before === undefined ? [[at, after]] : changesBetween(before, after, at);
    });
  }
  if (Array.isArray(from) && Array.isArray(to) && from.length === to.length)
    return from.flatMap((before, index) => changesBetween(before, to[index] ?? null, [...path, index]));
  return JSON.stringify(from) === JSON.stringify(to) ? [] : [[path, to]];
}

/** The value after the changes. Changes whose place is not there are passed over. */
export function withChanges(value: Json, changes: readonly JsonChange[]): Json {
  let result = value;
  for (const change of changes) result = withChange(result, change);
  return result;
}

function withChange(value: Json, change: JsonChange): Json {
  const [[first, ...rest]] = change;
  if (first === undefined) return change.length === 2 ? change[1] : value;
  const inner: JsonChange = change.length === 2 ? [rest, change[1]] : [rest];
  if (Array.isArray(value)) {
    const before = typeof first === 'number' ? value[first] : undefined;
    return before === undefined ? value : value.with(first as number, withChange(before, inner));
  }
  if (!isObject(value)) return value;
  const { [first]: _before, ...others } = value;
  if (rest.length === 0) return change.length === 2 ? { ...value, [first]: change[1] } : others;
  const before = Object.hasOwn(value, first) ? value[first] : undefined;
  return before === undefined ? value : { ...value, [first]: withChange(before, inner) };
}
