import { isActivity } from '../domain/session.state.js';
import { columns, type Projection, type Statement, tableOf } from '../projection-engine/projection.js';
import { type ReadModels, type Freshness } from '../projection-engine/strong-reads.js';
import { type SessionRecord } from './session-record.js';

interface SessionRow {
  tenant: string;
  session_id: string;
  incarnation: number;
  version: number;
  status: 'active' | 'expired' | 'deleted';
  title: string | null;
  metadata: object;
  message_count: number;
  created_at: string;
  last_activity_at: string;
  lane: number;
  /** Time from which on the session has been in its status without use, or somewhat earlier: see `SINCE_STEP_MS`. */
  since: string;
  /** Id of the running generation, if there is one. */
  generation_id: string | null;
  legal_hold: boolean;
  forked_from: { sessionId: string; version: number } | null;
  input_tokens: number;
  output_tokens: number;
  cached_tokens: number;
  reasoning_tokens: number;
}

/** Column → type, in the order of the table's columns. */
const COLUMNS = {
  tenant: 'text collate "C" not null',
  session_id: 'text collate "C" not null',
  incarnation: 'integer not null',
  version: 'integer not null',
  status: 'text not null',
  title: 'text',
  metadata: 'jsonb not null',
  message_count: 'integer not null',
  created_at: 'timestamptz not null',
  last_activity_at: 'timestamptz not null',
  lane: 'smallint not null',
  since: 'timestamptz not null',
  generation_id: 'text collate "C"',
  legal_hold: 'boolean not null',
  forked_from: 'jsonb',
  input_tokens: 'bigint not null',
  output_tokens: 'bigint not null',
  cached_tokens: 'bigint not null',
  reasoning_tokens: 'bigint not null',
} satisfies Record<keyof SessionRow, string>;
const NAMES = Object.keys(COLUMNS) as (keyof SessionRow)[];

/**
 * Appends must not write the index by which overdue sessions are found. The index therefore holds, instead of the time
 * of the last use, a lower bound for it, which is moved only when a session is used this much later. An active session
 * can become a candidate for expiry at most this much too early, and the check on the log then finds that it is not
 * due.
 */
const SINCE_STEP_MS = 300_000;

const arrayType = (name: keyof SessionRow): string => `${COLUMNS[name].split(' ')[0] ?? ''}[]`;

/**
 * One row per session, for lists and single reads. A deleted session keeps its row, so that its versions stay in order.
 */
