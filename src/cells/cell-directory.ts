import { createHash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import { type Pool } from 'pg';
import { FIRST_CELL } from '../config.js';
import { available } from '../database/connection.js';
import { hasStreams } from '../event-store/stream-reader.js';

/** Places that are kept in memory. They never change, so none is ever read again while it is here. */
const REMEMBERED = 100_000;

export interface Weighted {
  readonly name: string;
  /** Its part of the tenants that are new; 0: none. */
  readonly weight: number;
}

/**
 * In which cell a tenant lives. An entry is made by the first request of a tenant that may write, and kept for good;
 * until then there is nothing of the tenant anywhere but in the first cell, which may be older than the others.
 */
export class CellDirectory {
  private readonly known = new LRUCache<string, string>({ max: REMEMBERED });

  /** @param pool of the first cell */
  constructor(private readonly pool: Pool) {}

  /** The cell of a tenant, if this process knows it. */
  remembered(tenant: string): string | undefined {
    return this.known.get(tenant);
  }

  /**
   * Reads as many entries as are kept in memory, so that tenants are found while the first cell is away.
   * @throws DatabaseUnavailable
   */
  async load(): Promise<void> {
    const { rows } = await available(() =>
      this.pool.query<{ tenant: string; cell: string }>(
        'select tenant, cell from tenant_cell order by since desc limit $1',
        [REMEMBERED],
      ),
    );
    for (const { tenant, cell } of rows) this.known.set(tenant, cell);
  }

  /**
   * The cell of a tenant; undefined when nothing was ever written for it.
   * @throws DatabaseUnavailable
   */
  async find(tenant: string): Promise<string | undefined> {
    return this.keep(tenant, 'select cell from tenant_cell where tenant = $1', [tenant]);
  }

  /**
   * The cell of a tenant, which gets one if it has none: the first cell if it is there already, else one by weight.
   * @throws DatabaseUnavailable
   */
  async place(tenant: string, cells: readonly Weighted[]): Promise<string> {
    const there = await this.find(tenant);
    if (there !== undefined) return there;
    const isHere = await available(() => hasStreams(this.pool, tenant));
    const placed = await this.keep(
      tenant,
      'insert into tenant_cell (tenant, cell) values ($1, $2) on conflict (tenant) do nothing returning cell',
      [tenant, isHere ? FIRST_CELL : choose(tenant, cells)],
    );
    // Another node was faster.
    return placed ?? (await this.find(tenant)) ?? FIRST_CELL;
  }

  /**
   * How many tenants live in each cell, by its name; those without an entry are not counted.
   * @throws DatabaseUnavailable
   */
  async count(): Promise<ReadonlyMap<string, number>> {
    const { rows } = await available(() =>
      this.pool.query<{ cell: string; tenants: number }>(
        'select cell, count(*)::int as tenants from tenant_cell group by cell',
      ),
    );
    return new Map(rows.map(({ cell, tenants }) => [cell, tenants]));
  }

  private async keep(tenant: string, text: string, values: string[]): Promise<string | undefined> {
    const { rows } = await available(() => this.pool.query<{ cell: string }>(text, values));
    const cell = rows[0]?.cell;
    if (cell !== undefined) this.known.set(tenant, cell);
    return cell;
  }
}

/**
 * Chooses a cell for a tenant: each with a probability in proportion to its weight, and always the same one as long as
 * the cells are the same (weighted rendezvous hashing: Schindelhauer and Schomaker, 2005).
 */
export function choose(tenant: string, cells: readonly Weighted[]): string {
  let best = FIRST_CELL;
  let least = Infinity;
  for (const { name, weight } of cells) {
    if (weight === 0) continue;
    const digest = createHash('sha256').update(`${tenant}/${name}`).digest();
    // More than 0 and at most 1.
    const uniform = (digest.readUInt32BE(0) + 1) / 2 ** 32;
    const distance = -Math.log(uniform) / weight;
    if (distance < least) [best, least] = [name, distance];
  }
  return best;
}
