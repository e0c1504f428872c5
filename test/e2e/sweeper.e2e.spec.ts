import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Api, eventually, expectProblem } from '../support/http.js';
import { expectCountersMatchLog } from '../support/recount.js';
import { createWorld, FULL, logged, say, texts, type World } from './fixture.js';
import { heavy } from '../support/heavy.js';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

let world: World;
beforeEach(async () => {
  world = await createWorld();
});
afterEach(async () => {
  try {
    await expectCountersMatchLog(world.database);
    // Whatever expires a session, two expiries in a row are wrong, and so is an expiry for idleness that comes too
    // early after the last use.
    expect(
      await world.database.query(
        `select stream_id from (
           select stream_id, type, time, data, lag(type) over w as before,
                  max(time) filter (where type not in ('SessionExpired', 'ErasureScheduled', 'ErasureCancelled'))
                    over (w rows between unbounded preceding and 1 preceding) as used
           from event window w as (partition by tenant, stream_id order by version)
         ) e where type = 'SessionExpired'
           and (before = 'SessionExpired' or used <> (data ->> 'lastActivityAt')::timestamptz)`,
      ),
    ).toEqual([]);
  } finally {
    await world.end();
  }
}, 30_000);

async function createMany(api: Api, count: number): Promise<number[]> {
  const statuses: number[] = [];
  let next = 0;
  await Promise.all(
    Array.from({ length: 32 }, async () => {
      for (let index = next++; index < count; index = next++) {
        statuses.push((await api.post('/v1/sessions', { id: `s${index}` })).status);
      }
    }),
  );
  return statuses;
}

/** Sweeps all sessions that were written before. */
async function sweep(api: Api): Promise<number> {
  // A strong read waits until the read model that the sweeper queries is up to date.
  expect((await api.get('/v1/sessions?limit=1')).status).toBe(200);
  const { status, body } = await api.post<{ swept: { ttl: number } }>('/v1/admin/sweep');
  expect(status).toBe(200);
  return body.swept.ttl;
}

describe('the configuration examples', () => {
  // The examples are copied from the documentation of sessions, with their comments.
  const EXAMPLES = {
    'the defaults': { yaml: `sessions:\n  maxSessions: 100\n  sessionTTL: 3600000\n`, cap: 100, ttl: HOUR },
    'high traffic': {
      yaml: `sessions:\n  maxSessions: 1000\n  sessionTTL: 1800000     # 30 minutes\n`,
      cap: 1000,
      ttl: 30 * MINUTE,
    },
    'low resources': {
      yaml: `sessions:\n  maxSessions: 20\n  sessionTTL: 7200000     # 2 hours\n`,
      cap: 20,
      ttl: 2 * HOUR,
    },
    development: {
      yaml: `sessions:\n  maxSessions: 10\n  sessionTTL: 86400000    # 24 hours (for debugging)\n`,
      cap: 10,
      ttl: 24 * HOUR,
    },
  };

  it.each(Object.entries(EXAMPLES))(
    'given %s, when the service runs with these settings, then cap and time to live apply, and histories are kept for ever',
    async (_name, { yaml, cap, ttl }) => {
      const folder = await world.folder();
      await writeFile(join(folder, 'colloquy.yml'), yaml);
      const { api } = await world.node({}, folder);

      expect(new Set(await createMany(api, cap))).toEqual(new Set([201]));
      const refused = await api.post('/v1/sessions', { id: 'one-too-many' });
      expect(expectProblem(refused, 429, 'session-limit-reached')).toMatchObject({
        activeSessions: cap,
        maxSessions: cap,
      });
      await say(api, 's0', 'do not forget');

      await world.database.setClock({ offsetMs: ttl - MINUTE });
      expect(await sweep(api)).toBe(0);
      await world.database.setClock({ offsetMs: ttl + MINUTE });
      expect(await sweep(api)).toBe(cap);

      expect((await api.get('/v1/sessions/s0')).body).toMatchObject({ status: 'expired', messageCount: 1 });
      await say(api, 's0', 'I am back');
      expect((await api.get('/v1/sessions/s0')).body).toMatchObject({ status: 'active', messageCount: 2 });
      expect(await texts(api, 's0')).toEqual(['do not forget', 'I am back']);
      expect(await texts(api, 's1')).toEqual([]);
    },
    60_000,
  );
});

heavy(
  'given a node that is killed during a sweep, when another node sweeps, then every due session expires once',
  async () => {
    const settings = { MAX_SESSIONS: '100000' };
    const count = FULL ? 20_000 : 4_000;
    const doomed = await world.node(settings);
    const { api } = await world.node(settings);
    await createMany(doomed.api, count);
    await world.database.setClock({ offsetMs: 2 * HOUR });
    await doomed.api.get('/v1/sessions?limit=1');

    const expired = async () => {
      const [row] = await world.database.query<{ count: number }>(
        `select count(*)::int from event where type = 'SessionExpired'`,
      );
      return row?.count ?? 0;
    };
    const cut = doomed.api.post('/v1/admin/sweep').catch(() => 'cut');
    await eventually(async () => (await expired()) > count / 20);
    await doomed.service.kill9();
    expect(await cut).toBe('cut');
    const before = await expired();
    expect(before).toBeLessThan(count);

    // The other node takes the lanes of the read models when the leases of the killed node have expired. Until then a
    // strong read may answer 503.
    await eventually(async () => (await api.get('/v1/sessions?limit=1')).status === 200);
    await sweep(api);
    expect(await expired()).toBe(count);
    // Sessions can be used in the meantime.
    await say(api, 's1', 'still here');
    expect((await logged(world.database, 's1')).map((event) => event.type)).toEqual([
      'SessionCreated',
      'SessionExpired',
      'SessionResumed',
      'MessageAppended',
    ]);
  },
  120_000,
);

heavy(
  'given nodes whose clocks are minutes off, when they sweep, then the database’s time decides',
  async () => {
    const folder = await world.folder();
    const nodes = [];
    for (const offset of [5 * MINUTE, -5 * MINUTE]) {
      const file = join(folder, `clock${offset}.cjs`);
      await writeFile(
        file,
        `const now = Date.now; Date.now = () => now() + ${offset};
       const Real = Date; globalThis.Date = class extends Real { constructor(...a) { a.length ? super(...a) : super(Date.now()); } };`,
      );
      nodes.push((await world.node({ NODE_OPTIONS: `--require ${file}` })).api);
    }
    const [early, late] = nodes as [Api, Api];
    await createMany(early, 20);
    await world.database.setClock({ offsetMs: HOUR - 2 * MINUTE });
    await say(late, 's0', 'used');
    for (const node of nodes) expect(await sweep(node)).toBe(0);
    await world.database.setClock({ offsetMs: HOUR + 2 * MINUTE });
    // The node whose clock is behind sweeps as well.
    expect(await sweep(late)).toBe(19);
    expect(await sweep(early)).toBe(0);
  },
  60_000,
);
