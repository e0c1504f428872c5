/**
 * Durable appends over HTTP to a service of two processes, beside one of a single process: with clients that each write
 * to sessions of their own, and with clients that all write to the same sessions. By turns, on databases of their own.
 */
import { startServer } from '../support/database.mjs';
import { ask, Connection, request } from '../support/http.mjs';
import { CONTENT } from '../support/messages.mjs';
import { startService } from '../support/process.mjs';
import { median, rate, sleep } from '../support/stats.mjs';

const CONNECTIONS = 64;
const SESSIONS_EACH = 3;
const ROUNDS = 6;
const SECONDS = 5;
/** The read models of one service must not be caught up while the other one is measured. */
const REST_MS = 3_000;

const server = await startServer();
const services = [];
try {
  for (const processes of ['1', '2']) {
    const url = await server.database(`processes_${processes}`);
    const service = await startService(url, { env: { COLLOQUY_PROCESSES: processes } });
    services.push({ processes, service, rates: { own: [], same: [] } });
  }
  const count = CONNECTIONS * SESSIONS_EACH;
  const requests = Array.from({ length: count }, (_, n) =>
    request('POST', `/v1/sessions/session-${n}/messages`, { role: 'user', content: CONTENT }),
  );
  for (const one of services) {
    one.connections = await Promise.all(
      Array.from({ length: CONNECTIONS }, () => Connection.open(one.service.url)),
    );
    for (let n = 0; n < count; n += 1) {
      // By each of them: the service closes a connection on which no request has come for 15 seconds.
      await ask(one.connections[n % CONNECTIONS], 'POST', '/v1/sessions', { id: `session-${n}` });
    }
  }
  let next = 0;
  const choose = {
    own: (client) => client * SESSIONS_EACH + (next % SESSIONS_EACH),
    same: () => next % count,
  };
  for (let round = 0; round <= ROUNDS; round += 1) {
    for (const { connections, rates } of round % 2 ? services : services.toReversed()) {
      for (const [kind, session] of Object.entries(choose)) {
        const done = await rate(CONNECTIONS, SECONDS, async (client) => {
          next += 1;
          const { status } = await connections[client].send(requests[session(client)]);
          if (status !== 201) throw new Error(`answered ${status}`);
        });
        await sleep(REST_MS);
        // The first round warms up.
        if (round > 0) rates[kind].push(done);
      }
    }
  }
  const [one, two] = services;
  for (const [kind, what] of [
    ['own', 'each client has sessions of its own'],
    ['same', 'all clients write to the same sessions'],
  ]) {
    const [alone, together] = [one, two].map(({ rates }) => median(rates[kind]));
    console.log(
      `${what}: 1 process ${alone.toFixed(0)}/s, 2 processes ${together.toFixed(0)}/s, ratio ${(together / alone).toFixed(2)}`,
    );
  }
} finally {
  for (const { service, connections = [] } of services) {
    for (const connection of connections) connection.close();
    await service.stop();
  }
  await server.stop();
}
