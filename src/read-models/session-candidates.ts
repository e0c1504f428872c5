import { leaseStands } from '../event-store/leases.js';
import { type ReadModels, type Wanted } from '../projection-engine/strong-reads.js';
import { SESSIONS } from './sessions.projection.js';

/**
 * Sessions that may have to leave, as of the read model. Only candidates: the decision is made on the log.
 *
 * The clock is asked in a sub-select: in a condition itself a volatile function keeps PostgreSQL from using an index.
 */
export interface Candidate {
  readonly tenant: string;
  readonly sessionId: string;
  /** Of the session when it was seen; at another version it is another case. */
  readonly version: number;
  readonly lastActivityAt: string;
  /** Milliseconds that it should have left ago; 0 where there is no such time. */
  readonly overdueMs: number;
}

/** Where a page ended. */
export interface Page {
  readonly limit: number;
  readonly after?: Place | undefined;
}
export interface Place {
  readonly tenant: string;
  readonly since: string;
  readonly sessionId: string;
}

interface Row {
  tenant: string;
  session_id: string;
  version: number;
  last_activity_at: string;
  since: string;
  overdue_ms: number;
}
type Found = Candidate & { readonly place: Place };

const toCandidate = (row: Row): Found => ({
  tenant: row.tenant,
  sessionId: row.session_id,
  version: row.version,
  lastActivityAt: row.last_activity_at,
  overdueMs: row.overdue_ms,
  place: { tenant: row.tenant, since: row.since, sessionId: row.session_id },
});

const ANYTHING: Wanted = 'whatever there is';
const NOW = '(select colloquy_now())';
const ms = (value: string): string => `${value}::bigint * interval '1 millisecond'`;
const COLUMNS = 'tenant, session_id, version, last_activity_at, since';
const overdueBy = (from: string, wait: string): string =>
  `(extract(epoch from ${NOW} - ${from}) * 1000)::bigint - ${wait}::bigint as overdue_ms`;

/**
 * Active sessions of these lanes that nobody has used for `ttl` ms, in the order of `since`; never one that is
 * generating. The tenants of `but` are left out.
 */
export async function overdueSessions(
  models: ReadModels,
  of: { readonly lanes: readonly number[]; readonly ttl: number; readonly but: readonly string[] },
  page: Page,
): Promise<Found[]> {
  const rows = await models.read<Row>(
    SESSIONS,
    ANYTHING,
    `select ${COLUMNS}, ${overdueBy('last_activity_at', '$1')} from ${SESSIONS}
     where status = 'active' and generation_id is null
       and since <= ${NOW} - ${ms('$1')} and last_activity_at <= ${NOW} - ${ms('$1')}
       and lane = any ($2::smallint[]) and tenant <> all ($3::text[])
       and ($4::timestamptz is null or (since, tenant, session_id) > ($4, $5::text collate "C", $6::text collate "C"))
       and since >= coalesce($4, '-infinity')
     order by since, tenant, session_id limit $7`,
    [of.ttl, of.lanes, of.but, ...placeOf(page)],
  );
  return rows.map(toCandidate);
}

/** The same of one tenant, by the tenant's own time to live. */
export async function overdueSessionsOf(
  models: ReadModels,
  tenant: string,
  of: { readonly lanes?: readonly number[]; readonly ttl: number; readonly wanted?: Wanted },
  page: Page,
): Promise<Found[]> {
  const rows = await models.read<Row>(
    SESSIONS,
    of.wanted ?? ANYTHING,
    `select ${COLUMNS}, ${overdueBy('last_activity_at', '$1')} from ${SESSIONS}
     where tenant = $2 and status = 'active' and generation_id is null
       and since <= ${NOW} - ${ms('$1')} and last_activity_at <= ${NOW} - ${ms('$1')}
       and ($3::smallint[] is null or lane = any ($3))
       and ($4::timestamptz is null or (since, tenant, session_id) > ($4, $5::text collate "C", $6::text collate "C"))
       and since >= coalesce($4, '-infinity')
     order by since, session_id limit $7`,
    [of.ttl, tenant, of.lanes ?? null, ...placeOf(page)],
  );
  return rows.map(toCandidate);
}

/** Tenants among these that may have an overdue session: a look at one index entry each. */
export async function tenantsWithOverdue(
  models: ReadModels,
  ttls: readonly { readonly tenant: string; readonly ttl: number }[],
): Promise<string[]> {
  if (ttls.length === 0) return [];
  const rows = await models.read<{ tenant: string }>(
    SESSIONS,
    ANYTHING,
    `select o.tenant from unnest($1::text[], $2::bigint[]) as o (tenant, ttl)
     where exists (select from ${SESSIONS} s where s.tenant = o.tenant collate "C" and s.status = 'active'
                     and s.since <= ${NOW} - ${ms('o.ttl')})`,
    [ttls.map((one) => one.tenant), ttls.map((one) => one.ttl)],
  );
  return rows.map((row) => row.tenant);
}

