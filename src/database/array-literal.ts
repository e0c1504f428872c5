/** What needs no quotes within an array: also numbers, times, UUIDs and most ids. */
const PLAIN = /^[\w.:+-]+$/;
const NULL = /^null$/i;
const ESCAPED = /["\\]/g;

export type Element = string | number | boolean | Buffer | null | undefined;

/**
 * An array as PostgreSQL reads it from text: `{1,2,NULL}`. `pg` would make the same, but quotes and escapes every
 * element, numbers included: with dozens of columns for each batch nothing else made as much garbage.
 */
export function arrayLiteral(values: readonly Element[]): string {
  return `{${values.map(element).join()}}`;
}

/** Texts of JSON as one JSON array; null when all of them are missing. */
export const jsonArray = (texts: readonly (string | null | undefined)[]): string | null =>
  texts.some((text) => text != null) ? `[${texts.map((text) => text ?? 'null').join()}]` : null;

/** A column that is null all through is sent as null: `unnest` fills it up, and no array has to be made and parsed. */
export function sparse<T>(rows: readonly T[], pick: (row: T) => Element): string | null {
  const column = rows.map(pick);
  return column.some((value) => value != null) ? arrayLiteral(column) : null;
}

function element(value: Element): string | number {
  if (typeof value === 'number') return value;
  if (value === null || value === undefined) return 'NULL';
  if (typeof value === 'boolean') return value ? 't' : 'f';
  if (typeof value !== 'string') return `"\\\\x${value.toString('hex')}"`;
  if (PLAIN.test(value) && !(value.length === 4 && NULL.test(value))) return value;
  return `"${value.replace(ESCAPED, '\\$&')}"`;
}
