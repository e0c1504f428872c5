import { LRUCache } from 'lru-cache';
import { type EventLog } from '../event-store/log.js';
import { ProjectionLagging, type ReadModels, type Freshness } from '../projection-engine/strong-reads.js';
import {
  type Candidate,
  generatingSessions,
  leastRecentlyUsed,
  overdueSessionsOf,
} from '../read-models/session-candidates.js';
import { type TenantPolicies } from './tenant-policies.js';

/** Makes a candidate leave the active set, if it still is what it was; tells whether it did. */
export type Expire = (candidate: Candidate, reason: 'ttl' | 'cap', idleFor?: number) => Promise<boolean>;

/** The key of the counter of a tenant's active sessions. */
export const activeSessions = (tenant: string): string => `${ACTIVE_SESSIONS}${tenant}`;
export const ACTIVE_SESSIONS = 'active:';

interface Waiting {
  readonly resolve: (mayTry: boolean) => void;
  readonly reject: (error: unknown) => void;
}

/** The most sessions that one round makes leave. */
const AT_ONCE = 256;
/** Rounds in a row in which others took the places of those that left. */
const ROUNDS = 100;
const REMEMBERED = 20_000;

/**
 * Room at a tenant's cap: overdue sessions leave first, under `evict` then the least recently used ones.
 *
 * Those who wait for room at the same tenant are served together and in order, as many sessions leaving at once as
 * there are waiting: one by one they would all pick the same session, and all but one of them in vain. Between nodes
 * that can still happen; whoever comes too late remembers the session at that version and goes on to the next one.
 */
export class RoomMaker {
  private readonly queues = new Map<string, Waiting[]>();
  /** Session → version at which it was tried. The read model may show it as active for a while yet. */
  private readonly tried = new LRUCache<string, number>({ max: REMEMBERED });

  constructor(
    private readonly store: EventLog,
    private readonly models: ReadModels,
    private readonly policies: TenantPolicies,
    private readonly expire: Expire,
  ) {}

  /**
   * @param again whoever was promised room and found it taken is served first
   * @returns whether to try again; false: the tenant is at its cap and nobody can be made to leave
   * @throws ProjectionLagging when nobody can tell who is to leave
   */
  request(tenant: string, again: boolean): Promise<boolean> {
    return new Promise((resolve, reject) => {
      const queue = this.queues.get(tenant);
      if (queue) queue[again ? 'unshift' : 'push']({ resolve, reject });
      else {
        const first = [{ resolve, reject }];
        this.queues.set(tenant, first);
        void this.serve(tenant, first);
      }
    });
  }

  private async serve(tenant: string, queue: Waiting[]): Promise<void> {
    for (let inVain = 0; queue.length > 0;) {
      // One turn of the event loop, so that requests which arrived together are served together.
      await new Promise((resolve) => setImmediate(resolve));
      const asked = queue.length;
      try {
        const { places, isFinal } = await this.makeRoom(tenant, asked);
        inVain = places > 0 ? 0 : inVain + 1;
        for (const one of queue.splice(0, places)) one.resolve(true);
        if (places === 0 && (isFinal || inVain >= ROUNDS)) {
          for (const one of queue.splice(0, asked)) one.resolve(false);
        }
      } catch (error) {
        for (const one of queue.splice(0, asked)) one.reject(error);
      }
    }
    this.queues.delete(tenant);
  }

  /** `places`: how many of those who ask may try again; `isFinal`: looking again would find nobody either. */
  private async makeRoom(tenant: string, asked: number): Promise<{ places: number; isFinal: boolean }> {
    const { maxSessions, sessionTTL, capPolicy } = this.policies.of(tenant);
    const expireOverdue = async (freshness: Freshness): Promise<number> => {
      const of = { ttl: sessionTTL, freshness };
      const overdue = this.untried(await overdueSessionsOf(this.models, tenant, of, { limit: AT_ONCE }));
      await this.expireAll(overdue, 'ttl', sessionTTL);
      return overdue.length;
    };
    let overdue = await expireOverdue('eventual');
    const room = async () => maxSessions - (await this.store.counters.value(activeSessions(tenant)));
    if (capPolicy === 'reject') {
      // Also what others made room for in the meantime.
      let free = await room();
      if (free <= 0 && overdue === 0) {
        // Nobody is refused because a read model is a moment behind; one that lags for longer refuses as it is.
        const ends = await this.models.ends();
        overdue = await expireOverdue(ends).catch((error: unknown) => {
          if (error instanceof ProjectionLagging) return 0;
          throw error;
        });
        free = await room();
      }
      return { places: within(free, asked), isFinal: overdue === 0 };
    }
    // The counter is read after the candidates: those that leave in between are then counted, and tried in vain. The
    // other way round more would leave than must.
    const limit = asked + AT_ONCE;
    let idlest = await this.idlest('eventual', tenant, limit);
    let needed = asked - (await room());
    let isFinal = false;
    if (needed > idlest.length) {
      // Those that came in or were used a moment ago are missing: only who has seen all can say that nobody is left.
      const ends = await this.models.ends();
      idlest = await this.idlest(ends, tenant, limit);
      // That none was found proves nothing: another node may have made all of them leave, and new ones come in since.
      isFinal = idlest.length === 0 && (await generatingSessions(this.models, ends, tenant)) >= maxSessions;
      needed = asked - (await room());
    }
    const victims = idlest.slice(0, Math.min(Math.max(needed, 0), AT_ONCE));
    const evicted = await this.expireAll(victims, 'cap');
    return { places: within(asked - needed + evicted, asked), isFinal };
  }

  private async idlest(freshness: Freshness, tenant: string, limit: number): Promise<Candidate[]> {
    return this.untried(await leastRecentlyUsed(this.models, freshness, tenant, limit));
  }

  private untried<C extends Candidate>(candidates: readonly C[]): C[] {
    return candidates.filter((one) => (this.tried.get(keyOf(one)) ?? 0) < one.version);
  }

  /** @returns how many left; those that somebody else made leave do not count. */
  private async expireAll(
    candidates: readonly Candidate[],
    reason: 'ttl' | 'cap',
    idleFor?: number,
  ): Promise<number> {
    const left = await Promise.all(
      candidates.map(async (candidate) => {
        const isGone = await this.expire(candidate, reason, idleFor);
        this.tried.set(keyOf(candidate), candidate.version);
        return isGone;
      }),
    );
    return left.filter(Boolean).length;
  }
}

const within = (places: number, most: number): number => Math.min(Math.max(places, 0), most);
const keyOf = ({ tenant, sessionId }: Candidate): string => `${tenant}/${sessionId}`;
