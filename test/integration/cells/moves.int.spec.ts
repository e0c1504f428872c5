import { createHash } from 'node:crypto';
import { Pool, type PoolClient } from 'pg';
import { Feed } from '../../../src/audit/feed.js';
import { CellDirectory } from '../../../src/cells/cell-directory.js';
import { giveUpMove, moveTenant, type MovedTenant } from '../../../src/cells/tenant-move.js';
import * as session from '../../../src/domain/session.commands.js';
import { TenantAbsent } from '../../../src/event-store/absences.js';
import { type EventLog, type EventLogOptions } from '../../../src/event-store/log.js';
import { activeSessions } from '../../../src/sessions/active-sessions.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectCountersMatchLog } from '../../support/recount.js';
import { masterKey } from '../../support/master-keys.js';
import { blocked, expectSoundLog, Nodes, seeded, sized } from '../event-store/fixture.js';
import { message, Node, TENANT } from '../projection-engine/fixture.js';

jest.setTimeout(300_000);

const NAMES = ['default', 'two', 'three'] as const;
type Cell = (typeof NAMES)[number];

let databases: Record<Cell, TestDatabase>;
let pool: Pool;
/** For what a test does to it. */
let ownPool: Pool;
let directory: CellDirectory;
const stores = new Nodes();
const nodes: Node[] = [];

beforeEach(async () => {
  const [first, second, third] = await Promise.all(NAMES.map(() => createTestDatabase()));
  databases = { default: first, two: second, three: third } as typeof databases;
  // They are clones of one template, and a log is known by its key.
  for (const database of Object.values(databases))
    await database.query(`update log_settings set position_key = decode(md5(current_database()), 'hex')`);
  pool = new Pool({ connectionString: databases.default.url, max: 4 });
  ownPool = new Pool({ connectionString: databases.default.url, max: 2 });
  directory = new CellDirectory(pool);
});
afterEach(async () => {
  await Promise.all(nodes.splice(0).map((node) => node.stop()));
  await stores.stopAll();
  await Promise.all([pool, ownPool, ...ownPools.splice(0)].map((one) => one.end()));
  for (const database of Object.values(databases)) {
    await expectSoundLog(database);
    await expectCountersMatchLog(database);
    await database.drop();
  }
});

/** Lets so many more statements through, then none, as if the process had been killed. */
class Fuse {
  left = Infinity;
  /** Whether the last one still reaches the database, but its answer does not come back. */
  answersLast = true;
  /** Whether it holds only for one statement, as when a connection is lost. */
  mends = false;

  on(target: Pool): void {
    target.query = this.fused(target.query.bind(target)) as Pool['query'];
    const connect = target.connect.bind(target) as (done?: unknown) => Promise<PoolClient>;
    target.connect = (async (done?: unknown) => {
      // As the pool itself does.
      if (done) return connect(done);
      const client = await connect();
      const query = client.query.bind(client);
      const release = client.release.bind(client);
      client.query = this.fused(query) as PoolClient['query'];
      client.release = (error) => {
        // The pool uses it with callbacks.
        Object.assign(client, { query, release });
        release(error);
      };
      return client;
    }) as Pool['connect'];
  }

  private fused(query: (...args: never[]) => unknown): (...args: never[]) => Promise<unknown> {
    return async (...args) => {
      this.left -= 1;
      if (this.left < 0) {
        if (this.mends) this.left = Infinity;
        throw new Error('killed');
      }
      const answer = await query(...args);
      if (this.left === 0 && !this.answersLast) {
        this.left = this.mends ? Infinity : -1;
        throw new Error('killed');
      }
      return answer;
    };
  }
}

