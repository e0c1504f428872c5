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

function element(value: Element): string | number {
  if (typeof value === 'number') return value;
  if (value === null || value === undefined) return 'NULL';
  if (typeof value === 'boolean') return value ? 't' : 'f';
  if (typeof value !== 'string') return `"\\\\x${value.toString('hex')}"`;
  if (PLAIN.test(value) && !(value.length === 4 && NULL.test(value))) return value;
  return `"${value.replace(ESCAPED, '\\$&')}"`;
}
