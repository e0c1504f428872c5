import { createHash } from 'node:crypto';
import { type Pool, type QueryResultRow } from 'pg';
import { arrayLiteral, type Element } from '../database/array-literal.js';
import { isUndefinedTable } from '../database/connection.js';
import { rowsOf } from '../database/query.js';
import { Coalescer } from '../event-store/coalescer.js';
import { streamEndsAt } from '../event-store/event-rows.js';
import { type StreamId } from '../event-store/lane.js';
import { type EventLog } from '../event-store/log.js';
import { type RecordedEvent } from '../event-store/recorded-event.js';
import { type KnownEnd } from '../event-store/stream-reader.js';
import { keepsUp, type Replica, type Replicas } from './replicas.js';

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

/** Keeps a sub-query from being merged into the one around it, where each of its columns would be computed twice. */
const NOT_MERGED = 'offset 0';

/** How long a strong read waits for the read model. */
const PATIENCE_MS = 2_000;

/** Where a stream ends as far as the reader knows. */
export type StreamPlace = KnownEnd & { readonly lane: number };

/** A query on the rows of one session that returns one row or none, for many sessions in one statement. */
export interface SessionQuery {
  /** Type of each parameter, in PostgreSQL's words. */
  readonly types: readonly string[];
  /** @param of SQL for the session and for each parameter: columns of the row that asks */
  readonly sql: (of: { tenant: string; sessionId: string; parameters: readonly string[] }) => string;
}

/** What is asked of `readIfUnmoved`. */
interface Question {
  readonly stream: StreamId;
  readonly end: StreamPlace;
  readonly values: readonly unknown[];
}

/** Tells of a query whether its rows may be used. */
interface Verdict {
  readonly isReady: boolean;
  readonly isParked: boolean;
  readonly found: true | null;
}

/** The same of a query on a session whose end is known. */
interface PlaceVerdict extends Omit<Verdict, 'isReady'> {
  readonly isCurrent: boolean;
  /** Up to which position of the session's lane the rows are. */
  readonly applied: number;
}

/**
 * A query together with the proof that its rows may be used. Its parameters are those of the query, then the table, the
 * tenant, the session, the lanes and their positions.
 *
 * @param count of the parameters of the query
 * @param condition more that must hold
 */
function provenRead(sql: string, count: number, condition = 'true'): string {
  const next = count + 1;
  return `
    select c.*, q.* from (
      select ${condition} and not exists (
        select from unnest($${next + 3}::smallint[], $${next + 4}::bigint[]) as e (lane, "position")
        left join projection_checkpoint p on p.projection = $${next} and p.lane = e.lane
        where coalesce(p.position, 0) < e.position
      ) as "isReady", exists (
        select from projection_parked k
        where k.projection = $${next} and k.tenant = $${next + 1} and k.session_id = $${next + 2}
      ) as "isParked"
      ${NOT_MERGED}
    ) c left join lateral (select true as found, x.* from (${sql}) x) q on c."isReady" and not c."isParked"`;
}

/**
 * Queries on read models. One statement, and so one snapshot, reads the rows and checks that they are new enough:
 * between two statements a rebuilt table with another checkpoint could take the place of the first.
 *
 * The statements are prepared once per connection, so there must be few different ones: what differs from call to call
 * belongs into the parameters.
 */
export class ReadModels {
  private readonly waiting = new Set<() => void>();
  private readonly names = new Map<string, string>();
  private readonly grouped = new Map<SessionQuery, Coalescer<Question, PlaceVerdict | undefined>>();

  /** @param replicas are asked first; undefined: there are none */
  constructor(
    private readonly pool: Pool,
    private readonly store: EventLog,
    protected readonly replicas?: Replicas,
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
    const parameters = [
      ...values,
      projection,
      session?.tenant ?? null,
      session?.sessionId ?? null,
      ends.map(([lane]) => lane),
      ends.map(([, position]) => position),
    ];
    const proven = (condition?: string): string => provenRead(sql, values.length, condition);
    const replica = this.replicas?.next();
    const found =
      (replica &&
        (await this.readFromReplica(replica, projection, proven(keepsUp(this.store.wakeUp)), parameters))) ??
      (await this.readFromServer(projection, proven(), parameters));
    return found.filter((row) => row.found) as unknown as Row[];
  }

  private async readFromServer(projection: string, text: string, values: unknown[]): Promise<Verdict[]> {
    const rows = await this.whenReady(projection, PATIENCE_MS, () => this.query(text, values));
    if (rows === 'late') throw new ProjectionLagging();
    if (rows?.[0]?.isParked) throw new SessionParked();
    return rows ?? [];
  }

  /** @returns undefined when no replica can answer, or none may: whether a session is parked, the server knows */
  private async readFromReplica(
    replica: Replica,
    projection: string,
    text: string,
    values: unknown[],
  ): Promise<Verdict[] | undefined> {
    const rows = await this.whenReady(projection, replica.patienceMs, () =>
      this.query(text, values, replica),
    );
    if (rows === 'late') replica.isLate();
    if (!rows || rows === 'late' || rows[0]?.isParked) return undefined;
    replica.answered();
    return rows;
  }

