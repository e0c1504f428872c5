import fc from 'fast-check';
import { canonicalJson } from '../../../src/event-store/canonical-json.js';

/** The same data with the members of all objects in another order. */
function reversed(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(reversed);
  return Object.fromEntries(
    Object.entries(value)
      .reverse()
      .map(([name, member]) => [name, reversed(member)]),
  );
}

describe('the canonical form of JSON', () => {
  it('given the example of RFC 8785, section 3.2.2, when it is written, then it is what the RFC shows', () => {
    const value = JSON.parse(String.raw`{
      "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
      "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
      "literals": [null, true, false]
    }`) as unknown;
    expect(canonicalJson(value)).toBe(
      String.raw`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`,
    );
  });

  it('given the names of RFC 8785, section 3.2.3, when they are sorted, then it is by their UTF-16 code units', () => {
    const value = JSON.parse(String.raw`{
      "\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
      "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis"
    }`) as unknown;
    expect(
      Object.values(
        JSON.parse(`[${canonicalJson(value).slice(1, -1).replaceAll(/":"/g, '","')}]`) as string[],
      ),
    )
      // Names and values by turns.
      .toEqual([
        ...['\r', 'Carriage Return', '1', 'One', '\u0080', 'Control'],
        ...['\u00f6', 'Latin Small Letter O With Diaeresis', '\u20ac', 'Euro Sign'],
        ...['\ud83d\ude00', 'Emoji: Grinning Face', '\ufb33', 'Hebrew Letter Dalet With Dagesh'],
      ]);
  });

  it('given names that look like numbers, when an object is written, then they stand in the order of their text', () => {
    expect(canonicalJson({ 10: 'b', 9: 'c', a: { 2: 0, 10: 1 } })).toBe(
      '{"10":"b","9":"c","a":{"10":1,"2":0}}',
    );
  });

  it('given any data, when its members are in another order or it was read again, then the text is the same, and says the same', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 5 }), (value) => {
        const text = canonicalJson(value);
        expect(canonicalJson(reversed(value))).toBe(text);
        expect(canonicalJson(JSON.parse(text))).toBe(text);
        expect(JSON.stringify(JSON.parse(text))).toHaveLength(JSON.stringify(value).length);
      }),
      { seed: 8785, numRuns: 500 },
    );
  });

  it('given members that are undefined, when an object is written, then they are left out', () => {
    expect(canonicalJson({ b: undefined, a: 1, c: [undefined] })).toBe('{"a":1,"c":[null]}');
  });
});
