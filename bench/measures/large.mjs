import { randomUUID } from 'node:crypto';
import { connect, lag } from '../support/database.mjs';
import { ask, Connection, request } from '../support/http.mjs';
import { CONTENT, message } from '../support/messages.mjs';
import { startService } from '../support/process.mjs';
import { product } from '../support/product.mjs';
import { median, quantile, rate, ratio, sideBySide, sleep, spread, timed } from '../support/stats.mjs';

const { EventLog } = product('dist/event-store/log.js');
const { sessionDecider } = product('dist/domain/session.js');

const SESSIONS = Number(process.env.BENCH_SESSIONS ?? 200_000);
const EVENTS_EACH = 25;
const CONNECTIONS = 64;
/** Sessions that are used while it is measured, in both databases. */
const USED = 200;
/** How long the read models may take for what was written without the service. */
const CATCH_UP_MS = 3 * 3600 * 1000;

/**
 * Measures appends, reads and lists of 200 sessions in a database with 200 000 sessions and 5 000 000 events, beside the
 * same in an empty database.
 */
export async function large(server) {
  const urls = [await server.database('large_full'), await server.database('large_empty')];
  await fill(urls[0], SESSIONS);
  const [full, empty] = await Promise.all(
    urls.map((url) => startService(url, { env: { MAX_SESSIONS: '10000000' } })),
  );
  try {
    const caughtUpIn = await timed(() => caughtUp(urls[0]));
    const [toFull, toEmpty] = await Promise.all(
      [full, empty].map(({ url }) =>
        Promise.all(Array.from({ length: CONNECTIONS }, () => Connection.open(url))),
      ),
    );
    const messages = Array.from({ length: EVENTS_EACH - 1 }, () => ({ role: 'user', content: CONTENT }));
    for (let n = 0; n < USED; n += 1) {
      await ask(toEmpty[0], 'POST', '/v1/sessions', { id: `session-${n}` });
      await ask(toEmpty[0], 'POST', `/v1/sessions/session-${n}/messages`, { messages });
    }

    const rows = [
      {
        name: `read models of ${SESSIONS * EVENTS_EACH} events`,
        ours: `${((SESSIONS * EVENTS_EACH) / (caughtUpIn / 1000)).toFixed(0)}/s`,
      },
    ];
    for (const { name, of, status: wanted } of [
      {
        name: 'an append',
        status: 201,
        of: (n) => request('POST', `/v1/sessions/session-${n}/messages`, { role: 'user', content: CONTENT }),
      },
      { name: 'GET one session', status: 200, of: (n) => request('GET', `/v1/sessions/session-${n}`) },
      {
        name: 'GET the last 50 messages',
        status: 200,
        of: (n) => request('GET', `/v1/sessions/session-${n}/messages?order=desc&limit=50`),
      },
      { name: 'GET a list of 50', status: 200, of: () => request('GET', '/v1/sessions?limit=50') },
    ]) {
      const requests = Array.from({ length: USED }, (_, n) => of(n));
      let next = 0;
      const latencies = { full: [], empty: [] };
      const against = (side, connections) => async () => {
        const taken = [];
        const result = await rate(CONNECTIONS, 4, async (worker) => {
          const begun = performance.now();
          const { status, body } = await connections[worker].send(requests[(next += 1) % USED]);
          taken.push(performance.now() - begun);
          if (status !== wanted) throw new Error(`${name}: ${status} ${body}`);
        });
        latencies[side].push(quantile(taken, 0.99));
        return result;
      };
      const rates = await sideBySide(7, { full: against('full', toFull), empty: against('empty', toEmpty) });
      rows.push(
        {
          name,
          ours: `${Math.round(median(rates.full))}/s`,
          other: `empty ${Math.round(median(rates.empty))}/s`,
          ratio: ratio(rates.full, rates.empty),
          atLeast: 0.8,
          spread: Math.max(spread(rates.full), spread(rates.empty)),
        },
        {
          name: `${name}, p99`,
          ours: `${median(latencies.full).toFixed(1)} ms`,
          other: `empty ${median(latencies.empty).toFixed(1)} ms`,
          ratio: ratio(latencies.full, latencies.empty),
          atMost: 1.25,
          spread: Math.max(spread(latencies.full), spread(latencies.empty)),
        },
      );
    }
    for (const connection of [...toFull, ...toEmpty]) connection.close();
    return rows;
  } finally {
    await full.stop();
    await empty.stop();
  }
}

/** Writes sessions with a creation and messages, each in one append. */
async function fill(url, sessions) {
  const store = await EventLog.open(url);
  const correlationId = randomUUID();
  let next = 0;
  const write = async () => {
    while (next < sessions) {
      const stream = { tenant: 'default', streamId: `session-${(next += 1) - 1}` };
      const events = [
        { type: 'SessionCreated', data: {} },
        ...Array.from({ length: EVENTS_EACH - 1 }, () => ({ type: 'MessageAppended', data: message() })),
      ];
      const result = await store.append({
        stream,
        expected: 0,
        incarnation: 1,
        begins: true,
        chain: { version: 0, createdAt: null, lastActivityAt: null },
        activity: true,
        state: events.reduce(sessionDecider.evolve, sessionDecider.initialState),
        stateVersion: 1,
        actor: 'bench',
        correlationId,
        causationId: null,
        events: events.map((event) => ({ ...event, schemaVersion: 1 })),
      });
      if (result.status !== 'ok') throw new Error(`append: ${result.status}`);
    }
  };
  await Promise.all(Array.from({ length: 32 }, write));
  await store.close();
}

async function caughtUp(url) {
  const database = await connect(url, 'bench', { statementMs: 60_000 });
  for (const end = performance.now() + CATCH_UP_MS; (await lag(database)) > 0; await sleep(500))
    if (performance.now() > end) throw new Error('the read models have not caught up');
  await database.query('vacuum (analyze)');
  await database.query('checkpoint');
  await database.end();
}
