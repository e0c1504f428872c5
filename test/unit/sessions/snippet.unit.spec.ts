import fc from 'fast-check';
import { fold } from '../../../src/read-models/search-keys.js';
import { snippetOf } from '../../../src/sessions/message-search.js';

const marked = (text: string, ...terms: string[]): string =>
  snippetOf(text, terms)
    .map(({ text: part, match }) => (match ? `[${part}]` : part))
    .join('');

describe('a snippet', () => {
  it('given a short text, when a word of it was searched, then it is the whole text with every place marked', () => {
    expect(marked('Refund me, or refund her.', 'refund')).toBe('[Refund] me, or [refund] her.');
  });

  it('given terms that overlap, when they are marked, then the longer one of those at one place is, and none twice', () => {
    expect(marked('shipping costs', 'ship', 'shipping', 'pping costs')).toBe('[shipping] costs');
  });

  it('given a long text, when the word stands in its middle, then the snippet begins with a word some way before', () => {
    const words = Array.from({ length: 200 }, (_, index) => `word${index}`).join(' ');
    const snippet = marked(words.replace('word100 ', 'NEEDLE '), 'needle');
    expect(snippet).toMatch(/^…word9\d .*\[NEEDLE\] word101 .*…$/);
    expect(snippet.length).toBeLessThanOrEqual(204);
  });

  it('given any text and a part of it, when it is cut, then it shows the part and no broken character', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', minLength: 1, maxLength: 400 }), fc.nat(), (text, at) => {
        const characters = Array.from(text);
        const term = fold(characters.slice(at % characters.length, (at % characters.length) + 3).join(''));
        const parts = snippetOf(text, [term]);
        expect(parts.some(({ match }) => match)).toBe(true);
        expect(parts.every((part) => part.text.isWellFormed())).toBe(true);
      }),
    );
  });
});
