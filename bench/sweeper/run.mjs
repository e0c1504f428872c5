import 'reflect-metadata';
import { product } from '../support/product.mjs';
import { connect, databaseSeconds, startServer } from '../support/database.mjs';
import { WrittenSession } from '../support/messages.mjs';
import { median, rate, timed } from '../support/stats.mjs';

/**
 * node bench/sweeper/run.mjs [due] [idle] [foreground]: runs the named measures, or all three.
 * DUE=100000 due sessions, IDLE=1000000 sessions of which none is due.
 */
const { NestFactory } = product('@nestjs/core');
const { AppModule } = product('dist/app.module.js');
const { loadConfig } = product('dist/config.js');
const { EventLog } = product('dist/event-store/log.js');
const { Sweeper } = product('dist/sweeper/sweeper.js');
const { SessionCommands } = product('dist/sessions/session-commands.js');
const { CreateSession } = product('dist/domain/session.commands.js');
const { ReadModels } = product('dist/projection-engine/strong-reads.js');
const { SESSIONS } = product('dist/read-models/sessions.projection.js');

const HOUR = 3_600_000;
const DUE = Number(process.env.DUE ?? 100_000);
const IDLE = Number(process.env.IDLE ?? 1_000_000);
const wanted = process.argv.slice(2);
const wants = (name) => wanted.length === 0 || wanted.includes(name);

async function startNode(url, settings) {
  const config = loadConfig({ env: {}, cwd: '/nonexistent', overrides: settings });
  const app = await NestFactory.createApplicationContext(AppModule.create(config, url), { logger: false });
  return {
    app,
    sweeper: app.get(Sweeper),
    commands: app.get(SessionCommands),
    store: app.get(EventLog),
    models: app.get(ReadModels),
  };
}

const setClock = async (url, offsetMs) => {
  const client = await connect(url, 'bench');
  await client.query(`create or replace function colloquy_now() returns timestamptz language sql volatile as
    $$ select date_trunc('milliseconds', clock_timestamp() + ${offsetMs} * interval '1 millisecond') $$`);
  await client.end();
};

/**
 * Seconds of processor time of this process and of the database's processes. On a busy machine they vary less than
 * elapsed time.
 */
async function cpu(url) {
  const { user, system } = process.cpuUsage();
  return { node: (user + system) / 1e6, database: await databaseSeconds(url) };
}

async function create(node, count, tenantOf = () => 'default') {
  let next = 0;
  await Promise.all(
    Array.from({ length: 256 }, async () => {
      for (let index = next++; index < count; index = next++) {
        const session = { tenant: tenantOf(index), sessionId: `s${index}` };
        const by = { actor: 'bench', correlationId: 'bench' };
        await node.commands.handle(session, new CreateSession({ title: `Session ${index}` }), by);
      }
    }),
  );
  for (;;) {
    try {
      await node.models.read(SESSIONS, await node.models.ends(), 'select 1 as one', []);
      return;
    } catch (error) {
      if (error.code !== 'projection-lagging') throw error;
    }
  }
}

const server = await startServer();
const many = { sessions: { maxSessions: 1_000_000_000, sessionTTL: HOUR } };
try {
  if (wants('due')) {
    const url = await server.database('sweep_due');
    const node = await startNode(url, many);
    await create(node, DUE);
    await setClock(url, 2 * HOUR);
    const before = await cpu(url);
    const report = await node.sweeper.sweep('all');
    const after = await cpu(url);
    const perSecond = (report.swept.ttl / report.durationMs) * 1000;
    console.log(
      `due, alone: ${report.swept.ttl} of ${DUE} sessions in ${report.durationMs} ms: ${Math.round(perSecond)}/s (wanted 8000)`,
    );
    const used = (who) => Math.round(((after[who] - before[who]) * 1e6) / report.swept.ttl);
    console.log(
      `  processor time of one: ${used('node')} µs of the service, ${used('database')} µs of the database`,
    );
    await node.app.close();
  }

  if (wants('foreground')) {
    const url = await server.database('sweep_foreground');
    const node = await startNode(url, many);
    await create(node, DUE);
    for (const writers of [64, 256]) {
      const foreground = () => {
        const sessions = new Map();
        return async (writer) => {
          let own = sessions.get(writer);
          if (!own || own.length >= 50)
            sessions.set(
              writer,
              (own = { session: new WrittenSession(node.store, `f-${Math.random()}`), length: 0 }),
            );
          own.length += 1;
          await own.session.append();
        };
      };
      await setClock(url, 0);
      const seconds = 4;
      await rate(writers, 1, foreground());
      const ratios = [];
      for (let round = 0; round < 3; round += 1) {
        await setClock(url, 0);
        const alone = await rate(writers, seconds, foreground());
        await setClock(url, 2 * HOUR);
        const before = node.sweeper.status().totals.ttl;
        let going = true;
        const sweeping = (async () => {
          while (going) await node.sweeper.sweep('all');
        })();
        const beside = await rate(writers, seconds, foreground());
        const swept = node.sweeper.status().totals.ttl - before;
        going = false;
        // The sweep ends at the next page. The remaining sessions are swept without a foreground.
        node.sweeper.stopped = true;
        await sweeping;
        node.sweeper.stopped = false;
        ratios.push(beside / alone);
        console.log(
          `foreground of ${writers}: ${Math.round(alone)}/s alone, ${Math.round(beside)}/s beside a sweep: ${(beside / alone).toFixed(2)}; swept ${Math.round(swept / seconds)}/s`,
        );
      }
      console.log(`foreground of ${writers}: keeps ${median(ratios).toFixed(2)} (wanted 0.7)`);
    }
    await node.app.close();
  }

  if (wants('idle')) {
    // The rows are written by SQL as the projection would write them, because creating a million sessions would take
    // minutes.
    for (const tenants of [1, 10_000, 100_000]) {
      const url = await server.database(`sweep_idle_${tenants}`);
      const node = await startNode(url, many);
      const client = await connect(url, 'bench', { statementMs: 600_000 });
      await client.query(
        `insert into ${SESSIONS} (tenant, session_id, incarnation, version, status, metadata, message_count, created_at,
           last_activity_at, lane, since, legal_hold, input_tokens, output_tokens, cached_tokens, reasoning_tokens)
         select 't' || n % $2, 's' || n, 1, 3, 'active', '{}', 2, t, t + interval '100 s', n % 16, t, false, 0, 0, 0, 0
         from (select n, colloquy_now() - random() * interval '50 min' as t from generate_series(1, $1::int) n) s`,
        [IDLE, tenants],
      );
      await client.query(
        `insert into counter select 'active:t' || n, $1::int / $2::int from generate_series(0, $2::int - 1) n`,
        [IDLE, tenants],
      );
      await client.query('vacuum analyze');
      for (let round = 0; round < 5; round += 1) await node.sweeper.sweep();
      const times = [];
      const before = await cpu(url);
      for (let round = 0; round < 50; round += 1) times.push(await timed(() => node.sweeper.sweep()));
      const after = await cpu(url);
      const used = (after.node - before.node + after.database - before.database) * 20;
      console.log(
        `idle, ${IDLE} sessions of ${tenants} tenants: ${median(times).toFixed(1)} ms, longest ${Math.max(...times).toFixed(1)} ms (wanted 20); processor time ${used.toFixed(1)} ms`,
      );
      await client.end();
      await node.app.close();
    }
  }
} finally {
  await server.stop();
}
process.exit(0);
