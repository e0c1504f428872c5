import { Injectable } from '@nestjs/common';
import { type z } from 'zod';
import { decodeCursor, encodeCursor } from '../http/cursor.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { searchMessages } from '../read-models/search.js';
import { fold, termsOf } from '../read-models/search-keys.js';
import { type Reach } from './command-context.js';
import { cursorScope, NOBODY, ownerIn } from './session-queries.js';
import { SearchCursor, type SearchQuery, type SearchResult } from './session.schemas.js';

type SnippetPart = z.infer<typeof SearchResult>['data'][number]['snippet'][number];

/** Full-text search over the messages of a tenant's sessions, as far as they are in the present histories. */
@Injectable()
export class MessageSearch {
  constructor(private readonly models: ReadModels) {}

  /** @throws ApiError `invalid-cursor`; ProjectionLagging, DatabaseUnavailable */
  async find(reach: Reach, query: z.infer<typeof SearchQuery>): Promise<z.infer<typeof SearchResult>> {
    const { q, role, owner: asked, from, to, limit, cursor, consistency } = query;
    const { tenant } = reach;
    const owner = ownerIn(reach, asked);
    if (owner === NOBODY) return { data: [], nextCursor: null };
    const scope = cursorScope(['search', tenant, q, role ?? null, from ?? null, to ?? null], owner);
    const after = cursor === undefined ? undefined : decodeCursor(scope, cursor, SearchCursor);
    const terms = termsOf(q);
    const wanted = consistency === 'strong' ? await this.models.ends() : 'eventual';
    const { hits, next } = await searchMessages(this.models, wanted, {
      ...{ tenant, owner, terms, role, from, to, after, limit },
    });
    return {
      data: hits.map(({ text, ...hit }) => ({ ...hit, snippet: snippetOf(text, terms) })),
      nextCursor:
        next &&
        encodeCursor(scope, {
          createdAt: next.createdAt,
          sessionId: next.sessionId,
          version: next.version,
        }),
    };
  }
}

const SNIPPET_LENGTH = 200;
const BEFORE_MATCH = 60;

/** A piece of a text around the first place where a term stands, cut into the terms and what is between them. */
export function snippetOf(text: string, terms: readonly string[]): SnippetPart[] {
  const folded = fold(text);
  const places = terms.map((term) => folded.indexOf(term)).filter((place) => place >= 0);
  const first = places.length > 0 ? Math.min(...places) : 0;
  const start = first <= BEFORE_MATCH ? 0 : startOfWord(text, first - BEFORE_MATCH, first);
  const end = Math.min(start + SNIPPET_LENGTH, text.length);
  const parts: SnippetPart[] = [];
  const add = (from: number, to: number, match: boolean): void => {
    if (from < to) parts.push({ text: text.slice(from, to).toWellFormed(), match });
  };
  let at = start;
  while (at < end) {
    const next = nextMatch(folded, terms, at, end);
    add(at, next.from, false);
    add(next.from, next.to, true);
    at = next.to;
  }
  if (start > 0) parts.unshift({ text: '…', match: false });
  if (end < text.length) parts.push({ text: '…', match: false });
  return parts;
}

/** The first place from `at` on at which a term stands, and of those that stand there the longest; else the end. */
function nextMatch(
  folded: string,
  terms: readonly string[],
  at: number,
  end: number,
): { readonly from: number; readonly to: number } {
  let best = { from: end, to: end };
  for (const term of terms) {
    const from = folded.indexOf(term, at);
    const to = Math.min(from + term.length, end);
    if (from >= 0 && from < end && (from < best.from || (from === best.from && to > best.to)))
      best = { from, to };
  }
  return best;
}

/** The beginning of the first word between two places, or the first of them where no blank stands. */
function startOfWord(text: string, from: number, to: number): number {
  const blank = text.slice(from, to).search(/\s\S/);
  if (blank >= 0) return from + blank + 1;
  // Not between the halves of a character.
  return /[\uDC00-\uDFFF]/.test(text.charAt(from)) ? from + 1 : from;
}
