import { columns, type Projection, tableOf } from '../projection-engine/projection.js';
import { type ReadModels, type Freshness } from '../projection-engine/strong-reads.js';
import { type SessionRecord } from './session-record.js';

interface UsageRow {
  tenant: string;
  session_id: string;
  model: string;
  day: string;
  generations: number;
  input_tokens: number;
  output_tokens: number;
  cached_tokens: number;
  reasoning_tokens: number;
}
const KEY = ['tenant', 'session_id', 'model', 'day'] as const;
export const SUMS = [
  'generations',
  'input_tokens',
  'output_tokens',
  'cached_tokens',
  'reasoning_tokens',
] as const;

/** Tokens per session, model and day (UTC), through all incarnations. */
export const usageProjection: Projection<SessionRecord> = {
  name: 'usage',
  version: 1,
  createTable: (table) => `
    create table ${table} (
      tenant text collate "C" not null,
      session_id text collate "C" not null,
      model text collate "C" not null,
      day date not null,
      ${SUMS.map((sum) => `${sum} bigint not null`).join(', ')},
      primary key (tenant, session_id, model, day)
    ) with (fillfactor = 70)`,

  apply(events, table) {
    const rows = new Map<string, UsageRow>();
    for (const event of events) {
      if (
        event.type !== 'GenerationCompleted' &&
        event.type !== 'GenerationFailed' &&
        event.type !== 'GenerationCancelled'
      ) {
        continue;
      }
      const { model, usage } = event.data;
      const day = event.time.slice(0, 10);
      const key = JSON.stringify([event.tenant, event.streamId, model, day]);
      const row = rows.get(key) ?? {
        tenant: event.tenant,
        session_id: event.streamId,
        model,
        day,
        generations: 0,
        input_tokens: 0,
        output_tokens: 0,
        cached_tokens: 0,
        reasoning_tokens: 0,
      };
      row.generations += 1;
      row.input_tokens += usage?.inputTokens ?? 0;
      row.output_tokens += usage?.outputTokens ?? 0;
      row.cached_tokens += usage?.cachedTokens ?? 0;
      row.reasoning_tokens += usage?.reasoningTokens ?? 0;
      rows.set(key, row);
    }
    if (rows.size === 0) return Promise.resolve([]);
    return Promise.resolve([
      {
        text: `insert into ${table} as u (${[...KEY, ...SUMS].join()})
               select * from unnest($1::text[], $2::text[], $3::text[], $4::date[],
                                    ${SUMS.map((_, index) => `$${index + 5}::bigint[]`).join()})
               on conflict (${KEY.join()}) do update set
                 ${SUMS.map((sum) => `${sum} = u.${sum} + excluded.${sum}`).join()}`,
        values: columns([...rows.values()], [...KEY, ...SUMS]),
      },
    ]);
  },
};

/** What a session used of one model on one day (UTC). */
export interface UsageView {
  readonly model: string;
  readonly day: string;
  readonly generations: number;
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly cachedTokens: number;
  readonly reasoningTokens: number;
}

/** The table's name, for queries. */
export const USAGE = tableOf(usageProjection);

/** By day and model. */
export async function sessionUsage(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  sessionId: string,
): Promise<UsageView[]> {
  const rows = await models.read<UsageRow>(
    USAGE,
    freshness,
    `select model, day::text, ${SUMS.join()} from ${USAGE} where tenant = $1 and session_id = $2 order by day, model`,
    [tenant, sessionId],
    { tenant, sessionId },
  );
  return rows.map((row) => ({
    model: row.model,
    day: row.day,
    generations: row.generations,
    inputTokens: row.input_tokens,
    outputTokens: row.output_tokens,
    cachedTokens: row.cached_tokens,
    reasoningTokens: row.reasoning_tokens,
  }));
}
