import fc from 'fast-check';
import {
  consistencyPath,
  EMPTY_ROOT,
  hashChildren,
  hashLeaf,
  inclusionPath,
  joined,
  type Leaves,
  subtreesOf,
} from '../../../src/proof/merkle.js';
import { edgeOf, hashIn, nameOf, type Tile, tileOf, TreeEdge } from '../../../src/proof/tiles.js';

/** The leaves and roots that implementations of RFC 6962 are commonly tested with. */
const LEAVES = [
  '',
  '00',
  '10',
  '2021',
  '3031',
  '40414243',
  '5051525354555657',
  '606162636465666768696a6b6c6d6e6f',
];
const ROOTS = [
  'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
  '6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d',
  'fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125',
  'aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77',
  'd37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7',
  '4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4',
  '76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef',
  'ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c',
  '5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328',
];
const leaves = LEAVES.map((hex) => hashLeaf(Buffer.from(hex, 'hex').toString()));

/** The definition of RFC 6962, section 2.1, word for word. */
function mth(hashes: readonly Buffer[]): Buffer {
  const [first] = hashes;
  if (!first) return EMPTY_ROOT;
  if (hashes.length === 1) return first;
  let k = 1;
  while (2 * k < hashes.length) k *= 2;
  return hashChildren(mth(hashes.slice(0, k)), mth(hashes.slice(k)));
}
const hex = (hashes: readonly Buffer[]): string[] => hashes.map((hash) => hash.toString('hex'));

/** A tree of so many leaves that was stored in steps, and its tiles. */
function grown(sizes: readonly number[]): { edge: TreeEdge; tiles: Map<string, Tile>; all: Buffer[] } {
  let edge = new TreeEdge();
  const tiles = new Map<string, Tile>();
  const all: Buffer[] = [];
  for (const size of sizes) {
    while (all.length < size) {
      const leaf = hashLeaf(`leaf ${all.length}`);
      all.push(leaf);
      edge.append(leaf);
    }
    for (const tile of edge.takeChanged()) tiles.set(nameOf(tile), tile);
    // As another process goes on with it.
    edge = new TreeEdge(
      size,
      edgeOf(size).flatMap((place) => tiles.get(nameOf(place)) ?? []),
    );
  }
  return { edge, tiles, all };
}
function hashesOf(tiles: ReadonlyMap<string, Tile>, path: readonly Leaves[]): Buffer[] {
  return path.map((part) =>
    joined(
      subtreesOf(part).map((subtree) => {
        const tile = tiles.get(nameOf(tileOf(subtree)));
        if (!tile) throw new Error('a tile is missing');
        return hashIn(tile.hashes, subtree);
      }),
    ),
  );
}

it('given the leaves that RFC 6962 is tested with, when a tree grows, then each root is the known one', () => {
  const edge = new TreeEdge();
  const roots = [edge.root()];
  for (const leaf of leaves) {
    edge.append(leaf);
    roots.push(edge.root());
  }
  expect(hex(roots)).toEqual(ROOTS);
});

it('given the example of RFC 6962, section 2.1.3, when paths are made, then they are those of the RFC', () => {
  const shown = (path: readonly Leaves[]): string[] => path.map(({ from, to }) => `${from}-${to}`);
  // b h l; c g l; f j k; j k
  expect(shown(inclusionPath(0, 7))).toEqual(['1-2', '2-4', '4-7']);
  expect(shown(inclusionPath(3, 7))).toEqual(['2-3', '0-2', '4-7']);
  expect(shown(inclusionPath(4, 7))).toEqual(['5-6', '6-7', '0-4']);
  expect(shown(inclusionPath(6, 7))).toEqual(['4-6', '0-4']);
  // c d g l; l; i j k
  expect(shown(consistencyPath(3, 7))).toEqual(['2-3', '3-4', '0-2', '4-7']);
  expect(shown(consistencyPath(4, 7))).toEqual(['4-7']);
  expect(shown(consistencyPath(6, 7))).toEqual(['4-6', '6-7', '0-4']);
});

it('given trees of any size that were stored in any steps, when proofs are made from their tiles, then they are those of the definition', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 4 }),
      fc.nat(),
      fc.nat(),
      (steps, a, b) => {
        const sizes = steps.map((_, index) => steps.slice(0, index + 1).reduce((sum, one) => sum + one, 0));
        const { edge, tiles, all } = grown(sizes);
        const size = all.length;
        expect(edge.root()).toEqual(mth(all));
        // Of a tree that has grown on since, too.
        const then = 1 + (a % size);
        const index = b % then;
        const path = inclusionPath(index, then);
        expect(hex(hashesOf(tiles, path))).toEqual(hex(path.map(({ from, to }) => mth(all.slice(from, to)))));
        const consistency = consistencyPath(then, size);
        expect(hex(hashesOf(tiles, consistency))).toEqual(
          hex(consistency.map(({ from, to }) => mth(all.slice(from, to)))),
        );
      },
    ),
    { seed: 6962, numRuns: 60 },
  );
});

it('given a tree of more than 65 536 leaves, when it is stored, then its tiles are those of tlog-tiles', () => {
  const { tiles, all } = grown([65_536 + 300]);
  expect([...tiles.keys()].filter((name) => !name.startsWith('0/')).sort()).toEqual(['1/0', '1/1', '2/0']);
  expect(tiles.get('0/257')?.hashes).toHaveLength(44 * 32);
  expect(tiles.get('1/1')?.hashes).toHaveLength(32);
  expect(tiles.get('2/0')?.hashes.toString('hex')).toBe(mth(all.slice(0, 65_536)).toString('hex'));
});
