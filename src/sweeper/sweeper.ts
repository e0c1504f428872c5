import { TenantAbsent } from '../event-store/absences.js';
import { Overloaded } from '../event-store/append.js';
import { LaneShare } from '../event-store/lane-share.js';
import { type Leases } from '../event-store/leases.js';
import { type CapCounts } from '../sessions/session-commands.js';
import { DueSessions, type DueSessionsParts, type SweepAction, type SweepReason } from './due-sessions.js';
import { Pacer } from './pacer.js';

const REASONS: readonly SweepReason[] = ['lease', 'ttl', 'cap', 'retention', 'schedule', 'erasure'];
export type SweepCounts = Record<SweepReason, number>;
const NONE: SweepCounts = { ttl: 0, cap: 0, lease: 0, retention: 0, schedule: 0, erasure: 0 };

export interface SweepReport {
  /** Number of candidates that the read model named. */
  readonly found: SweepCounts;
  /** Number of candidates that were due on the log as well. */
  readonly swept: SweepCounts;
  /** Number of sessions whose erasure was due, and that cannot be erased: a part of them is stored in plain. */
  readonly notSealed: number;
  /** How many milliseconds ago the session that had waited longest became due. */
  readonly lagMs: number;
  readonly durationMs: number;
}

export interface SweeperStatus {
  /** Milliseconds from the beginning of one sweep to the beginning of the next. */
  readonly intervalMs: number;
  /** Number of lanes that this node sweeps. */
  readonly lanes: number;
  /** Whether a policy of erasure is set that the service cannot keep to, because it has no master key. */
  readonly lacksMasterKey: boolean;
  readonly last: SweepReport | null;
  /** Sessions that this process has swept, or expired to make room at a cap, since it was started. */
  readonly totals: SweepCounts & CapCounts & { readonly notSealed: number };
}

export interface SweeperParts extends DueSessionsParts {
  readonly leases: Leases;
  readonly onError: (error: unknown) => void;
  /** Called at most twice in a sweep, with what operators have to know of it. */
  readonly warn: (message: string) => void;
}

const LONGEST_INTERVAL_MS = 60_000;
const SHORTEST_INTERVAL_MS = 50;

/**
 * Expires sessions that were not used for their time to live or that exceed a lowered cap, deletes those that were not
 * used for as long as they are kept, schedules and carries out erasures, and fails generations whose node is gone.
 *
 * Every node sweeps its share of the lanes, which only spreads the work. Two nodes that sweep the same lane do no harm,
 * because a sweep sends the same commands as clients do, and each command is decided on the log, at the version that
 * was seen and by the clock of the database.
 */
export class Sweeper {
  private readonly share: LaneShare;
  private readonly pacer: Pacer;
  private readonly dueSessions: DueSessions;
  private readonly totals = { ...NONE, notSealed: 0 };
  private last: SweepReport | null = null;
  private timer: NodeJS.Timeout | undefined;
  /** When the last sweep began by the schedule, by `performance.now()`. */
  private lastBegan = -Infinity;
  private running: Promise<unknown> = Promise.resolve();
  private stopped = false;

  constructor(private readonly parts: SweeperParts) {
    this.share = new LaneShare(parts.leases, 'sweeper', parts.store.laneCount, () => undefined);
    this.pacer = new Pacer(() => parts.store.appends);
    this.dueSessions = new DueSessions(parts);
  }

  /** Takes this node's share of the lanes and begins to sweep at intervals. */
  async start(): Promise<void> {
    await this.share.balance();
    this.parts.policies.onChange(() => {
      this.dueSessions.recheck();
      this.schedule();
    });
    this.schedule();
  }

