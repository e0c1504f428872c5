import { type ReadModels } from '../projection-engine/strong-reads.js';
import {
  type Candidate,
  EVENTUAL,
  IDLE,
  ms,
  NOW,
  overdueBy,
  type Page,
  type Place,
  placeOf,
  type Row,
  toCandidate,
} from './session-candidates.js';
import { SESSIONS } from './sessions.projection.js';

/*
 * Queries for sessions whose erasure is to be scheduled, moved or carried out. As with all candidates, the log decides.
 */

/** An ended session whose erasure is to be scheduled by a policy, moved, or called off. */
export interface ErasurePlan extends Candidate {
  /** RFC 3339: when it is to be erased by the setting that holds now; null when none does. */
  readonly at: string | null;
}

/** The shortest time between a policy's schedule and its erasure, for what had ended long before: one day. */
const SHORTEST_WINDOW_MS = 86_400_000;

/**
 * When an ended session is to be erased: `eraseAfter` ms after its end, and not sooner than a day from now, or than
 * `eraseAfter` if that is shorter. So there is always time to call it off, also after a setting was changed.
 */
const eraseTime = (eraseAfter: string): string =>
  `greatest(ended_at + ${ms(eraseAfter)}, ${NOW} + ${ms(`least(${eraseAfter}, ${SHORTEST_WINDOW_MS})`)})`;

/** What is to be planned: all that ended and has no schedule, or what was scheduled by another setting than now. */
export type Unplanned = 'new' | 'changed';

/** Conditions under which the erasure of a session is to be planned; `$2` is the setting of its tenant, if there is one. */
const UNPLANNED: Readonly<Record<Unplanned, string>> = {
  new: `ended_at is not null and policy_erase_at is null and not erasure_off and not legal_hold`,
  changed: `policy_erase_at is not null and not legal_hold and (erase_after < coalesce($2::bigint, 0) or erase_after > coalesce($2::bigint, 0))`,
};

/**
 * Ended sessions of a tenant whose erasure is to be planned by its setting, or of all tenants but some by a setting that
 * is common to them, in the order of tenant and id.
 *
 * @param of.eraseAfter the setting in milliseconds; undefined: there is none, and what was scheduled is called off
 */
export async function unplannedErasures(
  models: ReadModels,
  kind: Unplanned,
  of: {
    readonly lanes: readonly number[];
    readonly eraseAfter: number | undefined;
    readonly tenants: { readonly tenant: string } | { readonly but: readonly string[] };
  },
  { limit, after }: Page,
): Promise<(ErasurePlan & { readonly place: Place })[]> {
  const one = 'tenant' in of.tenants;
  const rows = await models.read<Row & { at: string | null }>(
    SESSIONS,
    EVENTUAL,
    `select tenant, session_id, version, last_activity_at, ended_at as since, 0 as overdue_ms, ${eraseTime('$2::bigint')} as at
     from ${SESSIONS}
     where ${UNPLANNED[kind]} and ${one ? 'tenant = $3' : 'tenant <> all ($3::text[])'} and lane = any ($1::smallint[])
       and ($4::text is null or (tenant, session_id) > ($4 collate "C", $5::text collate "C"))
     order by tenant, session_id limit $6`,
    [
      of.lanes,
      of.eraseAfter ?? null,
      'tenant' in of.tenants ? of.tenants.tenant : of.tenants.but,
      after?.tenant ?? null,
      after?.sessionId ?? null,
      limit,
    ],
  );
  return rows.map((row) => ({ ...toCandidate(row), at: of.eraseAfter === undefined ? null : row.at }));
}