type Options = Parameters<typeof moveTenant>[0];
async function openAll(options: EventLogOptions = {}): Promise<Record<Cell, EventLog>> {
  const opened = await Promise.all(NAMES.map((name) => stores.start(databases[name].url, options)));
  return Object.fromEntries(NAMES.map((name, index) => [name, opened[index]])) as Record<Cell, EventLog>;
}
const optionsOf = (
  logs: Record<Cell, EventLog>,
  from: Cell,
  to: Cell,
  more: Partial<Options> = {},
): Options => ({
  directory,
  tenant: TENANT,
  from: { name: from, log: logs[from] },
  to: { name: to, log: logs[to] },
  knownByAllMs: 0,
  counters: [activeSessions(TENANT)],
  isPublished: () => Promise.resolve(true),
  behind: () => Promise.resolve(0),
  ...more,
});
const move = (
  logs: Record<Cell, EventLog>,
  from: Cell,
  to: Cell,
  more: Partial<Options> = {},
): Promise<MovedTenant> => moveTenant(optionsOf(logs, from, to, more));

const ownPools: Pool[] = [];
/** Connections of a test to a cell. */
function ownPoolOf(cell: Cell): Pool {
  const made = new Pool({ connectionString: databases[cell].url, max: 1 });
  ownPools.push(made);
  return made;
}

/** Everything that belongs to the tenant, whatever its places in the log are. */
async function contents(cell: Cell): Promise<Record<string, unknown>> {
  const of = async (sql: string): Promise<{ rows: number; hash: string }> => {
    const rows = await databases[cell].query<{ text: string }>(sql, [TENANT]);
    return {
      rows: rows.length,
      hash: createHash('sha256')
        .update(rows.map(({ text }) => text).join('\n'))
        .digest('hex'),
    };
  };
  return {
    events: await of(
      `select row(lane, stream_id, version, incarnation, id, type, schema_version, time, actor, correlation_id,
                  causation_id, data, sealed, key_id, hash)::text as text
       from event where tenant = $1 order by lane, position`,
    ),
    states: await of(
      `select row(stream_id, lane, version, incarnation, time, created_at, last_activity_at, state, state_version,
                  sealed, key_id)::text as text from stream_state where tenant = $1 order by stream_id`,
    ),
    keyed: await of('select c::text as text from command c where tenant = $1 order by scope, key'),
    counters: await of(`select c::text as text from counter c where key = 'active:' || $1 and value <> 0`),
  };
}

/** Sessions of all kinds, among those of others. */
async function fill(cell: Cell, events = sized(4_000, 600, 300)): Promise<Node> {
  const node = await Node.start(databases[cell].url, []);
  nodes.push(node);
  const random = seeded();
  const ids = Array.from({ length: 12 }, (_, index) => `s${index}`);
  for (const id of ids) await node.handle(id, new session.CreateSession());
  for (let added = 0; added < events;) {
    added += await node.live(random, ids, 100);
    await node.store.append(
      appendOf({ tenant: 'zz', streamId: `z${added}` }, 0, [{ type: 'Written', data: {} }]),
    );
  }
  await node.store.append(
    appendOf({ tenant: TENANT, streamId: '~tenant' }, 0, [
      { type: 'TenantSettingsChanged', data: { maxSessions: 70 } },
    ]),
  );
  return node;
}

/** Cells that have something of the tenant, and would take an event of it now. */
async function takers(): Promise<Cell[]> {
  const open: Cell[] = [];
  for (const cell of NAMES) {
    const rows = await databases[cell].query(
      `select from event where tenant = $1
         and not exists (select from tenant_absence where tenant = $1 and opened is null) limit 1`,
      [TENANT],
    );
    if (rows.length > 0) open.push(cell);
  }
  return open;
}

