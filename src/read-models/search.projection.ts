import { arrayLiteral, integersArray } from '../database/array-literal.js';
import { textOf } from '../domain/content.js';
import { versionsLeft } from '../domain/history.js';
import { type Role } from '../domain/session.events.js';
import {
  columns,
  type Projection,
  type Read,
  type Statement,
  tableOf,
} from '../projection-engine/projection.js';
import { fold, keyOfOwner, keyOfRole, keysOfText, keysOfTime } from './search-keys.js';
import { type SessionRecord } from './session-record.js';

/** So many UTF-16 units of a message can be found: a message of 1 MiB would cost as much as thousands of others. */
const SEARCHED_LENGTH = 10_000;

interface SearchRow {
  tenant: string;
  session_id: string;
  version: number;
  message_id: string;
  role: Role | '';
  /** Whose session it is; null where it has no owner. */
  owner: string | null;
  created_at: string;
  text: string;
  /** The text as it is compared; null where that is the same. */
  folded: string | null;
  /** See `search-keys.ts`. */
  keys: number[];
}

const NAMES = [
  'tenant',
  'session_id',
  'version',
  'message_id',
  'role',
  'owner',
  'created_at',
  'text',
  'folded',
] as const satisfies readonly (keyof SearchRow)[];

/**
 * The text of all messages of the present histories, for full-text search. A session with an owner has a row of version 0
 * as well, which holds the owner for the messages that come later.
 */
export const searchProjection: Projection<SessionRecord> = {
  name: 'search',
  version: 2,
  createTable: (table) => `
    create table ${table} (
      tenant text collate "C" not null,
      session_id text collate "C" not null,
      version integer not null,
      message_id text collate "C" not null,
      role text collate "C" not null,
      owner text collate "C",
      created_at timestamptz not null,
      text text collate "C" not null,
      folded text collate "C",
      keys integer[] not null,
      primary key (tenant, session_id, version)
    );
    create index ${table}_in_time on ${table} (tenant, created_at, session_id, version);
    create index ${table}_of_owner on ${table} (tenant, owner, created_at, session_id, version) where owner is not null;
    create index ${table}_keys on ${table} using gin (keys) with (gin_pending_list_limit = 2048)`,

  async apply(events, table, read) {
    const owners = await ownersOf(events, table, read);
    const said: SearchRow[] = [];
    /** By session: one that is created again within the batch has one row nevertheless, that of the first time. */
    const owned = new Map<string, SearchRow>();
    const gone: { tenant: string; session_id: string; first: number; last: number }[] = [];
    for (const event of events) {
      const { tenant, streamId: session_id, version } = event;
      if (event.type === 'ConversationReset' || event.type === 'SessionDeleted') {
        gone.push({ tenant, session_id, first: 1, last: version });
      } else if (event.type === 'MessageRemoved' || event.type === 'HistoryRewound') {
        for (const [first, last] of versionsLeft(event)) gone.push({ tenant, session_id, first, last });
      } else if (event.type === 'SessionCreated' && event.data.owner !== undefined) {
        if (!owned.has(keyOf(event))) owned.set(keyOf(event), ownerRow(event, event.data.owner));
      } else if (event.type === 'MessageAppended') {
        const row = rowOf(event, owners.get(keyOf(event)) ?? null);
        if (row) said.push(row);
      }
    }
    const rows = said.filter(
      ({ tenant, session_id, version }) =>
        !gone.some(
          (one) =>
            one.session_id === session_id &&
            one.tenant === tenant &&
            one.first <= version &&
            version <= one.last,
        ),
    );
    return [
      ...(gone.length === 0
        ? []
        : [
            {
              text: `delete from ${table} t
                     using unnest($1::text[], $2::text[], $3::int[], $4::int[]) as g (tenant, session_id, first, last)
                     where t.tenant = g.tenant collate "C" and t.session_id = g.session_id collate "C"
                       and t.version between g.first and g.last`,
              values: columns(gone, ['tenant', 'session_id', 'first', 'last']),
            },
          ]),
      // A session that is created anew after its deletion has its row of version 0 already, and the same owner.
      ...insertion(
        table,
        [...owned.values()],
        'on conflict (tenant, session_id, version) do update set owner = excluded.owner',
      ),
      ...insertion(table, rows),
    ];
  },
};

