import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';
import { type Vector, VectorTokens } from './vector-tokens.js';

/** A step from one log to the next, as a tenant was moved; logs by their keys as hex digits. */
interface Step {
  readonly origin: string;
  readonly target: string;
  /** The last one of the origin in which events were copied. */
  readonly generation: number;
}

/** A token of a log that has been set back since, so that events before it may be gone. */
export class TokenOutdated extends Error {
  override readonly name = 'TokenOutdated';
}

/** Finds the places of readers whose tokens are of a log that their tenant has lived in before. */
export class MovedPositions {
  private readonly own: string;

  constructor(
    private readonly pool: Pool,
    key: Buffer,
    private readonly lanes: number,
  ) {
    this.own = key.toString('hex');
  }

  /**
   * The same place in this log: behind the same events.
   * @returns undefined for a token of no such log
   * @throws TokenOutdated, DatabaseUnavailable
   */
  async translate(tenant: string, token: string): Promise<number[] | undefined> {
    const steps = await rowsOf<Step>(this.pool, {
      name: 'moved_steps',
      text: `select encode(origin, 'hex') as origin, encode(target, 'hex') as target, max(generation) as generation
             from moved_position where tenant = $1 group by origin, target`,
      values: [tenant],
    });
    for (const origin of new Set(steps.map((step) => step.origin))) {
      const vector = new VectorTokens(Buffer.from(origin, 'hex'), this.lanes).decode(tenant, token);
      if (vector) return this.follow(tenant, steps, origin, vector);
    }
    return undefined;
  }

  /**
   * Follows all steps from one log to others, as often as they lead further. Each gives a place that is behind the same
   * events or behind fewer, if the tenant was there before these: so the furthest is the right one.
   */
  private async follow(
    tenant: string,
    steps: readonly Step[],
    origin: string,
    { positions, generation }: Vector,
  ): Promise<number[] | undefined> {
    if (steps.some((step) => step.origin === origin && generation < step.generation))
      throw new TokenOutdated();
    const reached = new Map<string, readonly number[]>([[origin, positions]]);
    for (let hasMoved = true; hasMoved;) {
      hasMoved = false;
      for (const step of steps) {
        const place = reached.get(step.origin);
        if (!place || step.target === origin) continue;
        const before = reached.get(step.target) ?? [];
        const after = await this.step(tenant, step, place);
        if (after.every((position, lane) => position <= (before[lane] ?? -1))) continue;
        reached.set(
          step.target,
          after.map((position, lane) => Math.max(position, before[lane] ?? 0)),
        );
        hasMoved = true;
      }
    }
    const found = reached.get(this.own);
    return found && [...found];
  }

  private async step(tenant: string, { origin, target }: Step, place: readonly number[]): Promise<number[]> {
    const rows = await rowsOf<{ position: number }>(this.pool, {
      name: 'moved_step',
      text: `select coalesce((
                 select m.to_positions[(select count(*) from unnest(m.from_positions) as f where f <= p.position)]
                 from moved_position m
                 where m.tenant = $1 and m.origin = decode($2, 'hex') and m.target = decode($3, 'hex')
                   and m.lane = p.n - 1 and m.first <= p.position
                 order by m.first desc limit 1), 0) as position
             from unnest($4::bigint[]) with ordinality as p (position, n) order by p.n`,
      values: [tenant, origin, target, place],
    });
    return rows.map(({ position }) => position);
  }
}
