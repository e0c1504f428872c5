import { leaseStands } from '../event-store/leases.js';
import { type ReadModels, type Freshness } from '../projection-engine/strong-reads.js';
import { SESSIONS } from './sessions.projection.js';

/*
 * Queries for sessions that may have to expire or be deleted. The read model only names candidates; whether one really
 * is due is decided on the log.
 *
 * The queries call the clock in a sub-select, because a volatile function in a condition keeps PostgreSQL from using an
 * index.
 */

/** A session that may have to expire or be deleted, as of the read model. */
export interface Candidate {
  readonly tenant: string;
  readonly sessionId: string;
  /** Version of the session as of the read model. At another version the session is no longer this candidate. */
  readonly version: number;
  readonly lastActivityAt: string;
  /** For how many milliseconds the session has been due; 0 where there is no such time. */
  readonly overdueMs: number;
}

export interface Page {
  readonly limit: number;
  readonly after?: Place | undefined;
}
/** Where a page ended. */
export interface Place {
  readonly tenant: string;
  readonly since: string;
  readonly sessionId: string;
}

/** What a query for candidates returns, at least. */
export interface Row {
  tenant: string;
  session_id: string;
  version: number;
  last_activity_at: string;
  since: string;
  overdue_ms: number;
}
type Found = Candidate & { readonly place: Place };

export const toCandidate = (row: Row): Found => ({
  tenant: row.tenant,
  sessionId: row.session_id,
  version: row.version,
  lastActivityAt: row.last_activity_at,
  overdueMs: row.overdue_ms,
  place: { tenant: row.tenant, since: row.since, sessionId: row.session_id },
});

export const EVENTUAL: Freshness = 'eventual';
export const NOW = '(select colloquy_now())';
export const ms = (value: string): string => `${value}::bigint * interval '1 millisecond'`;
const COLUMNS = 'tenant, session_id, version, last_activity_at, since';
export const overdueBy = (from: string, wait: string): string =>
  `(extract(epoch from ${NOW} - ${from}) * 1000)::bigint - ${wait}::bigint as overdue_ms`;

/** Which sessions leave after a time: active ones that are not generating, or expired ones that no legal hold keeps. */
export type Idle = 'active' | 'expired';

/** The conditions of the partial indexes, and from when the time counts: the last use, or the expiry. */
export const IDLE: Readonly<Record<Idle, { readonly is: string; readonly from: string }>> = {
  active: { is: `status = 'active' and generation_id is null`, from: 'last_activity_at' },
  expired: { is: `status = 'expired' and not legal_hold`, from: 'since' },
};

/**
 * Sessions of these lanes that have been idle for `ttl` ms, in the order of `since`, without those of the tenants `but`.
 */
export async function overdueSessions(
  models: ReadModels,
  of: {
    readonly idle: Idle;
    readonly lanes: readonly number[];
    readonly ttl: number;
    readonly but: readonly string[];
  },
  page: Page,
): Promise<Found[]> {
  const { is, from } = IDLE[of.idle];
  const rows = await models.read<Row>(
    SESSIONS,
    EVENTUAL,
    `select ${COLUMNS}, ${overdueBy(from, '$1')} from ${SESSIONS}
     where ${is}
       and since <= ${NOW} - ${ms('$1')} and ${from} <= ${NOW} - ${ms('$1')}
       and lane = any ($2::smallint[]) and tenant <> all ($3::text[])
       and ($4::timestamptz is null or (since, tenant, session_id) > ($4, $5::text collate "C", $6::text collate "C"))
       and since >= coalesce($4, '-infinity')
     order by since, tenant, session_id limit $7`,
    [of.ttl, of.lanes, of.but, ...placeOf(page)],
  );
  return rows.map(toCandidate);
}

/** Like `overdueSessions`, for one tenant with a time to live of its own. */
export async function overdueSessionsOf(
  models: ReadModels,
  tenant: string,
  of: {
    readonly idle: Idle;
    readonly lanes?: readonly number[];
    readonly ttl: number;
    readonly freshness?: Freshness;
  },
  page: Page,
): Promise<Found[]> {
  const { is, from } = IDLE[of.idle];
  const rows = await models.read<Row>(
    SESSIONS,
    of.freshness ?? EVENTUAL,
    `select ${COLUMNS}, ${overdueBy(from, '$1')} from ${SESSIONS}
     where tenant = $2 and ${is}
       and since <= ${NOW} - ${ms('$1')} and ${from} <= ${NOW} - ${ms('$1')}
       and ($3::smallint[] is null or lane = any ($3))
       and ($4::timestamptz is null or (since, tenant, session_id) > ($4, $5::text collate "C", $6::text collate "C"))
       and since >= coalesce($4, '-infinity')
     order by since, session_id limit $7`,
    [of.ttl, tenant, of.lanes ?? null, ...placeOf(page)],
  );
  return rows.map(toCandidate);
}

