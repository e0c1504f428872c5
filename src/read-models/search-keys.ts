import { hash } from './session-keys.js';

/**
 * Keys by which an index finds messages: whole numbers, like those of sessions. A message has one key for every three
 * characters that stand in a row within a word (two in scripts without blanks), one for its role, one for the owner of its session,
 * and one for each of several stretches of time in which its tenant wrote it.
 *
 * What is derived here is stored: another rule needs a new version of the table.
 */

/** Text as it is compared: of the same length, so that places in it are places in the text. Case and width do not matter. */
export function fold(text: string): string {
  if (!NOT_ASCII.test(text)) return text.toLowerCase();
  let folded = '';
  for (const character of text) folded += foldCharacter(character);
  return folded;
}

const NOT_ASCII = /[^\p{ASCII}]/u;

function foldCharacter(character: string): string {
  const plain = character.normalize('NFKC');
  // By way of the capital letter, so that both small letters sigma are one.
  for (const folded of [plain.toUpperCase().toLowerCase(), character.toLowerCase()]) {
    if (folded.length === character.length) return folded;
  }
  return character;
}

/** What a search asks for: texts that a message must contain, each a word or, within quotes, a phrase. */
export function termsOf(query: string): string[] {
  const found = query.normalize('NFC').matchAll(/"([^"]+)"|([^\s"]+)/g);
  const terms = [...found].map(([, phrase, word]) => fold((phrase ?? word ?? '').trim()));
  return [...new Set(terms)].filter((term) => term !== '');
}

/** The keys of a message's text, which is folded. */
export function keysOfText(folded: string): Set<number> {
  const keys = new Set<number>();
  eachKey(folded, (key) => keys.add(key));
  return keys;
}

/**
 * Keys that every message has that contains a folded text; none for a text that is too short. Of many keys only some,
 * from its whole length: each one costs time, and more of them find little less.
 */
export function keysToFind(term: string): number[] {
  const all: number[] = [];
  eachKey(term, (key) => all.push(key));
  const step = Math.max(1, Math.ceil((all.length - 1) / (MOST_KEYS - 1)));
  return all.filter((_, at) => at % step === 0 || at === all.length - 1);
}

const MOST_KEYS = 12;

/** Calls back once for each place of a folded text, in UTF-16 units, at which a key begins. */
function eachKey(folded: string, found: (key: number) => void): void {
  let [a, b] = [BLANK, BLANK];
  for (let at = 0; at < folded.length; at += 1) {
    const c = folded.charCodeAt(at);
    // What goes across the end of a word tells little, and would be half of all keys.
    if (c > BLANK) {
      const isDenseNow = isDense(b) && isDense(c);
      if (isDenseNow) found(mixed(b, c, 0));
      if (b > BLANK && a > BLANK && !(isDenseNow && isDense(a))) found(mixed(a, b, c));
    }
    [a, b] = [b, c];
  }
}

const BLANK = 0x20;

/** A 32-bit mixture of three UTF-16 units. */
function mixed(a: number, b: number, c: number): number {
  const state = Math.imul(Math.imul((a << 16) ^ b, 0x9e3779b1) ^ c, 0x85ebca6b);
  return state ^ (state >>> 15);
}

/** Units of scripts that write no blanks between words, of Hangul, and the halves of characters beyond the first plane. */
function isDense(unit: number): boolean {
  return (
    (unit >= 0x3040 && unit <= 0x9fff) ||
    (unit >= 0xac00 && unit <= 0xdfff) ||
    (unit >= 0x0e00 && unit <= 0x109f) ||
    (unit >= 0x1780 && unit <= 0x17ff) ||
    (unit >= 0xf900 && unit <= 0xfaff)
  );
}

export const keyOfOwner = (tenant: string, owner: string): number => hash(`${tenant}\u0004${owner}`);
export const keyOfRole = (role: string): number => hash(`role\u0001${role}`);

/** Stretches of time, from 70 minutes to nine years, each four times as long as the one before. */
const STRETCHES_MS = [22, 24, 26, 28, 30, 32, 34, 36, 38].map((bits) => 2 ** bits);

export interface Stretch {
  readonly key: number;
  readonly startMs: number;
  readonly lengthMs: number;
}

/** The stretch in which a moment lies, of the shortest kind that is at least so long; the longest kind for more. */
export function stretchAt(tenant: string, ms: number, atLeastMs: number): Stretch {
  const level = STRETCHES_MS.findIndex((length) => length >= atLeastMs);
  return stretchOf(tenant, ms, level < 0 ? STRETCHES_MS.length - 1 : level);
}

function stretchOf(tenant: string, ms: number, level: number): Stretch {
  const lengthMs = STRETCHES_MS[level] ?? 1;
  const number = Math.floor(ms / lengthMs);
  return { key: hash(`${tenant}\u0003${level}\u0001${number}`), startMs: number * lengthMs, lengthMs };
}

/** The keys of all stretches of time in which a moment lies. */
export const keysOfTime = (tenant: string, ms: number): number[] =>
  STRETCHES_MS.map((_, level) => stretchOf(tenant, ms, level).key);
