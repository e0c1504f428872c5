import { type Leases } from './leases.js';

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
