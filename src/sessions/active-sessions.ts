import { boundedCache } from '../bounded-cache.js';
import { type EventLog } from '../event-store/log.js';
import { ProjectionLagging, type ReadModels, type Freshness } from '../projection-engine/strong-reads.js';
import {
  type Candidate,
  generatingSessions,
  leastRecentlyUsed,
  overdueSessionsOf,
} from '../read-models/session-candidates.js';
import { type TenantPolicies } from './tenant-policies.js';

/** Expires a candidate if its session is still at the version that was seen. Resolves to whether it did. */
export type Expire = (candidate: Candidate, reason: 'ttl' | 'cap', idleFor?: number) => Promise<boolean>;

/** The key of the counter of a tenant's active sessions. */
export const activeSessions = (tenant: string): string => `${ACTIVE_SESSIONS}${tenant}`;
export const ACTIVE_SESSIONS = 'active:';

interface Waiting {
  readonly resolve: (mayTry: boolean) => void;
  readonly reject: (error: unknown) => void;
}

/** Most sessions that one round expires. */
const AT_ONCE = 256;
/** Rounds in a row in which other nodes took all the places that became free, after which the request is refused. */
const ROUNDS = 100;
const REMEMBERED = 20_000;

/**
 * Makes room at a tenant's cap: overdue sessions expire first, and under `evict` then the least recently used ones.
 *
 * Requests that wait for room at the same tenant are served together and in order, and as many sessions expire as
 * requests wait. Served one by one, all requests would pick the same session, and all but one in vain. Between nodes
 * this can still happen: the node that comes too late remembers the session at that version and takes the next one.
 */
export class RoomMaker {
  private readonly queues = new Map<string, Waiting[]>();
  /** Session → version at which expiring it was tried. The read model may still show it as active for a while. */
  private readonly tried = boundedCache<string, number>(REMEMBERED);

  constructor(
    private readonly store: EventLog,
    private readonly models: ReadModels,
    private readonly policies: TenantPolicies,
    private readonly expire: Expire,
  ) {}

  /**
   * @param again whether the request was promised room before and found it taken; it is then served first
   * @returns true when the request may try again; false when the tenant is at its cap and no session can be expired
   * @throws ProjectionLagging when the read model is too old to tell which session has to expire
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
      // Waits for the next turn of the event loop, so that requests that arrived together are served together.
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

  /** `places`: how many requests may try again. `isFinal`: another look would not find a session to expire either. */
  private async makeRoom(tenant: string, asked: number): Promise<{ places: number; isFinal: boolean }> {
    const { maxSessions, sessionTTL, capPolicy } = this.policies.of(tenant);
    const expireOverdue = async (freshness: Freshness): Promise<number> => {
      const of = { idle: 'active', ttl: sessionTTL, freshness } as const;
      const overdue = this.untried(await overdueSessionsOf(this.models, tenant, of, { limit: AT_ONCE }));
      await this.expireAll(overdue, 'ttl', sessionTTL);
      return overdue.length;
    };
    let overdue = await expireOverdue('eventual');
    const room = async () => maxSessions - (await this.store.counters.value(activeSessions(tenant)));
    if (capPolicy === 'reject') {
      // The counter also shows the room that other nodes made in the meantime.
      let free = await room();
      if (free <= 0 && overdue === 0) {
        // A request is not refused because a read model is a moment behind. If it lags for longer, its rows decide as
        // they are.
        const ends = await this.models.ends();
        overdue = await expireOverdue(ends).catch((error: unknown) => {
          if (error instanceof ProjectionLagging) return 0;
          throw error;
        });
        free = await room();
      }
      return { places: within(free, asked), isFinal: overdue === 0 };
    }
    // The counter is read after the candidates. Sessions that expire in between are then counted and tried in vain; the
    // other way round, more sessions would expire than have to.
    const limit = asked + AT_ONCE;
    let idlest = await this.idlest('eventual', tenant, limit);
    let needed = asked - (await room());
    let isFinal = false;
    if (needed > idlest.length) {
      // Sessions that were created or used a moment ago may be missing. Only rows as new as the log's end can show that
      // no session is left.
      const ends = await this.models.ends();
      idlest = await this.idlest(ends, tenant, limit);
      // That no candidate was found proves nothing: another node may have expired them all, and new sessions may have
      // come.
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

  /** @returns the number of sessions that this call expired, without those that another node expired first */
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
