/**
 * What sessions cost, and what would saturate first at a thousand, a million and a hundred million of them a day. A
 * simulated crowd holds conversations at two fixed rates, which gives a cost for each conversation and one for each
 * second; these are checked by a third rate. How much cheaper a busy machine is, because those that come together share
 * commits, is shown by as many conversations as go.
 */
import { randomUUID } from 'node:crypto';
import { connect, lag, startServer } from '../support/database.mjs';
import { Connection, request } from '../support/http.mjs';
import { cpuSeconds, cpuSecondsOfAll, startService } from '../support/process.mjs';
import { rate, sleep } from '../support/stats.mjs';

/** A conversation: ten turns, each of them a question, a read of the last messages, and an answer. */
const TURNS = 10;
const QUESTION = 'Could you tell me how far along my order is? I was told that it would be here by Friday.';
const ANSWER = Array.from({ length: 4 }, () => `${QUESTION} It left our house on Monday.`).join(' ');
const READ = 20;
/** The busiest second of a day beside an average one. */
const PEAK = 4;
const PER_DAY = [1e3, 1e6, 1e8];
/** Conversations a second by which the costs are found, and those by which they are checked. */
const FOUND_AT = [8, 32];
const CHECKED_AT = 20;
const SECONDS = 20;
/** Conversations at the same time where as many are held as the machine carries. */
const FULL = 64;
/** Costs that are further off foretell nothing. */
const TOLERANCE = 0.2;

const server = await startServer();
const url = await server.database('scaling');
const service = await startService(url, { env: { MAX_SESSIONS: '1000000000' } });
const admin = await connect(url, 'bench');
try {
  const connections = await Promise.all(Array.from({ length: FULL }, () => Connection.open(service.url)));
  const send = async (client, ...asked) => {
    const { status, body } = await connections[client].send(request(...asked));
    if (status >= 300) throw new Error(`${asked.slice(0, 2).join(' ')}: ${status} ${body}`);
  };
  const converse = async (client) => {
    const id = randomUUID();
    const messages = `/v1/sessions/${id}/messages`;
    await send(client, 'POST', '/v1/sessions', { id });
    for (let turn = 0; turn < TURNS; turn += 1) {
      await send(client, 'POST', messages, { role: 'user', content: QUESTION });
      await send(client, 'GET', `${messages}?order=desc&limit=${READ}`);
      await send(client, 'POST', messages, { role: 'assistant', content: ANSWER });
    }
  };
  /** Conversations that begin at fixed times, whatever has become of those before. */
  const crowd = async (perSecond) => {
    const free = connections.map((_, client) => client);
    const running = [];
    const begun = performance.now();
    for (let n = 0; n < perSecond * SECONDS; n += 1) {
      await sleep(Math.max(0, begun + (n / perSecond) * 1000 - performance.now()));
      const client = free.shift();
      if (client === undefined) throw new Error(`${perSecond} conversations a second are too many here`);
      running.push(converse(client).finally(() => free.push(client)));
    }
    await Promise.all(running);
    return running.length;
  };

  await rate(FULL, 3, converse);
  const full = await measured(async () => {
    let held = 0;
    await rate(FULL, SECONDS, async (client) => {
      await converse(client);
      held += 1;
    });
    return held;
  });
  const [few, many] = [await measured(() => crowd(FOUND_AT[0])), await measured(() => crowd(FOUND_AT[1]))];
  // So much for each conversation, and so much for each second, whatever is going on.
  const each = {};
  const idle = {};
  for (const what of Object.keys(few)) {
    each[what] = (many[what] * FOUND_AT[1] - few[what] * FOUND_AT[0]) / (FOUND_AT[1] - FOUND_AT[0]);
    idle[what] = (few[what] - each[what]) * FOUND_AT[0];
  }
  const foretold = Object.fromEntries(
    Object.keys(each).map((what) => [what, each[what] + idle[what] / CHECKED_AT]),
  );
  const taken = await measured(() => crowd(CHECKED_AT));
  const { rows: tables } = await admin.query(
    `select regexp_replace(relname, '_(lane_\\d+|v\\d+)$', '') as name,
            sum(pg_total_relation_size(oid)) / pg_database_size(current_database()) as share
     from pg_class where relkind = 'r' and relnamespace = current_schema()::regnamespace
     group by 1 having sum(pg_total_relation_size(oid)) > 0.02 * pg_database_size(current_database()) order by 2 desc`,
  );
  connections.forEach((connection) => connection.close());

  console.log('A conversation: processor time of the service and of PostgreSQL, log, disk\n');
  console.log(line(`${FOUND_AT[0]} a second`, few));
  console.log(line(`${FOUND_AT[1]} a second`, many));
  console.log(line(`as many as go (${(1 / full.seconds).toFixed(0)}/s)`, full));
  console.log(line(`${CHECKED_AT} a second`, taken));
  console.log(line('  foretold', foretold));
  const shares = tables.map(({ name, share }) => `${name} ${(share * 100).toFixed(0)} %`);
  console.log(`\nOf the disk: ${shares.join(', ')}`);
  const off = ['service', 'database', 'log'].filter(
    (what) => Math.abs(taken[what] / foretold[what] - 1) > TOLERANCE,
  );
  if (off.length > 0) {
    console.log(`further off than ${TOLERANCE * 100} %: ${off.join(', ')}`);
    process.exitCode = 1;
  }
  console.log(
    `\nThe busiest second, ${PEAK} times an average one; from the costs of a busy machine to those of this crowd\n`,
  );
  for (const perDay of PER_DAY) {
    const peak = (perDay / 86_400) * PEAK;
    const range = (what) =>
      [full[what] * peak, each[what] * peak + idle[what]].map((value) => value.toPrecision(2)).join(' to ');
    console.log(
      `${perDay.toExponential(0)} sessions a day: ${(peak * 2 * TURNS).toPrecision(3)} appends/s, processors: ` +
        `service ${range('service')}, PostgreSQL ${range('database')}; log ${((peak * full.log) / 1e6).toPrecision(2)} MB/s, ` +
        `disk ${((perDay * full.disk) / 1e9).toPrecision(2)} GB a day`,
    );
  }
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
  while ((await lag(admin)) > 0) await sleep(50);
  const after = await meters();
  return Object.fromEntries(Object.keys(before).map((what) => [what, (after[what] - before[what]) / calls]));
}

async function meters() {
  const { rows } = await admin.query(
    `select pg_current_wal_lsn() - '0/0'::pg_lsn as log, pg_database_size(current_database()) as disk`,
  );
  const [{ log, disk }] = rows;
  return {
    seconds: performance.now() / 1000,
    service: cpuSeconds(service.pid),
    database: cpuSecondsOfAll(server.pid),
    log: Number(log),
    disk: Number(disk),
  };
}

function line(name, { service: own, database, log, disk }) {
  const micros = (seconds) => `${(seconds * 1e6).toFixed(0)} µs`.padStart(9);
  const bytes = (count) => `${(count / 1000).toFixed(1)} kB`.padStart(9);
  return `${name.padEnd(24)} ${micros(own)} ${micros(database)} ${bytes(log)} ${bytes(disk)}`;
}
