import { type Content, type Json, type Role, type ToolCall } from '../domain/session.events.js';
import { versionsLeft } from '../domain/history.js';
import { heldSize } from '../event-store/event-rows.js';
import { streamKey } from '../event-store/lane.js';
import { columns, type Projection, type Statement, tableOf } from '../projection-engine/projection.js';
import {
  type Freshness,
  type ReadModels,
  type SessionQuery,
  type StreamPlace,
} from '../projection-engine/strong-reads.js';
import { SCHEMA_VERSIONS, type SessionRecord } from './session-record.js';

interface HistoryRow {
  tenant: string;
  session_id: string;
  version: number;
  incarnation: number;
  /** null in the row that marks the beginning of a history: a creation or a reset. */
  message: MessageView | null;
  /** Version with which the message left the history; null while it is in it, or in one that has ended. */
  gone: number | null;
}

/** Versions of messages that left a history with an event. */
interface Departure {
  tenant: string;
  session_id: string;
  version: number;
  first: number;
  last: number;
}

/** Those that `applyInside` understands: messages that leave are few, and concern rows that are there already. */
const withoutDepartures = ({
  MessageRemoved: _removed,
  HistoryRewound: _rewound,
  ...others
}: typeof SCHEMA_VERSIONS): typeof SCHEMA_VERSIONS => others;

/**
 * All messages of all incarnations. Those that were removed, and those before a reset or a deletion, are kept, because
 * the history at an earlier version shows them. A row without a message marks where a history begins.
 *
 * A message is stored as the text that clients get, so that nobody has to take it apart and put it together again.
 */
export const historyProjection: Projection<SessionRecord> = {
  name: 'history',
  version: 3,
  createTable: (table) => `
    create table ${table} (
      tenant text collate "C" not null,
      session_id text collate "C" not null,
      version integer not null,
      incarnation integer not null,
      message json,
      gone integer,
      primary key (tenant, session_id, version)
    );
    create index ${table}_begins on ${table} (tenant, session_id, version) where message is null`,

  apply(events, table) {
    const rows: HistoryRow[] = [];
    const departures: Departure[] = [];
    for (const event of events) {
      if (event.type === 'MessageRemoved' || event.type === 'HistoryRewound') {
        const { tenant, streamId: session_id, version } = event;
        for (const [first, last] of versionsLeft(event))
          departures.push({ tenant, session_id, version, first, last });
        continue;
      }
      const begins = event.type === 'SessionCreated' || event.type === 'ConversationReset';
      if (!begins && event.type !== 'MessageAppended') continue;
      const message = event.type === 'MessageAppended' ? viewOf(event) : null;
      rows.push({
        tenant: event.tenant,
        session_id: event.streamId,
        version: event.version,
        incarnation: event.incarnation,
        message,
        gone: null,
      });
    }
    leave(rows, departures);
    return Promise.resolve([
      ...(departures.length > 0 ? [departureStatement(table, departures)] : []),
      ...(rows.length > 0 ? [insertStatement(table, rows)] : []),
    ]);
  },

  applyInside: {
    schemaVersions: withoutDepartures(SCHEMA_VERSIONS),
    statement: (table, events) => `
      insert into ${table} (tenant, session_id, version, incarnation, message)
      select tenant, stream_id, version, incarnation,
             case when type = 'MessageAppended'
                  then ((data - 'messageId') || jsonb_build_object(
                    'id', data -> 'messageId', 'version', version,
                    'createdAt', coalesce(data -> 'origin' ->> 'createdAt',
                                          to_char(time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))
                  ))::text::json end
      from ${events} e
      where type in ('SessionCreated', 'ConversationReset', 'MessageAppended')
      -- The rows of a session then lie together, and the index grows in its own order.
      order by tenant, stream_id, version`,
  },
};

/** Marks the rows of messages that leave within the same batch. */
function leave(rows: readonly HistoryRow[], departures: readonly Departure[]): void {
  if (departures.length === 0) return;
  const bySession = new Map<string, Departure[]>();
  for (const departure of departures) {
    const key = keyOf(departure);
    bySession.set(key, [...(bySession.get(key) ?? []), departure]);
  }
  for (const row of rows) {
    const departure = bySession
      .get(keyOf(row))
      ?.find(({ first, last }) => first <= row.version && row.version <= last);
    if (departure && row.message) row.gone = departure.version;
  }
}

const keyOf = ({ tenant, session_id }: Pick<HistoryRow, 'tenant' | 'session_id'>): string =>
  streamKey({ tenant, streamId: session_id });

/** The first event with which a message leaves is the one that counts: later ones may have it within their ranges. */
const departureStatement = (table: string, departures: readonly Departure[]): Statement => ({
  text: `update ${table} h set gone = g.gone
         from (
           select t.tenant, t.session_id, t.version, min(d.version) as gone
           from unnest($1::text[], $2::text[], $3::int[], $4::int[], $5::int[])
                as d (tenant, session_id, version, first, last)
           join ${table} t on t.tenant = d.tenant collate "C" and t.session_id = d.session_id collate "C"
                          and t.version between d.first and d.last
           where t.gone is null and t.message is not null
           group by t.tenant, t.session_id, t.version
         ) g
         where h.tenant = g.tenant and h.session_id = g.session_id and h.version = g.version`,
  values: columns(departures, ['tenant', 'session_id', 'version', 'first', 'last']),
});

