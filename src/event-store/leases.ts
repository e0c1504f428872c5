import { type Pool } from 'pg';
import { available } from '../database/connection.js';
import { endOfTurn, type NewLease } from './batch-writer.js';

/** How long a lease stands without being renewed: what a dead or stopped node can hold up at most. */
export const LEASE_MS = 6_000;
const RENEW_MS = 1_500;

/**
 * The leases that this node holds, renewed together by one statement. Database time decides when one is over.
 *
 * Holding a lease here is a hint, not a proof: a node that was stopped finds out late. Whoever writes under a lease
 * must also fence the write (a compare-and-set, a version, an epoch).
 */
export class Leases {
  private readonly held = new Map<string, number>();
  private readonly timer: NodeJS.Timeout;
  private readonly beats = new Set<() => Promise<void>>();
  private beating: Promise<void> | undefined;
  private readonly asked = new Set<string>();
  private counting: Promise<Map<string, number>> | undefined;

  constructor(
    private readonly pool: Pool,
    /** A UUID of this process. */
    readonly owner: string,
  ) {
    this.timer = setInterval(() => {
      void this.beat();
    }, RENEW_MS);
    this.timer.unref();
  }

  /** A lease for an append to begin with; `adopt` it then. */
  wanted(name: string): NewLease {
    return { name, owner: this.owner, ms: LEASE_MS };
  }

  /** Keeps a lease that began with an append of this process. Nothing may be fenced by its epoch. */
  adopt(name: string): void {
    this.held.set(name, 0);
  }

  /** Takes those that are free; returns the epochs of all that are held now. */
  async take(names: readonly string[]): Promise<Map<string, number>> {
    if (names.length === 0) return new Map();
    const { rows } = await available(() =>
      this.pool.query<{ name: string; epoch: number }>({
        name: 'lease_take',
        text: 'select name, epoch from lease_take($1, $2, $3)',
        values: [[...names].sort(), this.owner, LEASE_MS],
      }),
    );
    const taken = new Map(rows.map(({ name, epoch }) => [name, epoch]));
    for (const name of names) {
      const epoch = taken.get(name);
      if (epoch === undefined) this.held.delete(name);
      else this.held.set(name, epoch);
    }
    return taken;
  }

  /** Lets go at once, so that nobody has to wait for the end of the lease. */
  async release(names: readonly string[]): Promise<void> {
    for (const name of names) this.held.delete(name);
    await available(() =>
      this.pool.query(
        `delete from lease l using (
           select name from lease where name = any ($1) and owner = $2 order by name for update
         ) own where l.name = own.name`,
        [names, this.owner],
      ),
    );
  }

  /** The epoch of a lease that this node believes to hold. */
  epochOf(name: string): number | undefined {
    return this.held.get(name);
  }

  /** Runs with every renewal, after it. Returns how to stop that. */
  onBeat(work: () => Promise<void>): () => void {
    this.beats.add(work);
    return () => this.beats.delete(work);
  }

  /**
   * How many nodes hold a lease whose name begins with this. What is asked for in one turn of the event loop is one
   * query: every kind of work asks at the same beat, also where there is nothing else to do.
   */
  async count(prefix: string): Promise<number> {
    this.asked.add(prefix);
    this.counting ??= endOfTurn().then(() => this.countAsked());
    return (await this.counting).get(prefix) ?? 0;
  }

  private async countAsked(): Promise<Map<string, number>> {
    const prefixes = [...this.asked];
    this.asked.clear();
    this.counting = undefined;
    const { rows } = await available(() =>
      this.pool.query<{ prefix: string; count: number }>({
        name: 'lease_counts',
        text: `select p.prefix, count(*)
               from unnest($1::text[]) as p (prefix) join lease l on starts_with(l.name, p.prefix)
               where l.until > colloquy_now() group by p.prefix`,
        values: [prefixes],
      }),
    );
    return new Map(rows.map((row) => [row.prefix, row.count]));
  }

  /**
   * Whether somebody holds a lease whose name begins with this, or held one `graceMs` ago and did not let go of it: a
   * node that hangs may come back.
   */
  async wasHeld(prefix: string, graceMs: number): Promise<boolean> {
    const { rowCount } = await available(() =>
      this.pool.query({
        name: 'lease_was_held',
        text: `select from lease where starts_with(name, $1)
                 and until > colloquy_now() - $2::bigint * interval '1 millisecond' limit 1`,
        values: [prefix, graceMs],
      }),
    );
    return rowCount === 1;
  }

