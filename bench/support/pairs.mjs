import { Connection, request } from './http.mjs';
import { CONTENT } from './messages.mjs';
import { median, rate, ratio, sideBySide, spread } from './stats.mjs';

const SESSIONS = 200;
/** Two processes of the same code differ by a tenth, for as long as they live: so several of each are measured. */
const PAIRS = 4;

const REQUESTS = {
  'durable append': (id, headers) =>
    request('POST', `/v1/sessions/${id}/messages`, { role: 'user', content: CONTENT }, headers),
  'GET one session': (id, headers) => request('GET', `/v1/sessions/${id}`, undefined, headers),
  'GET the last 50 messages': (id, headers) =>
    request('GET', `/v1/sessions/${id}/messages?order=desc&limit=50`, undefined, headers),
};

/**
 * Measures appends and reads over HTTP of two ways to run the service, in several pairs of processes, by turns.
 * @param sides `ours` and `other`: how to start the service, and the headers of the requests for its nth session
 * @param row what the rows have in common: what is added to their names, the name of the other side, and the target
 * @param connections of the clients of each side
 */
export async function measurePairs(sides, { full }, { what, beside, atLeast }, { connections = 64 } = {}) {
  const measured = Object.fromEntries(Object.keys(REQUESTS).map((name) => [name, { ours: [], other: [] }]));
  for (let pair = 0; pair < PAIRS; pair += 1) {
    const running = [];
    try {
      const clients = {};
      for (const [side, { start, headers }] of Object.entries(sides)) {
        const service = await start();
        running.push(service);
        clients[side] = await clientsOf(service.url, `${side}-${connections}-${pair}`, headers, connections);
      }
      for (const [name, make] of Object.entries(REQUESTS)) {
        const turns = Object.entries(clients).map(([side, client]) => [side, turnOf(client, make, full)]);
        const rates = await sideBySide(full ? 7 : 5, Object.fromEntries(turns));
        for (const side of Object.keys(rates)) measured[name][side].push(...rates[side]);
      }
      for (const { opened } of Object.values(clients)) for (const connection of opened) connection.close();
    } finally {
      await Promise.all(running.map((service) => service.stop()));
    }
  }
  return Object.entries(measured).map(([name, { ours, other }]) => ({
    name: `${name}, ${what}, ${connections} connections`,
    ours: `${Math.round(median(ours))}/s`,
    other: `${beside} ${Math.round(median(other))}/s`,
    ratio: ratio(ours, other),
    atLeast,
    spread: Math.max(spread(ours), spread(other)),
  }));
}

async function clientsOf(url, name, headersOf, connections) {
  const opened = await Promise.all(Array.from({ length: connections }, () => Connection.open(url)));
  const sessions = [];
  // Each service has sessions of its own, so that no two processes write to one.
  for (let n = 0; n < SESSIONS; n += 1) {
    const session = { id: `${name}-${n}`, headers: headersOf(n) };
    const { status, body } = await opened[0].send(
      request('POST', '/v1/sessions', { id: session.id }, session.headers),
    );
    if (status !== 201) throw new Error(`${status} ${body}`);
    sessions.push(session);
  }
  return { opened, sessions };
}

function turnOf({ opened, sessions }, make, full) {
  const all = sessions.map(({ id, headers }) => make(id, headers));
  let next = 0;
  return () =>
    rate(opened.length, full ? 6 : 2, async (worker) => {
      const { status, body } = await opened[worker].send(all[(next += 1) % SESSIONS]);
      if (status >= 300) throw new Error(`${status} ${body}`);
    });
}
