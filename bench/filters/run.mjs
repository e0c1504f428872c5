/**
 * How long a page of a filtered list takes at 200 000 sessions of one tenant, beside a page without a filter. The
 * sessions are put into the read model as the projector does it; there are no statistics of its table.
 */
import { randomUUID } from 'node:crypto';
import { startServer } from '../support/database.mjs';
import { product } from '../support/product.mjs';
import { openReadModel } from '../support/read-model.mjs';
import { quantile, timed } from '../support/stats.mjs';
import { present } from '../support/table.mjs';

const SESSIONS = Number(process.argv[2] ?? 200_000);
const BATCH = 500;
const CALLS = 60;
const TARGET_MS = 20;

const { sessionsProjection, SESSIONS: TABLE } = product('dist/read-models/sessions.projection.js');
const { listSessions } = product('dist/read-models/session-views.js');

/** The event of a session of its own. */
const created = (n, start) => ({
  type: 'SessionCreated',
  tenant: 'default',
  streamId: `session-${n}`,
  incarnation: 1,
  version: 1,
  lane: n % 16,
  time: new Date(start + n).toISOString(),
  data: {
    title: `Question ${n} about order ${randomUUID()}`,
    metadata: { customer: n, plan: ['free', 'pro'][n % 2], region: `region-${n % 50}` },
  },
});

const server = await startServer();
try {
  const readModel = await openReadModel(server, sessionsProjection);
  const { database, models } = readModel;
  const start = Date.now();
  const filling = await timed(async () => {
    for (let first = 1; first <= SESSIONS; first += BATCH) {
      await readModel.write(Array.from({ length: BATCH }, (_, index) => created(first + index, start)));
    }
  });
  console.error(`${SESSIONS} sessions in ${(filling / 1000).toFixed(0)} s`);
  const middle = await database.query(
    `select created_at, session_id from ${TABLE} where session_id = 'session-${SESSIONS / 2}'`,
  );
  const after = { createdAt: middle.rows[0].created_at, id: middle.rows[0].session_id };
  const random = (call) => 1 + ((call * 7_919) % SESSIONS);
  const filters = {
    'no filter': () => ({}),
    'no filter, a page in the middle': () => ({ after }),
    'q without a match': (call) => ({ q: `nothing like ${call}` }),
    'q with one match': (call) => ({ q: `question ${random(call)} ` }),
    'q that all match': () => ({ q: 'about order' }),
    'q with one match, of three letters': (call) => ({ q: `${random(call)}`.padStart(3, '#') }),
    'metadata with one match': (call) => ({ metadata: { customer: `${random(call)}` } }),
    'metadata without a match': () => ({ metadata: { plan: 'gold' } }),
    'metadata that half match': () => ({ metadata: { plan: 'pro' } }),
    'metadata that one of 50 match': (call) => ({ metadata: { region: `region-${call % 50}` } }),
    'q and metadata': (call) => ({ q: 'ABOUT', metadata: { customer: `${random(call)}` } }),
  };
  const rows = [];
  for (const [name, filter] of Object.entries(filters)) {
    const times = [];
    for (let call = 0; call < CALLS; call += 1) {
      const asked = { status: 'all', limit: 50, ...filter(call) };
      const ms = await timed(() => listSessions(models, 'eventual', 'default', asked));
      if (call >= 10) times.push(ms);
    }
    const p95 = quantile(times, 0.95);
    rows.push({
      name,
      ours: `p50 ${quantile(times, 0.5).toFixed(1)} ms, p95 ${p95.toFixed(1)} ms`,
      pass: p95 <= TARGET_MS,
      target: `p95 ≤ ${TARGET_MS} ms`,
    });
  }
  console.log(present(rows));
  process.exitCode = rows.every(({ pass }) => pass) ? 0 : 1;
  await readModel.close();
} finally {
  await server.stop();
}