/** Those of the tenants that may have a session whose erasure is to be planned. Reads few index entries per tenant. */
export async function tenantsWithUnplanned(
  models: ReadModels,
  settings: readonly { readonly tenant: string; readonly eraseAfter: number | undefined }[],
): Promise<string[]> {
  if (settings.length === 0) return [];
  // Subqueries with a limit, because PostgreSQL would gather the rows of all tenants for alternatives of `exists`.
  const found = (condition: string): string =>
    `(select true from ${SESSIONS} s where s.tenant = o.tenant collate "C" and ${condition} limit 1)`;
  const planned = 's.policy_erase_at is not null and s.erase_after';
  const rows = await models.read<{ tenant: string }>(
    SESSIONS,
    EVENTUAL,
    `select o.tenant from unnest($1::text[], $2::bigint[]) as o (tenant, erase_after)
     where coalesce(${found(`${planned} < coalesce(o.erase_after, 0)`)},
                    ${found(`${planned} > coalesce(o.erase_after, 0)`)},
                    ${found(`o.erase_after is not null and ${UNPLANNED.new}`)})`,
    [settings.map((one) => one.tenant), settings.map((one) => one.eraseAfter ?? null)],
  );
  return rows.map((row) => row.tenant);
}

/** A session whose scheduled erasure is due, and by which setting of its tenant it was scheduled, if by one. */
export interface DueErasure extends Candidate {
  readonly at: string;
  readonly eraseAfter: number | null;
}

/** The columns of an erasure that somebody asked for, and of one that a policy scheduled; and when neither has to wait. */
const DUE = {
  requested: {
    at: 'erase_at',
    eraseAfter: 'null',
    free: `not legal_hold and (incarnation = erase_incarnation or status = 'deleted')`,
  },
  byPolicy: { at: 'policy_erase_at', eraseAfter: 'erase_after', free: 'not legal_hold' },
} as const;

/** Sessions of these lanes whose erasure is due: one that somebody asked for, or one that a policy scheduled. */
export async function dueErasures(
  models: ReadModels,
  which: keyof typeof DUE,
  lanes: readonly number[],
  page: Page,
): Promise<(DueErasure & { readonly place: Place })[]> {
  const { at, eraseAfter, free } = DUE[which];
  const rows = await models.read<Row & { erase_after: number | null }>(
    SESSIONS,
    EVENTUAL,
    `select tenant, session_id, version, last_activity_at, ${at} as since, ${eraseAfter} as erase_after,
            ${overdueBy(at, '0')}
     from ${SESSIONS}
     where ${at} is not null and ${at} <= ${NOW} and ${free} and lane = any ($1::smallint[])
       and ($2::timestamptz is null or (${at}, tenant, session_id) > ($2, $3::text collate "C", $4::text collate "C"))
       and ${at} >= coalesce($2, '-infinity')
     order by ${at}, tenant, session_id limit $5`,
    [lanes, ...placeOf(page)],
  );
  return rows.map((row) => ({ ...toCandidate(row), at: row.since, eraseAfter: row.erase_after }));
}

/** How many sessions of a tenant settings would concern at once, in the next sweep. */
export interface RetentionPreview {
  /** Sessions that would be deleted. */
  readonly delete: number;
  /** Sessions whose erasure would be scheduled, or scheduled for another time. */
  readonly scheduleErasure: number;
  /** Sessions whose scheduled erasure would be called off. */
  readonly callOffErasure: number;
}

export async function retentionPreview(
  models: ReadModels,
  tenant: string,
  {
    deleteAfter,
    eraseAfter,
  }: { readonly deleteAfter?: number | undefined; readonly eraseAfter?: number | undefined },
): Promise<RetentionPreview> {
  const { is, from } = IDLE.expired;
  const [row] = await models.read<{ deleted: number; unplanned: number; changed: number }>(
    SESSIONS,
    await models.ends(),
    `select (select count(*) from ${SESSIONS} where tenant = $1 and ${is} and ${from} <= ${NOW} - ${ms('$3')}) as deleted,
            (select count(*) from ${SESSIONS} where tenant = $1 and ${UNPLANNED.new}) as unplanned,
            (select count(*) from ${SESSIONS} where tenant = $1 and ${UNPLANNED.changed}) as changed`,
    [tenant, eraseAfter ?? null, deleteAfter ?? null],
  );
  const { deleted = 0, unplanned = 0, changed = 0 } = row ?? {};
  return {
    delete: deleted,
    scheduleErasure: eraseAfter === undefined ? 0 : unplanned + changed,
    callOffErasure: eraseAfter === undefined ? changed : 0,
  };
}
