import { arrayLiteral } from '../database/array-literal.js';
import { isActivity } from '../domain/session.state.js';
import { columns, type Projection, type Statement, tableOf } from '../projection-engine/projection.js';
import { keysOfSession } from './session-keys.js';
import { type SessionRecord } from './session-record.js';

export interface SessionRow {
  tenant: string;
  session_id: string;
  incarnation: number;
  version: number;
  status: 'active' | 'expired' | 'deleted';
  owner: string | null;
  title: string | null;
  metadata: object;
  message_count: number;
  created_at: string;
  last_activity_at: string;
  lane: number;
  /**
   * Of an active session the time of its last use, or somewhat earlier: see `SINCE_STEP_MS`. Of an expired one the time of
   * its expiry.
   */
  since: string;
  /** Time since which the session has not been active; null while it is. */
  ended_at: string | null;
  /** The erasure that somebody asked for, and the incarnation in which the session was then. */
  erase_at: string | null;
  erase_incarnation: number | null;
  /** The erasure that the policy of the tenant has scheduled, and the setting by which it did. */
  policy_erase_at: string | null;
  erase_after: number | null;
  /** Whether the policy schedules none until the session was used again. */
  erasure_off: boolean;
  /** Id of the running generation, if there is one. */
  generation_id: string | null;
  legal_hold: boolean;
  forked_from: { sessionId: string; version: number } | null;
  input_tokens: number;
  output_tokens: number;
  cached_tokens: number;
  reasoning_tokens: number;
  /** See `session-keys.ts`. */
  keys: readonly number[];
}

/** Column → type, in the order of the table's columns. */
const COLUMNS = {
  tenant: 'text collate "C" not null',
  session_id: 'text collate "C" not null',
  incarnation: 'integer not null',
  version: 'integer not null',
  status: 'text not null',
  owner: 'text collate "C"',
  title: 'text',
  metadata: 'jsonb not null',
  message_count: 'integer not null',
  created_at: 'timestamptz not null',
  last_activity_at: 'timestamptz not null',
  lane: 'smallint not null',
  since: 'timestamptz not null',
  ended_at: 'timestamptz',
  erase_at: 'timestamptz',
  erase_incarnation: 'integer',
  policy_erase_at: 'timestamptz',
  erase_after: 'bigint',
  erasure_off: 'boolean not null default false',
  generation_id: 'text collate "C"',
  legal_hold: 'boolean not null',
  forked_from: 'jsonb',
  input_tokens: 'bigint not null',
  output_tokens: 'bigint not null',
  cached_tokens: 'bigint not null',
  reasoning_tokens: 'bigint not null',
  keys: 'integer[] not null',
} satisfies Record<keyof SessionRow, string>;
const NAMES = Object.keys(COLUMNS) as (keyof SessionRow)[];

/**
 * Appends must not write the index by which overdue sessions are found. The index therefore holds, instead of the time
 * of the last use, a lower bound for it, which is moved only when a session is used this much later. An active session
 * can become a candidate for expiry at most this much too early, and the check on the log then finds that it is not
 * due.
 */
const SINCE_STEP_MS = 300_000;

/** An array of arrays would have to be rectangular, so keys travel as text. */
const arrayType = (name: keyof SessionRow): string =>
  name === 'keys' ? 'text[]' : `${COLUMNS[name].split(' ')[0] ?? ''}[]`;

/**
 * One row per session, for lists and single reads. A deleted session keeps its row, so that its versions stay in order.
 */
