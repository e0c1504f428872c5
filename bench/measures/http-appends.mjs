import { connect, lag } from '../support/database.mjs';
import { ask, Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { cpuSeconds, cpuSecondsOfAll, startByHand, startService } from '../support/process.mjs';
import { median, quantile, rate, ratio, sideBySide, spread, timed } from '../support/stats.mjs';

const CONNECTIONS = 64;
const SESSIONS = 200;
/** Many clients that write to few sessions. */
const CROWD = 256;
const CROWDED_SESSIONS = 20;

/**
 * Measures durable appends over HTTP while projections run, in comparison with a bare Fastify that sends the same body
 * back, and with one that writes a message in a transaction of its own.
 */
export async function httpAppends(server, { full }) {
  const url = await server.database('http');
  const service = await startService(url);
  const byHand = await startByHand(url);
  const database = await connect(url, 'bench');
  try {
    const message = { role: 'user', content: CONTENT };
    const requests = Array.from({ length: SESSIONS }, (_, n) =>
      request('POST', `/v1/sessions/session-${n}/messages`, message),
    );
    const echo = request('POST', '/echo', message);
    const toService = await openMany(service.url);
    const toHand = await openMany(byHand.url);
    for (const [first] of [toService, toHand]) {
      for (let n = 0; n < SESSIONS; n += 1) await ask(first, 'POST', '/v1/sessions', { id: `session-${n}` });
    }

    let next = 0;
    let acknowledged = 0;
    const refused = new Map();
    const answered = ({ status }) => {
      if (status === 201) acknowledged += 1;
      else refused.set(status, (refused.get(status) ?? 0) + 1);
    };
    const anyOf = (sessions) => requests[(next += 1) % sessions];
    const append = async (worker, sessions) => {
      answered(await toService[worker].send(anyOf(sessions)));
    };
    const appendByHand = async (worker, sessions) => {
      const { status } = await toHand[worker].send(anyOf(sessions));
      if (status !== 201) throw new Error(`the service written by hand answered ${status}`);
    };
    const repeat = async (worker) => {
      const { status } = await toHand[worker].send(echo);
      if (status !== 200) throw new Error(`the echo answered ${status}`);
    };
    const seconds = full ? 10 : 4;
    const rounds = full ? 7 : 5;
    const latencies = [];
    const usage = { service: processors(server, service), byHand: processors(server, byHand) };
    const rates = await sideBySide(rounds, {
      service: () =>
        usage.service.of(() => rate(CONNECTIONS, seconds, (worker) => append(worker, SESSIONS)), seconds),
      echo: () => rate(CONNECTIONS, seconds, repeat),
      byHand: () =>
        usage.byHand.of(
          () => rate(CONNECTIONS, seconds, (worker) => appendByHand(worker, SESSIONS)),
          seconds,
        ),
      crowd: () =>
        rate(CROWD, seconds, async (worker) => {
          latencies.push(await timed(() => append(worker, CROWDED_SESSIONS)));
        }),
      crowdByHand: () => rate(CROWD, seconds, (worker) => appendByHand(worker, CROWDED_SESSIONS)),
      one: () => rate(CONNECTIONS, seconds, (worker) => append(worker, 1)),
    });
    const p99 = quantile(latencies, 0.99);

    // Right after one more round of appends: how far behind are the read models, and how long do strong reads take?
    await rate(CONNECTIONS, seconds, (worker) => append(worker, SESSIONS));
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
    for (const connection of [...toService, ...toHand]) connection.close();
    return [
      {
        name: `POST …/messages, ${CONNECTIONS} connections, ${SESSIONS} sessions`,
        ours: perSecond(rates.service),
        other: `bare Fastify echo ${perSecond(rates.echo)}`,
        ratio: ratio(rates.service, rates.echo),
        atLeast: 0.2,
        spread: Math.max(spread(rates.service), spread(rates.echo)),
      },
      {
        name: 'the same',
        ours: perSecond(rates.service),
        other: `by hand, a transaction each ${perSecond(rates.byHand)}`,
        ratio: ratio(rates.service, rates.byHand),
        atLeast: 2.5,
        spread: Math.max(spread(rates.service), spread(rates.byHand)),
      },
      {
        name: 'processor time of each: service, PostgreSQL, clients',
        ours: usage.service.each(),
        other: `by hand ${usage.byHand.each()}`,
      },
      {
        name: `${CROWD} connections, ${CROWDED_SESSIONS} sessions`,
        ours: perSecond(rates.crowd),
        other: `by hand ${perSecond(rates.crowdByHand)}`,
        ratio: ratio(rates.crowd, rates.crowdByHand),
        atLeast: 4,
        spread: Math.max(spread(rates.crowd), spread(rates.crowdByHand)),
      },
      {
        name: 'the same, p99',
        ours: `${p99.toFixed(0)} ms`,
        pass: p99 <= 150,
        target: '≤ 150 ms',
      },
      {
        name: `one session, ${CONNECTIONS} connections`,
        ours: perSecond(rates.one),
        other: `${SESSIONS} sessions ${perSecond(rates.service)}`,
        ratio: ratio(rates.one, rates.service),
        atLeast: 0.8,
        spread: Math.max(spread(rates.one), spread(rates.service)),
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
    await byHand.stop();
  }
}

/** Adds up the processor time of a service, of all of PostgreSQL, and of the clients in this process, while calls are counted. */
function processors(server, { pid }) {
  const now = () => {
    const { user, system } = process.cpuUsage();
    return [cpuSeconds(pid), cpuSecondsOfAll(server.pid), (user + system) / 1e6];
  };
  const used = [0, 0, 0];
  let calls = 0;
  return {
    of: async (turn, seconds) => {
      const before = now();
      const perSecond = await turn();
      now().forEach((value, n) => (used[n] += value - before[n]));
      calls += perSecond * seconds;
      return perSecond;
    },
    each: () =>
      used
        .map((value) => (Number.isFinite(value) ? `${((value / calls) * 1e6).toFixed(0)} µs` : '?'))
        .join(', '),
  };
}

const openMany = (url) => Promise.all(Array.from({ length: CROWD }, () => Connection.open(url)));

const perSecond = (rates) => `${Math.round(median(rates))}/s`;
