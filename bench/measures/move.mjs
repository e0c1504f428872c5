import { execFile } from 'node:child_process';
import { tmpdir } from 'node:os';
import { promisify } from 'node:util';
import { Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { startService } from '../support/process.mjs';
import { commandLine, product } from '../support/product.mjs';
import { sleep } from '../support/stats.mjs';

const { connect } = product('dist/database/connection.js');

const TENANT = 'mover';
const EVENTS = 100_000;
const SESSIONS = 1_000;
/** Appends a second while it is moved. */
const RATE = 50;

/** What a cell has of the tenant, in the order of its lanes. */
const HASH = `select count(*)::int as events, md5(string_agg(md5(e::text), '' order by lane, n)) as hash from (
  select lane, row_number() over (partition by lane order by position) as n, stream_id, version, incarnation, id, type,
         time, actor, correlation_id, causation_id, data from event where tenant = '${TENANT}') as e`;

/** Measures the move of a tenant that is written to: how long it takes no writes, and whether all of it arrives. */
export async function move(server) {
  const [first, two] = [await server.database('move_1'), await server.database('move_2')];
  const env = { DATABASE_CELLS: `two=${two}` };
  const run = (...args) =>
    promisify(execFile)(process.execPath, [commandLine, ...args], {
      cwd: tmpdir(),
      env: { PATH: process.env.PATH, DATABASE_URL: first, ...env },
    });
  const service = await startService(first, { env: { ...env, LOG_LEVEL: 'fatal' } });
  try {
    await run('tenants', 'place', TENANT, 'default');
    const headers = [`Colloquy-Tenant: ${TENANT}`];
    const connections = await Promise.all(Array.from({ length: 20 }, () => Connection.open(service.url)));
    let left = EVENTS / 20;
    const append = (session, count) =>
      request(
        'POST',
        `/v1/sessions/s-${session}/messages`,
        { messages: Array.from({ length: count }, () => ({ role: 'user', content: CONTENT })) },
        headers,
      );
    for (let n = 0; n < SESSIONS; n += 1)
      await connections[0].send(request('POST', '/v1/sessions', { id: `s-${n}` }, headers));
    await Promise.all(
      connections.map(async (connection) => {
        while ((left -= 1) >= 0) await connection.send(append(left % SESSIONS, 20));
      }),
    );
    // One that is late does not keep the next one from its time.
    const answers = [];
    let isOver = false;
    const began = performance.now();
    const writing = (async () => {
      for (let n = 0; !isOver; n += 1) {
        await sleep(Math.max(0, began + (n * 1_000) / RATE - performance.now()));
        const connection = connections[n % connections.length];
        connection.busy = (connection.busy ?? Promise.resolve()).then(async () => {
          const { status } = await connection.send(append(n % SESSIONS, 1));
          answers.push({ status, at: performance.now() });
        });
      }
      await Promise.all(connections.map(({ busy }) => busy));
    })();
    await sleep(1_000);
    const started = performance.now();
    const { stdout } = await run('tenants', 'move', TENANT, 'two');
    const seconds = (performance.now() - started) / 1_000;
    await sleep(1_000);
    isOver = true;
    await writing;
    const report = JSON.parse(stdout);
    const accepted = answers.filter(({ status }) => status < 300).sort((a, b) => a.at - b.at);
    const pause = Math.max(...accepted.slice(1).map(({ at }, n) => at - accepted[n].at));
    const refused = answers.filter(({ status }) => status === 503).length;
    const odd = answers.length - accepted.length - refused;

    // What the tenant has written since it moved is not in its former home.
    const read = async (url, sql) => {
      const client = await connect(url, 'bench');
      const { rows } = await client.query(sql);
      await client.end();
      return rows[0];
    };
    const [there, here] = [
      await read(first, HASH),
      await read(
        two,
        HASH.replace(
          `tenant = '${TENANT}'`,
          `tenant = '${TENANT}' and position <= (select opened[lane + 1] from tenant_absence where tenant = '${TENANT}')`,
        ),
      ),
    ];
    const kept = await read(
      two,
      `select count(*)::int as events from event where tenant = '${TENANT}' and type = 'MessageAppended'`,
    );
    const lost = EVENTS + accepted.length - kept.events;
    for (const connection of connections) connection.close();
    return [
      {
        name: `a tenant of ${there.events} events moves, under ${RATE} appends/s: no writes for`,
        ours: `${Math.round(pause)} ms`,
        other: `${report.closedMs} ms by the mover, ${refused} answers 503, ${odd} others`,
        target: '≤ 2 s',
        pass: pause <= 2_000 && odd === 0,
      },
      {
        name: 'the same: lost or doubled; hashes',
        ours: `${lost}; ${there.hash === here.hash ? 'equal' : 'different'}`,
        other: `${seconds.toFixed(1)} s for all of it`,
        pass: lost === 0 && there.hash === here.hash,
      },
    ];
  } finally {
    await service.stop();
  }
}
