import { type Freshness, type ReadModels } from '../projection-engine/strong-reads.js';
import { keyOfValue, keysToFind } from './session-keys.js';
import { SESSIONS, type SessionRow } from './sessions.projection.js';

/** A session as lists and single reads show it; times are RFC 3339. */
export interface SessionView {
  readonly id: string;
  readonly status: 'active' | 'expired';
  readonly owner: string | null;
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
  'owner',
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
  owner: row.owner,
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
  /** By creation time and id: `asc` unless given. */
  readonly order?: 'asc' | 'desc';
  /** The last session of the previous page. */
  readonly after?: { readonly createdAt: string; readonly id: string } | undefined;
  /** Text to find in the title or in a value of the metadata, without regard to case. */
  readonly q?: string | undefined;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly owner?: string | undefined;
}

/**
 * Sessions that a filter looks at in their order before it asks the index of keys. Where a good part of the sessions
 * match, a page is full by then, while the index would first have to find all of them. A text is dearer to look for.
 */
const LOOK = { text: 500, metadata: 3_000 };
/** Conditions on metadata that stand in the text of a statement. */
const MOST_ONE_BY_ONE = 4;

/** The sessions of a tenant, in the order that is asked for; deleted ones are left out. */
export async function listSessions(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  filter: SessionFilter,
): Promise<SessionView[]> {
  const values: unknown[] = [tenant, filter.limit];
  const parameter = (value: unknown): string => `$${values.push(value)}`;
  const isDescending = filter.order === 'desc';
  const behind = isDescending ? '<' : '>';
  const order = isDescending ? 'created_at desc, session_id desc' : 'created_at, session_id';
  const reversed = isDescending ? 'created_at, session_id' : 'created_at desc, session_id desc';
  // Only the conditions that are asked for: a plan that serves all of them would read the tenant from the start.
  const conditions = [
    filter.status === 'all' ? `status <> 'deleted'` : `status = ${parameter(filter.status)}`,
  ];
  if (filter.owner !== undefined) conditions.push(`owner = ${parameter(filter.owner)}`);
  if (filter.after) {
    const { createdAt, id } = filter.after;
    conditions.push(`(created_at, session_id) ${behind} (${parameter(createdAt)}, ${parameter(id)})`);
  }
  const asked = conditions.join(' and ');

  const matches: string[] = [];
  const keys = new Set<number>();
  if (filter.q !== undefined) {
    const q = `lower(${parameter(filter.q)}::text)`;
    matches.push(`(strpos(lower(title), ${q}) > 0
      or exists (select from jsonb_each_text(metadata) m where strpos(lower(m.value), ${q}) > 0))`);
    for (const key of keysToFind(tenant, filter.q)) keys.add(key);
  }
  const metadata = Object.entries(filter.metadata ?? {});
  for (const [name, value] of metadata) keys.add(keyOfValue(tenant, name, value));
  // One by one they are cheap to look at, but each number of them is a statement of its own.
  for (const [name, value] of metadata.slice(0, MOST_ONE_BY_ONE)) {
    matches.push(`metadata ->> ${parameter(name)} = ${parameter(value)}`);
  }
  const others = metadata.slice(MOST_ONE_BY_ONE);
  if (others.length > 0) {
    const names = parameter(others.map(([name]) => name));
    const wanted = parameter(others.map(([, value]) => value));
    matches.push(`not exists (select from unnest(${names}::text[], ${wanted}::text[]) as f (name, value)
      where metadata ->> f.name is distinct from f.value)`);
  }

  const look = filter.q === undefined ? LOOK.metadata : LOOK.text;
  const columns = VIEW_COLUMNS.join();
  const inOrder = (condition: string, limit: string): string => `
    select ${columns} from ${SESSIONS} where tenant = $1 and ${condition}
    order by ${order} limit ${limit}`;
  const sql =
    matches.length === 0
      ? inOrder(asked, '$2')
      : keys.size === 0
        ? inOrder([asked, ...matches].join(' and '), '$2')
        : `
    with looked as materialized (${inOrder(asked, String(look))}),
    near as materialized (
      select * from looked where ${matches.join(' and ')} order by ${order} limit $2
    ),
    -- By the keys alone: "is not distinct from" keeps the other indexes of the tenant out of it.
    far as materialized (
      select ${columns} from ${SESSIONS}
      where keys @> ${parameter([...keys])}::integer[]
        and tenant is not distinct from $1 and ${asked} and ${matches.join(' and ')}
        and (created_at, session_id) ${behind} (
          select created_at, session_id from looked order by ${reversed} limit 1)
        and (select count(*) from looked) = ${look} and (select count(*) from near) < $2
      order by ${order} limit $2
    )
    select * from near union all select * from far
    order by ${order} limit $2`;
  const rows = await models.read<ViewRow>(SESSIONS, freshness, sql, values);
  return rows.map(toView);
}

/**
 * The ids of all sessions that were forked from a session before a version, also of deleted ones, in order. One that was
 * erased is not among them.
 */
export async function forksBefore(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  source: { readonly sessionId: string; readonly version: number },
): Promise<string[]> {
  const rows = await models.read<{ session_id: string }>(
    SESSIONS,
    freshness,
    `select session_id from ${SESSIONS}
     where tenant = $1 and forked_from is not null and forked_from ->> 'sessionId' = $2
       and (forked_from ->> 'version')::int < $3
     order by session_id`,
    [tenant, source.sessionId, source.version],
  );
  return rows.map((row) => row.session_id);
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
  page: Pick<SessionFilter, 'after' | 'limit' | 'owner'>,
): Promise<SessionView[]> {
  const rows = await models.read<ViewRow>(
    SESSIONS,
    freshness,
    `select ${VIEW_COLUMNS.join()} from ${SESSIONS} s
     where tenant = $1 and forked_from is not null and forked_from ->> 'sessionId' = $2
       and (forked_from ->> 'version')::int between $3 and $4 and status <> 'deleted'
       and ($5::timestamptz is null or (created_at, session_id) > ($5, $6::text collate "C"))
       and ($8::text is null or owner = $8)
     order by created_at, session_id limit $7`,
    [
      tenant,
      source.sessionId,
      source.from,
      source.to,
      page.after?.createdAt ?? null,
      page.after?.id ?? null,
      page.limit,
      page.owner ?? null,
    ],
  );
  return rows.map(toView);
}
