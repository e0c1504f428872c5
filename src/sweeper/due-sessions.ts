import { randomUUID } from 'node:crypto';
import {
  AbandonGeneration,
  CancelErasure,
  DeleteSession,
  EraseSession,
  ScheduleErasure,
  type SessionCommand,
} from '../domain/session.commands.js';
import { generationLease } from '../domain/session.js';
import { type EventLog } from '../event-store/log.js';
import { ProjectionLagging, type ReadModels } from '../projection-engine/strong-reads.js';
import {
  type DueErasure,
  dueErasures,
  type ErasurePlan,
  tenantsWithUnplanned,
  type Unplanned,
  unplannedErasures,
} from '../read-models/erasure-candidates.js';
import {
  abandonedGenerations,
  type Candidate,
  type Idle,
  leastRecentlyUsed,
  otherTenantsWithOverdue,
  overdueSessions,
  overdueSessionsOf,
  type Place,
  tenantsWithOverdue,
} from '../read-models/session-candidates.js';
import { ACTIVE_SESSIONS } from '../sessions/active-sessions.js';
import { type SessionCommands } from '../sessions/session-commands.js';
import { type TenantPolicies } from '../sessions/tenant-policies.js';

/**
 * Why a sweep touches a session: no write for its time to live, a lowered cap, a dead generation, that it has been expired
 * for as long as such are kept (`retention`), an end after which it is to be erased (`schedule`), or that the time for
 * this has come (`erasure`).
 */
export type SweepReason = 'ttl' | 'cap' | 'lease' | 'retention' | 'schedule' | 'erasure';

/** What a sweep would do to a session. */
export interface SweepAction {
  readonly tenant: string;
  readonly sessionId: string;
  readonly action:
    'expire' | 'fail-generation' | 'delete' | 'schedule-erasure' | 'call-off-erasure' | 'erase';
  readonly reason: SweepReason;
  readonly lastActivityAt: string;
  /** When the session is to be erased, as RFC 3339, of an action that schedules that. */
  readonly at?: string;
  /** An explanation for people. */
  readonly why: string;
}

/** A session that is due, and the command that does what is due. */
export interface DueSession extends SweepAction {
  readonly overdueMs: number;
  /**
   * Resolves to whether the session still was due when the command was decided on the log; `not-sealed`: it was, and
   * cannot be erased.
   */
  readonly carryOut: () => Promise<boolean | 'not-sealed'>;
}

export interface DueSessionsParts {
  readonly store: EventLog;
  readonly models: ReadModels;
  readonly policies: TenantPolicies;
  readonly commands: SessionCommands;
}

/**
 * A tenant exceeds its cap only after the cap was lowered, of which every node is notified, or when nodes run with
 * different settings. A check of all counters that found no tenant above its cap is therefore not repeated for this
 * long, unless an operator asks for a sweep.
 */
const CAPS_CHECK_INTERVAL_MS = 600_000;
/**
 * Sessions per page. The sweeper waits for the last command of a page before it begins the next one, and long pages
 * make these pauses rare.
 */
const PAGE_SIZE = 2_000;
/** Sessions of one tenant that the sweeper expires before it reads the counter of the tenant again. */
const CAP_PAGE_SIZE = 256;

/** Finds the sessions that are due, page by page, and says what is to be done with each. */
export class DueSessions {
  /** When a check of all counters last found no tenant above its cap, by `performance.now()`. */
  private capsCheckedAt = -Infinity;
  /**
   * Whether erasures may stand that were scheduled by another common setting than now. That changes with a start of the
   * service alone, so that the look for them, which reads over those of all tenants, is made until it has found none.
   */
  private hasStaleSchedules = true;

  constructor(private readonly parts: DueSessionsParts) {}

  /** Makes the next sweep check all counters again, and all schedules. */
  recheck(): void {
    this.capsCheckedAt = -Infinity;
    this.hasStaleSchedules = true;
  }

