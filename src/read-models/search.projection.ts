import { arrayLiteral } from '../database/array-literal.js';
import { textOf } from '../domain/content.js';
import { versionsLeft } from '../domain/history.js';
import { type Role } from '../domain/session.events.js';
import { columns, type Projection, tableOf } from '../projection-engine/projection.js';
import { fold, keyOfRole, keysOfText, keysOfTime } from './search-keys.js';
import { type SessionRecord } from './session-record.js';

/** So many UTF-16 units of a message can be found: a message of 1 MiB would cost as much as thousands of others. */
const SEARCHED_LENGTH = 10_000;

interface SearchRow {
  tenant: string;
  session_id: string;
  version: number;
  message_id: string;
  role: Role;
  created_at: string;
  text: string;
  /** The text as it is compared; null where that is the same. */
  folded: string | null;
  /** See `search-keys.ts`. An array of arrays would have to be rectangular, so keys travel as text. */
  keys: string;
}

const NAMES = [
  'tenant',
  'session_id',
  'version',
  'message_id',
  'role',
  'created_at',
  'text',
  'folded',
] as const satisfies readonly (keyof SearchRow)[];

/** The text of all messages of the present histories, for full-text search. */
export const searchProjection: Projection<SessionRecord> = {
  name: 'search',
  version: 1,
  createTable: (table) => `
    create table ${table} (
      tenant text collate "C" not null,
      session_id text collate "C" not null,
      version integer not null,
      message_id text collate "C" not null,
      role text collate "C" not null,
      created_at timestamptz not null,
      text text collate "C" not null,
      folded text collate "C",
      keys integer[] not null,
      primary key (tenant, session_id, version)
    );
    create index ${table}_in_time on ${table} (tenant, created_at, session_id, version);
    create index ${table}_keys on ${table} using gin (keys) with (gin_pending_list_limit = 2048)`,

  apply(events, table) {
    const said: SearchRow[] = [];
    const gone: { tenant: string; session_id: string; first: number; last: number }[] = [];
    for (const event of events) {
      const { tenant, streamId: session_id, version } = event;
      if (event.type === 'ConversationReset' || event.type === 'SessionDeleted') {
        gone.push({ tenant, session_id, first: 1, last: version });
      } else if (event.type === 'MessageRemoved' || event.type === 'HistoryRewound') {
        for (const [first, last] of versionsLeft(event)) gone.push({ tenant, session_id, first, last });
      } else if (event.type === 'MessageAppended') {
        const row = rowOf(event);
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
    return Promise.resolve([
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
      ...(rows.length === 0
        ? []
        : [
            {
              text: `insert into ${table} (${NAMES.join()}, keys)
                     select ${NAMES.join()}, keys::integer[]
                     from unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::text[], $6::timestamptz[],
                                 $7::text[], $8::text[], $9::text[]) as r (${NAMES.join()}, keys)`,
              values: columns(rows, [...NAMES, 'keys']),
            },
          ]),
    ]);
  },
};

/** The row of a message; undefined when there is no text in it. */
function rowOf(event: SessionRecord & { type: 'MessageAppended' }): SearchRow | undefined {
  const { messageId, role, content, origin } = event.data;
  const text = textOf(content).normalize('NFC').slice(0, SEARCHED_LENGTH).toWellFormed();
  if (text === '') return undefined;
  const folded = fold(text);
  const { tenant, streamId: session_id, version } = event;
  // To the millisecond: an imported message may have a finer time, and a cursor would then skip its neighbours.
  const created_at = new Date(origin?.createdAt ?? event.time).toISOString();
  const keys = keysOfText(folded);
  keys.add(keyOfRole(role));
  for (const key of keysOfTime(tenant, Date.parse(created_at))) keys.add(key);
  return {
    ...{ tenant, session_id, version, message_id: messageId, role, created_at, text },
    folded: folded === text ? null : folded,
    keys: arrayLiteral([...keys]),
  };
}

export const SEARCH = tableOf(searchProjection);