  /**
   * Repeats a query until the read model is as new as it has to be.
   * @returns `late` when it is not within the time; undefined when `query` returned that
   */
  private async whenReady(
    projection: string,
    patienceMs: number,
    query: () => Promise<Verdict[] | undefined>,
  ): Promise<Verdict[] | undefined | 'late'> {
    const deadline = Date.now() + patienceMs;
    for (let pause = 2; ; pause = Math.min(pause * 2, 50)) {
      // Progress is watched from before the query, so that progress made during it is not missed.
      using progress = this.progress();
      const rows = await query();
      if (!rows) return undefined;
      const [first] = rows;
      if (first?.isParked || first?.isReady) return rows;
      const left = deadline - Date.now();
      if (left <= 0) return 'late';
      this.store.wakeUp.readerWaits(projection);
      await progress.within(Math.min(pause, left));
    }
  }

  /**
   * A strong read of a session that ends where this process believes. The proof is part of the statement, so that
   * nothing has to be asked of the log before; and reads that arrive together are one statement.
   *
   * @returns the row, or null when there is none, as of the position that the read model has applied in the session's lane:
   *   events behind it are for the caller to add. `moved` when the session does not end there any more, or when the rows
   *   are to come from a replica, which cannot prove it: then `read` has to be used
   * @throws SessionParked, DatabaseUnavailable
   */
  async readIfUnmoved(
    projection: string,
    query: SessionQuery,
    question: Question,
  ): Promise<{ readonly row: object | null; readonly applied: number } | 'moved'> {
    if (this.replicas?.canAnswer) return 'moved';
    let reads = this.grouped.get(query);
    if (!reads) {
      reads = new Coalescer((questions) => this.readTogether(projection, query, questions));
      this.grouped.set(query, reads);
    }
    const row = await reads.ask(question);
    if (!row?.isCurrent) return 'moved';
    if (row.isParked) throw new SessionParked();
    return { row: row.found && row, applied: row.applied };
  }

  /**
   * The events of a stream behind a position of its lane, up to its end, if this process has just appended them.
   *
   * @param applied as `readIfUnmoved` returned it
   */
  recent(stream: StreamId, { lane, position }: StreamPlace, applied: number): RecordedEvent[] | undefined {
    return this.store.lanes.recent(lane, stream, applied, position);
  }

  /** @returns one row per question; undefined when the table of the read model is missing */
  private async readTogether(
    projection: string,
    { types, sql }: SessionQuery,
    questions: readonly Question[],
  ): Promise<(PlaceVerdict | undefined)[]> {
    const names = types.map((_, index) => `v${index + 1}`);
    const text = `
      select w.n, c.*, q.* from unnest(
        $2::text[], $3::text[], $4::smallint[], $5::int[], $6::bigint[], $7::timestamptz[]
        ${types.map((type, index) => `, $${index + 8}::${type}[]`).join('')}
      ) with ordinality as w (tenant, stream_id, lane, version, "position", time, ${[...names, 'n'].join()})
      cross join lateral (
        select coalesce((
          select p.position from projection_checkpoint p where p.projection = $1 and p.lane = w.lane
        ), 0) as applied, ${streamEndsAt('w')} as "isCurrent", exists (
          select from projection_parked k
          where k.projection = $1 and k.tenant = w.tenant and k.session_id = w.stream_id
        ) as "isParked"
        ${NOT_MERGED}
      ) c
      left join lateral (
        select true as found, x.* from (
          ${sql({ tenant: 'w.tenant', sessionId: 'w.stream_id', parameters: names.map((name) => `w.${name}`) })}
        ) x
      ) q on c."isCurrent" and not c."isParked"`;
    const column = (pick: (question: Question) => unknown): string =>
      arrayLiteral(questions.map((question) => pick(question) as Element));
    const rows = await this.query<PlaceVerdict & { n: number }>(text, [
      projection,
      column(({ stream }) => stream.tenant),
      column(({ stream }) => stream.streamId),
      column(({ end }) => end.lane),
      column(({ end }) => end.version),
      column(({ end }) => end.position),
      column(({ end }) => end.time),
      ...types.map((_, index) => column(({ values }) => values[index])),
    ]);
    const answers = new Map(rows.map((row) => [row.n, row]));
    return questions.map((_, index) => answers.get(index + 1));
  }

  /**
   * The rows of a prepared statement; none when the table of the read model is missing.
   * @returns undefined when the replica cannot answer
   */
  private async query<Row extends QueryResultRow>(text: string, values: unknown[]): Promise<Row[]>;
  private async query<Row extends QueryResultRow>(
    text: string,
    values: unknown[],
    replica: Replica,
  ): Promise<Row[] | undefined>;
  private async query<Row extends QueryResultRow>(
    text: string,
    values: unknown[],
    replica?: Replica,
  ): Promise<Row[] | undefined> {
    const statement = { name: this.nameOf(text), text, values };
    if (replica) return replica.rows<Row>(statement);
    return rowsOf<Row>(this.pool, statement).catch((error: unknown) => {
      // Somebody dropped it, and the projector has not rebuilt it yet.
      if (isUndefinedTable(error)) return [];
      throw error;
    });
  }

  /** The name under which a connection keeps a prepared statement: another text must have another name. */
  private nameOf(text: string): string {
    let name = this.names.get(text);
    if (name === undefined) {
      name = `read_${createHash('sha256').update(text).digest('hex').slice(0, 24)}`;
      this.names.set(text, name);
    }
    return name;
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
