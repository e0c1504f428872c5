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
    const rows = await rowsOf(this.pool, {
      name: 'is_absent',
      text: 'select from tenant_absence where tenant = $1 and opened is null',
      values: [tenant],
    });
    return rows.length > 0;
  }

  /**
   * Begins the absence of a tenant: when this resolves, all events of it that were ever accepted are in the log, and no
   * more come.
   * @throws DatabaseUnavailable; whatever the database says when a long commit holds a lane for more than a second
   */
  async begin(tenant: string): Promise<void> {
    await rowsOf(this.pool, { text: 'select begin_absence($1)', values: [tenant] });
  }

  /** Ends it: the log takes events of the tenant again. @throws DatabaseUnavailable */
  async end(tenant: string): Promise<void> {
    await rowsOf(this.pool, { text: 'select end_absence($1)', values: [tenant] });
  }
}