/**
 * Tenants with a session that was not used for `ttl` ms, but those of `but`, by a look at one index entry per tenant.
 * For the case that overdueSessions would read over many sessions of tenants whose time to live is longer.
 */
export async function otherTenantsWithOverdue(
  models: ReadModels,
  ttl: number,
  but: readonly string[],
): Promise<string[]> {
  const rows = await models.read<{ tenant: string }>(
    SESSIONS,
    ANYTHING,
    `with recursive next (tenant, since) as (
       (select tenant, since from ${SESSIONS} where status = 'active' order by tenant, since limit 1)
       union all
       select n.tenant, n.since from next,
         lateral (select s.tenant, s.since from ${SESSIONS} s where s.status = 'active' and s.tenant > next.tenant
                  order by s.tenant, s.since limit 1) n
     )
     select tenant from next where since <= ${NOW} - ${ms('$1')} and tenant <> all ($2::text[])`,
    [ttl, but],
  );
  return rows.map((row) => row.tenant);
}

/**
 * A tenant's least recently used active sessions, the first to be made to leave; never one that is generating.
 * `since` is a bound below the last use, so the first ones by it tell how far in the index the true first ones stand.
 */
export async function leastRecentlyUsed(
  models: ReadModels,
  wanted: Wanted,
  tenant: string,
  limit: number,
): Promise<(Candidate & { readonly lane: number })[]> {
  const rows = await models.read<Row & { lane: number }>(
    SESSIONS,
    wanted,
    `select ${COLUMNS}, lane, 0 as overdue_ms from ${SESSIONS}
     where tenant = $1 and status = 'active' and generation_id is null
       and since <= (select max(last_activity_at) from (
         select last_activity_at from ${SESSIONS}
         where tenant = $1 and status = 'active' and generation_id is null order by since limit $2
       ) first)
     order by last_activity_at, session_id limit $2`,
    [tenant, limit],
  );
  return rows.map((row) => ({ ...toCandidate(row), lane: row.lane }));
}

/** How many of a tenant's active sessions are generating, and so cannot be made to leave. */
export async function generatingSessions(
  models: ReadModels,
  wanted: Wanted,
  tenant: string,
): Promise<number> {
  const [row] = await models.read<{ count: number }>(
    SESSIONS,
    wanted,
    `select count(*) from ${SESSIONS} where tenant = $1 and status = 'active' and generation_id is not null`,
    [tenant],
  );
  return row?.count ?? 0;
}

/** Sessions of these lanes that have been expired for `deleteAfter` ms and are under no legal hold. */
export async function longExpired(
  models: ReadModels,
  of: { readonly lanes: readonly number[]; readonly deleteAfter: number },
  page: Page,
): Promise<Found[]> {
  const rows = await models.read<Row>(
    SESSIONS,
    ANYTHING,
    `select ${COLUMNS}, ${overdueBy('since', '$1')} from ${SESSIONS}
     where status = 'expired' and not legal_hold and since <= ${NOW} - ${ms('$1')}
       and lane = any ($2::smallint[])
       and ($3::timestamptz is null or (since, tenant, session_id) > ($3, $4::text collate "C", $5::text collate "C"))
       and since >= coalesce($3, '-infinity')
     order by since, tenant, session_id limit $6`,
    [of.deleteAfter, of.lanes, ...placeOf(page)],
  );
  return rows.map(toCandidate);
}

/**
 * Sessions of these lanes whose generation has no standing lease: whoever worked on it is gone.
 * @param leasePrefix what the name of a generation's lease begins with
 */
export async function abandonedGenerations(
  models: ReadModels,
  lanes: readonly number[],
  leasePrefix: string,
  limit: number,
): Promise<(Candidate & { readonly generationId: string })[]> {
  const rows = await models.read<Row & { generation_id: string }>(
    SESSIONS,
    ANYTHING,
    `select ${COLUMNS}, generation_id, 0 as overdue_ms from ${SESSIONS} s
     where generation_id is not null and lane = any ($1::smallint[])
       and not ${leaseStands('$2 || s.generation_id')}
     order by generation_id limit $3`,
    [lanes, leasePrefix, limit],
  );
  return rows.map((row) => ({ ...toCandidate(row), generationId: row.generation_id }));
}

const placeOf = ({ after, limit }: Page): unknown[] => [
  after?.since ?? null,
  after?.tenant ?? null,
  after?.sessionId ?? null,
  limit,
];
