import { type Freshness, type ReadModels } from '../projection-engine/strong-reads.js';
import { SESSIONS } from './sessions.projection.js';
import { SUMS, USAGE, type UsageView } from './usage.projection.js';

/** What the sessions of a tenant used of one model: on one day (UTC), or those of one owner. */
export type TenantUsageView = Omit<UsageView, 'day'> & {
  readonly day?: string;
  readonly owner?: string | null;
};

type Row = Readonly<Record<(typeof SUMS)[number], number>> & {
  readonly model: string;
  readonly day: string;
  readonly owner: string | null;
};

/** A tenant may have as many owners as sessions; the rest would be of no use in a list. */
const MOST_OWNERS = 500;

/**
 * The sums of a tenant, or of one of its owners: by day and model, or by owner and model, of which those with the most
 * tokens are returned.
 * @param asked.from the first day, `to` the last one: RFC 3339 dates
 */
export async function tenantUsage(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  asked: {
    readonly by: 'day' | 'owner';
    readonly from: string;
    readonly to: string;
    readonly owner?: string | undefined;
  },
): Promise<TenantUsageView[]> {
  const { by, from, to, owner } = asked;
  const isByDay = by === 'day';
  const sums = SUMS.map((sum) => `sum(u.${sum})::bigint as ${sum}`).join();
  // The owner of a session never changes, so it does not matter if the list of sessions is a little older or newer.
  const sql = `
    select u.model, ${isByDay ? 'u.day::text as day' : 's.owner'}, ${sums}
    from ${USAGE} u left join ${SESSIONS} s on s.tenant = u.tenant and s.session_id = u.session_id
    where u.tenant = $1 and u.day between $2::date and $3::date and ($4::text is null or s.owner = $4)
    group by ${isByDay ? 'u.day' : 's.owner'}, u.model
    ${isByDay ? 'order by u.day, u.model' : `order by sum(u.input_tokens + u.output_tokens) desc, s.owner, u.model limit ${MOST_OWNERS}`}`;
  const rows = await models.read<Row>(USAGE, freshness, sql, [tenant, from, to, owner ?? null]);
  return rows.map((row) => ({
    model: row.model,
    ...(isByDay ? { day: row.day } : { owner: row.owner }),
    generations: row.generations,
    inputTokens: row.input_tokens,
    outputTokens: row.output_tokens,
    cachedTokens: row.cached_tokens,
    reasoningTokens: row.reasoning_tokens,
  }));
}
