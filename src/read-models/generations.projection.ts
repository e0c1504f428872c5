import { columns, type Projection, tableOf } from '../projection-engine/projection.js';
import { type Freshness, type ReadModels } from '../projection-engine/strong-reads.js';
import { type SessionRecord } from './session-record.js';

interface GenerationRow {
  tenant: string;
  session_id: string;
  version: number;
  generation_id: string;
}

/** Where each generation of a tenant was started, for requests that name a generation alone. */
export const generationsProjection: Projection<SessionRecord> = {
  name: 'generations',
  version: 1,
  createTable: (table) => `
    create table ${table} (
      tenant text collate "C" not null,
      session_id text collate "C" not null,
      version integer not null,
      generation_id text collate "C" not null,
      primary key (tenant, session_id, version)
    );
    create index ${table}_ids on ${table} (tenant, generation_id)`,

  apply(events, table) {
    const rows: GenerationRow[] = [];
    for (const { type, tenant, streamId: session_id, version, data } of events) {
      if (type === 'GenerationStarted')
        rows.push({ tenant, session_id, version, generation_id: data.generationId });
    }
    if (rows.length === 0) return Promise.resolve([]);
    return Promise.resolve([
      {
        text: `insert into ${table} (tenant, session_id, version, generation_id)
               select * from unnest($1::text[], $2::text[], $3::int[], $4::text[])`,
        values: columns(rows, ['tenant', 'session_id', 'version', 'generation_id']),
      },
    ]);
  },
};

const TABLE = tableOf(generationsProjection);

/** The place of the start of a generation: the latest one, where logs were brought together in which an id occurs twice. */
export interface GenerationPlace {
  readonly sessionId: string;
  readonly version: number;
}

export async function findGeneration(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  generationId: string,
): Promise<GenerationPlace | undefined> {
  const [row] = await models.read<Pick<GenerationRow, 'session_id' | 'version'>>(
    TABLE,
    freshness,
    `select session_id, version from ${TABLE} where tenant = $1 and generation_id = $2
     order by version desc, session_id limit 1`,
    [tenant, generationId],
  );
  return row && { sessionId: row.session_id, version: row.version };
}

/** The starts of the last generations of a session in its present incarnation and those before, the latest first; two at most. */
export async function latestGenerations(
  models: ReadModels,
  freshness: Freshness,
  tenant: string,
  sessionId: string,
): Promise<GenerationPlace[]> {
  const rows = await models.read<Pick<GenerationRow, 'version'>>(
    TABLE,
    freshness,
    `select version from ${TABLE} where tenant = $1 and session_id = $2 order by version desc limit 2`,
    [tenant, sessionId],
    { tenant, sessionId },
  );
  return rows.map(({ version }) => ({ sessionId, version }));
}
