import { ask, Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { startService } from '../support/process.mjs';
import { median, timed } from '../support/stats.mjs';

const LONG = 100_000;
const SHORT = 100;
/** Short sessions are used in turn, so that none of them grows long. */
const SHORT_SESSIONS = 20;
const BATCH = 1_000;

/** Waits until the read models have caught up. A strong list depends on all lanes. */
async function caughtUp(connection) {
  const list = request('GET', '/v1/sessions?limit=1');
  for (const end = performance.now() + 120_000; (await connection.send(list)).status !== 200;) {
    if (performance.now() > end) throw new Error('the read models do not catch up');
  }
}

/** Measures what a very long session costs in comparison with short ones. */
export async function longSession(server, { full }) {
  const service = await startService(await server.database('long'));
  const connection = await Connection.open(service.url);
  try {
    const message = { role: 'user', content: CONTENT };
    const fill = async (id, count) => {
      await ask(connection, 'POST', '/v1/sessions', { id });
      for (let left = count; left > 0; left -= BATCH) {
        const messages = Array.from({ length: Math.min(left, BATCH) }, () => message);
        await ask(connection, 'POST', `/v1/sessions/${id}/messages`, { messages });
      }
    };
    await fill('long', LONG);
    for (let n = 0; n < SHORT_SESSIONS; n += 1) await fill(`short-${n}`, SHORT);

    await caughtUp(connection);

    const append = (id) => timed(() => ask(connection, 'POST', `/v1/sessions/${id}/messages`, message));
    const read = (id) =>
      timed(() => ask(connection, 'GET', `/v1/sessions/${id}/messages?order=desc&limit=50`));
    const times = { append: { long: [], short: [] }, read: { long: [], short: [] } };
    for (let turn = 0; turn < (full ? 1_000 : 300); turn += 1) {
      const short = `short-${turn % SHORT_SESSIONS}`;
      const pairs = [
        ['append', append],
        ['read', read],
      ];
      for (const [name, work] of pairs) {
        const sides = [
          ['long', 'long'],
          ['short', short],
        ];
        for (const [side, id] of turn % 2 ? sides : sides.reverse()) {
          const ms = await work(id);
          if (turn >= 20) times[name][side].push(ms);
        }
      }
    }
    return Object.entries(times).map(([name, { long, short }]) => ({
      name: name === 'append' ? `append at ${LONG} messages` : `read the last 50 of ${LONG} messages`,
      ours: `${median(long).toFixed(2)} ms`,
      other: `at ${SHORT}: ${median(short).toFixed(2)} ms`,
      ratio: median(long) / median(short),
      atMost: 1.25,
    }));
  } finally {
    connection.close();
    await service.stop();
  }
}
