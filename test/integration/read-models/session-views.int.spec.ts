import { type Pool, type QueryConfig } from 'pg';
import { arrayLiteral } from '../../../src/database/array-literal.js';
import { ReadModels } from '../../../src/projection-engine/strong-reads.js';
import { keyOfValue, keysOfSession } from '../../../src/read-models/session-keys.js';
import {
  listSessions,
  type SessionFilter,
  type SessionView,
} from '../../../src/read-models/session-views.js';
import { SESSIONS } from '../../../src/read-models/sessions.projection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { openWatched, planOf } from '../../support/plans.js';
import { seeded, sized } from '../event-store/fixture.js';
import { Node } from '../projection-engine/fixture.js';

const SESSIONS_OF_TENANT = sized(20_000, 5_000);
const TENANT = 'large';

let db: TestDatabase;
let node: Node;
let pool: Pool;
let models: ReadModels;
let last: QueryConfig;

/** The values of the metadata come from the session's number, so that a test can tell which sessions match. */
beforeAll(async () => {
  db = await createTestDatabase();
  node = await Node.start(db.url);
  await db.query(
    `insert into ${SESSIONS} (tenant, session_id, incarnation, version, status, title, metadata, message_count, created_at,
       last_activity_at, lane, since, legal_hold, input_tokens, output_tokens, cached_tokens, reasoning_tokens, keys)
     select case when n % 3 = 0 then 'other' else $1 end, 's' || n, 1, 1,
            (array['active', 'active', 'expired', 'deleted'])[n % 4 + 1],
            case when n % 5 = 0 then null else 'Order ' || n || ' of Zoë' end,
            jsonb_build_object('plan', (array['free', 'pro'])[n % 2 + 1], 'number', n, 'part', n / 700, 'flag', n % 7 = 0,
                               'note', jsonb_build_object('text', '漢字 100% \\ "' || n || '"')),
            1, t.at, t.at, 0, t.at, false, 0, 0, 0, 0, '{}'
     from generate_series(1, $2) n, lateral (select date_trunc('milliseconds', now()) + n / 3 * interval '1 millisecond' as at) t`,
    [TENANT, Math.floor(SESSIONS_OF_TENANT * 1.5)],
  );
  await fillKeys();
  pool = openWatched(db.url, (statement) => {
    last = statement;
  });
  models = new ReadModels(pool, node.store);
}, 120_000);
afterAll(async () => {
  await pool.end();
  await node.stop();
  await db.drop();
});

/** As the projection makes them. */
async function fillKeys(): Promise<void> {
  const rows = await db.query<{ tenant: string; session_id: string; title: string | null; metadata: object }>(
    `select tenant, session_id, title, metadata from ${SESSIONS}`,
  );
  for (let from = 0; from < rows.length; from += 1_000) {
    const part = rows.slice(from, from + 1_000);
    await db.query(
      `update ${SESSIONS} s set keys = k.keys::integer[]
       from unnest($1::text[], $2::text[], $3::text[]) as k (tenant, session_id, keys)
       where s.tenant = k.tenant and s.session_id = k.session_id`,
      [
        part.map((row) => row.tenant),
        part.map((row) => row.session_id),
        part.map((row) => arrayLiteral(keysOfSession(row.tenant, row.title, row.metadata))),
      ],
    );
  }
}

const list = (filter: Partial<SessionFilter>) =>
  listSessions(models, 'eventual', TENANT, { status: 'all', limit: 50, ...filter });

/** All pages of a filter. */
async function all(filter: Partial<SessionFilter>): Promise<SessionView[]> {
  const found: SessionView[] = [];
  for (let page = await list(filter); page.length > 0;) {
    found.push(...page);
    const { createdAt, id } = page.at(-1) as SessionView;
    page = await list({ ...filter, after: { createdAt, id } });
  }
  return found;
}

const plan = (): Promise<string> => planOf(pool, last);

