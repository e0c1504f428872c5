import { hashChildren, joined, type Subtree, subtreesOf } from './merkle.js';

/*
 * A tree is stored in tiles, as C2SP tlog-tiles lays them out: a tile of level L holds the hashes of up to 256 subtrees of
 * height 8·L that lie side by side. The last tile of a level grows until it is full and never changes after that. So a
 * proof needs a few tiles and no event, however large the tree is.
 */

/** Height of a tile. */
const HEIGHT = 8;
const WIDTH = 2 ** HEIGHT;
const HASH = 32;

export interface TilePlace {
  readonly level: number;
  readonly index: number;
}

export interface Tile extends TilePlace {
  /** Hashes of 32 bytes each, side by side. */
  readonly hashes: Buffer;
}

export const nameOf = ({ level, index }: TilePlace): string => `${level}/${index}`;

/** The tiles that are not full yet in a tree of so many leaves, the lowest level first. */
export function edgeOf(size: number): TilePlace[] {
  const places: TilePlace[] = [];
  for (let level = 0, width = size; width > 0; level += 1, width = Math.floor(width / WIDTH))
    if (width % WIDTH > 0) places.push({ level, index: Math.floor(width / WIDTH) });
  return places;
}

/** The right edge of a growing tree: the tiles that are not full. */
export class TreeEdge {
  /** By level. */
  private readonly unfinished: Buffer[][] = [];
  private readonly full: Tile[] = [];
  private changed = new Set<number>();
  private leaves: number;

  /** @param tiles those of `edgeOf(size)`; they may have grown on since */
  constructor(size = 0, tiles: readonly Tile[] = []) {
    this.leaves = size;
    const stored = new Map(tiles.map((tile) => [nameOf(tile), tile.hashes]));
    for (const place of edgeOf(size)) {
      const hashes = stored.get(nameOf(place));
      const width = Math.floor(size / WIDTH ** place.level) % WIDTH;
      if (!hashes || hashes.length < width * HASH)
        throw new Error(`the tile ${nameOf(place)} of the tree of ${size} leaves is missing or too short`);
      this.unfinished[place.level] = hashesOf(hashes).slice(0, width);
    }
  }

  get size(): number {
    return this.leaves;
  }

  append(leaf: Buffer): void {
    this.leaves += 1;
    this.put(0, leaf);
  }

  /** The hash of the tree. */
  root(): Buffer {
    const subtrees: Buffer[] = [];
    for (let level = this.unfinished.length - 1; level >= 0; level -= 1) {
      const hashes = this.unfinished[level] ?? [];
      for (const { height, index } of subtreesOf({ from: 0, to: hashes.length }))
        subtrees.push(rootOf(hashes, index * 2 ** height, 2 ** height));
    }
    return joined(subtrees);
  }

  /** The tiles that have changed since this was last called. */
  takeChanged(): Tile[] {
    const tiles = this.full.splice(0);
    for (const level of this.changed) {
      const hashes = this.unfinished[level] ?? [];
      if (hashes.length > 0)
        tiles.push({
          level,
          index: Math.floor(this.leaves / WIDTH ** (level + 1)),
          hashes: Buffer.concat(hashes),
        });
    }
    this.changed = new Set();
    return tiles;
  }

  private put(level: number, hash: Buffer): void {
    const hashes = (this.unfinished[level] ??= []);
    hashes.push(hash);
    this.changed.add(level);
    if (hashes.length < WIDTH) return;
    const index = this.leaves / WIDTH ** (level + 1) - 1;
    this.full.push({ level, index, hashes: Buffer.concat(hashes) });
    this.unfinished[level] = [];
    this.put(level + 1, rootOf(hashes, 0, WIDTH));
  }
}

/** The tile that the hash of a subtree follows from. */
export function tileOf({ height, index }: Subtree): TilePlace {
  const level = Math.floor(height / HEIGHT);
  return { level, index: Math.floor((index * 2 ** (height % HEIGHT)) / WIDTH) };
}

/** The hash of a subtree from its tile. @throws when the tile does not have all of it */
export function hashIn(tile: Buffer, { height, index }: Subtree): Buffer {
  const width = 2 ** (height % HEIGHT);
  const first = (index * width) % WIDTH;
  if (tile.length < (first + width) * HASH)
    throw new Error(`a tile of ${tile.length / HASH} hashes lacks number ${first + width - 1}`);
  return rootOf(hashesOf(tile.subarray(first * HASH, (first + width) * HASH)), 0, width);
}

export const hashesOf = (tile: Buffer): Buffer[] =>
  Array.from({ length: tile.length / HASH }, (_, index) => tile.subarray(index * HASH, (index + 1) * HASH));

/** The hash over a power of two of hashes. */
function rootOf(hashes: readonly Buffer[], from: number, width: number): Buffer {
  const only = hashes[from];
  if (!only) throw new Error('a hash is missing');
  if (width === 1) return only;
  return hashChildren(rootOf(hashes, from, width / 2), rootOf(hashes, from + width / 2, width / 2));
}