  /**
   * The sessions that are due for a reason, a page at a time. The next page is read when the one before is done.
   * @param listed given in a dry run only: the sessions it has listed so far, with which a sweep would have dealt by then
   */
  due(
    reason: SweepReason,
    lanes: readonly number[],
    listed?: ReadonlySet<string>,
  ): AsyncGenerator<DueSession[]> {
    const origin = { actor: 'system:sweeper', correlationId: `sweep-${randomUUID()}` };
    switch (reason) {
      case 'ttl':
        return this.overdue(lanes, origin);
      case 'cap':
        return this.aboveCap(lanes, origin, listed);
      case 'lease':
        return this.abandoned(lanes, origin);
      case 'retention':
        return this.outOfRetention(lanes, origin);
      case 'schedule':
        return this.toBePlanned(lanes, origin, listed);
      case 'erasure':
        return this.toBeErased(lanes, origin);
    }
  }

  /** Whether some tenant has a policy of erasure, which the service cannot keep to without a master key. */
  lacksMasterKey(): boolean {
    const { store, policies } = this.parts;
    if (store.isSealed) return false;
    return [policies.defaults, ...[...policies.named()].map(([, policy]) => policy)].some(
      ({ eraseAfter }) => eraseAfter !== undefined,
    );
  }

  private async *overdue(lanes: readonly number[], origin: Origin): AsyncGenerator<DueSession[]> {
    for await (const { candidates, ttl } of this.idle('active', 'sessionTTL', lanes))
      yield candidates.map((candidate) => this.expiry(candidate, ttl, origin));
  }

  /** Pages of sessions that have been idle for as long as a setting says, with its value for them. */
  private async *idle(
    idle: Idle,
    setting: 'sessionTTL' | 'deleteAfter',
    lanes: readonly number[],
  ): AsyncGenerator<{ candidates: Candidate[]; ttl: number }> {
    const { models, policies } = this.parts;
    const common = policies.defaults[setting];
    const custom = [...policies.named()].flatMap(([tenant, { [setting]: ttl }]) =>
      ttl === undefined || ttl === common ? [] : [{ tenant, ttl }],
    );
    const but = custom.map(({ tenant }) => tenant);

    let tenants = await tenantsWithOverdue(models, idle, custom);
    if (common !== undefined && custom.some(({ ttl }) => ttl > common)) {
      // Tenants with a longer time have sessions that have been idle for longer than the default without being due. A
      // query over all tenants would read past all of them in every sweep, so each tenant is queried alone.
      tenants = [...tenants, ...(await otherTenantsWithOverdue(models, idle, common, but))];
    } else if (common !== undefined) {
      const pages = paged((page) => overdueSessions(models, { idle, lanes, ttl: common, but }, page));
      for await (const candidates of pages) yield { candidates, ttl: common };
    }
    for (const tenant of tenants) {
      const { [setting]: ttl } = policies.of(tenant);
      // The setting was taken back meanwhile.
      if (ttl === undefined) continue;
      const pages = paged((page) => overdueSessionsOf(models, tenant, { idle, lanes, ttl }, page));
      for await (const candidates of pages) yield { candidates, ttl };
    }
  }

  private expiry(candidate: Candidate, ttl: number, origin: Origin): DueSession {
    return {
      ...commonFields(candidate),
      action: 'expire',
      reason: 'ttl',
      why: `no write for ${candidate.overdueMs + ttl} ms; sessionTTL is ${ttl} ms`,
      carryOut: () => this.parts.commands.expire(candidate, 'ttl', origin, ttl),
    };
  }

