/**
 * Connections outside of the pools: two that commit appends, one for notifications, and one for work of minutes, such
 * as a verification, of which only one runs at a time.
 */
const SINGLE_CONNECTIONS = 4;
const SMALLEST_POOL = 2;
const POOLS = 3;

/** With fewer connections a node does not start. */
export const FEWEST_CONNECTIONS = SINGLE_CONNECTIONS + POOLS * SMALLEST_POOL;

/** How many connections each pool of a node may open. */
export interface ConnectionShares {
  /** Reads of the log. */
  readonly log: number;
  /** Queries on read models. */
  readonly readModels: number;
  /** The projector, the relay and the text of running replies. */
  readonly relaxed: number;
}

/**
 * Divides the connections that a node may hold among its pools, equally: each of the three kinds of work can be the one
 * that a load needs most. None borrows from another, because a flood of reads would then hold up the read models that
 * these reads wait for.
 *
 * @param max connections of the node, at least `FEWEST_CONNECTIONS`
 */
export function shareConnections(max: number): ConnectionShares {
  const pooled = max - SINGLE_CONNECTIONS;
  const share = Math.floor(pooled / POOLS);
  // What cannot be divided goes to the log: whoever reads a read model has often read the log first.
  return { log: pooled - 2 * share, readModels: share, relaxed: share };
}
