import { type Role } from '../domain/session.events.js';
import { type Freshness, type ReadModels } from '../projection-engine/strong-reads.js';
import { keyOfOwner, keyOfRole, keysToFind, stretchAt } from './search-keys.js';
import { SEARCH } from './search.projection.js';

/** A place in the order of a search: by time, then by session and version; the newest message comes first. */
export interface SearchPlace {
  readonly createdAt: string;
  readonly sessionId: string;
  readonly version: number;
}

/** A message that was found. */
export interface Hit extends SearchPlace {
  readonly messageId: string;
  readonly role: Role;
  readonly text: string;
}

export interface Search {
  readonly tenant: string;
  /** Folded texts, at least one, that a message must contain. */
  readonly terms: readonly string[];
  readonly role?: Role | undefined;
  readonly owner?: string | undefined;
  /** RFC 3339; the message was written at this time or later. */
  readonly from?: string | undefined;
  /** RFC 3339; the message was written before this time. */
  readonly to?: string | undefined;
  readonly after?: SearchPlace | undefined;
  readonly limit: number;
}

export interface Found {
  readonly hits: readonly Hit[];
  /** From where the search goes on; null when nothing is left. There may be fewer hits than asked for before it. */
  readonly next: SearchPlace | null;
}

interface Row {
  created_at: string;
  session_id: string;
  version: number;
  message_id: string | null;
  role: Role;
  text: string;
  /** Times of the tenant's oldest message and of the newest one that was looked at; in the row of the last one alone. */
  oldest: string | null;
  newest: string | null;
}

/** So many messages are looked at one by one before the index is asked: what many messages contain is among them. */
const LOOKED_AT = 500;
/** The same for texts that are too short to have a key, of which nothing else finds any. */
const LOOKED_AT_WITHOUT_KEYS = 5_000;

const ORDER = 'order by created_at desc, session_id desc, version desc';
const PLACE = '(created_at, session_id, version)';
const MATCHES = `($6::text is null or role = $6)
    and not exists (select from unnest($7::text[]) as t (term) where strpos(coalesce(folded, text), t.term) = 0)`;
const before = (names: readonly [string, string, string]): string =>
  `(${names[0]}::timestamptz, ${names[1]}::text collate "C", ${names[2]}::int)`;

/** The newest messages of a tenant, or of an owner in it, before a place, of which those that match are returned, and the last one of all. */
const lookFor = (tenant: string): string => `
  with looked as materialized (
    select created_at, session_id, version, message_id, role, text, folded from ${SEARCH}
    where ${tenant} and version > 0 and created_at >= $2::timestamptz and ${PLACE} < ${before(['$3', '$4', '$5'])}
    ${ORDER} limit $8
  ),
  found as (select * from looked where ${MATCHES} ${ORDER} limit $9)
  select created_at, session_id, version, message_id, role, text, null::timestamptz as oldest, null::timestamptz as newest from found
  union all
  (select created_at, session_id, version, null, null, null,
          (select created_at from ${SEARCH} where ${tenant} order by created_at limit 1) as oldest,
          (select created_at from looked limit 1) as newest
   from looked offset $8 - 1)`;
const LOOK = lookFor('tenant = $1');
const LOOK_OF_OWNER = lookFor('tenant = $1 and owner = $10');

/** The same by keys. The other conditions stand outside, where no other index can serve them: `offset 0`. */
const findFor = (owner: string): string => `
  select created_at, session_id, version, message_id, role, text
  from (select * from ${SEARCH} where keys @> $8::integer[] and tenant is not distinct from $1 offset 0) m
  where created_at >= $2::timestamptz and ${PLACE} < ${before(['$3', '$4', '$5'])} and ${owner}${MATCHES}
  ${ORDER} limit $9`;
const FIND = findFor('');
const FIND_OF_OWNER = findFor('owner = $10 and ');

/**
 * Finds messages of the present histories, the newest first. First the newest messages are looked at, then stretches of
 * time before them through the index, the longer the less was found: neither a text that half of all messages contain
 * nor one that a single message contains makes it read much more than a page.
 */
export async function searchMessages(
  models: ReadModels,
  freshness: Freshness,
  search: Search,
): Promise<Found> {
  const { tenant, terms, role, owner, from, to, limit } = search;
  const asked = (place: SearchPlace, ...more: unknown[]): unknown[] => [
    tenant,
    from ?? '-infinity',
    ...[place.createdAt, place.sessionId, place.version],
    ...[role ?? null, terms],
    ...more,
    ...(owner === undefined ? [] : [owner]),
  ];
  const [look, find] = owner === undefined ? [LOOK, FIND] : [LOOK_OF_OWNER, FIND_OF_OWNER];
  // One hit more than asked for tells whether there are more.
  const wanted = limit + 1;
  const keys = terms.flatMap(keysToFind);
  const looked = keys.length > 0 ? LOOKED_AT : LOOKED_AT_WITHOUT_KEYS;
  const begin = earlier(search.after, to);
  const rows = await models.read<Row>(SEARCH, freshness, look, asked(begin, looked, wanted));
  const hits = rows.filter(({ message_id }) => message_id !== null).map(toHit);
  const last = rows.find(({ message_id }) => message_id === null);
  if (!last || hits.length >= wanted) return page(hits, limit);
  let place = placeOf(last);
  if (keys.length === 0) return { hits, next: place };
  if (role !== undefined) keys.push(keyOfRole(role));
  if (owner !== undefined) keys.push(keyOfOwner(tenant, owner));
  const oldest = Math.max(Date.parse(last.oldest ?? ''), from === undefined ? -Infinity : Date.parse(from));
  const newest = Date.parse(last.newest ?? '');
  let reached = Date.parse(place.createdAt);
  for (let atLeast = 0; ;) {
    const left = wanted - hits.length;
    // As far back as will bring what is left, if matches are as frequent there as they were so far.
    const expected = (newest - reached) * (left / Math.max(hits.length, 0.5));
    const { key, startMs, lengthMs } = stretchAt(tenant, reached, Math.max(expected, atLeast));
    const found = await models.read<Row>(SEARCH, freshness, find, asked(place, [...keys, key], left));
    hits.push(...found.map(toHit));
    if (hits.length >= wanted || startMs <= oldest) return page(hits, limit);
    place = justBefore(new Date(startMs).toISOString());
    reached = startMs - 1;
    // Where nothing was said for years, nothing would be expected of longer stretches either.
    atLeast = found.length === 0 ? 4 * lengthMs : lengthMs;
  }
}

const page = (hits: readonly Hit[], limit: number): Found => {
  const shown = hits.slice(0, limit);
  const last = shown.at(-1);
  return { hits: shown, next: last && hits.length > limit ? last : null };
};

/** The place before all messages of a time. */
const justBefore = (createdAt: string): SearchPlace => ({ createdAt, sessionId: '', version: 0 });

function earlier(after: SearchPlace | undefined, to: string | undefined): SearchPlace {
  const end = justBefore(to ?? 'infinity');
  if (!after) return end;
  return to === undefined || Date.parse(after.createdAt) < Date.parse(to) ? after : end;
}

const placeOf = ({ created_at, session_id, version }: Row): SearchPlace => ({
  createdAt: created_at,
  sessionId: session_id,
  version,
});

const toHit = (row: Row): Hit => ({
  ...placeOf(row),
  messageId: row.message_id ?? '',
  role: row.role,
  text: row.text,
});
