import { type ClientBase } from 'pg';
import { NotPrimary } from '../database/primary-client.js';
import { type LanePosition } from './position-tokens.js';
import { type Telemetry } from './telemetry.js';

/** A time in which each position of the log stands for one event. */
export interface LogGeneration {
  readonly generation: number;
  /** RFC 3339. */
  readonly since: string;
  /** The server on which it began. */
  readonly server: string;
  /** By lane: the last position that is what it was in the generation before. Empty for the first. */
  readonly ends: readonly number[];
}

/** A generation, and what was gone when it began. */
export interface GenerationRecord extends LogGeneration {
  /** By lane, what processes had appended and was gone; none may mean that no process was left that knew. */
  readonly lost: readonly {
    readonly lane: number;
    /** Positions of the first and the last of the events. */
    readonly from: number;
    readonly to: number;
  }[];
}

/** The state of an error of PostgreSQL: `recovery is in progress`. */
const IN_RECOVERY = '55000';

/**
 * The generations of the log. The log can become shorter than this process has seen it: by the failover to a standby
 * that had not got the last events, or by a restore. Positions and versions are then given out a second time, and what
 * this process remembers may be of events that are gone. Every new connection of the log is therefore checked before it
 * is used: if it leads to another server than before, a new generation begins, and everything that is remembered has to
 * be forgotten.
 */
export class LogGenerations {
  private known: readonly LogGeneration[] = [];
  /** By lane, the last position at which this process has appended in this generation. */
  private seen: number[] = [];
  private readonly listeners = new Set<() => void>();

  constructor(
    private readonly lanes: number,
    private readonly telemetry: Telemetry,
  ) {}

  /** The number of the present generation. */
  get current(): number {
    return this.known.at(-1)?.generation ?? 1;
  }

  /**
   * Calls `forget` when a new generation has begun, before anything of it is read or written on the new connection.
   * Returns a function that stops this.
   */
  onNew(forget: () => void): () => void {
    this.listeners.add(forget);
    return () => this.listeners.delete(forget);
  }

  /** Records that this process has appended up to a position. */
  appended(lane: number, position: number): void {
    if (position > (this.seen[lane] ?? 0)) this.seen[lane] = position;
  }

  /**
   * Checks a new connection, and begins a generation if there has to be one.
   * @throws NotPrimary when it leads to a server on which the log was in an earlier generation; whatever `pg` throws
   */
  async check(client: Pick<ClientBase, 'query'>): Promise<void> {
    const seen = Array.from({ length: this.lanes }, (_, lane) => this.seen[lane] ?? 0);
    const { rows } = await client
      .query<LogGeneration & { ends: (string | number)[] }>(
        'select generation, since, server, ends from log_generations($1, $2)',
        [this.current, seen],
      )
      .catch((error: unknown) => {
        // Behind a pooler may be a standby.
        if ((error as { code?: unknown }).code !== IN_RECOVERY) throw error;
        throw new NotPrimary('the pooler leads to a standby', { cause: error });
      });
    const before = this.known.at(-1);
    const last = rows.at(-1);
    if (last && last.generation < this.current)
      throw new NotPrimary(`the server is a former one: it has generation ${last.generation} of the log`);
    if (!last || last.generation === before?.generation) return;
    this.known = rows.map((row) => ({ ...row, ends: row.ends.map(Number) }));
    if (!before) return;
    const lost = seen.reduce(
      (sum, position, lane) => sum + Math.max(0, position - this.keptOf(before.generation, lane)),
      0,
    );
    const cut = this.since(before.generation).find(({ ends }) =>
      seen.some((position, lane) => position > (ends[lane] ?? 0)),
    );
    // At once: another connection that is checked meanwhile must not say that it has seen this in the new generation.
    this.seen = [];
    for (const forget of this.listeners) forget();
    if (cut) {
      // For the record alone: nothing depends on it.
      await client
        .query('insert into log_loss (generation, seen) values ($1, $2)', [cut.generation, seen])
        .catch(this.telemetry.failed('writing down what is gone from the log'));
    }
    this.telemetry.emit('newGeneration', { generation: last.generation, server: last.server, lost });
  }

  /** All generations, and what is known of what was gone when they began. */
  async records(client: Pick<ClientBase, 'query'>): Promise<GenerationRecord[]> {
    const { rows } = await client.query<
      LogGeneration & { ends: (string | number)[]; lost: GenerationRecord['lost'] }
    >(
      `select g.*, coalesce(l.lost, '[]') as lost from log_generation g
       left join lateral (
         select json_agg(json_build_object('lane', lane, 'from', kept + 1, 'to', seen) order by lane) as lost
         from (select n - 1 as lane, max(s) as seen, coalesce(g.ends[n], 0) as kept
               from log_loss o, unnest(o.seen) with ordinality as x (s, n)
               where o.generation = g.generation group by n) as lanes
         where seen > kept
       ) l on true
       order by g.generation`,
    );
    return rows.map((row) => ({ ...row, ends: row.ends.map(Number) }));
  }

  /** The generations after one, in their order. */
  since(generation: number): readonly LogGeneration[] {
    return this.known.filter((one) => one.generation > generation);
  }

  /** The generation in which the event at this position was appended. */
  of({ lane, position }: LanePosition): number {
    for (let index = this.known.length - 1; index > 0; index -= 1) {
      const { generation, ends } = this.known[index] as LogGeneration;
      if (position > (ends[lane] ?? 0)) return generation;
    }
    return 1;
  }

  /** The last position of a lane that is the same event now as in an earlier generation; Infinity for the present one. */
  keptOf(generation: number, lane: number): number {
    let kept = Infinity;
    for (const later of this.known)
      if (later.generation > generation) kept = Math.min(kept, later.ends[lane] ?? 0);
    return kept;
  }
}
