import { type Pool } from 'pg';
import { rowsOf } from '../database/query.js';

/** The error by which the database refuses an event of a tenant that is not at home in the log. */
export const REFUSED_ABSENT = 'CQ002';

/** The log takes no events of the tenant: it is on its way to another one, or lives there. Nothing was written. */
export class TenantAbsent extends Error {
  override readonly name = 'TenantAbsent';
  readonly code = 'moving';
  constructor(cause: unknown) {
    super('the conversations of this tenant are being moved; try again in a moment', { cause });
  }
}

/** A time in which a tenant is not at home in a log. */
export interface Absence {
  /** No other absence in this log has it. */
  readonly number: number;
  /** Whether the tenant can only come back from another log. */
  readonly hasDeparted: boolean;
}

/**
 * The tenants that are not at home in this log. While a tenant is absent the database refuses its events, from whatever
 * process they come, except for copies from the log where it is at home.
 */
export class Absences {
  private known: ReadonlySet<string> = new Set();

  constructor(
    private readonly pool: Pool,
    /** Called when tenants are absent of which this process did not know. */
    private readonly onNew: () => void,
  ) {}

  /** Whether the tenant was absent when the absences were last read. */
  has(tenant: string): boolean {
    return this.known.has(tenant);
  }

  /** Reads which tenants are absent. @throws DatabaseUnavailable */
  async refresh(): Promise<void> {
    const rows = await rowsOf<{ tenant: string }>(this.pool, {
      name: 'absent_tenants',
      text: 'select tenant from tenant_absence where opened is null',
    });
    const before = this.known;
    this.known = new Set(rows.map(({ tenant }) => tenant));
    for (const tenant of this.known) {
      if (before.has(tenant)) continue;
      this.onNew();
      return;
    }
  }

  /** Whether the tenant is absent now. @throws DatabaseUnavailable */
  async isAbsent(tenant: string): Promise<boolean> {
    return (await this.find(tenant)) !== undefined;
  }

  /** The present absence of a tenant. @throws DatabaseUnavailable */
  async find(tenant: string): Promise<Absence | undefined> {
    const [row] = await rowsOf<Absence>(this.pool, {
      name: 'find_absence',
      text: 'select number, departed as "hasDeparted" from tenant_absence where tenant = $1 and opened is null',
      values: [tenant],
    });
    return row;
  }

  /**
   * Begins the absence of a tenant, if it has not begun: when this resolves, all events of it that were ever accepted are
   * in the log, and no more come.
   *
   * @returns its number
   * @throws DatabaseUnavailable; whatever the database says when a long commit holds a lane for more than a second
   */
  async begin(tenant: string): Promise<number> {
    await rowsOf(this.pool, { text: 'select guard_absences()' });
    const [row] = await rowsOf<{ number: number }>(this.pool, {
      text: 'select begin_absence($1) as number',
      values: [tenant],
    });
    return row?.number ?? 0;
  }

  /**
   * Makes an absence final, so that the tenant may be opened elsewhere.
   * @returns false when it has ended meanwhile
   */
  depart(number: number): Promise<boolean> {
    return this.change('depart($1)', [number]);
  }

  /**
   * Ends the absence of a tenant that has departed from where it was.
   * @param generation of this log when the copy began: in a later one some of the copied events may be gone
   * @returns false when it has ended before, or when this is another generation
   */
  arrive(number: number, generation: number): Promise<boolean> {
    return this.change(
      `coalesce(case when (select max(generation) from log_generation) = $2 then end_absence($1, true) end, false)`,
      [number, generation],
    );
  }

  /** Ends an absence that is not final. @returns false when it is, or has ended before */
  reopen(number: number): Promise<boolean> {
    return this.change('end_absence($1, false)', [number]);
  }

  private async change(call: string, values: readonly number[]): Promise<boolean> {
    const statement = { text: `select ${call} as "isDone"`, values: [...values] };
    return (await rowsOf<{ isDone: boolean }>(this.pool, statement))[0]?.isDone ?? false;
  }
}
