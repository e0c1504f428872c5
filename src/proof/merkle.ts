import { hash } from 'node:crypto';

/*
 * The Merkle tree hash of RFC 6962, section 2.1. A leaf and an inner node are told apart by the byte before what is
 * hashed, so that nobody can pass an inner node off as a leaf.
 */

/** The hash of a tree without leaves. */
export const EMPTY_ROOT = hash('sha256', '', 'buffer');

export const hashLeaf = (text: string): Buffer => hash('sha256', `\0${text}`, 'buffer');

export function hashChildren(left: Buffer, right: Buffer): Buffer {
  const node = Buffer.allocUnsafe(1 + left.length + right.length);
  node[0] = 1;
  left.copy(node, 1);
  right.copy(node, 1 + left.length);
  return hash('sha256', node, 'buffer');
}

/** The leaves from `from` up to, and without, `to`; numbers of leaves begin at 0. */
export interface Leaves {
  readonly from: number;
  readonly to: number;
}

/** A subtree in which no leaf is missing: of 2^height leaves, the `index`th of its height from the left. */
export interface Subtree {
  readonly height: number;
  readonly index: number;
}

/** The largest power of two that is less than `n`, from 2 on. */
function split(n: number): number {
  let power = 1;
  while (power * 2 < n) power *= 2;
  return power;
}

/** The subtrees that these leaves are made of, from left to right; they begin where a subtree of the first's size does. */
export function subtreesOf({ from, to }: Leaves): Subtree[] {
  const subtrees: Subtree[] = [];
  for (let at = from; at < to;) {
    let height = 0;
    while (2 ** (height + 1) <= to - at) height += 1;
    subtrees.push({ height, index: at / 2 ** height });
    at += 2 ** height;
  }
  return subtrees;
}

/** The hash over subtrees side by side, as they are at the right edge of a tree. */
export const joined = (hashes: readonly Buffer[]): Buffer =>
  hashes.reduceRight<Buffer | undefined>(
    (right, left) => (right ? hashChildren(left, right) : left),
    undefined,
  ) ?? EMPTY_ROOT;

/** What the audit path of a leaf consists of (RFC 6962, section 2.1.1), the sibling of the leaf first. */
export function inclusionPath(index: number, size: number): Leaves[] {
  const path: Leaves[] = [];
  let [from, to] = [0, size];
  while (to - from > 1) {
    const middle = from + split(to - from);
    if (index < middle) {
      path.push({ from: middle, to });
      to = middle;
    } else {
      path.push({ from, to: middle });
      from = middle;
    }
  }
  return path.reverse();
}

/** What a proof consists of that a tree of `size` leaves begins with one of `first` (RFC 6962, section 2.1.2). */
export function consistencyPath(first: number, size: number): Leaves[] {
  const path: Leaves[] = [];
  let [from, to] = [0, size];
  // Whether the first tree is a subtree of the second, whose hash the verifier has.
  let isWhole = true;
  while (first !== to) {
    const middle = from + split(to - from);
    if (first <= middle) {
      path.push({ from: middle, to });
      to = middle;
    } else {
      path.push({ from, to: middle });
      from = middle;
      isWhole = false;
    }
  }
  if (!isWhole) path.push({ from, to });
  return path.reverse();
}
