import { type Pool, type QueryConfig } from 'pg';
import { CreateSession } from '../../../src/domain/session.commands.js';
import { tableOf } from '../../../src/projection-engine/projection.js';
import { ReadModels } from '../../../src/projection-engine/strong-reads.js';
import {
  historyProjection,
  type PageOfHistory,
  readHistory,
  readHistoryIfUnmoved,
} from '../../../src/read-models/history.projection.js';
import {
  dueErasures,
  tenantsWithUnplanned,
  unplannedErasures,
} from '../../../src/read-models/erasure-candidates.js';
import { SESSIONS } from '../../../src/read-models/sessions.projection.js';
import { sessionUsage, usageProjection } from '../../../src/read-models/usage.projection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { openWatched, planOf } from '../../support/plans.js';
import { Node, TENANT } from '../projection-engine/fixture.js';

const ROWS = 20_000;
const LONG = 'long';
const HISTORY = tableOf(historyProjection);
const USAGE = tableOf(usageProjection);

let db: TestDatabase;
let node: Node;
let pool: Pool;
let models: ReadModels;
let last: QueryConfig;

beforeAll(async () => {
  db = await createTestDatabase();
  node = await Node.start(db.url);
  await node.handle(LONG, new CreateSession());
  await eventually(async () => (await node.projector.lag()).every(({ behind }) => behind === 0));
  // Rows as if the session had gone on for long, beside many other sessions. There are no statistics of any of them.
  await db.query(
    `insert into ${HISTORY} (tenant, session_id, version, incarnation, message)
     select $1, case when n % 2 = 0 then $2 else 's' || n % 500 end, n + 1, 1,
            case when n % 500 = 1 then null else json_build_object('version', n + 1) end
     from generate_series(1, $3) as n`,
    [TENANT, LONG, ROWS],
  );
  await db.query(
    `insert into ${USAGE} (tenant, session_id, model, day, generations, input_tokens, output_tokens, cached_tokens,
                           reasoning_tokens)
     select $1, case when n <= 20 then $2 else 's' || n end, 'model-' || n % 4, date '2026-01-01' + n % 5, 1, 1, 1, 1, 1
     from generate_series(1, $3) as n on conflict do nothing`,
    [TENANT, LONG, ROWS],
  );
  // One half has ended and is not planned, the other is to be erased later, but for one in a thousand.
  await db.query(
    `insert into ${SESSIONS} (tenant, session_id, incarnation, version, status, metadata, message_count, created_at,
       last_activity_at, lane, since, legal_hold, input_tokens, output_tokens, cached_tokens, reasoning_tokens, keys,
       ended_at, policy_erase_at, erase_after)
     select case when n % 3 = 0 then $1 else 't' || n % 50 end, 'e' || n, 1, 1, 'deleted', '{}', 0, now(), now(), n % 16,
            now(), false, 0, 0, 0, 0, '{}', now(),
            case when n % 2 = 0 then now() + (case when n % 1000 = 0 then -1 else 1 end) * interval '1 day' end,
            case when n % 2 = 0 then 1000 end
     from generate_series(1, $2) as n`,
    [TENANT, ROWS],
  );
  pool = openWatched(db.url, (statement) => {
    last = statement;
  });
  models = new ReadModels(pool, node.store);
}, 60_000);
afterAll(async () => {
  await pool.end();
  await node.stop();
  await db.drop();
});

/** Most rows that one step of the last statement's plan has worked on. */
async function mostRows(): Promise<number> {
  const plan = await planOf(pool, last);
  expect(plan).not.toMatch(/Seq Scan/);
  const counts = [...plan.matchAll(/actual rows=([\d.]+) loops=(\d+)/g)];
  expect(counts.length).toBeGreaterThan(2);
  return Math.max(...counts.map(([, rows, loops]) => Number(rows) * Number(loops)));
}

const page = (more: Partial<PageOfHistory>): PageOfHistory => ({
  ...{ tenant: TENANT, sessionId: LONG, incarnation: 1, at: ROWS + 1, order: 'desc', limit: 20 },
  ...more,
});

it.each([
  ['the last messages', page({})],
  ['the first messages', page({ order: 'asc' })],
  ['a page in the middle', page({ after: ROWS / 2 })],
  ['a page in the middle, forwards', page({ order: 'asc', after: ROWS / 2 })],
  ['the last messages at an earlier version', page({ at: ROWS / 2 })],
])(
  'given a long session among many, when it is asked for %s, then an index leads to the rows of the page',
  async (_, asked) => {
    const found = await readHistory(models, 'eventual', asked);
    expect(JSON.parse(found?.messages ?? '[]')).toHaveLength(20);
    expect(await mostRows()).toBeLessThanOrEqual(25);
  },
);

it('given a session whose end is known, when its last messages are read, then an index leads to them and to the end', async () => {
  const { state, ...place } = await node.load(LONG);
  const found = await readHistoryIfUnmoved(models, { ...place, version: state.version }, page({}));
  expect(found).not.toBe('moved');
  expect(await mostRows()).toBeLessThanOrEqual(25);
});

it('given the usage of many sessions, when that of one is read, then an index leads to its rows', async () => {
  expect(await sessionUsage(models, 'eventual', TENANT, LONG)).toHaveLength(20);
  expect(await mostRows()).toBeLessThanOrEqual(25);
});

const lanes = Array.from({ length: 16 }, (_, lane) => lane);
const page20 = { limit: 20 };
const few = Array.from({ length: 50 }, (_, index) => ({ tenant: `t${index}`, eraseAfter: 1000 }));
it.each([
  [
    'not planned, of a tenant',
    () => unplannedErasures(models, 'new', { lanes, eraseAfter: 1, tenants: { tenant: TENANT } }, page20),
  ],
  [
    'not planned, of all tenants',
    () => unplannedErasures(models, 'new', { lanes, eraseAfter: 1, tenants: { but: ['t1'] } }, page20),
  ],
  [
    'planned by another setting, of a tenant',
    () => unplannedErasures(models, 'changed', { lanes, eraseAfter: 1, tenants: { tenant: TENANT } }, page20),
  ],
  ['due', () => dueErasures(models, 'byPolicy', lanes, page20)],
  ['asked for', () => dueErasures(models, 'requested', lanes, page20)],
  ['of tenants with something to plan', () => tenantsWithUnplanned(models, few)],
])(
  'given many sessions that have ended, when the sweeper asks for those that are %s, then an index leads to them',
  async (_what, ask) => {
    await ask();
    expect(await mostRows()).toBeLessThan(120);
  },
);
