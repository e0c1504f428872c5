import { hostname } from 'node:os';
import { type Pool } from 'pg';
import { available } from '../database/connection.js';
import { LEASE_MS, type Leases, QUIET_LEASE_MS } from './leases.js';

/** A process that works on the log. */
export interface Node {
  /** UUID, by which it owns leases. */
  readonly id: string;
  readonly host: string;
  readonly pid: number;
  /** Of the service. */
  readonly version: string;
  /** RFC 3339. */
  readonly startedAt: string;
  /** RFC 3339: when it last renewed its leases; null before the first time. */
  readonly seenAt: string | null;
  /** Whether its leases stand. One that is away is dead, suspended, or cut off from the database. */
  readonly isThere: boolean;
  /** Kind of work → the lanes that it has of it, in ascending order. */
  readonly lanes: ReadonlyMap<string, readonly number[]>;
}

interface Row {
  id: string;
  host: string;
  pid: number;
  version: string;
  started_at: string;
  seen_at: string | null;
  is_there: boolean;
  lanes: readonly string[];
}

/**
 * The nodes of a log. A node writes its row when it starts and deletes it when it stops; whether it lives is told by the
 * leases that it renews anyway, so the list costs nothing while nobody looks.
 */
export class NodeList {
  /** Announcements in flight: one that came after the farewell would leave a node on the list that is gone. */
  private announcing: Promise<unknown> = Promise.resolve();
  private hasLeft = false;

  constructor(
    private readonly pool: Pool,
    private readonly leases: Leases,
    private readonly version: string,
  ) {}

  /** UUID of this process. */
  get self(): string {
    return this.leases.owner;
  }

  /** Puts this process on the list. May be repeated: a log that was set back may have lost it. */
  async announce(): Promise<void> {
    if (this.hasLeft) return;
    const announced = available(() =>
      this.pool.query(
        'insert into node (id, host, pid, version) values ($1, $2, $3, $4) on conflict (id) do nothing',
        [this.self, hostname(), process.pid, this.version],
      ),
    );
    this.announcing = announced.catch(() => undefined); // told to the caller, who waits for it below
    await announced;
  }

  async leave(): Promise<void> {
    this.hasLeft = true;
    await this.announcing;
    await available(() => this.pool.query('delete from node where id = $1', [this.self]));
  }

  /** Forgets nodes that have had no lease for a day: their last ones were pruned. */
  async prune(): Promise<void> {
    await available(() =>
      this.pool.query(
        `delete from node n where started_at < colloquy_now() - interval '1 day'
           and not exists (select from lease l where l.owner = n.id)`,
      ),
    );
  }

  /**
   * Those that are there first, each in the order of their start. In a quiet log a node that is dead may count among them for
   * `QUIET_LEASE_MS`, but no longer than `LEASE_MS` after somebody has asked for the list.
   */
  async all(): Promise<Node[]> {
    const { rows } = await available(() =>
      this.pool.query<Row>(
        `select n.*, seen.until - interval '1 millisecond'
                       * case when seen.until > now.now + $1 * interval '1 millisecond' then $2 else $1 end as seen_at,
                coalesce(seen.until > now.now, false) as is_there, seen.lanes
         from (select colloquy_now() as now) as now, node n,
           lateral (select max(l.until) as until,
                           coalesce(array_agg(l.name) filter (where l.name like '%/lane/%' and l.until > now.now), '{}') as lanes
                    from lease l where l.owner = n.id) as seen
         order by is_there desc, n.started_at, n.id`,
        [LEASE_MS, QUIET_LEASE_MS],
      ),
    );
    await this.leases.rouse();
    return rows.map((row) => ({
      id: row.id,
      host: row.host,
      pid: row.pid,
      version: row.version,
      startedAt: row.started_at,
      seenAt: row.seen_at,
      isThere: row.is_there,
      lanes: lanesByWork(row.lanes),
    }));
  }
}

function lanesByWork(leases: readonly string[]): Map<string, number[]> {
  const lanes = new Map<string, number[]>();
  for (const lease of leases) {
    const [, work = '', lane = ''] = /^(.*)\/lane\/(\d+)$/.exec(lease) ?? [];
    lanes.set(work, [...(lanes.get(work) ?? []), Number(lane)]);
  }
  for (const some of lanes.values()) some.sort((a, b) => a - b);
  return new Map([...lanes].sort(([a], [b]) => (a < b ? -1 : 1)));
}