export const sessionsProjection: Projection<SessionRecord> = {
  name: 'sessions',
  version: 7,
  // No column that most appends change is indexed, so that their updates write no index (heap-only updates).
  createTable: (table) => `
    create table ${table} (
      ${Object.entries(COLUMNS)
        .map(([name, type]) => `${name} ${type}`)
        .join(', ')},
      primary key (tenant, session_id)
    ) with (fillfactor = 70);
    create index ${table}_created on ${table} (tenant, created_at, session_id);
    create index ${table}_of_owner on ${table} (tenant, owner, created_at, session_id) where owner is not null;
    create index ${table}_active on ${table} (since) where status = 'active';
    create index ${table}_active_of_tenant on ${table} (tenant, since) where status = 'active';
    create index ${table}_expired on ${table} (since) where status = 'expired' and not legal_hold;
    create index ${table}_expired_of_tenant on ${table} (tenant, since) where status = 'expired' and not legal_hold;
    create index ${table}_ended on ${table} (tenant, session_id)
      where ended_at is not null and policy_erase_at is null and not erasure_off and not legal_hold;
    create index ${table}_erasures on ${table} (erase_at) where erase_at is not null;
    create index ${table}_policy_erasures on ${table} (policy_erase_at) where policy_erase_at is not null;
    create index ${table}_planned on ${table} (tenant, session_id) where policy_erase_at is not null;
    create index ${table}_erase_after on ${table} (tenant, erase_after) where policy_erase_at is not null;
    create index ${table}_forks on ${table} (tenant, (forked_from ->> 'sessionId'), created_at, session_id)
      where forked_from is not null;
    create index ${table}_generating on ${table} (generation_id) where generation_id is not null;
    create index ${table}_keys on ${table} using gin (keys) with (gin_pending_list_limit = 512)`,

  async apply(events, table, read) {
    const { runs, others } = separateMessages(events);
    const counted = runs.length > 0 ? [countStatement(table, runs)] : [];
    if (others.length === 0) return counted;
    const ids = new Map(others.map((event) => [keyOf(event), event]));
    const known = await read<SessionRow>(
      // The lateral join looks up each session through the index; with a plain join the planner would read the whole
      // table for a big batch.
      `select r.* from unnest($1::text[], $2::text[]) as k (tenant, session_id)
       cross join lateral (
         select * from ${table} where tenant = k.tenant and session_id = k.session_id limit 1
       ) r`,
      [[...ids.values()].map((event) => event.tenant), [...ids.values()].map((event) => event.streamId)],
    );
    const rows = new Map(known.map((row) => [`${row.tenant}/${row.session_id}`, row]));
    for (const event of others) {
      const row = evolve(rows.get(keyOf(event)), event);
      if (row) rows.set(keyOf(event), row);
    }
    const changed = [...rows.values()];
    if (changed.length === 0) return counted;
    const updates = NAMES.filter((name) => name !== 'tenant' && name !== 'session_id');
    return [
      ...counted,
      {
        text: `insert into ${table} (${NAMES.join()})
               select ${NAMES.map((name) => (name === 'keys' ? 'keys::integer[]' : name)).join()}
               from unnest(${NAMES.map((name, index) => `$${index + 1}::${arrayType(name)}`).join()})
                    as r (${NAMES.join()})
               on conflict (tenant, session_id) do update set
                 ${updates.map((name) => `${name} = excluded.${name}`).join()}`,
        values: columns(
          changed.map((row) => ({
            ...row,
            metadata: JSON.stringify(row.metadata),
            forked_from: row.forked_from && JSON.stringify(row.forked_from),
            keys: arrayLiteral(row.keys),
          })),
          NAMES,
        ),
      },
    ];
  },
};

const keyOf = (event: SessionRecord): string => `${event.tenant}/${event.streamId}`;

/** Messages of one session that were appended at one time, without other events between them. */
interface MessageRun {
  readonly tenant: string;
  readonly session_id: string;
  version: number;
  readonly time: string;
  messages: number;
}

/**
 * Separates sessions to which only messages were appended. Most events are messages, and their effect on a row can be
 * written without reading the row first.
 */
function separateMessages(events: readonly SessionRecord[]): {
  runs: MessageRun[];
  others: SessionRecord[];
} {
  const runs = new Map<string, MessageRun>();
  const seen = new Set<string>();
  const mixed = new Set<string>();
  for (const event of events) {
    const key = keyOf(event);
    const run = runs.get(key);
    const isMessage = event.type === 'MessageAppended';
    if (isMessage && run?.time === event.time) {
      run.version = event.version;
      run.messages += 1;
    } else if (isMessage && !seen.has(key)) {
      const { tenant, streamId, version, time } = event;
      runs.set(key, { tenant, session_id: streamId, version, time, messages: 1 });
    } else {
      runs.delete(key);
      mixed.add(key);
    }
    seen.add(key);
  }
  return {
    runs: [...runs.values()],
    others: mixed.size > 0 ? events.filter((event) => mixed.has(keyOf(event))) : [],
  };
}

