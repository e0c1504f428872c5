/**
 * Keys by which an index finds the sessions of a tenant: whole numbers, so that an ordinary index of arrays holds them
 * and PostgreSQL needs no extension. Each key has the tenant in it, so a search never reads what other tenants have. Two
 * texts may share a key, so whoever searches has to look at the rows as well.
 */

/** One key for every three characters that stand in a row in the title or in a value of the metadata, and one per value. */
export function keysOfSession(tenant: string, title: string | null, metadata: object): number[] {
  const keys = new Set(title === null ? [] : keysOfText(tenant, title));
  for (const [name, value] of Object.entries(metadata)) {
    if (value === null) continue;
    const text = textOf(value);
    keys.add(keyOfValue(tenant, name, text));
    for (const key of keysOfText(tenant, text)) keys.add(key);
  }
  // In one order, whatever the order of the metadata: the rows of a table are compared as text.
  return [...keys].sort((a, b) => a - b);
}

/**
 * Some of the keys that every session has whose title or metadata contain a text; none for a text of fewer characters.
 * Those of characters that stand side by side find about as little as all of them, and each one costs time.
 */
export function keysToFind(tenant: string, text: string): number[] {
  const all = keysOfText(tenant, text);
  return all.filter((_, at) => at % 3 === 0 || at === all.length - 1);
}

/** The keys of a text, in the order of its characters. */
function keysOfText(tenant: string, text: string): number[] {
  // Each character for itself, as PostgreSQL does it: a sigma at the end of a word would become another one otherwise.
  const folded = Array.from(text, (character) => character.toLowerCase());
  return folded.slice(2).map((_, at) => hash(`${tenant}\u0001${folded.slice(at, at + 3).join('')}`));
}

/** The key that every session has whose metadata have this value under this name. */
export const keyOfValue = (tenant: string, name: string, value: string): number =>
  hash(`${tenant}\u0002${name}\u0001${value}`);

/** A value as PostgreSQL's `->>` gives it. */
function textOf(value: unknown): string {
  return typeof value === 'string' ? value : jsonbText(value);
}

/** JSON as PostgreSQL writes jsonb: blanks behind separators, names by length and then by bytes, numbers without exponent. */
function jsonbText(value: unknown): string {
  if (typeof value === 'number') {
    const text = String(value);
    return text.includes('e') ? value.toLocaleString('fullwide', PLAIN_NUMBER) : text;
  }
  if (Array.isArray(value)) return `[${value.map(jsonbText).join(', ')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const entries = Object.entries(value).map(([name, one]) => ({
    name: Buffer.from(name),
    one: one as unknown,
  }));
  entries.sort((a, b) => a.name.length - b.name.length || a.name.compare(b.name));
  return `{${entries.map(({ name, one }) => `${JSON.stringify(name.toString())}: ${jsonbText(one)}`).join(', ')}}`;
}

const PLAIN_NUMBER = { useGrouping: false, maximumSignificantDigits: 21 } as const;

/** FNV-1a over the UTF-16 units, as a signed 32-bit number. It is stored: another one needs a new version of the table. */
export function hash(text: string): number {
  let state = 0x811c9dc5;
  for (let at = 0; at < text.length; at += 1) state = Math.imul(state ^ text.charCodeAt(at), 0x01000193);
  return state | 0;
}