  /** Stops sweeping; resolves when the commands that were sent have ended. */
  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.timer);
    await this.running;
  }

  status(): SweeperStatus {
    return {
      intervalMs: this.interval(),
      lanes: this.share.owned.size,
      lacksMasterKey: this.dueSessions.lacksMasterKey(),
      last: this.last,
      totals: { ...this.totals, ...this.parts.commands.counts },
    };
  }

  /** Lists what a sweep of all lanes would do now, for at most `limit` sessions, without doing it. */
  async dryRun(limit: number): Promise<{ actions: SweepAction[]; isComplete: boolean }> {
    const actions: SweepAction[] = [];
    const listed = new Set<string>();
    await this.parts.store.absences.refresh();
    for (const reason of REASONS) {
      for await (const page of this.dueSessions.due(reason, this.allLanes(), listed)) {
        for (const { overdueMs: _overdueMs, carryOut: _carryOut, ...action } of page.filter(this.isAtHome)) {
          if (actions.length === limit) return { actions, isComplete: false };
          listed.add(`${action.tenant}/${action.sessionId}`);
          actions.push(action);
        }
      }
    }
    return { actions, isComplete: true };
  }

  /**
   * Sweeps this node's lanes, or all lanes, once a running sweep has ended.
   * @throws DatabaseUnavailable; what was done until then stays done
   */
  sweep(lanes: 'own' | 'all' = 'own'): Promise<SweepReport> {
    const sweep = this.running.then(() => {
      if (lanes === 'all') this.dueSessions.recheck();
      return this.sweepLanes(lanes === 'all' ? this.allLanes() : [...this.share.owned.keys()]);
    });
    this.running = sweep.catch(() => {
      this.dueSessions.recheck();
    });
    return sweep;
  }

  private async sweepLanes(lanes: readonly number[]): Promise<SweepReport> {
    const { commands } = this.parts;
    const began = performance.now();
    const found = { ...NONE };
    const swept = { ...NONE };
    let notSealed = 0;
    let lagMs = 0;
    await this.parts.store.absences.refresh();
    for (const reason of lanes.length > 0 ? REASONS : []) {
      for await (const page of this.dueSessions.due(reason, lanes)) {
        await this.pacer.each(
          page.filter(this.isAtHome),
          (some) => commands.preload(some),
          async (one) => {
            if (this.stopped) return;
            found[reason] += 1;
            lagMs = Math.max(lagMs, one.overdueMs);
            try {
              const outcome = await one.carryOut();
              if (outcome === 'not-sealed') {
                notSealed += 1;
                this.totals.notSealed += 1;
              }
              if (outcome !== true) return;
            } catch (error) {
              // Moved since the sweep began.
              if (error instanceof TenantAbsent) return;
              if (!(error instanceof Overloaded)) throw error;
              // Commands of clients, who wait for an answer, come first. The session is still due at the next sweep.
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
    this.last = { found, swept, notSealed, lagMs, durationMs: Math.round(performance.now() - began) };
    this.warn(notSealed);
    return this.last;
  }

  private warn(notSealed: number): void {
    if (this.dueSessions.lacksMasterKey())
      this.parts.warn('eraseAfter is set, and nothing can be erased: give the service a master key');
    if (notSealed > 0)
      this.parts.warn(
        `${notSealed} sessions were due to be erased and cannot be, because a part of each is stored in plain: their trail has ErasureCancelled with the cause not-sealed`,
      );
  }

  /** The sessions of a tenant that was moved are swept where it lives now. */
  private readonly isAtHome = ({ tenant }: SweepAction): boolean => !this.parts.store.absences.has(tenant);

  private allLanes(): number[] {
    return Array.from({ length: this.parts.store.laneCount }, (_, lane) => lane);
  }

  private interval(): number {
    const { policies } = this.parts;
    const named = [...policies.named()].map(([, policy]) => policy);
    let shortest = Infinity;
    for (const { sessionTTL, deleteAfter = Infinity, eraseAfter = Infinity } of [policies.defaults, ...named])
      shortest = Math.min(shortest, sessionTTL, deleteAfter, eraseAfter);
    return Math.max(SHORTEST_INTERVAL_MS, Math.min(LONGEST_INTERVAL_MS, Math.floor(shortest / 4)));
  }

  private schedule(): void {
    clearTimeout(this.timer);
    if (this.stopped) return;
    this.timer = setTimeout(
      () => {
        this.lastBegan = performance.now();
        this.sweep()
          .catch(this.parts.onError)
          .finally(() => {
            this.schedule();
          });
      },
      Math.max(0, Math.min(this.lastBegan, performance.now()) + this.interval() - performance.now()),
    ).unref();
  }
}