const insertStatement = (table: string, rows: readonly HistoryRow[]): Statement => ({
  // One JSON array is cheaper to send and to parse than an array of escaped texts. It passes through jsonb, so that the
  // text is the same as that of `applyInside`.
  text: `insert into ${table} (tenant, session_id, version, incarnation, message, gone)
         select tenant, session_id, version, incarnation, nullif(message, 'null')::text::json, gone
         from rows from (
           unnest($1::text[], $2::text[], $3::int[], $4::int[], $5::int[]),
           jsonb_array_elements($6::jsonb)
         ) as r (tenant, session_id, version, incarnation, gone, message)`,
  values: [
    ...columns(rows, ['tenant', 'session_id', 'version', 'incarnation', 'gone']),
    JSON.stringify(rows.map((row) => row.message)),
  ],
});

function viewOf({ data, version, time }: SessionRecord & { type: 'MessageAppended' }): MessageView {
  const { messageId, ...others } = data;
  return { id: messageId, ...others, version, createdAt: others.origin?.createdAt ?? time } as MessageView;
}

/** A message as the API shows it. `version` is that of its event; times are RFC 3339. */
export interface MessageView {
  readonly id: string;
  readonly role: Role;
  readonly content: Content;
  readonly version: number;
  readonly createdAt: string;
  readonly status: 'complete' | 'incomplete';
  readonly name?: string;
  readonly toolCalls?: ToolCall[];
  readonly toolCallId?: string;
  readonly generationId?: string;
  readonly extensions?: Readonly<Record<string, Json>>;
  readonly origin?: { readonly sessionId: string; readonly messageId: string; readonly createdAt: string };
}

export interface HistoryPage {
  /** Version of the event with which the shown history begins. A page with another one belongs to another history. */
  readonly start: number;
  /** The messages as a JSON array. */
  readonly messages: string;
  /** Version of the last message of the page; null when the page is empty. */
  readonly last: number | null;
  /** Whether there are more messages behind the page. */
  readonly hasMore: boolean;
}

/** Is in no text of a message, because JSON escapes line breaks, and may stand between the elements of an array. */
const BETWEEN_MESSAGES = ',\n';

interface PageRow {
  start: number;
  /** With `BETWEEN_MESSAGES` between them. */
  messages: string | null;
  last: number | null;
  more: boolean;
}

const TABLE = tableOf(historyProjection);

/** A page of the history that an incarnation of a session had at a version. */
export interface PageOfHistory {
  readonly tenant: string;
  readonly sessionId: string;
  readonly incarnation: number;
  readonly at: number;
  /** Version of the last message of the page before. */
  readonly after?: number | undefined;
  readonly order: 'asc' | 'desc';
  readonly limit: number;
}

/** @returns undefined when the incarnation begins after that version */
export async function readHistory(
  models: ReadModels,
  freshness: Freshness,
  page: PageOfHistory,
): Promise<HistoryPage | undefined> {
  const { sql } = queryOf(page);
  const values = valuesOf(page);
  const parameters = values.map((_, index) => `$${index + 3}`);
  const text = sql({ tenant: '$1', sessionId: '$2', parameters });
  const { tenant, sessionId } = page;
  const [row] = await models.read<PageRow>(TABLE, freshness, text, [tenant, sessionId, ...values], page);
  return row && toPage(row);
}

/** The first messages of the history at a version that had left it at a later one, and how many there are. */
export async function readGone(
  models: ReadModels,
  freshness: Freshness,
  asked: {
    readonly tenant: string;
    readonly sessionId: string;
    readonly from: { readonly start: number; readonly version: number };
    readonly to: number;
    readonly limit: number;
  },
): Promise<{ count: number; data: MessageView[] }> {
  const { tenant, sessionId, from, to, limit } = asked;
  const [row] = await models.read<{ count: number; data: MessageView[] | null }>(
    TABLE,
    freshness,
    `select count(*)::int as count, json_agg(g.message order by g.version) filter (where g.nth <= $6) as data
     from (
       select h.version, h.message, row_number() over (order by h.version) as nth from ${TABLE} h
       where h.tenant = $1 and h.session_id = $2 and h.version > $3 and h.version <= $4
         and h.message is not null and h.gone > $4 and h.gone <= $5
     ) g`,
    [tenant, sessionId, from.start, from.version, to, limit],
    { tenant, sessionId },
  );
  return { count: row?.count ?? 0, data: row?.data ?? [] };
}

/**
 * Reads a page if the session still ends where this process believes. What the read model has not applied yet is added
 * from what this process has just appended: who writes and reads in turns need not wait for the read model.
 *
 * @returns `moved` when the session does not end there
 */