describe('a move', () => {
  it('given a tenant with sessions of all kinds, when it is moved, then all of it is in the other cell, and only there it goes on', async () => {
    await fill('two');
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll();
    await logs.two.append(
      appendOf(
        { tenant: TENANT, streamId: 's1' },
        (await logs.two.streams.versions([{ tenant: TENANT, streamId: 's1' }]))[0] ?? 0,
        [{ type: 'SessionDetailsChanged', data: {} }],
        { key: { scope: 'x', key: 'k1', fingerprint: 'f', reference: { a: 1 } } },
      ),
    );
    const before = await contents('two');
    const others = await databases.two.query(`select count(*)::int from event where tenant = 'zz'`);

    const report = await move(logs, 'two', 'three');

    expect(report).toMatchObject({
      tenant: TENANT,
      from: 'two',
      to: 'three',
      events: (before['events'] as { rows: number }).rows,
    });
    expect(await contents('three')).toEqual(before);
    expect(await directory.entry(TENANT)).toMatchObject({ cell: 'three', movingTo: null });
    expect(await databases.two.query(`select count(*)::int from event where tenant = 'zz'`)).toEqual(others);
    // A node that does not know it yet cannot write where it was.
    const append = (cell: Cell) =>
      logs[cell].append(appendOf({ tenant: TENANT, streamId: 'new' }, 0, [{ type: 'Written', data: {} }]));
    await expect(append('two')).rejects.toThrow(TenantAbsent);
    expect((await append('three')).status).toBe('ok');
    expect(await logs.three.keyed.find(TENANT, 'x', 'k1')).toMatchObject({ reference: { a: 1 } });
  });

  it('given a mover that dies or fails at any statement, when others take it up, then never two cells take events, and nothing is lost', async () => {
    await fill('two', 200);
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll();
    const fuse = new Fuse();
    const fusedDirectory = new CellDirectory(ownPool);
    fuse.on(ownPool);
    for (const log of Object.values(logs)) fuse.on(log.pool);
    const before = await contents('two');
    let [from, to]: [Cell, Cell] = ['two', 'three'];
    const turnBack = async (): Promise<void> => {
      expect((await directory.entry(TENANT))?.cell).toBe(to);
      expect(await contents(to)).toEqual(before);
      [from, to] = [to, from];
    };
    const most = 1_000_000;
    let all = 0;
    // The first time there and back most of it is copied, which takes more statements than what is tested here.
    for (let round = 0; round < 3; round += 1) {
      fuse.left = most;
      await move(logs, from, to, { directory: fusedDirectory });
      all = most - fuse.left;
      await turnBack();
    }
    fuse.left = Infinity;

    // Every one of the last, where the tenant is closed, departs and arrives.
    const kills = Array.from({ length: all }, (_, index) => index + 1).filter(
      (statement) => statement > all - 12 || statement % sized(1, 3, 6) === 0,
    );
    let killed = 0;
    for (const [answersLast, mends] of [
      [true, false],
      [false, false],
      [true, true],
      [false, true],
    ] as const) {
      Object.assign(fuse, { answersLast, mends });
      for (const statements of kills) {
        fuse.left = statements;
        await move(logs, from, to, { directory: fusedDirectory }).catch(() => {
          killed += 1;
        });
        fuse.left = Infinity;
        const open = await takers();
        expect(open.length).toBeLessThanOrEqual(1);
        const entry = await directory.entry(TENANT);
        // Wherever a request is sent, that cell takes it or nobody does.
        if (open[0] !== undefined && open[0] !== entry?.cell) expect(entry?.movingTo).toBe(open[0]);
        if (entry?.cell === to) await turnBack();
      }
      await move(logs, from, to);
      await turnBack();
    }
    // One that departed before needs fewer statements.
    expect(killed).toBeGreaterThan(3 * kills.length);
  });

  it.each([
    'one event, as of the known end of its lane',
    'several',
    'with a guard',
    'behind another tenant in a batch',
  ])(
    'given an append (%s) that waits while an absence begins, when it gets its turn, then it is refused, and others of its batch are not',
    async (kind) => {
      const log = await stores.startListening(databases.two.url);
      const stream = { tenant: TENANT, streamId: 's' };
      const lane = log.laneOf(stream);
      const known = { createdAt: '2026-01-01T00:00:00.000Z' };
      const one = [{ type: 'Written', data: {} }];
      const begun = await log.append(appendOf(stream, 0, one));
      await log.append(
        appendOf(stream, 1, one, { ...known, lag: begun.status === 'ok' ? begun.lag : undefined }),
      );
      await databases.two.query('select guard_absences()');
      const holder = new Pool({ connectionString: databases.two.url, max: 1 });
      const client = await holder.connect();
      await client.query('begin');
      await client.query('select pg_advisory_xact_lock(7301, $1)', [lane]);
      const events = kind === 'several' ? [...one, ...one] : one;
      const appends = [
        ...(kind.startsWith('behind') ? [appendOf({ tenant: 'zz', streamId: 'z' }, 0, one)] : []),
        appendOf(stream, 2, events, {
          ...known,
          lag: { events: 2, bytes: 10 },
          ...(kind === 'with a guard' && { guard: { before: '2126-01-01T00:00:00Z' } }),
        }),
      ].map((append) => log.append(append));
      const settled = Promise.allSettled(appends);
      await blocked(databases.two, 1);
      // As `begin_absence` does, which would wait for the holder too.
      await client.query(`insert into tenant_absence (tenant, closed) values ($1, '{}')`, [TENANT]);
      await client.query('commit');
      client.release();
      await holder.end();

      const results = await settled;
      expect(results.at(-1)).toMatchObject({ status: 'rejected', reason: expect.any(TenantAbsent) as Error });
      for (const other of results.slice(0, -1)) expect(other).toMatchObject({ value: { status: 'ok' } });
    },
  );

  it('given cursors of every place and cell, when the tenant was moved on and back, then each goes on behind the same events', async () => {
    const node = await fill('two', 120);
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll();
    const filter = {};
    /** Cursors after 0, 7, 14 … events, as the cell gives them out, and what was before each. */
    const cursors: { cursor: string; seen: Set<string> }[] = [];
    const collect = async (cell: Cell): Promise<void> => {
      const feed = new Feed(logs[cell]);
      const seen: string[] = [];
      for (let after: string | undefined; ;) {
        const { data, cursor, nextCursor } = await feed.page(TENANT, { after, limit: 7, filter });
        seen.push(...data.map(({ id }) => id));
        cursors.push({ cursor, seen: new Set(seen) });
        if (!nextCursor) return;
        after = nextCursor;
      }
    };
    const write = async (cell: Cell, ids: readonly string[]): Promise<void> => {
      for (const streamId of ids) {
        const stream = { tenant: TENANT, streamId };
        const [version = 0] = await logs[cell].streams.versions([stream]);
        await logs[cell].append(
          appendOf(stream, version, [{ type: 'SessionDetailsChanged', data: {} }], {
            state: { version: version + 1 },
          }),
        );
      }
    };
    await collect('two');
    let at: Cell = 'two';
    for (const to of ['three', 'default', 'two', 'default', 'three'] as const) {
      await move(logs, at, to);
      at = to;
      await write(at, ['s1', 's2', `${at}-${cursors.length}`]);
      await collect(at);
      const feed = new Feed(logs[at]);
      const all = (await feed.page(TENANT, { after: undefined, limit: 10_000, filter })).data.map(
        ({ id }) => id,
      );
      for (const { cursor, seen } of cursors) {
        const { data } = await feed.page(TENANT, { after: cursor, limit: 10_000, filter });
        expect(data.map(({ id }) => id)).toEqual(all.filter((id) => !seen.has(id)));
      }
      await expect(feed.page('zz', { after: cursors[0]?.cursor, limit: 1, filter })).rejects.toMatchObject({
        code: 'invalid-cursor',
      });
    }
    expect(new Set(cursors.map(({ cursor }) => cursor)).size).toBeGreaterThan(50);
    expect(node.errors).toEqual([]);
  });

  it('given a mover that dies when the tenant has arrived, when it is written there before the directory knows, then the move comes to its end', async () => {
    await fill('two', 50);
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll();
    const fuse = new Fuse();
    fuse.on(ownPool);
    const fusedDirectory = new CellDirectory(ownPool);
    let [from, to]: [Cell, Cell] = ['two', 'three'];
    let late = 0;
    for (let statements = 1; statements < 20; statements += 1) {
      fuse.left = statements;
      const done = await move(logs, from, to, { directory: fusedDirectory }).then(
        () => true,
        () => false,
      );
      fuse.left = Infinity;
      if ((await takers()).join() === to && !done) {
        const stream = { tenant: TENANT, streamId: `late-${statements}` };
        await logs[to].append(appendOf(stream, 0, [{ type: 'Written', data: {} }]));
        if ((await directory.entry(TENANT))?.cell === from) {
          late += 1;
          // No other cell will do.
          await expect(move(logs, from, 'default')).rejects.toThrow('on its way');
          await expect(giveUpMove(optionsOf(logs, from, to))).rejects.toThrow('come to its end');
        }
      }
      if ((await directory.entry(TENANT))?.cell !== to) await move(logs, from, to);
      expect(await directory.entry(TENANT)).toMatchObject({ cell: to, movingTo: null });
      [from, to] = [to, from];
    }
    expect(late).toBeGreaterThan(0);
  });

  it('given a cell that was set back behind the arrival, when the directory names the former home and the tenant is moved again, then it arrives', async () => {
    await fill('two', 50);
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll();
    await move(logs, 'two', 'three');
    const before = await contents('three');
    await databases.three.query('update tenant_absence set opened = null');
    expect(await takers()).toEqual([]);
    // As docs/operations.md says.
    await databases.default.query(
      `update tenant_cell set cell = 'two', change = nextval('tenant_cell_change') where tenant = $1`,
      [TENANT],
    );
    const { rows } = before['events'] as { rows: number };
    expect(await move(logs, 'two', 'three')).toMatchObject({ events: rows });
    expect(await takers()).toEqual(['three']);
    expect(await contents('three')).toEqual(before);
  });

  it('given a mover that waits for a lane, when the move is given up meanwhile, then the tenant stays open where it is', async () => {
    const node = await fill('two', 50);
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll();
    let isNear = false;
    const holder = await ownPoolOf('two').connect();
    const moving = move(logs, 'two', 'three', {
      // The last that is asked for before the tenant is closed.
      isPublished: async () => {
        if (!isNear) {
          isNear = true;
          await holder.query('begin');
          await holder.query('select pg_advisory_xact_lock(7301, 3)');
        }
        return true;
      },
    }).catch((error: unknown) => error);
    await blocked(databases.two, 1);
    await giveUpMove(optionsOf(logs, 'two', 'three'));
    await holder.query('commit');
    holder.release();
    expect(await moving).toMatchObject({ message: expect.stringContaining('given up') as string });
    expect(await takers()).toEqual(['two']);
    await node.handle('s0', new session.CreateSession()).catch(() => undefined);
    expect(await directory.entry(TENANT)).toMatchObject({ cell: 'two', movingTo: null });
  });

  it('given a move that is given up, when it is begun again, then the tenant goes on meanwhile, and arrives', async () => {
    const node = await fill('two', 100);
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll();
    // The first time what was written is not published.
    let tries = 0;
    const never = () => {
      tries += 1;
      return Promise.resolve(false);
    };
    const given = move(logs, 'two', 'three', { isPublished: never }).catch((error: unknown) => error);
    while (tries < 10) await new Promise((resolve) => setTimeout(resolve, 20));
    await expect(move(logs, 'two', 'default')).rejects.toThrow('on its way to another cell');
    await giveUpMove(optionsOf(logs, 'two', 'three'));
    expect(await directory.entry(TENANT)).toMatchObject({ cell: 'two', movingTo: null });
    expect(await given).toMatchObject({ message: expect.stringContaining('given up') as string });
    expect(await takers()).toEqual(['two']);
    await node.handle('s0', new session.AppendMessages([message('meanwhile')])).catch(() => undefined);
    const before = await contents('two');
    await move(logs, 'two', 'three');
    expect(await contents('three')).toEqual(before);
    await expect(giveUpMove(optionsOf(logs, 'two', 'three'))).rejects.toThrow('let the move come to its end');
  });

  it('given a cell with another history of a session, or more of one, when a tenant is to be moved there, then that is refused, and it stays', async () => {
    await fill('two', 50);
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll();
    const one = [{ type: 'SessionCreated', data: {} }];
    await logs.three.append(appendOf({ tenant: TENANT, streamId: 's1' }, 0, one));
    await logs.default.append(appendOf({ tenant: TENANT, streamId: 'more' }, 0, one));
    await expect(move(logs, 'two', 'three')).rejects.toThrow(/another event as version 1 of acme\/s1/);
    await giveUpMove(optionsOf(logs, 'two', 'three'));
    await expect(move(logs, 'two', 'default')).rejects.toThrow(
      /the cell has \d+ events of acme where its home has/,
    );
    await giveUpMove(optionsOf(logs, 'two', 'default'));
    expect(await takers()).toContain('two');
    await expect(move(logs, 'two', 'two')).rejects.toThrow('the same log');
    for (const cell of ['three', 'default'] as const) await databases[cell].query('delete from counter');
  });

  it('given sealed payloads, when they are moved, then they are the same bytes, and their keys come along', async () => {
    const options = { masterKeys: [masterKey('one')] };
    const log = await stores.start(databases.two.url, options);
    const stream = { tenant: TENANT, streamId: 'secret' };
    await log.append(appendOf(stream, 0, [{ type: 'Written', data: { text: 'hidden' } }]));
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll(options);
    const before = await contents('two');
    await move(logs, 'two', 'three');
    expect(await contents('three')).toEqual(before);
    // The one that seals, and not those that seal nothing yet.
    const keys = (cell: 'two' | 'three') =>
      databases[cell].query('select * from data_key where id in (select key_id from event)');
    expect(await databases.three.query('select * from data_key')).toEqual(await keys('two'));
    const there = await stores.start(databases.three.url, options);
    expect(await there.streams.read(stream, { from: 1 })).toMatchObject([{ data: { text: 'hidden' } }]);
    await there.append(appendOf(stream, 1, [{ type: 'Written', data: {} }], { begins: false }));
    expect(await keys('three')).toEqual(await keys('two'));
  });

  it('given a tenant that has moved, when its payloads are erased in its new home and it moves back, then their key is destroyed there as well', async () => {
    const options = { masterKeys: [masterKey('one')] };
    const log = await stores.start(databases.two.url, options);
    const stream = { tenant: TENANT, streamId: 'secret' };
    await log.append(appendOf(stream, 0, [{ type: 'Written', data: { text: 'hidden' } }]));
    await directory.place(TENANT, [{ name: 'two', weight: 1 }]);
    const logs = await openAll(options);
    await move(logs, 'two', 'three');
    const there = await stores.start(databases.three.url, options);
    const { keys } = await there.streams.keysOf(stream, 0, 1);
    expect(keys).toHaveLength(1);
    const erasure = { begins: false, destroys: keys };
    expect(await there.append(appendOf(stream, 1, [{ type: 'Erased', data: {} }], erasure))).toMatchObject({
      status: 'ok',
    });
    const wrapped = (cell: 'two' | 'three') =>
      databases[cell].query('select from data_key where id = $1 and wrapped is not null', [keys[0]]);
    expect(await wrapped('three')).toHaveLength(0);
    expect(await wrapped('two')).toHaveLength(1);
    await move(logs, 'three', 'two');
    expect(await wrapped('two')).toHaveLength(0);
  });
});
