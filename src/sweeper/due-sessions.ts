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
  /** Milliseconds after which an expired session is deleted; never unless given. */
  readonly deleteAfter?: number | undefined;
}

/**
 * A tenant rises above its cap only when the cap is lowered, which every node hears of, or between nodes with different
 * settings. Therefore a look at all counters that found no tenant above its cap is not repeated for this long, unless
 * an operator asks for a sweep.
 */
const CAPS_LOOK_MS = 600_000;
/** Sessions per page. Between two pages nothing is in progress for a moment, which long pages make rare. */
const PAGE = 2_000;
/** Sessions of one tenant that are expired before its counter is read again. */
const CAP_PAGE = 256;

/** Finds the sessions that are due, page by page, and says what is to be done with each. */
export class DueSessions {
  /** When a look at all counters found no tenant above its cap, by `performance.now()`. */
  private withinCaps = -Infinity;

  constructor(private readonly parts: DueSessionsParts) {}

  /** Lets the next sweep look at all counters again. */
  forgetCaps(): void {
    this.withinCaps = -Infinity;
  }

  /**
   * The sessions that are due for a reason, a page at a time. The next page is read when the one before is done.
   * @param listed the sessions that a dry run has listed so far, and that a sweep would have expired by then
   */
  due(
    reason: SweepReason,
    lanes: readonly number[],
    listed?: ReadonlySet<string>,
  ): AsyncGenerator<DueSession[]> {
    const by = { actor: 'system:sweeper', correlationId: `sweep-${randomUUID()}` };
    switch (reason) {
      case 'ttl':
        return this.overdue(lanes, by);
      case 'cap':
        return this.aboveCap(lanes, by, listed);
      case 'lease':
        return this.abandoned(lanes, by);
      case 'retention':
        return this.outOfRetention(lanes, by);
    }
  }

  private async *overdue(lanes: readonly number[], by: By): AsyncGenerator<DueSession[]> {
    const { models, policies } = this.parts;
    const usual = policies.defaults.sessionTTL;
    const own = [...policies.named()]
      .map(([tenant, { sessionTTL }]) => ({ tenant, ttl: sessionTTL }))
      .filter(({ ttl }) => ttl !== usual);
    const others = own.map(({ tenant }) => tenant);
    const toDue = (ttl: number) => (candidate: Candidate) => this.expiry(candidate, ttl, by);

    let tenants = await tenantsWithOverdue(models, own);
    if (own.some(({ ttl }) => ttl > usual)) {
      // Sessions of tenants with a longer time to live stay long after others are gone, and a query over all tenants
      // would read over them in every sweep.
      tenants = [...tenants, ...(await otherTenantsWithOverdue(models, usual, others))];
    } else {
      const pages = paged((page) => overdueSessions(models, { lanes, ttl: usual, but: others }, page));
      for await (const page of pages) yield page.map(toDue(usual));
    }
    for (const tenant of tenants) {
      const { sessionTTL: ttl } = policies.of(tenant);
      const pages = paged((page) => overdueSessionsOf(models, tenant, { lanes, ttl }, page));
      for await (const page of pages) yield page.map(toDue(ttl));
    }
  }

  private expiry(candidate: Candidate, ttl: number, by: By): DueSession {
    return {
      ...described(candidate),
      action: 'expire',
      reason: 'ttl',
      why: `no write for ${candidate.overdueMs + ttl} ms; sessionTTL is ${ttl} ms`,
      carryOut: () => this.parts.commands.expire(candidate, 'ttl', by, ttl),
    };
  }

