import { type DataSource } from 'typeorm';
import { available } from '../database/connection.js';
import { type EventLog } from '../event-store/log.js';

/**
 * What a read must have seen: positions by lane, or whatever there is.
 * For a strong read take the ends once, before it: asking for ends and rows in one snapshot would never be satisfied
 * under steady writes.
 */
export type Wanted = ReadonlyMap<number, number> | 'whatever there is';

/** The read models did not reach the log's end in time; what was written is safe. */
export class ProjectionLagging extends Error {
  override readonly name = 'ProjectionLagging';
  readonly code = 'projection-lagging';
  constructor() {
    super(
      'the read models have not caught up with the log yet; try again, or read with consistency=eventual',
    );
  }
}

/** The read model could not take an event of the session in: what it has of it is not what the log says. */
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

/** As when somebody dropped a table, until it is rebuilt. */
const UNDEFINED_TABLE = '42P01';

const PATIENCE_MS = 2_000;

/** Queries on read models: the rows and the proof that they are new enough come from one snapshot. */
export class ReadModels {
  private readonly waiting = new Set<() => void>();

  constructor(
    private readonly source: DataSource,
    private readonly store: EventLog,
  ) {}

  /** The ends of all lanes as of now: what a strong read over many sessions must have seen. */
  async ends(): Promise<Wanted> {
    const ends = await this.store.lanes.ends();
    return new Map(ends.map((position, lane) => [lane, position]));
  }

  /** The projector came further; whoever waits looks again. */
  advanced(): void {
    for (const look of this.waiting) look();
  }

  /**
   * @param sql with parameters `$1…`; may return no row.
   * @param session whom the rows are about; without it rows of parked sessions are shown as they were left
   * @throws ProjectionLagging when the projection does not reach what is wanted within 2 s; SessionParked
   */
  async read<Row>(
    projection: string,
    wanted: Wanted,
    sql: string,
    values: readonly unknown[],
    session?: { readonly tenant: string; readonly sessionId: string },
  ): Promise<Row[]> {
    const ends = wanted === 'whatever there is' ? [] : [...wanted].filter(([, position]) => position > 0);
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
      // Watched from before the look, so that progress made meanwhile is not missed.
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
