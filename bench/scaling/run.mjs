/**
 * What sessions cost, and what would saturate first at a thousand, a million and a hundred million of them a day. The
 * costs are measured here, on the built service. Then a simulated crowd holds conversations at a fixed rate, and what the
 * costs foretell for it is compared with what it took; only if they agree is there reason to believe the rest.
 */
import { randomUUID } from 'node:crypto';
import { connect, startServer } from '../support/database.mjs';
import { Connection, request } from '../support/http.mjs';
import { cpuSeconds, startService } from '../support/process.mjs';
import { rate, sleep } from '../support/stats.mjs';

/** A conversation: ten turns, each of them a question, a read of the last messages, and an answer. */
const TURNS = 10;
const QUESTION = 'Could you tell me how far along my order is? I was told that it would be here by Friday.';
const ANSWER = Array.from({ length: 4 }, () => `${QUESTION} It left our house on Monday.`).join(' ');
const READ = 20;
/** The busiest second of a day beside an average one. */
const PEAK = 4;
const PER_DAY = [1e3, 1e6, 1e8];
const CONNECTIONS = 64;
const CALIBRATION_SECONDS = 8;
const SIMULATED_SECONDS = 20;
/** Of what this machine carries, so that the crowd does not have to wait. */
const SIMULATED_LOAD = 0.5;
/** A foretold cost that is further off is of no use. */
const TOLERANCE = 0.3;

const server = await startServer();
const url = await server.database('scaling');
const service = await startService(url, { env: { MAX_SESSIONS: '1000000000' } });
const admin = await connect(url, 'bench');
try {
  const connections = await Promise.all(
    Array.from({ length: CONNECTIONS }, () => Connection.open(service.url)),
  );
  const send = async (client, ...asked) => {
    const { status, body } = await connections[client].send(request(...asked));
    if (status >= 300) throw new Error(`${asked.slice(0, 2).join(' ')}: ${status} ${body}`);
  };
  const messages = (id) => `/v1/sessions/${id}/messages`;
  const steps = {
    create: (client, id) => send(client, 'POST', '/v1/sessions', { id }),
    ask: (client, id) => send(client, 'POST', messages(id), { role: 'user', content: QUESTION }),
    read: (client, id) => send(client, 'GET', `${messages(id)}?order=desc&limit=${READ}`),
    answer: (client, id) => send(client, 'POST', messages(id), { role: 'assistant', content: ANSWER }),
  };

  // Each step alone, on sessions that are there: what is repeated costs what it costs in a conversation.
  const ids = Array.from({ length: CONNECTIONS }, () => randomUUID());
  for (const [client, id] of ids.entries()) {
    await steps.create(client, id);
    for (let n = 0; n < TURNS; n += 1) await steps.answer(client, id);
  }
  const costs = {};
  for (const name of ['create', 'ask', 'read', 'answer']) {
    const work = (client) => steps[name](client, name === 'create' ? randomUUID() : ids[client]);
    await rate(CONNECTIONS, 2, work);
    costs[name] = await measured(async () => {
      let calls = 0;
      await rate(CONNECTIONS, CALIBRATION_SECONDS, async (client) => {
        await work(client);
        calls += 1;
      });
      return calls;
    });
  }
  const conversation = sum([
    costs.create,
    ...[costs.ask, costs.read, costs.answer].map((cost) => times(cost, TURNS)),
  ]);

  // The crowd: conversations that begin at fixed times, whatever became of those before.
  const perSecond = SIMULATED_LOAD / Math.max(conversation.service, conversation.database);
  let late = 0;
  const taken = await measured(async () => {
    const free = connections.map((_, client) => client);
    const begun = performance.now();
    const running = [];
    for (let n = 0; ; n += 1) {
      const due = begun + (n / perSecond) * 1000;
      if (due > begun + SIMULATED_SECONDS * 1000) break;
      await sleep(Math.max(0, due - performance.now()));
      const client = free.shift();
      // More at once than there are connections: it would have begun later.
      if (client === undefined) late += 1;
      else running.push(converse(client).finally(() => free.push(client)));
    }
    await Promise.all(running);
    return running.length;
  });
  async function converse(client) {
    const id = randomUUID();
    await steps.create(client, id);
    for (let turn = 0; turn < TURNS; turn += 1) {
      await steps.ask(client, id);
      await steps.read(client, id);
      await steps.answer(client, id);
    }
  }

  console.log(
    'Costs of a step, and of a conversation: processor time of the service and of PostgreSQL, log, disk\n',
  );
  for (const [name, cost] of Object.entries({ ...costs, conversation })) console.log(line(name, cost));
  console.log(`\nA crowd of ${perSecond.toFixed(1)} conversations a second (${late} began late)\n`);
  console.log(line('foretold', conversation));
  console.log(line('taken', taken));
  const off = ['service', 'database', 'log'].filter(
    (what) => Math.abs(taken[what] / conversation[what] - 1) > TOLERANCE,
  );
  if (off.length > 0) {
    console.log(`Further off than ${TOLERANCE * 100} %: ${off.join(', ')}`);
    process.exitCode = 1;
  }
  console.log(`\nIn the busiest second (${PEAK} times the average), with the costs of the crowd\n`);
  for (const perDay of PER_DAY) {
    const peak = (perDay / 86_400) * PEAK;
    console.log(
      [
        `${perDay.toExponential(0)} sessions a day:`,
        `${(peak * 2 * TURNS).toFixed(peak < 1 ? 1 : 0)} appends/s,`,
        `processors: service ${(peak * taken.service).toFixed(2)}, PostgreSQL ${(peak * taken.database).toFixed(2)};`,
        `log ${((peak * taken.log) / 1e6).toFixed(2)} MB/s,`,
        `disk ${((perDay * taken.disk) / 1e9).toFixed(2)} GB a day`,
      ].join(' '),
    );
  }
  for (const connection of connections) connection.close();
} finally {
  await admin.end();
  await service.stop();
  await server.stop();
}

