import { type Leases } from './leases.js';

/**
 * The share of the lanes that this node holds for one kind of work. Nodes that do the same work divide the lanes
 * evenly. When a node dies, others take over its lanes as soon as their leases have run out.
 */
export class LaneShare {
  private readonly member: string;
  private stopBalancing: (() => void) | undefined;
  private balancing: Promise<void> = Promise.resolve();
  private left = false;
  /** Whether the others know that they have to share with this node. */
  private isKnown = false;

  constructor(
    private readonly leases: Leases,
    private readonly work: string,
    private readonly lanes: number,
    private readonly onTaken: (lanes: readonly number[]) => void,
  ) {
    this.member = LaneShare.members(work);
  }

  /** Prefix of the leases by which nodes announce that they take part in a kind of work. */
  static members(work: string): string {
    return `${work}/member/`;
  }

  /** Announces that this node takes part, before it takes any lane. From then on its leases are renewed together. */
  async join(): Promise<void> {
    const name = this.member + this.leases.owner;
    if (this.leases.epochOf(name) === undefined) await this.leases.take([name]);
  }

  /** Stops taking part: the other nodes can take this node's lanes at once. */
  async leave(): Promise<void> {
    this.stopBalancing?.();
    this.left = true;
    // Lanes that are being taken at this moment must be released too, or this node would renew them without using them.
    await this.balancing.catch(() => undefined);
    const lanes = [...this.owned.keys()].map((lane) => this.lease(lane));
    await this.leases.handOver([this.member + this.leases.owner, ...lanes]);
  }

  /** Lane → epoch of the lease, for the lanes that this node holds. */
  get owned(): Map<number, number> {
    const owned = new Map<number, number>();
    for (let lane = 0; lane < this.lanes; lane += 1) {
      const epoch = this.leases.epochOf(this.lease(lane));
      if (epoch !== undefined) owned.set(lane, epoch);
    }
    return owned;
  }

  /** Asks the database which of the lanes that this node believes to hold it still holds. */
  async confirm(): Promise<void> {
    await this.leases.take([...this.owned.keys()].map((lane) => this.lease(lane)));
  }

  /**
   * Takes or gives up lanes, now and from then on with every beat of the leases. Before the first call no lane is taken: the
   * work may not be ready for it yet.
   */
  balance(): Promise<void> {
    this.stopBalancing ??= this.leases.onBeat(() => this.balance());
    return (this.balancing = this.left ? Promise.resolve() : this.takeShare());
  }

  private async takeShare(): Promise<void> {
    await this.join();
    if (!this.isKnown) await this.leases.rouse();
    this.isKnown = true;
    const members = Math.max(1, await this.leases.count(this.member));
    const fair = Math.ceil(this.lanes / members);
    const owned = [...this.owned.keys()];
    if (owned.length > fair) await this.leases.handOver(owned.slice(fair).map((lane) => this.lease(lane)));
    if (owned.length >= fair) return;
    // Each node starts its search at a different lane, so that the nodes do not all compete for the same one.
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
