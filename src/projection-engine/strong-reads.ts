import { type DataSource } from 'typeorm';
import { available } from '../database/connection.js';
import { type EventLog } from '../event-store/log.js';

/**
 * How new the rows of a read must be: the read model must have applied all events up to these positions (lane →
 * position), or `eventual`: its rows as they are. A strong read takes the ends of the lanes once, before it begins. If
 * every attempt took them anew, it would never be satisfied under steady writes.
 */
export type Freshness = ReadonlyMap<number, number> | 'eventual';

/** The read model did not reach the positions that a read asked for in time. Nothing that was written is lost. */
export class ProjectionLagging extends Error {
  override readonly name = 'ProjectionLagging';
  readonly code = 'projection-lagging';
  constructor() {
    super(
      'the read models have not caught up with the log yet; try again, or read with consistency=eventual',
    );
  }
}

/** The read model could not apply an event of the session, so its rows of the session are not what the log says. */
export class SessionParked extends Error {
  override readonly name = 'SessionParked';
  readonly code = 'projection-lagging';
  constructor() {
    super(
      'the read model could not take in an event of this session, which is parked until an operator retries it; ' +
        'its events can be read and it can be written to',
    );
  }
}

/** SQLSTATE of a missing table: somebody dropped it, and the projector has not rebuilt it yet. */
const UNDEFINED_TABLE = '42P01';

/** How long a strong read waits for the read model. */
const PATIENCE_MS = 2_000;

/**
 * Queries on read models. One statement, and so one snapshot, reads the rows and checks that they are new enough:
 * between two statements a rebuilt table with another checkpoint could take the place of the first.
 */
export class ReadModels {
  private readonly waiting = new Set<() => void>();

  constructor(
    private readonly source: DataSource,
    private readonly store: EventLog,
  ) {}

  /** The present ends of all lanes, which a strong read over many sessions asks for. */
  async ends(): Promise<Freshness> {
    const ends = await this.store.lanes.ends();
    return new Map(ends.map((position, lane) => [lane, position]));
  }

  /** To be called when the projector has applied events, so that waiting reads look again. */
  advanced(): void {
    for (const look of this.waiting) look();
  }

  /**
   * @param sql a query with parameters `$1…`
   * @param session the session that the rows are about; without it, rows of parked sessions are returned as they are
   * @throws ProjectionLagging when the read model is not new enough within 2 s; SessionParked; DatabaseUnavailable
   */
  async read<Row>(
    projection: string,
    freshness: Freshness,
    sql: string,
    values: readonly unknown[],
    session?: { readonly tenant: string; readonly sessionId: string },
  ): Promise<Row[]> {
    const ends = freshness === 'eventual' ? [] : [...freshness].filter(([, position]) => position > 0);
    const next = values.length + 1;
    const text = `
      select c.ready, c.parked, q.* from (
        select exists (
          select from projection_parked k
          where k.projection = $${next + 2} and k.tenant = $${next + 3} and k.session_id = $${next + 4}
        ) as parked, not exists (
          select from unnest($${next}::smallint[], $${next + 1}::bigint[]) as e (lane, "position")
          left join projection_checkpoint p on p.projection = $${next + 2} and p.lane = e.lane
          where coalesce(p.position, 0) < e.position
        ) as ready
      ) c left join lateral (select true as found, x.* from (${sql}) x) q on c.ready and not c.parked`;
    const parameters = [
      ...values,
      ends.map(([lane]) => lane),
      ends.map(([, position]) => position),
      projection,
      session?.tenant ?? null,
      session?.sessionId ?? null,
    ];
    const deadline = Date.now() + PATIENCE_MS;
    for (let pause = 2; ; pause = Math.min(pause * 2, 50)) {
      // Progress is watched from before the query, so that progress made during it is not missed.
      using progress = this.progress();
      const rows = await available(() =>
        this.source.query<(Row & { ready: boolean; parked: boolean; found: true | null })[]>(
          text,
          parameters,
        ),
      ).catch((error: unknown) => {
        if ((error as { code?: unknown }).code === UNDEFINED_TABLE) return [];
        throw error;
      });
      if (rows[0]?.parked) throw new SessionParked();
      if (rows[0]?.ready) return rows.filter((row) => row.found);
      if (Date.now() >= deadline) throw new ProjectionLagging();
      this.store.wakeUp.readerWaits();
      await progress.within(pause);
    }
  }

  private progress(): Disposable & { within: (ms: number) => Promise<void> } {
    let seen = false;
    let wake = (): void => undefined;
    const look = (): void => {
      seen = true;
      wake();
    };
    this.waiting.add(look);
    return {
      within: (ms) =>
        new Promise((resolve) => {
          if (seen) {
            resolve();
            return;
          }
          const timer = setTimeout(resolve, ms);
          wake = () => {
            clearTimeout(timer);
            resolve();
          };
        }),
      [Symbol.dispose]: () => {
        this.waiting.delete(look);
      },
    };
  }
}