/** What the calls of `work` cost, each. @param work resolves to their number */
async function measured(work) {
  const before = await meters();
  const calls = await work();
  // What read models do for these calls belongs to them, too.
  await caughtUp();
  const after = await meters();
  return Object.fromEntries(Object.keys(before).map((what) => [what, (after[what] - before[what]) / calls]));
}

async function meters() {
  const { rows } = await admin.query(
    `select pg_current_wal_lsn() - '0/0'::pg_lsn as log, pg_database_size(current_database()) as disk,
            array(select pid from pg_stat_activity where pid <> pg_backend_pid()) as pids`,
  );
  const [{ log, disk, pids }] = rows;
  return {
    service: cpuSeconds(service.pid),
    database: pids.reduce((seconds, pid) => seconds + (cpuSeconds(pid) ?? 0), 0),
    log: Number(log),
    disk: Number(disk),
  };
}

async function caughtUp() {
  for (;;) {
    const { rows } = await admin.query(`
      select max(behind) as behind from (
        select sum(e.position - c.position) as behind
        from projection_checkpoint c join lane_ends() e using (lane) group by c.projection
      ) l`);
    if (Number(rows[0].behind) === 0) return;
    await sleep(50);
  }
}

function times(cost, factor) {
  return Object.fromEntries(Object.entries(cost).map(([what, value]) => [what, value * factor]));
}

function sum(all) {
  return all.reduce((total, cost) =>
    Object.fromEntries(Object.entries(total).map(([what, value]) => [what, value + cost[what]])),
  );
}

function line(name, { service: own, database, log, disk }) {
  const micros = (seconds) => `${(seconds * 1e6).toFixed(0)} µs`.padStart(9);
  const bytes = (count) => `${(count / 1000).toFixed(1)} kB`.padStart(9);
  return `${name.padEnd(13)} ${micros(own)} ${micros(database)} ${bytes(log)} ${bytes(disk)}`;
}
