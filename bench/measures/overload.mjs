import { connect, lag } from '../support/database.mjs';
import { ask, Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { memoryOf, startService } from '../support/process.mjs';
import { quantile, rate, sleep } from '../support/stats.mjs';

const SESSIONS = 400;
/** So many that the service is what saturates, and not the client beside it. */
const MESSAGES = 50;
const CONNECTIONS = 2_000;
const TIMES = 3;
const RECOVERED_MS = 200;

/**
 * Measures a service that gets three times what it can do: whom it turns away, how fast, how much of its work goes on,
 * what it holds meanwhile, and when it is itself again.
 */
export async function overload(server, { full }) {
  const url = await server.database('overload');
  const database = await connect(url, 'bench');
  const service = await startService(url, { env: { LOG_LEVEL: 'fatal' } });
  try {
    const workers = await Promise.all(Array.from({ length: 64 }, () => Connection.open(service.url)));
    for (let n = 0; n < SESSIONS; n += 1) await ask(workers[0], 'POST', '/v1/sessions', { id: `s-${n}` });
    const messages = Array.from({ length: MESSAGES }, () => ({ role: 'user', content: CONTENT }));
    let next = 0;
    const append = () => request('POST', `/v1/sessions/s-${(next += 1) % SESSIONS}/messages`, { messages });
    const closed = (seconds) =>
      rate(workers.length, seconds, async (worker) => {
        const { status, body } = await workers[worker].send(append());
        if (status >= 300) throw new Error(`${status} ${body}`);
      });
    await closed(3);
    const peak = await closed(full ? 20 : 10);
    const before = memoryOf(service.pid);
    const idle = [];
    while (idle.length < CONNECTIONS) idle.push(await Connection.open(service.url));
    // A connection is open to its client before the service has accepted it.
    for (const connection of idle) await connection.send(request('GET', '/health/live'));
    await readAgain(workers[0]);
    const seconds = full ? 60 : 20;
    const flood = await openLoop(service, idle, append, { perSecond: peak * TIMES, seconds });
    const recovery = await recovered(workers[0], append);
    const left = await lag(database);
    const caughtUp = await readAgain(workers[0]);
    await Promise.all(flood.running);
    for (const connection of [...workers, ...idle]) connection.close();
    const turnedAway = flood.refusals.length + flood.failed;
    const name = (what) => `${TIMES} × the peak for ${seconds} s: ${what}`;
    return [
      {
        name: name('99th percentile of refusals (503, 429)'),
        ours: `${Math.round(quantile(flood.refusals, 0.99) ?? 0)} ms`,
        other: `${flood.refusals.length} of ${flood.refusals.length + flood.accepted.length}, ${flood.unsent} not sent`,
        target: '< 1 s, all else < 1 %',
        pass:
          (quantile(flood.refusals, 0.99) ?? 0) < 1_000 && flood.failed < turnedAway / 100 && turnedAway > 0,
      },
      {
        name: name('appends that go on, of the peak'),
        ours: `${Math.round(flood.accepted.length / seconds)}/s`,
        other: `peak ${Math.round(peak)}/s`,
        ratio: flood.accepted.length / seconds / peak,
        atLeast: 0.8,
      },
      {
        name: name('99th percentile of accepted appends'),
        ours: `${Math.round(quantile(flood.accepted, 0.99))} ms`,
      },
      {
        name: name('memory'),
        ours: `${Math.round(flood.memory / 1e6)} MB`,
        other: `before ${Math.round(before / 1e6)} MB`,
        target: '< 768 MB more',
        pass: flood.memory - before < 768e6,
      },
      {
        name: name(`ten appends under ${RECOVERED_MS} ms in a row`),
        ours: `after ${(recovery / 1_000).toFixed(1)} s`,
        target: '< 5 s',
        pass: recovery < 5_000,
      },
      {
        name: name('lists of the read model answered'),
        ours: `after ${(caughtUp / 1_000).toFixed(1)} s`,
        other: `the last read model was ${left} events behind`,
      },
    ];
  } finally {
    await database.end();
    await service.stop();
  }
}

/**
 * Sends so many requests a second, whatever becomes of them, each on a connection that has no other. The connections are
 * there before, as in the pools of clients and proxies: libuv accepts one new connection per iteration of its loop.
 */
async function openLoop({ pid }, idle, make, { perSecond, seconds }) {
  // A client without a free connection sends nothing, so that is not an answer of the service.
  const result = { accepted: [], refusals: [], failed: 0, unsent: 0, memory: 0 };
  const running = new Set();
  const one = async (connection) => {
    const since = performance.now();
    const { status } = await connection.send(make());
    if (status < 300) result.accepted.push(performance.now() - since);
    else if (status === 503 || status === 429) result.refusals.push(performance.now() - since);
    else result.failed += 1;
    idle.push(connection);
  };
  const begun = performance.now();
  let sent = 0;
  while (performance.now() - begun < seconds * 1_000) {
    for (const due = ((performance.now() - begun) / 1_000) * perSecond; sent < due; sent += 1) {
      const connection = idle.shift();
      if (!connection) {
        result.unsent += 1;
        continue;
      }
      const answer = one(connection)
        .catch(() => (result.failed += 1))
        .finally(() => running.delete(answer));
      running.add(answer);
    }
    result.memory = Math.max(result.memory, memoryOf(pid) ?? 0);
    await sleep(5);
  }
  result.running = running;
  return result;
}

/** Milliseconds until ten appends, one after the other, were all answered quickly. */
async function recovered(connection, make) {
  const begun = performance.now();
  let first = begun;
  for (let quick = 0; quick < 10;) {
    const since = performance.now();
    if (quick === 0) first = since;
    const { status } = await connection.send(make());
    const ok = status < 300 && performance.now() - since < RECOVERED_MS;
    quick = ok ? quick + 1 : 0;
    if (performance.now() - begun > 60_000) break;
  }
  return first - begun;
}

/** Milliseconds until a read model has all that was written, and no more than three minutes. */
async function readAgain(connection) {
  const begun = performance.now();
  for (;;) {
    const { status } = await connection.send(request('GET', '/v1/sessions?limit=1'));
    const ms = performance.now() - begun;
    if (status === 200 || ms > 180_000) return ms;
    await sleep(100);
  }
}
