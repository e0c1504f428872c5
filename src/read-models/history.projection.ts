import { type Content, type Role, type ToolCall } from '../domain/session.events.js';
import { columns, type Projection, tableOf } from '../projection-engine/projection.js';
import { type ReadModels, type Freshness } from '../projection-engine/strong-reads.js';
import { SCHEMA_VERSIONS, type SessionRecord } from './session-record.js';

interface HistoryRow {
  tenant: string;
  session_id: string;
  version: number;
  incarnation: number;
  created_at: string;
  /** null in the row that marks the beginning of a history: a creation or a reset. */
  message: object | null;
}

/**
 * All messages of all incarnations. Those before a reset or a deletion are kept, because the history at an earlier
 * version shows them. A row without a message marks where a history begins.
 */
export const historyProjection: Projection<SessionRecord> = {
  name: 'history',
  version: 1,
  createTable: (table) => `
    create table ${table} (
      tenant text collate "C" not null,
      session_id text collate "C" not null,
      version integer not null,
      incarnation integer not null,
      created_at timestamptz not null,
      message jsonb,
      primary key (tenant, session_id, version)
    );
    create index ${table}_begins on ${table} (tenant, session_id, version) where message is null`,

  apply(events, table) {
    const rows: HistoryRow[] = [];
    for (const event of events) {
      const begins = event.type === 'SessionCreated' || event.type === 'ConversationReset';
      if (!begins && event.type !== 'MessageAppended') continue;
      let message: HistoryRow['message'] = null;
      if (event.type === 'MessageAppended') {
        const { messageId, ...others } = event.data;
        message = { id: messageId, ...others };
      }
      rows.push({
        tenant: event.tenant,
        session_id: event.streamId,
        version: event.version,
        incarnation: event.incarnation,
        created_at: event.time,
        message,
      });
    }
    if (rows.length === 0) return Promise.resolve([]);
    return Promise.resolve([
      {
        // One JSON array is cheaper to send and to parse than an array of escaped texts.
        text: `insert into ${table} (tenant, session_id, version, incarnation, created_at, message)
               select tenant, session_id, version, incarnation, created_at, nullif(message, 'null')
               from rows from (
                 unnest($1::text[], $2::text[], $3::int[], $4::int[], $5::timestamptz[]),
                 jsonb_array_elements($6::jsonb)
               ) as r (tenant, session_id, version, incarnation, created_at, message)`,
        values: [
          ...columns(rows, ['tenant', 'session_id', 'version', 'incarnation', 'created_at']),
          JSON.stringify(rows.map((row) => row.message)),
        ],
      },
    ]);
  },

  applyInside: {
    schemaVersions: SCHEMA_VERSIONS,
    statement: (table, events) => `
      insert into ${table} (tenant, session_id, version, incarnation, created_at, message)
      select tenant, stream_id, version, incarnation, time,
             case when type = 'MessageAppended'
                  then (data - 'messageId') || jsonb_build_object('id', data -> 'messageId') end
      from ${events} e
      where type in ('SessionCreated', 'ConversationReset', 'MessageAppended')
      -- The rows of a session then lie together, and the index grows in its own order.
      order by tenant, stream_id, version`,
  },
};

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
  readonly messages: MessageView[];
}

const TABLE = tableOf(historyProjection);

/**
 * A page of the history that an incarnation of a session had at a version.
 * @returns undefined when the incarnation begins after that version
 */
export async function readHistory(
  models: ReadModels,
  freshness: Freshness,
  session: { readonly tenant: string; readonly sessionId: string; readonly incarnation: number },
  page: {
    readonly at: number;
    readonly after?: number | undefined;
    readonly order: 'asc' | 'desc';
    readonly limit: number;
  },
): Promise<HistoryPage | undefined> {
  const rows = await models.read<{
    start: number;
    version: number | null;
    created_at: string;
    message: MessageView;
  }>(
    TABLE,
    freshness,
    `select b.version as start, m.version, m.created_at, m.message
     from (select version from ${TABLE}
           where tenant = $1 and session_id = $2 and incarnation = $3 and version <= $4 and message is null
           order by version desc limit 1) b
     left join lateral (
       select h.version, h.created_at, h.message from ${TABLE} h
       where h.tenant = $1 and h.session_id = $2 and h.version <= $4 and h.message is not null
         and h.version > ${page.order === 'asc' ? 'greatest(b.version, $5::int)' : 'b.version'}
         ${page.order === 'desc' ? 'and ($5::int is null or h.version < $5)' : ''}
       order by h.version ${page.order} limit $6
     ) m on true
     order by m.version ${page.order}`,
    [session.tenant, session.sessionId, session.incarnation, page.at, page.after ?? null, page.limit],
    session,
  );
  const [first] = rows;
  if (!first) return undefined;
  return {
    start: first.start,
    messages: rows.flatMap(({ version, created_at, message }) => {
      if (version === null) return [];
      return [{ ...message, version, createdAt: message.origin?.createdAt ?? created_at }];
    }),
  };
}
