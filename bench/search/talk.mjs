import { createRequire } from 'node:module';

const english = createRequire(import.meta.url)('an-array-of-english-words');

const WORDS = 30_000;

/**
 * Messages of 5 to 105 English words out of 30 000, which are as unequally frequent as those of a language (Zipf's law),
 * the frequent ones short. Which words are the frequent ones is left to chance.
 */
export class Talk {
  /** Letters of all messages so far. */
  letters = 0;
  #seed = 7;
  #words;
  #sums = [];

  constructor() {
    const drawn = Array.from({ length: WORDS }, () => english[Math.floor(this.#random() * english.length)]);
    this.#words = drawn
      .map((word) => ({ word, place: word.length * (1 + this.#random()) }))
      .sort((a, b) => a.place - b.place)
      .map(({ word }) => word);
    let sum = 0;
    for (let rank = 0; rank < this.#words.length; rank += 1) this.#sums.push((sum += 1 / (rank + 2.7)));
  }

  /** The word of a rank; 0 is the most frequent one. */
  word(rank) {
    return this.#words[rank];
  }

  message() {
    const length = 5 + Math.floor(this.#random() * 100);
    const text = Array.from({ length }, () => this.#words[this.#rank()]).join(' ');
    this.letters += text.length;
    return text;
  }

  #rank() {
    const wanted = this.#random() * this.#sums.at(-1);
    let [low, high] = [0, this.#sums.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#sums[middle] < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** mulberry32 */
  #random() {
    this.#seed = (this.#seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#seed ^ (this.#seed >>> 15), 1 | this.#seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }
}