  /** After a cap was lowered, the least recently used sessions above it expire first. */
  private async *aboveCap(
    lanes: readonly number[],
    origin: Origin,
    listed?: ReadonlySet<string>,
  ): AsyncGenerator<DueSession[]> {
    const { store, models, policies, commands } = this.parts;
    const caps = new Map<string, number>();
    for (const [tenant, { maxSessions }] of policies.named()) {
      caps.set(`${ACTIVE_SESSIONS}${tenant}`, maxSessions);
    }
    if (!listed) {
      if (performance.now() - this.capsCheckedAt < CAPS_CHECK_INTERVAL_MS) return;
      // Set before the check, so that a cap that is lowered during the check leads to another check.
      this.capsCheckedAt = performance.now();
    }
    const above = await store.counters.above(ACTIVE_SESSIONS, policies.defaults.maxSessions, caps);
    if (above.length > 0) this.capsCheckedAt = -Infinity;
    for (const { key, value, limit: cap } of above) {
      const tenant = key.slice(ACTIVE_SESSIONS.length);
      const seen = new Set<string>();
      for (;;) {
        const candidates = await leastRecentlyUsed(
          models,
          await models.ends(),
          tenant,
          listed ? value - cap : CAP_PAGE_SIZE,
        ).catch((error: unknown) => {
          // The read model is too far behind to tell which sessions were used least recently. The next sweep tries
          // again.
          if (error instanceof ProjectionLagging) return [];
          throw error;
        });
        // The counter is read after the candidates. Candidates that expire in between are tried in vain, which does no
        // harm. If the counter were read first, it would include sessions that are no longer among the candidates, and
        // more sessions would expire than have to.
        const active = await store.counters.value(key);
        const ours = candidates
          .slice(0, Math.max(active - cap, 0))
          .filter(({ lane, sessionId }) => lanes.includes(lane) && !seen.has(sessionId))
          .filter(({ sessionId }) => !listed?.has(`${tenant}/${sessionId}`));
        // The other candidates are left to the nodes that sweep their lanes.
        if (ours.length === 0) break;
        for (const { sessionId } of ours) seen.add(sessionId);
        yield ours.map((candidate) => ({
          ...commonFields(candidate),
          action: 'expire',
          reason: 'cap',
          why: `${active} sessions are active; maxSessions is ${cap}`,
          carryOut: () => commands.expire(candidate, 'cap', origin),
        }));
        if (listed) break;
      }
    }
  }

  private async *abandoned(lanes: readonly number[], origin: Origin): AsyncGenerator<DueSession[]> {
    const { models, commands } = this.parts;
    const found = await abandonedGenerations(models, lanes, generationLease(''), PAGE_SIZE);
    if (found.length === 0) return;
    yield found.map((candidate) => {
      const { tenant, sessionId, generationId } = candidate;
      const context = { ...origin, causationId: generationId };
      return {
        ...commonFields(candidate),
        action: 'fail-generation',
        reason: 'lease',
        why: `the node that worked on ${generationId} is gone`,
        carryOut: async () => {
          const command = new AbandonGeneration(generationId);
          return (await commands.housekeep({ tenant, sessionId }, command, context)).length > 0;
        },
      };
    });
  }

  private async *outOfRetention(lanes: readonly number[], origin: Origin): AsyncGenerator<DueSession[]> {
    for await (const { candidates, ttl } of this.idle('expired', 'deleteAfter', lanes))
      yield candidates.map((candidate) => ({
        ...commonFields(candidate),
        action: 'delete',
        reason: 'retention',
        why: `expired for ${candidate.overdueMs + ttl} ms; deleteAfter is ${ttl} ms`,
        carryOut: () => this.isDone(candidate, new DeleteSession(`retention: deleteAfter ${ttl} ms`), origin),
      }));
  }

  /** Ended sessions whose erasure the policies of their tenants have not scheduled yet, or not as they are now. */
  private async *toBePlanned(
    lanes: readonly number[],
    origin: Origin,
    listed?: ReadonlySet<string>,
  ): AsyncGenerator<DueSession[]> {
    const { store, models, policies } = this.parts;
    // Nothing can be erased, and what is not scheduled need not be called off.
    if (!store.isSealed) return;
    const common = policies.defaults.eraseAfter;
    const named = [...policies.named()].map(([tenant, { eraseAfter }]) => ({ tenant, eraseAfter }));
    const but = named.map(({ tenant }) => tenant);
    const pagesOf = (
      kind: Unplanned,
      eraseAfter: number | undefined,
      tenants: Parameters<typeof unplannedErasures>[2]['tenants'],
    ) => paged((page) => unplannedErasures(models, kind, { lanes, eraseAfter, tenants }, page));
    const toPlan = (eraseAfter: number | undefined) => (candidate: ErasurePlan) =>
      this.plan(candidate, eraseAfter, origin);

    for (const tenant of await tenantsWithUnplanned(models, named)) {
      const { eraseAfter } = policies.of(tenant);
      for (const kind of eraseAfter === undefined ? (['changed'] as const) : (['changed', 'new'] as const))
        for await (const page of pagesOf(kind, eraseAfter, { tenant })) yield page.map(toPlan(eraseAfter));
    }
    if (common !== undefined)
      for await (const page of pagesOf('new', common, { but })) yield page.map(toPlan(common));
    if (!this.hasStaleSchedules && !listed) return;
    let isStale = false;
    for await (const page of pagesOf('changed', common, { but })) {
      isStale = true;
      yield page.map(toPlan(common));
    }
    if (!listed) this.hasStaleSchedules = isStale;
  }

