import 'reflect-metadata';
import { product } from '../support/product.mjs';
import { connect, startServer } from '../support/database.mjs';

/**
 * node --expose-gc bench/generation/run.mjs: runs GENERATIONS=200000 generations in one process, and shows the leases
 * and the memory that they leave behind.
 */
const { createService } = product('dist/service.js');
const { loadConfig } = product('dist/config.js');
const { createLogger } = product('dist/logging.js');
const { Leases } = product('dist/event-store/leases.js');

const GENERATIONS = Number(process.env.GENERATIONS ?? 20_000);
const CONCURRENCY = 64;
const REPORTS = 10;

const server = await startServer();
try {
  const url = await server.database('generations');
  const config = loadConfig({
    env: {},
    cwd: '/nonexistent',
    overrides: {
      storage: { database: { type: 'postgresql', url } },
      sessions: { maxSessions: 1_000_000_000 },
      llm: { provider: 'echo' },
    },
  });
  const { app, stop } = await createService(config, { logger: createLogger('error') });
  const fastify = app.getHttpAdapter().getInstance();
  await fastify.ready();
  const held = app.get(Leases);
  const admin = await connect(url, 'bench');
  // A session has 20 turns, and then a new one is used, so that prompts stay short.
  const turn = async (index) => {
    const { statusCode, body } = await fastify.inject({
      method: 'POST',
      url: '/v1/chat',
      payload: {
        message: 'Hello',
        sessionId: `s${index % CONCURRENCY}-${Math.floor(index / CONCURRENCY / 20)}`,
      },
    });
    if (statusCode !== 200) throw new Error(`${statusCode}: ${body}`);
  };

  console.log(
    'generations | per second | leases held | lease rows of generations | heap after a collection, MB',
  );
  let done = 0;
  for (let report = 1; report <= REPORTS; report += 1) {
    const until = Math.round((GENERATIONS * report) / REPORTS);
    const began = performance.now();
    const first = done;
    await Promise.all(
      Array.from({ length: CONCURRENCY }, async (_, worker) => {
        for (let index = first + worker; index < until; index += CONCURRENCY) await turn(index);
      }),
    );
    done = until;
    const perSecond = Math.round(((done - first) / (performance.now() - began)) * 1000);
    // Leases are released after the answers were sent.
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    globalThis.gc?.();
    const { rows } = await admin.query(
      "select count(*)::int as rows from lease where name like 'generation:%'",
    );
    const names = [...held.held.keys()].filter((name) => name.startsWith('generation:')).length;
    const heap = (process.memoryUsage().heapUsed / 2 ** 20).toFixed(1);
    console.log([done, perSecond, names, rows[0].rows, heap].join(' | '));
  }
  await admin.end();
  await stop();
} finally {
  await server.stop();
}
process.exit(0);
