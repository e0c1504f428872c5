import { type TestDatabase } from './database.js';

/**
 * Checks for every tenant that the counter of active sessions equals a recount of the log. The recount uses no code of
 * the service.
 */
export async function expectCountersMatchLog(db: Pick<TestDatabase, 'query'>): Promise<void> {
  const [log] = await db.query<{ exists: boolean }>(
    `select to_regclass('event') is not null and to_regclass('counter') is not null as exists`,
  );
  // A database without a schema has no counters, and where streams are not sessions, counters count something else.
  if (
    !log?.exists ||
    (await db.query(`select from event where type = 'SessionCreated' limit 1`)).length === 0
  )
    return;
  // Of a tenant that lives in another log only the history is left, which nobody counts.
  const [{ hasAbsences } = { hasAbsences: false }] = await db.query<{ hasAbsences: boolean }>(
    `select to_regclass('tenant_absence') is not null as "hasAbsences"`,
  );
  const atHome = hasAbsences
    ? 'tenant not in (select tenant from tenant_absence where opened is null)'
    : 'true';
  const differences = await db.query(
    `select * from (
       select tenant, count(*)::int as active from (
         select distinct on (tenant, stream_id) tenant, type from event
         where type in ('SessionCreated', 'SessionResumed', 'SessionExpired', 'SessionDeleted', 'SessionErased')
         order by tenant, stream_id, version desc
       ) last where type in ('SessionCreated', 'SessionResumed') group by tenant
     ) log full join (
       select substr(key, 8) as tenant, value::int as counted from counter where starts_with(key, 'active:') and value <> 0
     ) counter using (tenant)
     where active is distinct from counted and ${atHome}`,
  );
  expect(differences).toEqual([]);
}
