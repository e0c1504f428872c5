import { createHash } from 'node:crypto';
import { type LRUCache } from 'lru-cache';
import { boundedCache } from '../bounded-cache.js';
import { type Pool } from 'pg';
import { FIRST_CELL } from '../config.js';
import { available } from '../database/connection.js';
import { transaction } from '../database/transaction.js';
import { hasStreams } from '../event-store/stream-reader.js';
import { suspendClock } from '../suspend-clock.js';

/** Places that are kept in memory. */
const REMEMBERED = 100_000;
/** Between two looks at what was changed. */
const LOOK_MS = 500;
/** A place in memory is trusted for so long after the begin of the last look that has succeeded. */
const TRUSTED_MS = 2_000;
/**
 * After so long every process has seen a change, or trusts none of its places. Whoever moves a tenant waits for it, after
 * telling that the tenant moves and before it does.
 */
export const KNOWN_BY_ALL_MS = TRUSTED_MS + 1_000;
/** Any number that nothing else locks: changes are committed in the order of their numbers. */
const CHANGE_LOCK = 7306;

export interface Weighted {
  readonly name: string;
  /** Its part of the tenants that are new; 0: none. */
  readonly weight: number;
}

export interface DirectoryEntry {
  readonly tenant: string;
  readonly cell: string;
  /** The cell to which it is being moved. */
  readonly movingTo: string | null;
}

/** A tenant, and the cells that it moves between. */
export interface Way {
  readonly tenant: string;
  readonly from: string;
  readonly to: string;
}

interface Entry extends DirectoryEntry {
  /** The number of its last change; 0 for one that was never changed. */
  readonly change: number;
}

const COLUMNS = 'tenant, cell, moving_to as "movingTo", coalesce(change, 0)::float8 as change';

/** A tenant cannot be placed or moved as it was asked for. */
export class PlacementRefused extends Error {
  override readonly name = 'PlacementRefused';
}

/**
 * In which cell a tenant lives. An entry is made by the first request of a tenant that may write; until then there is
 * nothing of the tenant anywhere but in the first cell, which may be older than the others.
 *
 * Places are kept in memory. So that nobody reads where a tenant lived before, a process looks twice a second which
 * tenants are on their way, and asks for those at each request; if it cannot look, it trusts none of its places.
 */
export class CellDirectory {
  private known = boundedCache<string, Entry>(REMEMBERED);
  /** The number of the last change that was seen; undefined: all entries are to be read. */
  private lastChange: number | undefined;
  /** When the last look began that has succeeded, by `suspendClock()`. */
  private lookedAt = -Infinity;
  private timer: NodeJS.Timeout | undefined;
  private isAsking = false;

  /** @param pool of the first cell */
  constructor(private readonly pool: Pool) {}

  /** The cell of a tenant, if this process knows it for certain. */
  remembered(tenant: string): string | undefined {
    return this.isLooking ? this.lastSeen(tenant) : undefined;
  }

  /** The cell of a tenant when this process last heard of it; undefined when it was on its way. */
  lastSeen(tenant: string): string | undefined {
    const entry = this.known.get(tenant);
    return entry?.movingTo === null ? entry.cell : undefined;
  }

  /** Whether what was changed is known. */
  get isLooking(): boolean {
    return suspendClock() - this.lookedAt < TRUSTED_MS;
  }

  /**
   * Reads as many entries as are kept in memory, so that tenants are found while the first cell is away, and looks at
   * changes from then on.
   * @param onMoved called when tenants have begun or ended to move
   * @throws DatabaseUnavailable
   */
  async load(onMoved: () => void = () => undefined): Promise<void> {
    await this.look();
    this.timer ??= setInterval(() => {
      // A database that does not answer is not asked once more.
      if (this.isAsking) return;
      this.isAsking = true;
      this.look()
        .then((isChanged) => {
          if (isChanged) onMoved();
        })
        // Without a look the places are not trusted, until one succeeds.
        .catch(() => undefined)
        .finally(() => (this.isAsking = false));
    }, LOOK_MS).unref();
  }

  /** Forgets everything: the first cell may have been set back. */
  forget(): void {
    // Another one, so that what is being read at this moment is not kept in it.
    this.known = boundedCache(REMEMBERED);
    this.lastChange = undefined;
    this.lookedAt = -Infinity;
  }

  close(): void {
    clearInterval(this.timer);
  }

  /**
   * The cell of a tenant; undefined when nothing was ever written for it.
   * @throws DatabaseUnavailable
   */
  async find(tenant: string): Promise<string | undefined> {
    return (await this.entry(tenant))?.cell;
  }

  /** @throws DatabaseUnavailable */
  async entry(tenant: string): Promise<DirectoryEntry | undefined> {
    const { known } = this;
    const [row] = await this.rows<Entry>(`select ${COLUMNS} from tenant_cell where tenant = $1`, [tenant]);
    if (row) keep(row, known);
    return row;
  }

