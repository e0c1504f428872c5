import { type Append, follows } from './append.js';

/** An append of a batch. What it says of itself holds together with the appends before it that it follows. */
export interface Link {
  readonly append: Append;
  /** Whether it follows the append before it in the batch. */
  readonly isChained: boolean;
  /** Whether an append that it was to follow was refused. */
  readonly isBroken: boolean;
  readonly begins: boolean;
  readonly activity: boolean;
}

export function linksOf(appends: readonly Append[]): Link[] {
  const links: Link[] = [];
  for (const append of appends) {
    const before = links.at(-1);
    const isChained = before !== undefined && follows(append, before.append);
    links.push({
      append,
      isChained,
      isBroken: isChained ? before.isBroken : append.expected !== append.chain.version,
      begins: append.begins || (isChained && before.begins),
      activity: append.activity || (isChained && before.activity),
    });
  }
  return links;
}
