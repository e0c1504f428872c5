import { randomUUID } from 'node:crypto';
import { AbandonGeneration, DeleteSession } from '../domain/session.commands.js';
import { generationLease } from '../domain/session.js';
import { type EventLog } from '../event-store/log.js';
import { ProjectionLagging, type ReadModels } from '../projection-engine/strong-reads.js';
import {
  abandonedGenerations,
  type Candidate,
  leastRecentlyUsed,
  longExpired,
  otherTenantsWithOverdue,
  overdueSessions,
  overdueSessionsOf,
  type Place,
  tenantsWithOverdue,
} from '../read-models/session-candidates.js';
import { ACTIVE_SESSIONS } from '../sessions/active-sessions.js';
import { type SessionCommands } from '../sessions/session-commands.js';
import { type TenantPolicies } from '../sessions/tenant-policies.js';

/** Why a sweep touches a session: no write for its time to live, a lowered cap, a dead generation, or retention. */
export type SweepReason = 'ttl' | 'cap' | 'lease' | 'retention';

/** What a sweep would do to a session. */
export interface SweepAction {
  readonly tenant: string;
  readonly sessionId: string;
  readonly action: 'expire' | 'fail-generation' | 'delete';
  readonly reason: SweepReason;
  readonly lastActivityAt: string;
  /** An explanation for people. */
  readonly why: string;
}

/** A session that is due, and the command that does what is due. */
export interface DueSession extends SweepAction {
  readonly overdueMs: number;
  /** Resolves to whether the session still was due when the command was decided on the log. */
  readonly carryOut: () => Promise<boolean>;
}

export interface DueSessionsParts {
  readonly store: EventLog;
  readonly models: ReadModels;
  readonly policies: TenantPolicies;
  readonly commands: SessionCommands;
  /** Milliseconds after which an expired session is deleted. Without it, expired sessions are kept. */
  readonly deleteAfter?: number | undefined;
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

  constructor(private readonly parts: DueSessionsParts) {}

  /** Makes the next sweep check all counters again. */
  recheckCaps(): void {
    this.capsCheckedAt = -Infinity;
  }

  /**
   * The sessions that are due for a reason, a page at a time. The next page is read when the one before is done.
   * @param listed given in a dry run only: the sessions it has listed so far, which a sweep would have expired by
   * then
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
    }
  }

  private async *overdue(lanes: readonly number[], origin: Origin): AsyncGenerator<DueSession[]> {
    const { models, policies } = this.parts;
    const defaultTtl = policies.defaults.sessionTTL;
    const customTtls = [...policies.named()]
      .map(([tenant, { sessionTTL }]) => ({ tenant, ttl: sessionTTL }))
      .filter(({ ttl }) => ttl !== defaultTtl);
    const customTenants = customTtls.map(({ tenant }) => tenant);
    const toExpiry = (ttl: number) => (candidate: Candidate) => this.expiry(candidate, ttl, origin);

    let tenants = await tenantsWithOverdue(models, customTtls);
    if (customTtls.some(({ ttl }) => ttl > defaultTtl)) {
      // Tenants with a longer time to live have sessions that have been idle for longer than the default without being
      // due. A query over all tenants would read past all of them in every sweep, so each tenant is queried alone.
      tenants = [...tenants, ...(await otherTenantsWithOverdue(models, defaultTtl, customTenants))];
    } else {
      const pages = paged((page) =>
        overdueSessions(models, { lanes, ttl: defaultTtl, but: customTenants }, page),
      );
      for await (const page of pages) yield page.map(toExpiry(defaultTtl));
    }
    for (const tenant of tenants) {
      const { sessionTTL: ttl } = policies.of(tenant);
      const pages = paged((page) => overdueSessionsOf(models, tenant, { lanes, ttl }, page));
      for await (const page of pages) yield page.map(toExpiry(ttl));
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
        carryOut: () =>
          commands.housekeep({ tenant, sessionId }, new AbandonGeneration(generationId), context),
      };
    });
  }

  private async *outOfRetention(lanes: readonly number[], origin: Origin): AsyncGenerator<DueSession[]> {
    const { models, commands, deleteAfter } = this.parts;
    if (deleteAfter === undefined) return;
    for await (const page of paged((next) => longExpired(models, { lanes, deleteAfter }, next))) {
      yield page.map((candidate) => {
        const { tenant, sessionId, version } = candidate;
        // The command holds for this version of the session only. A later use and expiry would raise the version, and
        // the session would not have been expired for long enough.
        const context = { ...origin, ifMatch: [version] };
        return {
          ...commonFields(candidate),
          action: 'delete',
          reason: 'retention',
          why: `expired for ${candidate.overdueMs + deleteAfter} ms; deleteAfter is ${deleteAfter} ms`,
          carryOut: () => commands.housekeep({ tenant, sessionId }, new DeleteSession('retention'), context),
        };
      });
    }
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
