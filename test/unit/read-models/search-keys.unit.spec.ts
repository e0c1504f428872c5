import fc from 'fast-check';
import { fold, keysOfText, keysToFind, termsOf } from '../../../src/read-models/search-keys.js';

describe('the keys of a search', () => {
  const text = fc.oneof(
    fc.string({ unit: 'grapheme', maxLength: 60 }),
    fc.stringMatching(/^[a-cA-C ]{0,60}$/),
    fc.stringMatching(/^[天気漢字 aのภาษ]{0,40}$/u),
  );

  it('given any text, when a part of it is searched, then each of its keys is one of the keys of the text', () => {
    fc.assert(
      fc.property(text, fc.nat(), fc.nat(30), (whole, start, length) => {
        const folded = fold(whole);
        const from = folded.length === 0 ? 0 : start % folded.length;
        const keys = keysOfText(folded);
        return keysToFind(folded.slice(from, from + length)).every((key) => keys.has(key));
      }),
      { numRuns: 2_000 },
    );
  });

  it('given any text, when it is folded, then places stay where they are, and folding again changes nothing', () => {
    fc.assert(
      fc.property(text, (whole) => {
        const folded = fold(whole);
        expect(folded).toHaveLength(whole.length);
        expect(fold(folded)).toBe(folded);
      }),
      { numRuns: 2_000 },
    );
  });

  it.each([
    ['three letters', 'abc', 1],
    ['two letters', 'ab', 0],
    ['one letter', 'a', 0],
    ['nothing', '', 0],
    ['two characters of a script without blanks', '天気', 1],
    ['one of them', '天', 0],
    ['a character of two units', '😀', 1],
    ['a word of twelve letters', 'abcdefghijkl', 10],
    ['a longer one', 'internationalisation', 10],
  ])('given %s, when it is searched, then it has so many keys', (_, term, count) => {
    expect(keysToFind(term)).toHaveLength(count);
  });

  it.each([
    ['ÉCOLE', 'école'],
    ['ΟΔΟΣ', 'οδοσ'],
    ['οδός', 'οδόσ'],
    ['ＡＢＣ１', 'abc1'],
    ['İstanbul', 'İstanbul'],
    ['Straße', 'straße'],
  ])('given %s, when it is folded, then it is %s', (whole, folded) => {
    expect(fold(whole)).toBe(folded);
  });

  it.each([
    ['refund  Order', ['refund', 'order']],
    ['"free shipping" now', ['free shipping', 'now']],
    ['say "hello', ['say', 'hello']],
    ['a a A', ['a']],
    [' "" " " ', []],
    ['cafe\u0301', ['café']],
  ])('given %s, when it is taken apart, then these are its terms', (query, terms) => {
    expect(termsOf(query)).toEqual(terms);
  });
});
