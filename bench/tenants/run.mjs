import { connect, databaseSeconds, startServer } from '../support/database.mjs';
import { ask, Connection } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { cpuSeconds, startService } from '../support/process.mjs';
import { product } from '../support/product.mjs';
import { sleep } from '../support/stats.mjs';

/**
 * node bench/tenants/run.mjs: measures a database with TENANTS=50000 tenants that have settings of their own, in
 * comparison with one without any: how long a node takes to start, and what it costs to look for changed settings while
 * 20 appends a second wake the node.
 */
const TENANTS = Number(process.env.TENANTS ?? 50_000);
const SECONDS = Number(process.env.SECONDS_EACH ?? 20);
const { laneOf } = product('dist/event-store/lane.js');

/** Writes the settings of many tenants into the log by SQL, because as many requests would take minutes. */
async function fill(url, count) {
  const tenants = Array.from({ length: count }, (_, n) => `t${n}`);
  const lanes = tenants.map((tenant) => laneOf({ tenant, streamId: '~tenant' }, 16));
  const client = await connect(url, 'bench', { statementMs: 600_000 });
  await client.query(
    `create temporary table own as
     select tenant, lane, row_number() over (partition by lane order by n) as position
     from unnest($1::text[], $2::smallint[]) with ordinality as t (tenant, lane, n)`,
    [tenants, lanes],
  );
  await client.query(
    `insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time, actor,
                        correlation_id, data)
     select lane, position, tenant, '~tenant', 1, 1, gen_random_uuid(), 'TenantSettingsChanged', 1, '2026-01-01', 'bench',
            'bench', '{"maxSessions": 1000000}' from own`,
  );
  await client.query(
    `insert into stream_state (tenant, stream_id, lane, version, incarnation, position, time, created_at,
                               last_activity_at, state, state_version)
     select tenant, '~tenant', lane, 1, 1, position, '2026-01-01', '2026-01-01', '2026-01-01',
            '{"version": 1, "overrides": {"maxSessions": 1000000}}', 1 from own`,
  );
  await client.query('analyze');
  await client.end();
}

async function measure(url) {
  const started = performance.now();
  const service = await startService(url);
  const startMs = performance.now() - started;
  try {
    const connection = await Connection.open(service.url);
    await ask(connection, 'POST', '/v1/sessions', { id: `s-${Date.now()}` }).catch(() => undefined);
    const id = `w-${Date.now()}`;
    await ask(connection, 'POST', '/v1/sessions', { id });
    await sleep(2_000);
    const before = [cpuSeconds(service.pid), await databaseSeconds(url)];
    const end = performance.now() + SECONDS * 1000;
    while (performance.now() < end) {
      await ask(connection, 'POST', `/v1/sessions/${id}/messages`, { role: 'user', content: CONTENT });
      await sleep(50);
    }
    const after = [cpuSeconds(service.pid), await databaseSeconds(url)];
    connection.close();
    const [node, database] = after.map((value, index) => ((value - before[index]) / SECONDS) * 100);
    return { startMs, node, database };
  } finally {
    await service.stop();
  }
}

const server = await startServer();
try {
  const sides = { none: await server.database('tenants_none'), many: await server.database('tenants_many') };
  await fill(sides.many, TENANTS);
  // The first start creates the tables of the read models and fills them, which is not measured.
  for (const url of Object.values(sides)) await measure(url);
  const found = { none: [], many: [] };
  for (let round = 0; round < 3; round += 1)
    for (const name of round % 2 ? ['many', 'none'] : ['none', 'many'])
      found[name].push(await measure(sides[name]));
  for (const [name, rows] of Object.entries(found)) {
    const show = (key, digits) => rows.map((row) => row[key].toFixed(digits)).join(', ');
    console.log(
      `${name === 'none' ? 0 : TENANTS} tenants with settings: start ${show('startMs', 0)} ms (wanted 5 000); ` +
        `20 appends/s cost ${show('node', 1)} % of a core in the service, ${show('database', 1)} % in the database`,
    );
  }
  const mean = (rows, key) => rows.reduce((sum, row) => sum + row[key], 0) / rows.length;
  const more = ['node', 'database'].reduce(
    (sum, key) => sum + mean(found.many, key) - mean(found.none, key),
    0,
  );
  console.log(`the settings cost ${more.toFixed(2)} % of a core (wanted 1)`);
} finally {
  await server.stop();
}
