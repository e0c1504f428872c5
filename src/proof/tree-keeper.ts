import { type EventLog } from '../event-store/log.js';
import { leafOf } from './leaf.js';
import { type Head, type MerkleStore, type SignedCheckpoint, type Step } from './merkle-store.js';
import { NoNotaryKey, type NotaryKeys } from './notary-keys.js';
import { checkpointText } from './signed-note.js';
import { type TreeEdge } from './tiles.js';

/** Events read at once, over all lanes, of each an equal part: hashing them is work without a pause. */
const BATCH = 2_000;

interface Tree {
  head: Head;
  readonly edge: TreeEdge;
  /** Size at which it was last signed. */
  signed: number;
}

/** What came of an advance. */
export interface Advance {
  /** Lanes that have grown, and may have more events. */
  readonly grown: readonly number[];
  /** Whether a lane had as many events as are read of one at once, so that more are likely to wait. */
  readonly isBehind: boolean;
  /** Lanes whose trees are larger than what was signed of them, but for those that were due and could not be signed for want of a key. */
  readonly unsigned: readonly number[];
  readonly signed: readonly Omit<SignedCheckpoint, 'time'>[];
  /** Lanes that lack a position, with what is to be told of it; everything before it was taken in. */
  readonly broken: ReadonlyMap<number, Error>;
}

/** The name of the tree of a lane. Positions of another generation of the log may stand for other events. */
export const originOf = (log: Pick<EventLog, 'id' | 'generations'>, lane: number): string => {
  const { current } = log.generations;
  return `colloquy/${log.id}/lane/${lane}${current > 1 ? `/generation/${current}` : ''}`;
};

/**
 * Lets the trees of lanes grow with the log, and signs them. Any number of processes may do so at once: a step is taken
 * where the tree is as it was found, so one of them succeeds, and the others look again.
 */
export class TreeKeeper {
  private readonly trees = new Map<number, Tree>();

  constructor(
    private readonly log: EventLog,
    private readonly store: MerkleStore,
    private readonly keys: NotaryKeys,
  ) {}

  /** Remembers the trees of these lanes only. */
  keep(lanes: ReadonlySet<number>): void {
    for (const lane of this.trees.keys()) if (!lanes.has(lane)) this.trees.delete(lane);
  }

  /**
   * Takes in the next events of lanes.
   * @param isDue whether the tree of a lane, of this size now, is to be signed if it is larger than what was signed
   * @throws when what is stored of a tree does not give its root; DatabaseUnavailable
   */
  async advance(lanes: readonly number[], isDue: (lane: number, size: number) => boolean): Promise<Advance> {
    await this.load(lanes.filter((lane) => !this.trees.has(lane)));
    const after = new Map<number, number>();
    for (const lane of lanes) {
      const tree = this.trees.get(lane);
      if (tree) after.set(lane, tree.head.size);
    }
    if (after.size === 0) return { grown: [], isBehind: false, unsigned: [], signed: [], broken: new Map() };
    // Whatever happens from here on, a tree that has grown in memory and not in the database is not gone on with.
    const growing = new Map(this.trees);
    this.trees.clear();
    const limit = Math.ceil(BATCH / after.size);
    const broken = await this.grow(growing, after, limit);
    const isBehind = [...after].some(([lane, size]) => (growing.get(lane)?.edge.size ?? 0) - size >= limit);
    const due = new Set(
      [...after.keys()].filter((lane) => {
        const { edge, signed = 0 } = growing.get(lane) ?? {};
        return edge !== undefined && edge.size > signed && isDue(lane, edge.size);
      }),
    );
    const signer = due.size > 0 ? await this.keys.signer() : undefined;
    const steps: Step[] = [];
    for (const lane of after.keys()) {
      const tree = growing.get(lane);
      if (!tree) continue;
      const { head, edge } = tree;
      if (edge.size === head.size && !due.has(lane)) continue;
      const to = { lane, size: edge.size, root: edge.root() };
      const note = due.has(lane)
        ? signer?.sign(checkpointText(originOf(this.log, lane), to.size, to.root))
        : undefined;
      if (to.size === head.size && note === undefined) continue;
      steps.push({ from: head, to, tiles: edge.takeChanged(), note });
    }
    const taken = await this.store.take(steps);
    const signed: Omit<SignedCheckpoint, 'time'>[] = [];
    const grown: number[] = [];
    for (const { from, to, note } of steps) {
      const tree = growing.get(to.lane);
      if (!tree) continue;
      if (!taken.has(to.lane)) {
        growing.delete(to.lane);
        grown.push(to.lane);
        continue;
      }
      tree.head = to;
      if (note !== undefined) {
        tree.signed = to.size;
        signed.push({ lane: to.lane, size: to.size, note });
      }
      if (to.size > from.size) grown.push(to.lane);
    }
    for (const [lane, tree] of growing) this.trees.set(lane, tree);
    const unsigned = [...after.keys()].filter((lane) => {
      const tree = growing.get(lane);
      // Without a key a later try would not sign it either: whether there is a master key is decided at the start.
      return tree !== undefined && tree.head.size > tree.signed && (signer || !due.has(lane));
    });
    return { grown, isBehind, unsigned, signed, broken };
  }

  /**
   * Lets the trees of all lanes grow up to these positions at least, and be signed there or behind.
   * @throws NoNotaryKey; when a position is missing; DatabaseUnavailable
   */
  async cover(ends: readonly number[]): Promise<void> {
    if (!(await this.keys.signer())) throw new NoNotaryKey();
    const wanted = new Map([...ends.entries()].filter(([, end]) => end > 0));
    for (;;) {
      for (const { lane, size } of await this.store.latest())
        if (size >= (wanted.get(lane) ?? 0)) wanted.delete(lane);
      if (wanted.size === 0) return;
      const { broken } = await this.advance(
        [...wanted.keys()],
        (lane, size) => size >= (wanted.get(lane) ?? 0),
      );
      for (const error of broken.values()) throw error;
    }
  }

  private async load(lanes: readonly number[]): Promise<void> {
    if (lanes.length === 0) return;
    const heads = await this.store.heads(lanes);
    const edges = await this.store.edges(heads);
    const signed = new Map((await this.store.latest()).map(({ lane, size }) => [lane, size]));
    for (const head of heads) {
      const edge = edges.get(head.lane);
      if (!edge) continue;
      if (!edge.root().equals(head.root))
        throw new Error(
          `the tiles of lane ${head.lane} do not give the root of ${head.size} events: run colloquy audit-log`,
        );
      this.trees.set(head.lane, { head, edge, signed: signed.get(head.lane) ?? 0 });
    }
  }

  /** @returns lanes that lack a position */
  private async grow(
    trees: ReadonlyMap<number, Tree>,
    after: ReadonlyMap<number, number>,
    limit: number,
  ): Promise<Map<number, Error>> {
    const broken = new Map<number, Error>();
    const events = await this.log.leaves.read(after, limit);
    for (const event of events) {
      const edge = trees.get(event.lane)?.edge;
      if (!edge) continue;
      // Behind a gap nothing is taken in: a tree without the event that was there would say that there was none.
      if (event.position === edge.size + 1) edge.append(leafOf(event));
      else if (!broken.has(event.lane))
        broken.set(event.lane, new Error(`lane ${event.lane} of the log has no position ${edge.size + 1}`));
    }
    return broken;
  }
}
