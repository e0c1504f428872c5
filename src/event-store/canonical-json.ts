/**
 * The JSON Canonicalization Scheme of RFC 8785: no blanks, members by the UTF-16 code units of their names, numbers and
 * strings as ECMAScript writes them. Whoever has the same data writes the same text, whatever it went through meanwhile.
 *
 * @param value what JSON can express; members that are undefined are left out, as `JSON.stringify` does
 */
export function canonicalJson(value: unknown): string {
  if (value === undefined) return 'null';
  return isInOrder(value) ? JSON.stringify(value) : written(value);
}

/** Whether the platform's serialisation, which is several times faster, has the members in the right order already. */
function isInOrder(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return true;
  if (Array.isArray(value)) return value.every(isInOrder);
  let last: string | undefined;
  for (const name in value) {
    if (last !== undefined && name < last) return false;
    if (!isInOrder((value as Record<string, unknown>)[name])) return false;
    last = name;
  }
  return true;
}

function written(value: unknown): string {
  if (value === undefined) return 'null';
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(written).join()}]`;
  let text = '';
  for (const name of Object.keys(value).sort()) {
    const member = (value as Record<string, unknown>)[name];
    if (member !== undefined) text += `${text === '' ? '' : ','}${JSON.stringify(name)}:${written(member)}`;
  }
  return `{${text}}`;
}
