/** What needs no quotes within an array: also numbers, times, UUIDs and most ids. */
const PLAIN = /^[\w.:+-]+$/;
const NULL = /^null$/i;
const ESCAPED = /["\\]/g;

export type Element = string | number | boolean | null | undefined;

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

/** Types of the elements of a `bytea[]`, of an `integer[]` and of a `jsonb[]`. */
const BYTEA = 17;
const INTEGER = 23;
const JSONB = 3802;
const HEADER = 20;
/** Comes before the text of a `jsonb` in binary form. */
const JSONB_VERSION = 1;

/**
 * A column of bytes as PostgreSQL reads a `bytea[]` in binary form; null where it is null all through. As text it would be
 * twice as long, and written and read digit by digit.
 */
export function bytesArray<T>(
  rows: readonly T[],
  pick: (row: T) => Buffer | null | undefined,
): Buffer | null {
  const column = rows.map(pick);
  let size = HEADER;
  let isNull = true;
  for (const value of column) {
    size += 4 + (value?.length ?? 0);
    if (value) isNull = false;
  }
  if (isNull) return null;
  const array = Buffer.allocUnsafe(size);
  let at = arrayHeader(array, BYTEA, column.length);
  for (const value of column) {
    at = array.writeInt32BE(value?.length ?? -1, at);
    if (value) at += value.copy(array, at);
  }
  return array;
}

/**
 * Lists of whole numbers, one behind the other, as PostgreSQL reads an `integer[]` in binary form: its own arrays of arrays
 * have to be rectangular, and as text each number would be written and read digit by digit.
 */
export function integersArray(lists: readonly (readonly number[])[]): Buffer {
  const count = lists.reduce((sum, list) => sum + list.length, 0);
  const array = Buffer.allocUnsafe(HEADER + 8 * count);
  let at = arrayHeader(array, INTEGER, count);
  for (const number of lists.flat()) {
    at = array.writeInt32BE(4, at); // its bytes
    at = array.writeInt32BE(number, at);
  }
  return array;
}

/**
 * A column of JSON texts in UTF-8 as PostgreSQL reads a `jsonb[]` in binary form. Nothing is escaped, and the bytes need
 * not become text in between.
 */
export function jsonbArray(texts: readonly (Buffer | null)[]): Buffer {
  const array = Buffer.allocUnsafe(
    texts.reduce((size, text) => size + 4 + (text ? 1 + text.length : 0), HEADER),
  );
  let at = arrayHeader(array, JSONB, texts.length);
  for (const text of texts) {
    at = array.writeInt32BE(text ? 1 + text.length : -1, at);
    if (!text) continue;
    at = array.writeUInt8(JSONB_VERSION, at);
    at += text.copy(array, at);
  }
  return array;
}

/** One dimension, that may have nulls; its elements' type, their number, and the index of the first. */
function arrayHeader(array: Buffer, type: number, length: number): number {
  for (const [index, number] of [1, 1, type, length, 1].entries()) array.writeInt32BE(number, 4 * index);
  return HEADER;
}

function element(value: Element): string | number {
  if (typeof value === 'number') return value;
  if (value === null || value === undefined) return 'NULL';
  if (typeof value === 'boolean') return value ? 't' : 'f';
  if (PLAIN.test(value) && !(value.length === 4 && NULL.test(value))) return value;
  return `"${value.replace(ESCAPED, '\\$&')}"`;
}