export async function readHistoryIfUnmoved(
  models: ReadModels,
  end: StreamPlace,
  page: PageOfHistory,
): Promise<HistoryPage | undefined | 'moved'> {
  const stream = { tenant: page.tenant, streamId: page.sessionId };
  const query = queryOf(page);
  const read = await models.readIfUnmoved(TABLE, query, { stream, end, values: valuesOf(page) });
  if (read === 'moved') return read;
  const { applied } = read;
  const row = read.row as PageRow | null;
  if (applied >= end.position) return row ? toPage(row) : undefined;
  const since = models.recent(stream, end, applied);
  const onlyMore = !since?.some(({ type }) => type === 'MessageRemoved' || type === 'HistoryRewound');
  if (since && onlyMore) return withRecent(row, since as readonly SessionRecord[], page);
  return readHistory(models, new Map([[end.lane, end.position]]), page);
}

/** The page after events that its row lacks; undefined when there is no history. */
function withRecent(
  row: PageRow | null,
  since: readonly SessionRecord[],
  { incarnation, at, after, order, limit }: PageOfHistory,
): HistoryPage | undefined {
  const events = since.filter((event) => event.incarnation === incarnation && event.version <= at);
  const begin = events.findLast(({ type }) => type === 'SessionCreated' || type === 'ConversationReset');
  // A history that begins among these events has no row yet.
  const known = begin ? { start: begin.version, messages: null, last: null, more: false } : row;
  if (!known) return undefined;
  const recent = events
    .filter((event) => event.type === 'MessageAppended')
    .filter(({ version }) => version > known.start && isBehind(order, version, after));
  const rows = known.messages?.split(BETWEEN_MESSAGES) ?? [];
  const added = recent.map((event) => JSON.stringify(viewOf(event)));
  // They are no part of a page that ascends and is not the last one.
  const isWhole = order === 'desc' || !known.more;
  const whole = order === 'desc' ? [...added.reverse(), ...rows] : [...rows, ...(isWhole ? added : [])];
  const shown = whole.slice(0, limit);
  const last = shown.at(-1);
  return {
    start: known.start,
    messages: `[${shown.join(BETWEEN_MESSAGES)}]`,
    last: last === undefined ? null : (JSON.parse(last) as MessageView).version,
    hasMore: known.more || whole.length > limit,
  };
}

const isBehind = (order: 'asc' | 'desc', version: number, after: number | undefined): boolean =>
  after === undefined || (order === 'asc' ? version > after : version < after);

const valuesOf = ({ incarnation, at, limit, after }: PageOfHistory): number[] => [
  incarnation,
  at,
  limit,
  ...(after === undefined ? [] : [after]),
];

const queryOf = ({ order, after }: PageOfHistory): SessionQuery =>
  QUERIES[order][after === undefined ? 'first' : 'next'];

const SIZE = heldSize('pg_column_size(h.message)');
/** Most bytes of a page, by `heldSize`; beyond that it ends early, with at least one message. */
const PAGE_BYTES = 32 * 1024 * 1024;

const QUERIES = {
  asc: { first: pageQuery('asc'), next: pageQuery('asc', true) },
  desc: { first: pageQuery('desc'), next: pageQuery('desc', true) },
};

function pageQuery(order: 'asc' | 'desc', isNext = false): SessionQuery {
  const [behind, furthest] = order === 'asc' ? ['>', 'max'] : ['<', 'min'];
  return {
    types: ['int', 'int', 'int', ...(isNext ? ['int'] : [])],
    // One row more than asked for tells whether there are more.
    sql: ({ tenant, sessionId, parameters: [incarnation, at, limit, after] }) => `
      select b.version as start, m.*
      from (
        select h.version from ${TABLE} h
        where h.tenant = ${tenant} and h.session_id = ${sessionId} and h.incarnation = ${incarnation}
          and h.version <= ${at} and h.message is null
        order by h.version desc limit 1
      ) b
      cross join lateral (
        select string_agg(p.message::text, E',\\n') filter (where p.shown) as messages,
               ${furthest}(p.version) filter (where p.shown) as last, coalesce(not bool_and(p.shown), false) as more
        from (
          select h.version, h.message,
                 row_number() over o <= ${limit} and sum(${SIZE}) over o - ${SIZE} < ${PAGE_BYTES} as shown
          from ${TABLE} h
          where h.tenant = ${tenant} and h.session_id = ${sessionId} and h.version > b.version
            and h.version <= ${at} and h.message is not null and (h.gone is null or h.gone > ${at}) ${isNext ? `and h.version ${behind} ${after}` : ''}
          window o as (order by h.version ${order} rows unbounded preceding)
          order by h.version ${order} limit ${limit} + 1
        ) p
      ) m`,
  };
}

const toPage = ({ start, messages, last, more }: PageRow): HistoryPage => ({
  start,
  messages: `[${messages ?? ''}]`,
  last,
  hasMore: more,
});