export const sessionsProjection: Projection<SessionRecord> = {
  name: 'sessions',
  version: 3,
  // No column that most appends change is indexed, so that their updates write no index (heap-only updates).
  createTable: (table) => `
    create table ${table} (
      ${Object.entries(COLUMNS)
        .map(([name, type]) => `${name} ${type}`)
        .join(', ')},
      primary key (tenant, session_id)
    ) with (fillfactor = 70);
    create index ${table}_created on ${table} (tenant, created_at, session_id);
    create index ${table}_active on ${table} (since) where status = 'active';
    create index ${table}_active_of_tenant on ${table} (tenant, since) where status = 'active';
    create index ${table}_expired on ${table} (since) where status = 'expired' and not legal_hold;
    create index ${table}_forks on ${table} (tenant, (forked_from ->> 'sessionId'), created_at, session_id)
      where forked_from is not null;
    create index ${table}_generating on ${table} (generation_id) where generation_id is not null`,

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
               select * from unnest(${NAMES.map((name, index) => `$${index + 1}::${arrayType(name)}`).join()})
               on conflict (tenant, session_id) do update set
                 ${updates.map((name) => `${name} = excluded.${name}`).join()}`,
        values: columns(
          changed.map((row) => ({
            ...row,
            metadata: JSON.stringify(row.metadata),
            forked_from: row.forked_from && JSON.stringify(row.forked_from),
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
      title: event.data.title ?? null,
      metadata: event.data.metadata ?? {},
      message_count: 0,
      created_at: event.time,
      last_activity_at: event.time,
      lane: event.lane,
      since: event.time,
      generation_id: null,
      legal_hold: false,
      forked_from: event.data.forkedFrom ?? null,
      input_tokens: 0,
      output_tokens: 0,
      cached_tokens: 0,
      reasoning_tokens: 0,
    };
  }
  // A stream without `SessionCreated` is not a session: it holds the settings of a tenant.
  if (!row) return undefined;
  const next = {
    ...row,
    version: event.version,
    last_activity_at: isActivity(event) ? event.time : row.last_activity_at,
  };
  if (row.status === 'active' && Date.parse(event.time) - Date.parse(row.since) >= SINCE_STEP_MS) {
    next.since = event.time;
  }
  switch (event.type) {
    case 'SessionDetailsChanged':
      if (event.data.title !== undefined) next.title = event.data.title;
      if (event.data.metadata) next.metadata = event.data.metadata;
      if (event.data.legalHold !== undefined) next.legal_hold = event.data.legalHold;
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
    case 'ConversationReset':
      next.message_count = 0;
      break;
    case 'SessionExpired':
      next.status = 'expired';
      next.since = event.time;
      break;
    case 'SessionResumed':
      next.status = 'active';
      next.since = event.time;
      break;
    case 'SessionDeleted':
      next.status = 'deleted';
      next.generation_id = null;
      break;
  }
  return next;
}

/** A session as lists and single reads show it; times are RFC 3339. */
export interface SessionView {
  readonly id: string;
  readonly status: 'active' | 'expired';
  readonly title: string | null;
  readonly metadata: object;
  readonly messageCount: number;
  readonly version: number;
  readonly createdAt: string;
  readonly lastActivityAt: string;
  readonly usage: {
    readonly inputTokens: number;
    readonly outputTokens: number;
    readonly cachedTokens: number;
    readonly reasoningTokens: number;
  };
  readonly forkedFrom?: { readonly sessionId: string; readonly version: number };
}

const VIEW_COLUMNS = [
  'session_id',
  'status',
  'title',
  'metadata',
  'message_count',
  'version',
  'created_at',
  'last_activity_at',
  'input_tokens',
  'output_tokens',
  'cached_tokens',
  'reasoning_tokens',
  'forked_from',
] as const satisfies readonly (keyof SessionRow)[];
type ViewRow = Pick<SessionRow, (typeof VIEW_COLUMNS)[number]>;

const toView = (row: ViewRow): SessionView => ({
  id: row.session_id,
  status: row.status as 'active' | 'expired',
  title: row.title,
  metadata: row.metadata,
  messageCount: row.message_count,
  version: row.version,
  createdAt: row.created_at,
  lastActivityAt: row.last_activity_at,
  usage: {
    inputTokens: row.input_tokens,
    outputTokens: row.output_tokens,
    cachedTokens: row.cached_tokens,
    reasoningTokens: row.reasoning_tokens,
  },
  ...(row.forked_from && { forkedFrom: row.forked_from }),
});

/** The table's name, for queries. */
export const SESSIONS = tableOf(sessionsProjection);

/** A session, unless it does not exist or is deleted. */
export async function findSession(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  sessionId: string,
): Promise<SessionView | undefined> {
  const [row] = await models.read<ViewRow>(
    SESSIONS,
    freshness,
    `select ${VIEW_COLUMNS.join()} from ${SESSIONS} where tenant = $1 and session_id = $2 and status <> 'deleted'`,
    [tenant, sessionId],
    { tenant, sessionId },
  );
  return row && toView(row);
}

export interface SessionFilter {
  readonly status: 'active' | 'expired' | 'all';
  readonly limit: number;
  /** The last session of the previous page. */
  readonly after?: { readonly createdAt: string; readonly id: string } | undefined;
  /** Text to find in the title or in a value of the metadata, without regard to case. */
  readonly q?: string | undefined;
  readonly metadata?: Readonly<Record<string, string>>;
}

/** The sessions of a tenant, ordered by creation time and id; deleted ones are left out. */
export async function listSessions(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  filter: SessionFilter,
): Promise<SessionView[]> {
  const values: unknown[] = [tenant, filter.limit];
  const parameter = (value: unknown): string => `$${values.push(value)}`;
  // Only the conditions that are asked for: a plan that serves all of them would read the tenant from the start.
  const conditions = ['tenant = $1'];
  conditions.push(filter.status === 'all' ? `status <> 'deleted'` : `status = ${parameter(filter.status)}`);
  if (filter.after) {
    const { createdAt, id } = filter.after;
    conditions.push(`(created_at, session_id) > (${parameter(createdAt)}, ${parameter(id)})`);
  }
  if (filter.q !== undefined) {
    const q = `lower(${parameter(filter.q)})`;
    conditions.push(`(strpos(lower(title), ${q}) > 0
      or exists (select from jsonb_each_text(metadata) m where strpos(lower(m.value), ${q}) > 0))`);
  }
  const metadata = Object.entries(filter.metadata ?? {});
  if (metadata.length > 0) {
    const keys = parameter(metadata.map(([key]) => key));
    const wanted = parameter(metadata.map(([, value]) => value));
    conditions.push(`not exists (select from unnest(${keys}::text[], ${wanted}::text[]) as f (key, value)
      where metadata ->> f.key is distinct from f.value)`);
  }
  const rows = await models.read<ViewRow>(
    SESSIONS,
    freshness,
    `select ${VIEW_COLUMNS.join()} from ${SESSIONS}
     where ${conditions.join(' and ')} order by created_at, session_id limit $2`,
    values,
  );
  return rows.map(toView);
}

/**
 * The sessions that were forked from a session at versions `from` to `to`, both inclusive, ordered by creation time and
 * id.
 */
export async function listForks(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  source: { readonly sessionId: string; readonly from: number; readonly to: number },
  page: Pick<SessionFilter, 'after' | 'limit'>,
): Promise<SessionView[]> {
  const rows = await models.read<ViewRow>(
    SESSIONS,
    freshness,
    `select ${VIEW_COLUMNS.join()} from ${SESSIONS} s
     where tenant = $1 and forked_from is not null and forked_from ->> 'sessionId' = $2
       and (forked_from ->> 'version')::int between $3 and $4 and status <> 'deleted'
       and ($5::timestamptz is null or (created_at, session_id) > ($5, $6::text collate "C"))
     order by created_at, session_id limit $7`,
    [
      tenant,
      source.sessionId,
      source.from,
      source.to,
      page.after?.createdAt ?? null,
      page.after?.id ?? null,
      page.limit,
    ],
  );
  return rows.map(toView);
}
