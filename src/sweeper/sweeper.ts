import { randomUUID } from 'node:crypto';
import { AbandonGeneration, DeleteSession } from '../domain/session.commands.js';
import { generationLease } from '../domain/session.js';
import { Overloaded } from '../event-store/append.js';
import { type EventLog } from '../event-store/log.js';
import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
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
import { type CapCounts, type SessionCommands } from '../sessions/session-commands.js';
import { type TenantPolicies } from '../sessions/tenant-policies.js';
import { Pacer } from './pacer.js';

/** Why a session is touched: no write for its time to live, a cap that was lowered, a dead generation, retention. */
export type SweepReason = 'ttl' | 'cap' | 'lease' | 'retention';
const REASONS: readonly SweepReason[] = ['lease', 'ttl', 'cap', 'retention'];
export type SweepCounts = Record<SweepReason, number>;

/** What a sweep would do to a session. */
export interface SweepAction {
  readonly tenant: string;
  readonly sessionId: string;
  readonly action: 'expire' | 'fail-generation' | 'delete';
  readonly reason: SweepReason;
  readonly lastActivityAt: string;
  /** For people. */
  readonly why: string;
}

export interface SweepReport {
  /** Candidates of the read model, and those of them that turned out to be right on the log. */
  readonly found: SweepCounts;
  readonly swept: SweepCounts;
  /** How long the session that waited longest had been due, in milliseconds. */
  readonly lagMs: number;
  readonly durationMs: number;
}

export interface SweeperStatus {
  /** Milliseconds from the beginning of one sweep to that of the next. */
  readonly intervalMs: number;
  /** Lanes that this node sweeps. */
  readonly lanes: number;
  readonly last: SweepReport | null;
  /** Of this process since it began: by sweeps, and at the caps. */
  readonly totals: SweepCounts & CapCounts;
}

interface Due extends SweepAction {
  readonly overdueMs: number;
  readonly carryOut: () => Promise<boolean>;
}

export interface SweeperParts {
  readonly store: EventLog;
  readonly models: ReadModels;
  readonly policies: TenantPolicies;
  readonly commands: SessionCommands;
  readonly leases: Leases;
  /** Milliseconds after which an expired session is deleted; never unless given. */
  readonly deleteAfter?: number | undefined;
  readonly onError: (error: unknown) => void;
}

const LONGEST_INTERVAL_MS = 60_000;
const SHORTEST_INTERVAL_MS = 50;
/**
 * A tenant gets above its cap only when the cap is lowered, of which every node hears, or between nodes whose settings
 * differ: a look at all counters that found none is good for so long, unless an operator asks.
 */
const CAPS_LOOK_MS = 600_000;
/** Between two pages nothing is under way for a moment: long ones make that rare. */
const PAGE = 2_000;
/** Sessions of one tenant that leave before its counter is looked at again. */
const CAP_PAGE = 256;

/**
 * Makes sessions leave when they should: those that nobody used for their time to live, those above a cap that was
 * lowered, and, if wanted, those that stayed expired. Also ends generations whose node is gone.
 *
 * Every node sweeps its share of the lanes. Nothing depends on that: what a sweep does are the same commands as
 * everybody's, decided on the log, at the version that was seen and by the database's clock.
 */
export class Sweeper {
  private readonly share: LaneShare;
  private readonly pacer: Pacer;
  private readonly totals: SweepCounts = { ttl: 0, cap: 0, lease: 0, retention: 0 };
  private last: SweepReport | null = null;
  private timer: NodeJS.Timeout | undefined;
  private began = -Infinity;
  private running: Promise<unknown> = Promise.resolve();
  private stopped = false;
  /** When no tenant was above its cap. */
  private withinCaps = -Infinity;

  constructor(private readonly parts: SweeperParts) {
    this.share = new LaneShare(parts.leases, 'sweeper', parts.store.laneCount, () => undefined);
    this.pacer = new Pacer(() => parts.store.appends);
  }

