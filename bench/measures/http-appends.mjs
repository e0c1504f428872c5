import { connect } from '../support/database.mjs';
import { ask, Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { cpuSeconds, startEcho, startService } from '../support/process.mjs';
import { median, rate, ratio, sideBySide, spread, timed } from '../support/stats.mjs';

const CONNECTIONS = 64;
const SESSIONS = 2_000;

/**
 * Measures durable appends over HTTP while projections run, in comparison with a bare Fastify that sends the same body
 * back.
 */
export async function httpAppends(server, { full }) {
  const url = await server.database('http');
  const service = await startService(url);
  const echo = await startEcho();
  const database = await connect(url, 'bench');
  try {
    const requests = Array.from({ length: SESSIONS }, (_, n) =>
      request('POST', `/v1/sessions/session-${n}/messages`, { role: 'user', content: CONTENT }),
    );
    const toService = await openMany(service.url);
    const toEcho = await openMany(echo.url);
    let next = 0;
    await Promise.all(
      toService.map(async (connection) => {
        for (let n = next++; n < SESSIONS; n = next++) {
          await ask(connection, 'POST', '/v1/sessions', { id: `session-${n}` });
        }
      }),
    );

    let acknowledged = 0;
    const refused = new Map();
    const append = async (worker) => {
      const { status } = await toService[worker].send(requests[(next += 1) % SESSIONS]);
      if (status === 201) acknowledged += 1;
      else refused.set(status, (refused.get(status) ?? 0) + 1);
    };
    const repeat = async (worker) => {
      const { status } = await toEcho[worker].send(requests[(next += 1) % SESSIONS]);
      if (status !== 200) throw new Error(`the echo answered ${status}`);
    };
    const seconds = full ? 10 : 4;
    let cpu = 0;
    const rates = await sideBySide(full ? 7 : 5, {
      service: async () => {
        const before = cpuSeconds(service.pid);
        const result = await rate(CONNECTIONS, seconds, append);
        cpu += cpuSeconds(service.pid) - before;
        return result;
      },
      echo: () => rate(CONNECTIONS, seconds, repeat),
    });

    // Right after one more round of appends: how far behind are the read models, and how long do strong reads take?
    await rate(CONNECTIONS, seconds, append);
    const behind = await lag(database);
    const [first] = toService;
    const last = requests.length - 1;
    const read = await timed(() => ask(first, 'GET', `/v1/sessions/session-${last}`));
    const list = await timed(() => ask(first, 'GET', '/v1/sessions?limit=50'));
    const ready = await first.send(request('GET', '/health/ready'));

    const { rows } = await database.query(
      `select count(*) as events, count(distinct id) as different from event where type = 'MessageAppended'`,
    );
    const whole = refused.size === 0 && rows[0].events === acknowledged && rows[0].different === acknowledged;
    for (const connection of [...toService, ...toEcho]) connection.close();
    return [
      {
        name: `POST …/messages, ${CONNECTIONS} connections`,
        ours: `${Math.round(median(rates.service))}/s`,
        other: `bare Fastify echo ${Math.round(median(rates.echo))}/s`,
        ratio: ratio(rates.service, rates.echo),
        atLeast: 0.12,
        spread: Math.max(spread(rates.service), spread(rates.echo)),
        note: Number.isFinite(cpu)
          ? `${((cpu / acknowledged) * 1e6).toFixed(0)} µs of processor time each`
          : '',
      },
      {
        name: 'acknowledged appends that are in the log, once',
        ours: whole ? 'all' : `${rows[0].events} of ${acknowledged}`,
        other: [...refused].map(([status, count]) => `${count} × ${status}`).join(', '),
        pass: whole,
      },
      {
        name: 'right after: behind, ready, strong read, strong list',
        ours: `${behind} events, ${ready.status === 200 ? 'ready' : 'not ready'}, ${read.toFixed(0)} ms, ${list.toFixed(0)} ms`,
        pass: behind <= 10_000 && ready.status === 200 && read < 500 && list < 500,
      },
    ];
  } finally {
    await database.end();
    await service.stop();
    await echo.stop();
  }
}

const openMany = (url) => Promise.all(Array.from({ length: CONNECTIONS }, () => Connection.open(url)));

/** Number of events that the read model which is furthest behind has not applied. */
async function lag(database) {
  const { rows } = await database.query(`
    select max(behind) as behind from (
      select sum(e.position - c.position) as behind
      from projection_checkpoint c join lane_ends() e using (lane) group by c.projection
    ) l`);
  return Number(rows[0].behind);
}