/** Has the same effect as `evolve` for each of the messages. */
const countStatement = (table: string, runs: readonly MessageRun[]): Statement => ({
  text: `update ${table} s
         set version = r.version, message_count = s.message_count + r.messages, last_activity_at = r.time,
             since = case when s.status = 'active' and r.time - s.since >= $6 * interval '1 millisecond'
                          then r.time else s.since end
         from unnest($1::text[], $2::text[], $3::int[], $4::timestamptz[], $5::int[])
              as r (tenant, session_id, version, time, messages)
         where s.tenant = r.tenant collate "C" and s.session_id = r.session_id collate "C"`,
  values: [...columns(runs, ['tenant', 'session_id', 'version', 'time', 'messages']), SINCE_STEP_MS],
});

function evolve(row: SessionRow | undefined, event: SessionRecord): SessionRow | undefined {
  if (event.type === 'SessionCreated') {
    return {
      tenant: event.tenant,
      session_id: event.streamId,
      incarnation: event.incarnation,
      version: event.version,
      status: 'active',
      owner: event.data.owner ?? null,
      title: event.data.title ?? null,
      metadata: event.data.metadata ?? {},
      message_count: 0,
      created_at: event.time,
      last_activity_at: event.time,
      lane: event.lane,
      since: event.time,
      ended_at: null,
      erase_at: row?.erase_at ?? null,
      erase_incarnation: row?.erase_incarnation ?? null,
      policy_erase_at: null,
      erase_after: null,
      erasure_off: false,
      generation_id: null,
      legal_hold: false,
      forked_from: event.data.forkedFrom ?? null,
      input_tokens: 0,
      output_tokens: 0,
      cached_tokens: 0,
      reasoning_tokens: 0,
      keys: keysOfSession(event.tenant, event.data.title ?? null, event.data.metadata ?? {}),
    };
  }
  // A stream without `SessionCreated` is not a session: it holds the settings of a tenant.
  if (!row) return undefined;
  const next = { ...row, version: event.version };
  if (isActivity(event)) {
    next.last_activity_at = event.time;
    if (row.status === 'active' && Date.parse(event.time) - Date.parse(row.since) >= SINCE_STEP_MS)
      next.since = event.time;
  }
  switch (event.type) {
    case 'SessionDetailsChanged':
      if (event.data.title !== undefined) next.title = event.data.title;
      if (event.data.metadata) next.metadata = event.data.metadata;
      if (event.data.legalHold !== undefined) next.legal_hold = event.data.legalHold;
      next.keys = keysOfSession(event.tenant, next.title, next.metadata);
      break;
    case 'MessageAppended':
      next.message_count += 1;
      break;
    case 'GenerationStarted':
      next.generation_id = event.data.generationId;
      break;
    case 'GenerationCompleted':
    case 'GenerationFailed':
    case 'GenerationCancelled':
      next.generation_id = null;
      next.input_tokens += event.data.usage?.inputTokens ?? 0;
      next.output_tokens += event.data.usage?.outputTokens ?? 0;
      next.cached_tokens += event.data.usage?.cachedTokens ?? 0;
      next.reasoning_tokens += event.data.usage?.reasoningTokens ?? 0;
      break;
    case 'MessageRemoved':
      next.message_count -= event.data.versions.length;
      break;
    case 'HistoryRewound':
      next.message_count = event.data.messageCount;
      break;
    case 'ConversationReset':
      next.message_count = 0;
      break;
    case 'SessionExpired':
      next.status = 'expired';
      next.since = event.time;
      next.ended_at = event.time;
      break;
    case 'SessionResumed':
      next.status = 'active';
      next.since = event.time;
      next.ended_at = null;
      next.policy_erase_at = null;
      next.erase_after = null;
      next.erasure_off = false;
      break;
    case 'SessionDeleted':
      next.status = 'deleted';
      next.legal_hold = false;
      next.generation_id = null;
      next.ended_at = row.ended_at ?? event.time;
      break;
    case 'ErasureScheduled':
      if (event.data.policy) {
        next.policy_erase_at = event.data.at;
        next.erase_after = event.data.policy.eraseAfter;
      } else {
        next.erase_at = event.data.at;
        next.erase_incarnation = row.incarnation;
      }
      break;
    case 'ErasureCancelled':
      next.policy_erase_at = null;
      next.erase_after = null;
      if (event.data.cause === 'policy') break;
      next.erase_at = null;
      next.erase_incarnation = null;
      next.erasure_off = row.ended_at !== null;
      break;
  }
  return next;
}

/** The table's name, for queries. */
export const SESSIONS = tableOf(sessionsProjection);