  /** Takes its lanes and begins to sweep now and then. */
  async start(): Promise<void> {
    await this.share.balance();
    this.parts.policies.onChange(() => {
      this.withinCaps = -Infinity;
      this.schedule();
    });
    this.schedule();
  }

  /** Ends after the commands that were given already. */
  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.timer);
    await this.running;
  }

  status(): SweeperStatus {
    return {
      intervalMs: this.interval(),
      lanes: this.share.owned.size,
      last: this.last,
      totals: { ...this.totals, ...this.parts.commands.counts },
    };
  }

  /** What a sweep of all lanes would do now, at most `limit` sessions. Nothing is done. */
  async dryRun(limit: number): Promise<{ actions: SweepAction[]; isComplete: boolean }> {
    const actions: SweepAction[] = [];
    const listed = new Set<string>();
    for (const reason of REASONS) {
      for await (const page of this.due(reason, this.allLanes(), listed)) {
        for (const { overdueMs: _overdueMs, carryOut: _carryOut, ...action } of page) {
          if (actions.length === limit) return { actions, isComplete: false };
          listed.add(`${action.tenant}/${action.sessionId}`);
          actions.push(action);
        }
      }
    }
    return { actions, isComplete: true };
  }

  /**
   * One sweep, after the one that runs: of this node's lanes, or of all.
   * @throws Overloaded, DatabaseUnavailable; what was done until then stays done
   */
  sweep(lanes: 'own' | 'all' = 'own'): Promise<SweepReport> {
    const sweep = this.running.then(() => {
      if (lanes === 'all') this.withinCaps = -Infinity;
      return this.sweepLanes(lanes === 'all' ? this.allLanes() : [...this.share.owned.keys()]);
    });
    this.running = sweep.catch(() => {
      this.withinCaps = -Infinity;
    });
    return sweep;
  }

  private async sweepLanes(lanes: readonly number[]): Promise<SweepReport> {
    const { commands } = this.parts;
    const began = performance.now();
    const found = { ttl: 0, cap: 0, lease: 0, retention: 0 };
    const swept = { ttl: 0, cap: 0, lease: 0, retention: 0 };
    let lagMs = 0;
    for (const reason of lanes.length > 0 ? REASONS : []) {
      for await (const page of this.due(reason, lanes)) {
        await this.pacer.each(
          page,
          (some) => commands.preload(some),
          async (one) => {
            if (this.stopped) return;
            found[reason] += 1;
            lagMs = Math.max(lagMs, one.overdueMs);
            try {
              if (!(await one.carryOut())) return;
            } catch (error) {
              if (!(error instanceof Overloaded)) throw error;
              // Whoever waits for an answer comes first; it is still due at the next sweep.
              this.pacer.slowDown();
              return;
            }
            swept[reason] += 1;
            this.totals[reason] += 1;
          },
        );
        if (this.stopped) break;
      }
    }
    this.last = { found, swept, lagMs, durationMs: Math.round(performance.now() - began) };
    return this.last;
  }

  /**
   * What is due for a reason, a page at a time; the next page is asked for when the one before is done.
   * @param listed by a dry run: sessions that would have left before
   */
  private due(
    reason: SweepReason,
    lanes: readonly number[],
    listed?: ReadonlySet<string>,
  ): AsyncGenerator<Due[]> {
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

  private async *overdue(lanes: readonly number[], by: By): AsyncGenerator<Due[]> {
    const { models, policies } = this.parts;
    const usual = policies.defaults.sessionTTL;
    const own = [...policies.named()]
      .map(([tenant, { sessionTTL }]) => ({ tenant, ttl: sessionTTL }))
      .filter(({ ttl }) => ttl !== usual);
    const others = own.map(({ tenant }) => tenant);
    const toDue = (ttl: number) => (candidate: Candidate) => this.expiry(candidate, ttl, by);

    let tenants = await tenantsWithOverdue(models, own);
    if (own.some(({ ttl }) => ttl > usual)) {
      // Their sessions stay long after others are gone, and every sweep would read over all of them.
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

  private expiry(candidate: Candidate, ttl: number, by: By): Due {
    return {
      ...described(candidate),
      action: 'expire',
      reason: 'ttl',
      why: `no write for ${candidate.overdueMs + ttl} ms; sessionTTL is ${ttl} ms`,
      carryOut: () => this.parts.commands.expire(candidate, 'ttl', by, ttl),
    };
  }

  /** A cap that was lowered is worked off, the least recently used first. */
  private async *aboveCap(
    lanes: readonly number[],
    by: By,
    listed?: ReadonlySet<string>,
  ): AsyncGenerator<Due[]> {
    const { store, models, policies, commands } = this.parts;
    const caps = new Map<string, number>();
    for (const [tenant, { maxSessions }] of policies.named()) {
      caps.set(`${ACTIVE_SESSIONS}${tenant}`, maxSessions);
    }
    if (!listed) {
      if (performance.now() - this.withinCaps < CAPS_LOOK_MS) return;
      // Before the look, so that a cap which is lowered meanwhile leads to another one.
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
          // Who is the least recently used one cannot be told now; the next sweep tries again.
          if (error instanceof ProjectionLagging) return [];
          throw error;
        });
        // Read after the candidates: those that leave in between are counted, and tried in vain. The other way round
        // more would leave than must.
        const active = await store.counters.value(key);
        const ours = idlest
          .slice(0, Math.max(active - max, 0))
          .filter(({ lane, sessionId }) => lanes.includes(lane) && !seen.has(sessionId))
          .filter(({ sessionId }) => !listed?.has(`${tenant}/${sessionId}`));
        // The rest is for the nodes that have the other lanes.
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

  private async *abandoned(lanes: readonly number[], by: By): AsyncGenerator<Due[]> {
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

  private async *outOfRetention(lanes: readonly number[], by: By): AsyncGenerator<Due[]> {
    const { models, commands, deleteAfter } = this.parts;
    if (deleteAfter === undefined) return;
    for await (const page of paged((next) => longExpired(models, { lanes, deleteAfter }, next))) {
      yield page.map((candidate) => {
        const { tenant, sessionId, version } = candidate;
        // At this version it has been expired that long: a use, or an expiry after it, makes another one.
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

  private allLanes(): number[] {
    return Array.from({ length: this.parts.store.laneCount }, (_, lane) => lane);
  }

  private interval(): number {
    const { policies, deleteAfter = Infinity } = this.parts;
    let shortest = Math.min(policies.defaults.sessionTTL, deleteAfter);
    for (const [, { sessionTTL }] of policies.named()) shortest = Math.min(shortest, sessionTTL);
    return Math.max(SHORTEST_INTERVAL_MS, Math.min(LONGEST_INTERVAL_MS, Math.floor(shortest / 4)));
  }

  private schedule(): void {
    clearTimeout(this.timer);
    if (this.stopped) return;
    this.timer = setTimeout(
      () => {
        this.began = performance.now();
        this.sweep()
          .catch(this.parts.onError)
          .finally(() => {
            this.schedule();
          });
      },
      Math.max(0, Math.min(this.began, performance.now()) + this.interval() - performance.now()),
    ).unref();
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
 * All of a query's rows, a page at a time, each read while the one before is worked on. It goes on from the place of the
 * last row: the rows before are shown by the read model for a while yet, although they are done.
 */
async function* paged<Row extends { readonly place: Place }>(
  read: (page: { limit: number; after?: Place | undefined }) => Promise<Row[]>,
): AsyncGenerator<Row[]> {
  for (let next = read({ limit: PAGE }); ;) {
    const rows = await next;
    const isLast = rows.length < PAGE;
    if (!isLast) {
      next = read({ limit: PAGE, after: rows.at(-1)?.place });
      // Whoever takes no further page does not hear of it.
      next.catch(() => undefined);
    }
    if (rows.length > 0) yield rows;
    if (isLast) return;
  }
}