  private plan(candidate: ErasurePlan, eraseAfter: number | undefined, origin: Origin): DueSession {
    const { at } = candidate;
    if (at === null || eraseAfter === undefined) {
      return {
        ...commonFields(candidate),
        action: 'call-off-erasure',
        reason: 'schedule',
        why: 'its erasure is scheduled; eraseAfter is not set any more',
        carryOut: () => this.isDone(candidate, new CancelErasure(undefined, 'policy'), origin),
      };
    }
    return {
      ...commonFields(candidate),
      action: 'schedule-erasure',
      reason: 'schedule',
      at,
      why: `it has ended; eraseAfter is ${eraseAfter} ms`,
      carryOut: () => this.isDone(candidate, new ScheduleErasure(at, undefined, { eraseAfter }), origin),
    };
  }

  private async *toBeErased(lanes: readonly number[], origin: Origin): AsyncGenerator<DueSession[]> {
    const { models } = this.parts;
    for (const which of ['requested', 'byPolicy'] as const) {
      for await (const page of paged((next) => dueErasures(models, which, lanes, next))) {
        const due = which === 'byPolicy' ? await this.inForce(page) : page;
        yield due.map((candidate) => ({
          ...commonFields(candidate),
          action: 'erase',
          reason: 'erasure',
          why:
            candidate.eraseAfter === null
              ? `its erasure was asked for, for ${candidate.at}`
              : `its erasure was scheduled for ${candidate.at}; eraseAfter is ${candidate.eraseAfter} ms`,
          carryOut: async () => {
            const command = new EraseSession(undefined, undefined, which);
            const [event] = await this.happened(candidate, command, origin);
            return event?.type === 'ErasureCancelled' ? 'not-sealed' : event !== undefined;
          },
        }));
      }
    }
  }

  /**
   * Those that are due by the settings as the log has them now. What a node remembers of settings may be a moment old,
   * and an erasure cannot be undone. The others are planned anew by the next sweep.
   */
  private async inForce<Due extends DueErasure>(due: readonly Due[]): Promise<Due[]> {
    const tenants = [...new Set(due.map(({ tenant }) => tenant))];
    const settings = new Map<string, number | undefined>();
    for (const tenant of tenants)
      settings.set(tenant, (await this.parts.policies.read(tenant)).effective.eraseAfter);
    return due.filter(({ tenant, eraseAfter }) => settings.get(tenant) === eraseAfter);
  }

  private async isDone(candidate: Candidate, command: SessionCommand, origin: Origin): Promise<boolean> {
    return (await this.happened(candidate, command, origin)).length > 0;
  }

  /** Carries out a command, which holds for this version of the session only: it was not due at any later one. */
  private happened({ tenant, sessionId, version }: Candidate, command: SessionCommand, origin: Origin) {
    return this.parts.commands.housekeep({ tenant, sessionId }, command, { ...origin, ifMatch: [version] });
  }
}

/** Recorded in every event of a sweep: who wrote it, and an id that all events of the sweep share. */
type Origin = { readonly actor: string; readonly correlationId: string };

const commonFields = ({ tenant, sessionId, lastActivityAt, overdueMs }: Candidate) => ({
  tenant,
  sessionId,
  lastActivityAt,
  overdueMs,
});

/**
 * All rows of a query, a page at a time; each page is read while the one before is worked on. A page begins after the
 * last row of the page before it and not at the first row that is due, because the read model lags: it still shows rows
 * for a while after the sweeper has dealt with them.
 */
async function* paged<Row extends { readonly place: Place }>(
  read: (page: { limit: number; after?: Place | undefined }) => Promise<Row[]>,
): AsyncGenerator<Row[]> {
  for (let next = read({ limit: PAGE_SIZE }); ;) {
    const rows = await next;
    const isLast = rows.length < PAGE_SIZE;
    if (!isLast) {
      next = read({ limit: PAGE_SIZE, after: rows.at(-1)?.place });
      // The error is thrown where the page is awaited. When the sweep ends before that, nobody awaits the page, and
      // Node would end the process because of the unhandled rejection.
      next.catch(() => undefined);
    }
    if (rows.length > 0) yield rows;
    if (isLast) return;
  }
}