  /** After a cap was lowered, the least recently used sessions above it expire first. */
  private async *aboveCap(
    lanes: readonly number[],
    by: By,
    listed?: ReadonlySet<string>,
  ): AsyncGenerator<DueSession[]> {
    const { store, models, policies, commands } = this.parts;
    const caps = new Map<string, number>();
    for (const [tenant, { maxSessions }] of policies.named()) {
      caps.set(`${ACTIVE_SESSIONS}${tenant}`, maxSessions);
    }
    if (!listed) {
      if (performance.now() - this.withinCaps < CAPS_LOOK_MS) return;
      // Noted before the look, so that a cap that is lowered during the look leads to another look.
      this.withinCaps = performance.now();
    }
    const above = await store.counters.above(ACTIVE_SESSIONS, policies.defaults.maxSessions, caps);
    if (above.length > 0) this.withinCaps = -Infinity;
    for (const { key, value, limit: max } of above) {
      const tenant = key.slice(ACTIVE_SESSIONS.length);
      const seen = new Set<string>();
      for (;;) {
        const idlest = await leastRecentlyUsed(
          models,
          await models.ends(),
          tenant,
          listed ? value - max : CAP_PAGE,
        ).catch((error: unknown) => {
          // Which sessions are the least recently used cannot be told now; the next sweep tries again.
          if (error instanceof ProjectionLagging) return [];
          throw error;
        });
        // The counter is read after the candidates. Sessions that expire in between are then counted and tried in vain;
        // the other way round, more sessions would expire than have to.
        const active = await store.counters.value(key);
        const ours = idlest
          .slice(0, Math.max(active - max, 0))
          .filter(({ lane, sessionId }) => lanes.includes(lane) && !seen.has(sessionId))
          .filter(({ sessionId }) => !listed?.has(`${tenant}/${sessionId}`));
        // The other candidates are left to the nodes that sweep their lanes.
        if (ours.length === 0) break;
        for (const { sessionId } of ours) seen.add(sessionId);
        yield ours.map((candidate) => ({
          ...described(candidate),
          action: 'expire',
          reason: 'cap',
          why: `${active} sessions are active; maxSessions is ${max}`,
          carryOut: () => commands.expire(candidate, 'cap', by),
        }));
        if (listed) break;
      }
    }
  }

  private async *abandoned(lanes: readonly number[], by: By): AsyncGenerator<DueSession[]> {
    const { models, commands } = this.parts;
    const found = await abandonedGenerations(models, lanes, generationLease(''), PAGE);
    if (found.length === 0) return;
    yield found.map((candidate) => {
      const { tenant, sessionId, generationId } = candidate;
      const context = { ...by, causationId: generationId };
      return {
        ...described(candidate),
        action: 'fail-generation',
        reason: 'lease',
        why: `the node that worked on ${generationId} is gone`,
        carryOut: () =>
          commands.housekeep({ tenant, sessionId }, new AbandonGeneration(generationId), context),
      };
    });
  }

  private async *outOfRetention(lanes: readonly number[], by: By): AsyncGenerator<DueSession[]> {
    const { models, commands, deleteAfter } = this.parts;
    if (deleteAfter === undefined) return;
    for await (const page of paged((next) => longExpired(models, { lanes, deleteAfter }, next))) {
      yield page.map((candidate) => {
        const { tenant, sessionId, version } = candidate;
        // Only at this version has the session been expired for so long: a later use or expiry changes the version.
        const context = { ...by, ifMatch: [version] };
        return {
          ...described(candidate),
          action: 'delete',
          reason: 'retention',
          why: `expired for ${candidate.overdueMs + deleteAfter} ms; deleteAfter is ${deleteAfter} ms`,
          carryOut: () => commands.housekeep({ tenant, sessionId }, new DeleteSession('retention'), context),
        };
      });
    }
  }
}

type By = { readonly actor: string; readonly correlationId: string };

const described = ({ tenant, sessionId, lastActivityAt, overdueMs }: Candidate) => ({
  tenant,
  sessionId,
  lastActivityAt,
  overdueMs,
});

/**
 * All rows of a query, a page at a time; each page is read while the one before is worked on. A page begins after the
 * place of the last row before it, because the read model still shows rows for a while after they were worked on.
 */
async function* paged<Row extends { readonly place: Place }>(
  read: (page: { limit: number; after?: Place | undefined }) => Promise<Row[]>,
): AsyncGenerator<Row[]> {
  for (let next = read({ limit: PAGE }); ;) {
    const rows = await next;
    const isLast = rows.length < PAGE;
    if (!isLast) {
      next = read({ limit: PAGE, after: rows.at(-1)?.place });
      next.catch(() => undefined); // thrown where the page is awaited; nobody does when the sweep ends before
    }
    if (rows.length > 0) yield rows;
    if (isLast) return;
  }
}