/**
 * The keys of all rows are one list, of which each row has a part. Rows of messages are not there before: versions go on
 * behind a deletion and an erasure, and each event is applied once.
 */
function insertion(table: string, rows: readonly SearchRow[], onConflict = ''): Statement[] {
  if (rows.length === 0) return [];
  const ends: number[] = [];
  let end = 0;
  for (const { keys } of rows) ends.push((end += keys.length));
  const text = `insert into ${table} (${NAMES.join()}, keys)
                select ${NAMES.join()}, ($10::int[])[r.before + 1 : r.until]
                from unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
                            $8::text[], $9::text[], $11::int[], $12::int[]) as r (${NAMES.join()}, before, until)
                ${onConflict}`;
  const values = [
    ...columns(rows, NAMES),
    integersArray(rows.map(({ keys }) => keys)),
    arrayLiteral([0, ...ends.slice(0, -1)]),
    arrayLiteral(ends),
  ];
  return [{ text, values }];
}

const keyOf = ({ tenant, streamId }: SessionRecord): string => `${tenant}/${streamId}`;

/** The owners of the sessions of these events, as far as they have one. */
async function ownersOf(
  events: readonly SessionRecord[],
  table: string,
  read: Read,
): Promise<ReadonlyMap<string, string>> {
  const owners = new Map<string, string>();
  const earlier = new Map<string, SessionRecord>();
  for (const event of events) {
    if (event.type === 'SessionCreated' && event.data.owner !== undefined)
      owners.set(keyOf(event), event.data.owner);
    else if (event.type === 'MessageAppended' && !owners.has(keyOf(event))) earlier.set(keyOf(event), event);
  }
  if (earlier.size === 0) return owners;
  const asked = [...earlier.values()];
  const rows = await read<Pick<SearchRow, 'tenant' | 'session_id'> & { owner: string }>(
    `select r.* from unnest($1::text[], $2::text[]) as k (tenant, session_id)
     cross join lateral (
       select tenant, session_id, owner from ${table}
       where tenant = k.tenant and session_id = k.session_id and version = 0 limit 1
     ) r`,
    [asked.map(({ tenant }) => tenant), asked.map(({ streamId }) => streamId)],
  );
  for (const { tenant, session_id, owner } of rows) owners.set(`${tenant}/${session_id}`, owner);
  return owners;
}

const ownerRow = ({ tenant, streamId, time }: SessionRecord, owner: string): SearchRow => ({
  ...{ tenant, session_id: streamId, version: 0, message_id: '', role: '', owner },
  ...{ created_at: time, text: '', folded: null, keys: [] },
});

/** The row of a message; undefined when there is no text in it. */
function rowOf(
  event: SessionRecord & { type: 'MessageAppended' },
  owner: string | null,
): SearchRow | undefined {
  const { messageId, role, content, origin } = event.data;
  const text = textOf(content).normalize('NFC').slice(0, SEARCHED_LENGTH).toWellFormed();
  if (text === '') return undefined;
  const folded = fold(text);
  const { tenant, streamId: session_id, version } = event;
  // To the millisecond: an imported message may have a finer time, and a cursor would then skip its neighbours.
  const time = new Date(origin?.createdAt ?? event.time);
  const keys = keysOfText(folded);
  keys.add(keyOfRole(role));
  if (owner !== null) keys.add(keyOfOwner(tenant, owner));
  for (const key of keysOfTime(tenant, time.getTime())) keys.add(key);
  return {
    ...{ tenant, session_id, version, message_id: messageId, role, owner, text },
    created_at: time.toISOString(),
    folded: folded === text ? null : folded,
    keys: [...keys],
  };
}

export const SEARCH = tableOf(searchProjection);