/** Those of the tenants that may have an overdue session. Reads one index entry per tenant. */
export async function tenantsWithOverdue(
  models: ReadModels,
  idle: Idle,
  ttls: readonly { readonly tenant: string; readonly ttl: number }[],
): Promise<string[]> {
  if (ttls.length === 0) return [];
  const rows = await models.read<{ tenant: string }>(
    SESSIONS,
    EVENTUAL,
    `select o.tenant from unnest($1::text[], $2::bigint[]) as o (tenant, ttl)
     where exists (select from ${SESSIONS} s where s.tenant = o.tenant collate "C" and ${IDLE[idle].is}
                     and s.since <= ${NOW} - ${ms('o.ttl')})`,
    [ttls.map((one) => one.tenant), ttls.map((one) => one.ttl)],
  );
  return rows.map((row) => row.tenant);
}

/**
 * Tenants with a session that has been idle for `ttl` ms, without the tenants `but`. Reads one index entry per tenant.
 * It takes the place of `overdueSessions` where that would read over many sessions of tenants with a longer time to
 * live.
 */
export async function otherTenantsWithOverdue(
  models: ReadModels,
  idle: Idle,
  ttl: number,
  but: readonly string[],
): Promise<string[]> {
  const rows = await models.read<{ tenant: string }>(
    SESSIONS,
    EVENTUAL,
    `with recursive next (tenant, since) as (
       (select tenant, since from ${SESSIONS} where ${IDLE[idle].is} order by tenant, since limit 1)
       union all
       select n.tenant, n.since from next,
         lateral (select s.tenant, s.since from ${SESSIONS} s where ${IDLE[idle].is} and s.tenant > next.tenant
                  order by s.tenant, s.since limit 1) n
     )
     select tenant from next where since <= ${NOW} - ${ms('$1')} and tenant <> all ($2::text[])`,
    [ttl, but],
  );
  return rows.map((row) => row.tenant);
}

/**
 * The least recently used active sessions of a tenant, which are the first to be evicted. Sessions with a running
 * generation are left out. `since` is a lower bound for the time of the last use: the first sessions by `since` tell up
 * to where in the index the first sessions by last use can stand.
 */
export async function leastRecentlyUsed(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  limit: number,
): Promise<(Candidate & { readonly lane: number })[]> {
  const rows = await models.read<Row & { lane: number }>(
    SESSIONS,
    freshness,
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
  freshness: Freshness,
  tenant: string,
): Promise<number> {
  const [row] = await models.read<{ count: number }>(
    SESSIONS,
    freshness,
    `select count(*) from ${SESSIONS} where tenant = $1 and status = 'active' and generation_id is not null`,
    [tenant],
  );
  return row?.count ?? 0;
}

/**
 * Sessions of these lanes whose running generation has no lease any more: the node that worked on it is gone.
 * @param leasePrefix the beginning of the name of a generation's lease
 */
export async function abandonedGenerations(
  models: ReadModels,
  lanes: readonly number[],
  leasePrefix: string,
  limit: number,
): Promise<(Candidate & { readonly generationId: string })[]> {
  const rows = await models.read<Row & { generation_id: string }>(
    SESSIONS,
    EVENTUAL,
    `select ${COLUMNS}, generation_id, 0 as overdue_ms from ${SESSIONS} s
     where generation_id is not null and lane = any ($1::smallint[])
       and not ${leaseStands('$2 || s.generation_id')}
     order by generation_id limit $3`,
    [lanes, leasePrefix, limit],
  );
  return rows.map((row) => ({ ...toCandidate(row), generationId: row.generation_id }));
}

export const placeOf = ({ after, limit }: Page): unknown[] => [
  after?.since ?? null,
  after?.tenant ?? null,
  after?.sessionId ?? null,
  limit,
];
