import { type Content, type Role, type ToolCall } from '../domain/session.events.js';
import { columns, type Projection, tableOf } from '../projection-engine/projection.js';
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
}

/**
 * All messages of all incarnations. Those before a reset or a deletion are kept, because the history at an earlier
 * version shows them. A row without a message marks where a history begins.
 *
 * A message is stored as the text that clients get, so that nobody has to take it apart and put it together again.
 */
export const historyProjection: Projection<SessionRecord> = {
  name: 'history',
  version: 2,
  createTable: (table) => `
    create table ${table} (
      tenant text collate "C" not null,
      session_id text collate "C" not null,
      version integer not null,
      incarnation integer not null,
      message json,
      primary key (tenant, session_id, version)
    );
    create index ${table}_begins on ${table} (tenant, session_id, version) where message is null`,

  apply(events, table) {
    const rows: HistoryRow[] = [];
    for (const event of events) {
      const begins = event.type === 'SessionCreated' || event.type === 'ConversationReset';
      if (!begins && event.type !== 'MessageAppended') continue;
      const message = event.type === 'MessageAppended' ? viewOf(event) : null;
      rows.push({
        tenant: event.tenant,
        session_id: event.streamId,
        version: event.version,
        incarnation: event.incarnation,
        message,
      });
    }
    if (rows.length === 0) return Promise.resolve([]);
    return Promise.resolve([
      {
        // One JSON array is cheaper to send and to parse than an array of escaped texts. It passes through jsonb, so
        // that the text is the same as that of the statement below.
        text: `insert into ${table} (tenant, session_id, version, incarnation, message)
               select tenant, session_id, version, incarnation, nullif(message, 'null')::text::json
               from rows from (
                 unnest($1::text[], $2::text[], $3::int[], $4::int[]),
                 jsonb_array_elements($5::jsonb)
               ) as r (tenant, session_id, version, incarnation, message)`,
        values: [
          ...columns(rows, ['tenant', 'session_id', 'version', 'incarnation']),
          JSON.stringify(rows.map((row) => row.message)),
        ],
      },
    ]);
  },

  applyInside: {
    schemaVersions: SCHEMA_VERSIONS,
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
  if (since) return withRecent(row, since as readonly SessionRecord[], page);
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
  // Behind a page that ascends and is not the last one they are cut off again.
  const whole = order === 'desc' ? [...added.reverse(), ...rows] : [...rows, ...added];
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
        select string_agg(p.message, E',\\n') filter (where p.nth <= ${limit}) as messages,
               ${furthest}(p.version) filter (where p.nth <= ${limit}) as last, count(*) > ${limit} as more
        from (
          select h.version, h.message::text, row_number() over (order by h.version ${order}) as nth from ${TABLE} h
          where h.tenant = ${tenant} and h.session_id = ${sessionId} and h.version > b.version
            and h.version <= ${at} and h.message is not null ${isNext ? `and h.version ${behind} ${after}` : ''}
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