  /** Which of these somebody holds. */
  async standing(names: readonly string[]): Promise<Set<string>> {
    const { rows } = await available(() =>
      this.pool.query<{ name: string }>({
        name: 'lease_standing',
        text: 'select name from lease where name = any ($1) and until > colloquy_now()',
        values: [names],
      }),
    );
    return new Set(rows.map(({ name }) => name));
  }

  async close(): Promise<void> {
    clearInterval(this.timer);
    await this.beating;
    if (this.held.size > 0) await this.release([...this.held.keys()]).catch(() => undefined);
  }

  private beat(): Promise<void> {
    return (this.beating ??= this.renew()
      .catch(() => undefined) // the database is away; the next beat tries again
      .finally(() => {
        this.beating = undefined;
      }));
  }

  private async renew(): Promise<void> {
    await this.take([...this.held.keys()]);
    // All to their ends, whatever becomes of one: nothing may take a lease after the last beat was waited for.
    await Promise.allSettled([...this.beats].map((work) => work()));
  }
}

/**
 * This node's part of the lanes for one kind of work. Nodes that do the same work share the lanes evenly; a lane
 * whose node is gone is taken over when its lease is over.
 */
export class LaneShare {
  private readonly member: string;
  private readonly stopBalancing: () => void;
  private balancing: Promise<void> = Promise.resolve();
  private left = false;

  constructor(
    private readonly leases: Leases,
    private readonly work: string,
    private readonly lanes: number,
    private readonly onTaken: (lanes: readonly number[]) => void,
  ) {
    this.member = LaneShare.members(work);
    this.stopBalancing = leases.onBeat(() => this.balance());
  }

  /** What the names of the leases begin with by which nodes show that they take part in a work. */
  static members(work: string): string {
    return `${work}/member/`;
  }

  /** Shows that this node takes part, before it takes any lane. From then on it is renewed with all others. */
  async join(): Promise<void> {
    const name = this.member + this.leases.owner;
    if (this.leases.epochOf(name) === undefined) await this.leases.take([name]);
  }

  /** Takes no part any more: the other nodes get its lanes at once. */
  async leave(): Promise<void> {
    this.stopBalancing();
    this.left = true;
    // What is being taken at this moment would be renewed for ever by a node that does nothing with it.
    await this.balancing.catch(() => undefined);
    const lanes = [...this.owned.keys()].map((lane) => this.lease(lane));
    await this.leases.release([this.member + this.leases.owner, ...lanes]);
  }

  /** Lane → epoch of what this node holds. */
  get owned(): Map<number, number> {
    const owned = new Map<number, number>();
    for (let lane = 0; lane < this.lanes; lane += 1) {
      const epoch = this.leases.epochOf(this.lease(lane));
      if (epoch !== undefined) owned.set(lane, epoch);
    }
    return owned;
  }

  /** Finds out which of the lanes that this node believes to hold are still its own. */
  async confirm(): Promise<void> {
    await this.leases.take([...this.owned.keys()].map((lane) => this.lease(lane)));
  }

  balance(): Promise<void> {
    return (this.balancing = this.left ? Promise.resolve() : this.takeShare());
  }

  private async takeShare(): Promise<void> {
    await this.join();
    const members = Math.max(1, await this.leases.count(this.member));
    const fair = Math.ceil(this.lanes / members);
    const owned = [...this.owned.keys()];
    if (owned.length > fair) await this.leases.release(owned.slice(fair).map((lane) => this.lease(lane)));
    if (owned.length >= fair) return;
    // Each node begins its search elsewhere, so that they do not all ask for the same lane.
    const start = parseInt(this.leases.owner.slice(0, 8), 16) % this.lanes;
    const free = Array.from({ length: this.lanes }, (_, index) => (start + index) % this.lanes).filter(
      (lane) => !owned.includes(lane),
    );
    const taken: number[] = [];
    for (const lane of await this.unheld(free)) {
      if (owned.length + taken.length >= fair) break;
      const name = this.lease(lane);
      if ((await this.leases.take([name])).has(name)) taken.push(lane);
    }
    if (taken.length > 0) this.onTaken(taken);
  }

  private async unheld(lanes: readonly number[]): Promise<number[]> {
    const held = await this.leases.standing(lanes.map((lane) => this.lease(lane)));
    return lanes.filter((lane) => !held.has(this.lease(lane)));
  }

  private lease(lane: number): string {
    return `${this.work}/lane/${lane}`;
  }
}
