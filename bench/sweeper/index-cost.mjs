import { product } from '../support/product.mjs';
import { connect, startServer } from '../support/database.mjs';

/** Measures what the indexes that find overdue sessions cost the projection, by the updates that its batches make. */
const { sessionsProjection } = product('dist/read-models/sessions.projection.js');
const SESSIONS = 20_000;
const ROUNDS = 20;
const BATCH = 500;

const ours = sessionsProjection.createTable('ours');
const bare = sessionsProjection
  .createTable('bare')
  .replaceAll(/create index bare_(active|expired|generating)[^;]*;?/g, '');
const VARIANTS = {
  bare: [bare, 'no index of the sweeper'],
  exact: [
    `${bare.replaceAll('bare', 'exact')}; create index exact_due on exact (last_activity_at) where status = 'active'`,
    'an index on the time of the last use',
  ],
  ours: [ours, 'indexes on a bound that moves every 5 minutes'],
};

const server = await startServer();
const client = await connect(await server.database('index_cost'), 'bench', { statementMs: 600_000 });
await client.query('set synchronous_commit = off');
for (const [table, [create]] of Object.entries(VARIANTS)) {
  await client.query(create.replace(/;\s*$/, ''));
  await client.query(
    `insert into ${table} (tenant, session_id, incarnation, version, status, metadata, message_count, created_at,
       last_activity_at, lane, since, legal_hold, input_tokens, output_tokens, cached_tokens, reasoning_tokens)
     select 'default', 's' || n, 1, 1, 'active', '{}', 0, now(), now(), n % 16, now(), false, 0, 0, 0, 0
     from generate_series(1, $1::int) n`,
    [SESSIONS],
  );
}
await client.query('vacuum analyze');
const spent = {};
// Every session is used once a minute. The variants take turns, so that other work on the machine affects all of them.
for (let round = 1; round <= ROUNDS; round += 1) {
  for (let from = 0; from < SESSIONS; from += BATCH) {
    for (const table of Object.keys(VARIANTS)) {
      const began = performance.now();
      await client.query(
        `insert into ${table} as t
         select t.tenant, t.session_id, t.incarnation, t.version + 1, t.status, t.title, t.metadata, t.message_count + 1,
                t.created_at, now() + $3::int * interval '1 min', t.lane,
                case when now() + $3::int * interval '1 min' - t.since >= interval '5 min'
                     then now() + $3::int * interval '1 min' else t.since end,
                t.generation_id, t.legal_hold, t.forked_from, t.input_tokens, t.output_tokens, t.cached_tokens, t.reasoning_tokens
         from ${table} t join generate_series($1::int, $2::int) n on t.tenant = 'default' and t.session_id = 's' || n
         on conflict (tenant, session_id) do update set version = excluded.version, message_count = excluded.message_count,
           last_activity_at = excluded.last_activity_at, since = excluded.since, status = excluded.status`,
        [from + 1, from + BATCH, round],
      );
      spent[table] = (spent[table] ?? 0) + performance.now() - began;
    }
  }
}
await client.query('select pg_stat_force_next_flush()').catch(() => undefined);
for (const [table, [, what]] of Object.entries(VARIANTS)) {
  const { rows } = await client.query(
    `select round(100.0 * n_tup_hot_upd / n_tup_upd) as hot, pg_indexes_size(relid) / 1024 as kb
     from pg_stat_user_tables where relname = $1`,
    [table],
  );
  const each = (spent[table] / SESSIONS / ROUNDS) * 1000;
  console.log(
    `${what}: ${each.toFixed(1)} µs an update, ${rows[0].hot} % heap-only, indexes ${rows[0].kb} kB`,
  );
}
await client.end();
await server.stop();
