import { boundedCache } from '../bounded-cache.js';
import { consistencyPath, inclusionPath, joined, type Leaves, subtreesOf } from './merkle.js';
import { type MerkleStore } from './merkle-store.js';
import { hashIn, nameOf, tileOf, type TilePlace } from './tiles.js';

/** Full tiles never change. */
const FULL = 256 * 32;
/** 8 KiB each. */
const REMEMBERED = 1_000;

/** Proofs of what the trees of the lanes hold, from their tiles. */
export class Proofs {
  private readonly full = boundedCache<string, Buffer>(REMEMBERED);

  constructor(private readonly store: MerkleStore) {}

  /**
   * The audit paths (RFC 6962, section 2.1.1) of events in the tree of a lane of a size.
   * @param positions from 1 to `size`
   * @param size at most that of the present tree
   */
  async inclusion(lane: number, positions: readonly number[], size: number): Promise<Buffer[][]> {
    const paths = positions.map((position) => inclusionPath(position - 1, size));
    const hashes = await this.hashes(lane, paths.flat());
    return paths.map((path) => hashes.splice(0, path.length));
  }

  /** The proof (RFC 6962, section 2.1.2) that the tree of a lane of `size` begins with that of `first`, which is from 1 on. */
  consistency(lane: number, first: number, size: number): Promise<Buffer[]> {
    return this.hashes(lane, consistencyPath(first, size));
  }

  private async hashes(lane: number, parts: readonly Leaves[]): Promise<Buffer[]> {
    const subtrees = parts.map(subtreesOf);
    const tiles = await this.tiles(lane, subtrees.flat().map(tileOf));
    return subtrees.map((part) =>
      joined(
        part.map((subtree) => {
          const place = tileOf(subtree);
          const tile = tiles.get(nameOf(place));
          if (!tile) throw new Error(`the tree of lane ${lane} has no tile ${nameOf(place)}`);
          return hashIn(tile, subtree);
        }),
      ),
    );
  }

  private async tiles(lane: number, places: readonly TilePlace[]): Promise<Map<string, Buffer>> {
    const found = new Map<string, Buffer>();
    const missing = new Map<string, TilePlace>();
    for (const place of places) {
      const name = nameOf(place);
      const tile = this.full.get(`${lane}/${name}`);
      if (tile) found.set(name, tile);
      else missing.set(name, place);
    }
    for (const [name, tile] of await this.store.tiles(lane, [...missing.values()])) {
      found.set(name, tile);
      if (tile.length === FULL) this.full.set(`${lane}/${name}`, tile);
    }
    return found;
  }
}