  /**
   * The cell of a tenant, which gets one if it has none: the first cell if it is there already, else one by weight.
   * @throws DatabaseUnavailable
   */
  async place(tenant: string, cells: readonly Weighted[]): Promise<string> {
    const there = await this.find(tenant);
    if (there !== undefined) return there;
    const isHere = await available(() => hasStreams(this.pool, tenant));
    const { known } = this;
    const [placed] = await this.rows<Entry>(
      `insert into tenant_cell (tenant, cell) values ($1, $2) on conflict (tenant) do nothing returning ${COLUMNS}`,
      [tenant, isHere ? FIRST_CELL : choose(tenant, cells)],
    );
    if (placed) keep(placed, known);
    // Else another node was faster.
    return placed?.cell ?? (await this.find(tenant)) ?? FIRST_CELL;
  }

  /**
   * The cell of a tenant that something was written for; one that is older than cells gets its entry, for the first cell.
   * @throws DatabaseUnavailable
   */
  async home(tenant: string): Promise<DirectoryEntry | undefined> {
    const entry = await this.entry(tenant);
    if (entry || !(await available(() => hasStreams(this.pool, tenant)))) return entry;
    await this.place(tenant, []);
    return this.entry(tenant);
  }

  /**
   * How many tenants live in each cell, by its name; those without an entry are not counted.
   * @throws DatabaseUnavailable
   */
  async count(): Promise<ReadonlyMap<string, number>> {
    const rows = await this.rows<{ cell: string; tenants: number }>(
      'select cell, count(*)::int as tenants from tenant_cell group by cell',
    );
    return new Map(rows.map(({ cell, tenants }) => [cell, tenants]));
  }

  /** The tenants that live in a cell, and those that are on their way. @throws DatabaseUnavailable */
  list({
    cell,
    moving = false,
  }: {
    readonly cell?: string;
    readonly moving?: boolean;
  }): Promise<DirectoryEntry[]> {
    return this.rows<DirectoryEntry>(
      `select tenant, cell, moving_to as "movingTo" from tenant_cell
       where cell = coalesce($1, cell) and (moving_to is not null or not $2) order by tenant`,
      [cell ?? null, moving],
    );
  }

  /**
   * Tells all processes that a tenant is on its way, so that they ask for it at each request. Repeating it changes nothing.
   * @throws PlacementRefused when it is on its way to another cell
   */
  async announce({ tenant, from, to }: Way): Promise<void> {
    const done = await this.change(
      `update tenant_cell set moving_to = $3, change = nextval('tenant_cell_change')
       where tenant = $1 and cell = $2 and coalesce(moving_to, $3) = $3`,
      [tenant, from, to],
    );
    if (!done)
      throw new PlacementRefused(`${tenant} is on its way to another cell: end that first, or give it up`);
  }

  /** The tenant lives in this cell, the one that it was moved to or from, and is no longer on its way. */
  async settle({ tenant, from, to }: Way, cell: string): Promise<void> {
    await this.change(
      `update tenant_cell set cell = $4, moving_to = null, change = nextval('tenant_cell_change')
       where tenant = $1 and cell = $2 and moving_to = $3`,
      [tenant, from, to, cell],
    );
  }

  private change(text: string, values: readonly string[]): Promise<boolean> {
    return available(() =>
      transaction(this.pool, async (client) => {
        await client.query('select pg_advisory_xact_lock($1)', [CHANGE_LOCK]);
        return (await client.query(text, [...values])).rowCount === 1;
      }),
    );
  }

  /** @returns whether any entry was changed */
  private async look(): Promise<boolean> {
    const began = suspendClock();
    const { lastChange, known } = this;
    const rows = await this.rows<Entry>(
      `select ${COLUMNS} from tenant_cell
       where ${lastChange === undefined ? '$1::bigint is null order by since desc' : 'change > $1 order by change'}
       limit $2`,
      [lastChange ?? null, REMEMBERED],
    );
    // Everything was forgotten meanwhile.
    if (this.known !== known) return true;
    for (const row of rows) keep(row, known);
    this.lastChange = rows.reduce((last, { change }) => Math.max(last, change), lastChange ?? 0);
    this.lookedAt = began;
    return rows.length > 0;
  }

  private async rows<Row extends object>(text: string, values: readonly unknown[] = []): Promise<Row[]> {
    return (await available(() => this.pool.query<Row>(text, [...values]))).rows;
  }
}

/** Keeps an entry, unless a later one is known: what was read earlier may arrive later. */
function keep(entry: Entry, known: LRUCache<string, Entry>): void {
  const { change } = known.get(entry.tenant) ?? entry;
  if (entry.change >= change) known.set(entry.tenant, entry);
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
