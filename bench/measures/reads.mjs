import { ask, Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { startByHand, startService } from '../support/process.mjs';
import { median, rate, ratio, sideBySide, spread } from '../support/stats.mjs';

const CONNECTIONS = 64;
const SESSIONS = 1_000;
const MESSAGES = 60;

/** Path of a read of a session, and the share of the rate of a service written by hand that it has to reach. */
const READS = [
  { name: 'GET one session', atLeast: 0.7, path: (n) => `/v1/sessions/session-${n}` },
  {
    name: 'GET the last 50 messages',
    atLeast: 0.75,
    path: (n) => `/v1/sessions/session-${n}/messages?order=desc&limit=50`,
  },
  { name: 'GET a list of 50', atLeast: 0.7, path: () => '/v1/sessions?limit=50' },
];

/**
 * Measures strong reads over HTTP in comparison with a bare Fastify that answers each with one prepared query of the
 * same rows, which may be as old as they like.
 */
export async function reads(server, { full }) {
  const url = await server.database('reads');
  const service = await startService(url);
  const byHand = await startByHand(url);
  try {
    const [ours, theirs] = await Promise.all(
      [service.url, byHand.url].map((each) =>
        Promise.all(Array.from({ length: CONNECTIONS }, () => Connection.open(each))),
      ),
    );
    const messages = Array.from({ length: MESSAGES }, (_, n) => ({
      role: n % 2 === 0 ? 'user' : 'assistant',
      content: CONTENT,
    }));
    for (let n = 0; n < SESSIONS; n += 1) {
      await ask(ours[0], 'POST', '/v1/sessions', { id: `session-${n}`, title: `Session ${n}` });
      await ask(ours[0], 'POST', `/v1/sessions/session-${n}/messages`, { messages });
    }
    const rows = [];
    for (const { name, atLeast, path } of READS) {
      const requests = Array.from({ length: SESSIONS }, (_, n) => request('GET', path(n)));
      let next = 0;
      const against = (connections) => () =>
        rate(CONNECTIONS, full ? 10 : 3, async (worker) => {
          const { status, body } = await connections[worker].send(requests[(next += 1) % SESSIONS]);
          if (status !== 200) throw new Error(`${name}: ${status} ${body}`);
        });
      const rates = await sideBySide(full ? 7 : 5, { ours: against(ours), theirs: against(theirs) });
      rows.push({
        name: `${name}, ${CONNECTIONS} connections`,
        ours: `${Math.round(median(rates.ours))}/s`,
        other: `by hand ${Math.round(median(rates.theirs))}/s`,
        ratio: ratio(rates.ours, rates.theirs),
        atLeast,
        spread: Math.max(spread(rates.ours), spread(rates.theirs)),
      });
    }
    for (const connection of [...ours, ...theirs]) connection.close();
    return rows;
  } finally {
    await service.stop();
    await byHand.stop();
  }
}