describe('a list of sessions', () => {
  it('given filters of all kinds, when all pages are read, then they are the sessions that match, in order, once', async () => {
    const random = seeded();
    const everything = await all({});
    expect(everything).toHaveLength((SESSIONS_OF_TENANT * 3) / 4);
    const pick = <T>(choices: readonly T[]): T => choices[random(choices.length)] as T;
    for (let round = 0; round < sized(60, 20); round += 1) {
      const number = random(SESSIONS_OF_TENANT);
      const q = pick([
        undefined,
        undefined,
        'zoë',
        'ORDER',
        `order ${number}`,
        '漢字',
        '字 100%',
        '%',
        '\\ "',
        'nothing',
        'or',
      ]);
      const metadata = pick([
        {},
        { plan: pick(['free', 'pro', 'gold']) },
        { number: String(number) },
        { part: String(random(12)), flag: 'true' },
        { plan: 'free', part: '3' },
        { note: 'x' },
      ]);
      const status = pick(['all', 'all', 'active', 'expired'] as const);
      const order = pick(['asc', 'desc'] as const);
      if (q === undefined && Object.keys(metadata).length === 0) continue;

      const found = await all({ q, metadata, status, order, limit: 200 });

      const ordered = order === 'asc' ? everything : everything.toReversed();
      const matching = ordered.filter((session) => {
        const text = (value: unknown) =>
          typeof value === 'object' ? undefined : JSON.stringify(value).replaceAll('"', '');
        const values = session.metadata as Record<string, unknown>;
        const note = (values['note'] as { text: string }).text;
        const haystack = [session.title ?? '', ...Object.values(values).map((value) => text(value) ?? '')];
        const wanted = q?.toLowerCase();
        return (
          (status === 'all' || session.status === status) &&
          (wanted === undefined ||
            haystack.some((one) => one.toLowerCase().includes(wanted)) ||
            // A nested value is searched as its JSON.
            JSON.stringify({ text: note }).replace('":"', '": "').toLowerCase().includes(wanted)) &&
          Object.entries(metadata).every(([name, value]) => text(values[name]) === value)
        );
      });
      expect([q, metadata, status, found.map(({ id }) => id)]).toEqual([
        q,
        metadata,
        status,
        matching.map(({ id }) => id),
      ]);
    }
  }, 120_000);

  it('given no filter, when all pages are read from the newest on, then they are those from the oldest on, turned round', async () => {
    const forwards = await all({ limit: 333 });
    const backwards = await all({ limit: 333, order: 'desc' });
    expect(backwards.map(({ id }) => id)).toEqual(forwards.map(({ id }) => id).reverse());
  });

  it.each<[string, Partial<SessionFilter>, string]>([
    ['no filter', {}, `${SESSIONS}_created`],
    ['no filter, from the newest on', { order: 'desc' }, `${SESSIONS}_created`],
    ['a text that one session has, from the newest on', { q: 'Order 2 ', order: 'desc' }, `${SESSIONS}_keys`],
    ['a text that no session has', { q: 'nowhere to be found' }, `${SESSIONS}_keys`],
    ['a text that one session has', { q: `Order ${SESSIONS_OF_TENANT - 2} ` }, `${SESSIONS}_keys`],
    ['metadata that no session has', { metadata: { plan: 'gold' } }, `${SESSIONS}_keys`],
    ['metadata that half of the sessions have', { metadata: { plan: 'pro' } }, `${SESSIONS}_created`],
  ])(
    'given a table without statistics, when it is listed by %s, then few rows are read',
    async (_what, filter, index) => {
      await list(filter);
      const text = await plan();
      expect(text).toContain(index);
      expect(text).not.toMatch(/Seq Scan/);
      const rows = [...text.matchAll(/actual rows=([\d.]+) loops=(\d+)/g)].map(
        ([, count, loops]) => Number(count) * Number(loops),
      );
      expect(Math.max(...rows)).toBeLessThanOrEqual(5_000);
      // A look at the next sessions in their order, at most: all rows of the tenant are more.
      const scanned = [...text.matchAll(/(?:Index Scan|Heap Scan).*actual rows=([\d.]+)/g)].map(([, count]) =>
        Number(count),
      );
      expect(scanned.length).toBeGreaterThan(0);
      expect(Math.max(...scanned)).toBeLessThanOrEqual(3_000);
    },
  );
});

it.each<[unknown]>([
  ['text'],
  [12.5],
  [1e21],
  [1e-7],
  [-0],
  [true],
  [[1, 'two', null, { a: [] }]],
  [{ bb: 1, a: { c: 'x"\\\n\u0001ä漢', ab: false }, ä: [] }],
])(
  'given the value %j in the metadata, when keys are made of it, then they are those of the text that PostgreSQL gives it',
  async (value) => {
    const [row] = await db.query<{ text: string }>(`select $1::jsonb ->> 'k' as text`, [
      JSON.stringify({ k: value }),
    ]);
    expect(keysOfSession('t', null, { k: value })).toContain(keyOfValue('t', 'k', row?.text ?? ''));
  },
);
