import { AppendMessages, CreateSession, EraseSession } from '../../../src/domain/session.commands.js';
import { STATE_VERSION } from '../../../src/domain/session.state.js';
import { type EventLogOptions } from '../../../src/event-store/log.js';
import { LEASE_MS } from '../../../src/event-store/leases.js';
import { historyProjection } from '../../../src/read-models/history.projection.js';
import { type Projection, tableOf } from '../../../src/projection-engine/projection.js';
import { type SessionRecord } from '../../../src/read-models/session-record.js';
import { findSession, listSessions } from '../../../src/read-models/session-views.js';
import { sessionsProjection } from '../../../src/read-models/sessions.projection.js';
import { usageProjection } from '../../../src/read-models/usage.projection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectSoundLog, seeded, sized, sleep } from '../event-store/fixture.js';
import { byCode, historyPage, message, Node, READ_MODELS, TENANT } from './fixture.js';
import { appendOf } from '../../support/append.js';
import { masterKey } from '../../support/master-keys.js';
import { sealingCodec } from '../../support/sealing-codec.js';
import { heavy } from '../../support/heavy.js';

let db: TestDatabase;
const nodes: Node[] = [];
const start = async (
  projections: readonly Projection[] = READ_MODELS,
  options: EventLogOptions = {},
): Promise<Node> => {
  const node = await Node.start(db.url, projections, options);
  nodes.push(node);
  return node;
};
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(async () => {
  await Promise.all(nodes.splice(0).map((node) => node.stop()));
  await expectSoundLog(db).finally(() => db.drop());
});

const rebuilt = async (node: Node, limitMs = 60_000): Promise<void> => {
  const began = Date.now();
  while ((await node.projector.status()).some(({ rebuild }) => rebuild !== null)) {
    if (Date.now() - began > limitMs) throw new Error(`not rebuilt within ${limitMs} ms`);
    await sleep(20);
  }
};
const caughtUp = async (node: Node): Promise<void> => {
  while ((await node.projector.lag()).some(({ behind }) => behind > 0)) await sleep(10);
};
/** Every row of a read model as text, and the oid of its table, which shows whether the table was replaced. */
const contents = async (projection: Projection<SessionRecord>) =>
  (await db.query<{ row: string }>(`select r::text as row from ${tableOf(projection)} r order by 1`)).map(
    ({ row }) => row,
  );
const oidOf = async (projection: Projection<SessionRecord>) =>
  (await db.query<{ oid: number }>('select $1::regclass::oid as oid', [tableOf(projection)]))[0]?.oid;
const relations = async (): Promise<unknown[]> =>
  db.query(
    `select relname, relkind from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'i')
     order by relname`,
  );

describe('a rebuild', () => {
  it('given idle read models, when each is rebuilt, then every row is as before, in a new table of the same shape', async () => {
    const node = await start();
    const ids = Array.from({ length: 30 }, (_, index) => `s${index}`);
    await node.live(seeded(), ids, 400);
    await caughtUp(node);
    const shape = await relations();
    for (const projection of READ_MODELS) {
      const [before, oid] = [await contents(projection), await oidOf(projection)];
      expect(before.length).toBeGreaterThan(5);
      await node.projector.rebuild(projection);
      // A second rebuild has the same result.
      await node.projector.rebuild(projection);
      await rebuilt(node);
      expect(await contents(projection)).toEqual(before);
      expect(await oidOf(projection)).not.toBe(oid);
    }
    expect(await relations()).toEqual(shape);
    // The new table follows the log.
    await node.live(seeded(1), ids, 50);
    await caughtUp(node);
    for (const projection of READ_MODELS)
      expect(await node.projector.verify(projection)).toMatchObject({ ok: true, parked: 0 });
    expect(nodes.flatMap((one) => one.errors)).toEqual([]);
  }, 60_000);

  heavy(
    'given two nodes under load, when every read model is rebuilt again and again, then no read fails or misses an earlier write, and the rows equal a fresh fold of the log',
    async () => {
      const pair = [await start(), await start()] as const;
      let isOver = false;
      let reads = 0;
      const noise = pair.map(async (node, index) => {
        const random = seeded(index);
        const ids = Array.from({ length: 40 }, (_, number) => `noise${index}-${number}`);
        while (!isOver) await Promise.all([1, 2].map(() => node.live(random, ids, 5)));
      });
      const readers = Array.from({ length: 4 }, async (_, loop) => {
        const [writer, reader] = loop % 2 ? pair : [pair[1], pair[0]];
        const id = `mine${loop}`;
        await writer.handle(id, new CreateSession({ metadata: { loop: String(loop) } }));
        for (let round = 1; !isOver; round += 1) {
          const { state } = await writer.handle(id, new AppendMessages([message(`${id} ${round}`)]));
          const found = await findSession(reader.models, await reader.endOf(id), TENANT, id);
          expect(found).toMatchObject({ version: state.version, messageCount: round });
          const page = await historyPage(
            reader.models,
            await reader.endOf(id),
            { tenant: TENANT, sessionId: id, incarnation: 1 },
            { at: state.version, order: 'desc', limit: 1 },
          );
          expect(page?.messages[0]?.content).toBe(`${id} ${round}`);
          const listed = await listSessions(reader.models, await reader.models.ends(), TENANT, {
            status: 'active',
            limit: 5,
            metadata: { loop: String(loop) },
          });
          expect(listed).toMatchObject([{ id, messageCount: round }]);
          reads += 3;
        }
      });
      const work = Promise.all([...noise, ...readers]);
      work.catch(() => (isOver = true));

      const rounds = sized(20, 2);
      for (let round = 0; round < rounds; round += 1) {
        const oids = await Promise.all(READ_MODELS.map(oidOf));
        for (const projection of READ_MODELS) await pair[round % 2 ? 1 : 0].projector.rebuild(projection);
        await rebuilt(pair[0]);
        for (const [index, oid] of (await Promise.all(READ_MODELS.map(oidOf))).entries())
          expect(oid).not.toBe(oids[index]);
        // This happens while writes and reads go on.
        expect(await pair[0].projector.verify(READ_MODELS[round % 3] ?? sessionsProjection)).toMatchObject({
          ok: true,
          firstDifference: null,
        });
      }
      isOver = true;
      await work;
      expect(reads).toBeGreaterThan(10 * rounds);
      for (const projection of READ_MODELS) {
        const verified = await pair[1].projector.verify(projection);
        expect(verified).toMatchObject({ ok: true, hash: verified.expectedHash, parked: 0 });
        expect(verified.rows).toBe((await contents(projection)).length);
      }
      expect(nodes.flatMap((one) => one.errors)).toEqual([]);
    },
    180_000,
  );

  it('given read models whose tables were dropped by hand, when they are rebuilt, then a waiting read is answered and all rows are back', async () => {
    const node = await start();
    await node.live(
      seeded(),
      Array.from({ length: 20 }, (_, index) => `s${index}`),
      200,
    );
    await node.handle('kept', new CreateSession());
    await caughtUp(node);
    const before = await Promise.all(READ_MODELS.map(contents));

    for (const projection of READ_MODELS) await db.query(`drop table ${tableOf(projection)}`);
    const read = node.endOf('kept').then((end) => findSession(node.models, end, TENANT, 'kept'));
    for (const projection of READ_MODELS) await node.projector.rebuild(projection);

    expect(await read).toMatchObject({ id: 'kept', status: 'active' });
    await rebuilt(node);
    expect(await Promise.all(READ_MODELS.map(contents))).toEqual(before);
  });

  it('given a table that was dropped by hand, when a node starts, then it is created again and filled from the beginning of the log', async () => {
    const first = await start();
    await first.live(seeded(), ['a', 'b', 'c'], 60);
    await caughtUp(first);
    const before = await contents(historyProjection);
    await nodes.pop()?.stop();
    await db.query(`drop table ${tableOf(historyProjection)}`);

    await caughtUp(await start());
    expect(await contents(historyProjection)).toEqual(before);
  });

  it('given payloads that are sealed in part, when the read model is rebuilt, then sealed ones are opened, and the rows are as before', async () => {
    let isSealing = false;
    const node = await start(READ_MODELS, {
      codec: sealingCodec({ isSealing: ({ data }) => isSealing && data !== null }),
    });
    const random = seeded();
    for (let round = 0; round < 6; round += 1) {
      await node.live(random, ['a', 'b', 'c', 'd'], 20);
      isSealing = !isSealing;
    }
    await caughtUp(node);
    const before = await contents(historyProjection);
    expect(before.length).toBeGreaterThan(20);

    await node.projector.rebuild(historyProjection);
    await rebuilt(node);
    expect(await contents(historyProjection)).toEqual(before);
    expect(await node.projector.parked()).toEqual([]);
    expect(node.errors).toEqual([]);
  });

  it('given a sealed log with erasures, a session that is parked and one of a newer version, when the read model is rebuilt, then sealed events are applied by its statement, and the rows are those of a fold by code', async () => {
    const { applyInside: inside } = historyProjection;
    const stretches: string[] = [];
    const watched: Projection<SessionRecord> = {
      ...historyProjection,
      ...(inside && {
        applyInside: {
          ...inside,
          statement: (table: string, events: string) => {
            stretches.push(events);
            return inside.statement(table, events);
          },
        },
      }),
    };
    const options = { masterKeys: [masterKey('one')] };
    const node = await start([watched], options);
    const ids = Array.from({ length: 40 }, (_, index) => `s${index}`);
    for (let round = 0; round < 3; round += 1) {
      for (const id of ids) {
        if (round === 0 || ids.indexOf(id) < 4) await node.handle(id, new CreateSession());
        const messages = Array.from({ length: 6 }, (_, index) => message(`„${index}“ of ${id} \\ "`));
        await node.handle(id, new AppendMessages(messages));
      }
      for (const id of ids.slice(0, 4)) await node.handle(id, new EraseSession());
    }
    await node.live(seeded(), ids.slice(4, 8), 20);
    const { version } = (await node.load('s9')).state;
    const newer = await start([], options);
    await newer.store.append({
      ...appendOf({ tenant: TENANT, streamId: 's9' }, version, []),
      stateVersion: STATE_VERSION,
      events: [{ type: 'MessageAppended', schemaVersion: 99, data: {} }],
    });
    await node.handle('s10', new AppendMessages([message('the last')]));
    await caughtUp(node);
    const before = await contents(historyProjection);
    expect(before.length).toBeGreaterThan(600);

    await node.projector.rebuild(watched);
    await rebuilt(node);

    expect(await contents(historyProjection)).toEqual(before);
    expect(await node.projector.verify(historyProjection)).toMatchObject({ ok: true, parked: 1 });
    expect(await node.projector.parked()).toMatchObject([{ sessionId: 's9', version: version + 1 }]);
    expect(stretches.filter((events) => events.includes('jsonb[]')).length).toBeGreaterThan(8);
    expect(node.errors).toEqual([]);
  }, 60_000);

  it('given a rebuild that has applied the events of a session, when the session is erased before the swap, then the new table has nothing of it', async () => {
    const node = await start([historyProjection], { masterKeys: [masterKey('one')] });
    for (const id of ['erased', 'kept']) {
      await node.handle(id, new CreateSession());
      await node.handle(id, new AppendMessages([message('one'), message('two')]));
    }
    await caughtUp(node);
    // The swap waits for this reader of the old table.
    await db.query('begin');
    await db.query(`select from ${tableOf(historyProjection)}`);
    await node.projector.rebuild(historyProjection);
    const isFolded = async (): Promise<boolean> => {
      const [{ rebuild } = { rebuild: null }] = await node.projector.status();
      return rebuild?.processed === rebuild?.total;
    };
    while (!(await isFolded())) await sleep(10);

    await node.handle('erased', new EraseSession());
    await node.handle('kept', new AppendMessages([message('three')]));
    while (!(await isFolded())) await sleep(10);
    await db.query('commit');
    await rebuilt(node);
    await caughtUp(node);

    const rows = await db.query(
      `select session_id, count(*)::int from ${tableOf(historyProjection)} group by 1`,
    );
    expect(rows).toEqual([{ session_id: 'kept', count: 4 }]);
    expect(await node.projector.verify(historyProjection)).toMatchObject({ ok: true, parked: 0 });
    expect(node.errors).toEqual([]);
  });

  it('given a sealed log and a node that hangs while it opens events for a rebuild, when another node takes over its lanes, then the rebuild finishes, and what the first one opened changes nothing', async () => {
    let open = (): void => undefined;
    const gate = new Promise<void>((resolve) => (open = resolve));
    const codec = sealingCodec();
    let isRebuilding = false;
    let pages = 0;
    let held = 0;
    const hanging: EventLogOptions = {
      codec: {
        ...codec,
        openText: async (payloads) => {
          const opened = await codec.openText(payloads);
          if (!isRebuilding || (pages += 1) <= 3) return opened;
          held += 1;
          await gate;
          return opened;
        },
      },
    };
    const doomed = await start([historyProjection], hanging);
    const ids = Array.from({ length: 60 }, (_, index) => `s${index}`);
    await Promise.all(ids.map((id) => doomed.handle(id, new CreateSession())));
    await caughtUp(doomed);
    const before = await contents(historyProjection);
    isRebuilding = true;
    await doomed.projector.rebuild(historyProjection);
    while (held === 0) await sleep(10);
    const [progress] = await doomed.projector.status();
    expect(progress?.rebuild?.processed).toBeGreaterThan(0);
    expect(progress?.rebuild?.processed).toBeLessThan(60);
    await doomed.suspend();
    await db.setClock({ offsetMs: LEASE_MS + 1_000 });

    const heir = await start([historyProjection], { codec });
    await rebuilt(heir);
    open();
    await sleep(100);
    expect(await contents(historyProjection)).toEqual(before);
    expect(doomed.errors).toEqual([]);
    expect(await heir.projector.verify(historyProjection)).toMatchObject({ ok: true, rows: 60 });
  }, 30_000);

  it('given a node that hangs in the middle of a rebuild, when another node takes over its lanes, then the rebuild continues where it was and finishes, and no row is there twice', async () => {
    let open = (): void => undefined;
    const gate = new Promise<void>((resolve) => (open = resolve));
    let applied = 0;
    const hanging: Projection<SessionRecord> = {
      ...byCode(historyProjection),
      apply: async (events, table, read) => {
        if (table.includes('_r') && (applied += 1) > 3) await gate;
        return historyProjection.apply(events, table, read);
      },
    };
    const doomed = await start([hanging]);
    await Promise.all(
      Array.from({ length: 60 }, (_, index) => doomed.handle(`s${index}`, new CreateSession())),
    );
    await caughtUp(doomed);
    const before = await contents(historyProjection);
    await doomed.projector.rebuild(hanging);
    while (applied <= 3) await sleep(10);
    const [progress] = await doomed.projector.status();
    expect(progress?.rebuild?.processed).toBeGreaterThan(0);
    expect(progress?.rebuild?.processed).toBeLessThan(60);
    await doomed.suspend();
    await db.setClock({ offsetMs: LEASE_MS + 1_000 });

    const heir = await start([historyProjection]);
    await rebuilt(heir);
    open();
    await sleep(100);
    expect(await contents(historyProjection)).toEqual(before);
    expect(doomed.errors).toEqual([]);
    expect(await heir.projector.verify(historyProjection)).toMatchObject({ ok: true, rows: 60 });
  }, 30_000);

  it('given a long read of the old table, when the swap waits for it, then other reads do not wait', async () => {
    const node = await start();
    await node.handle('one', new CreateSession());
    await caughtUp(node);
    const table = tableOf(sessionsProjection);
    await db.query('begin');
    await db.query(`select from ${table}`);
    await node.projector.rebuild(sessionsProjection);

    const waits: number[] = [];
    const reads = Array.from({ length: 20 }, async (_, index) => {
      await sleep(index * 60);
      const began = performance.now();
      await findSession(node.models, await node.endOf('one'), TENANT, 'one');
      waits.push(performance.now() - began);
    });
    await Promise.all(reads);
    expect(Math.max(...waits)).toBeLessThan(1_000);
    expect((await node.projector.status())[0]?.rebuild).not.toBeNull();
    await db.query('commit');
    await rebuilt(node);
    expect(node.errors).toEqual([]);
  }, 30_000);
});

describe('verify', () => {
  it('given a read model with a bug, when it is verified with the right code, then the bug is found; a rebuild repairs the rows', async () => {
    const buggy: Projection<SessionRecord> = {
      ...sessionsProjection,
      apply: (events, table, read) =>
        sessionsProjection.apply(
          // The bug: the code ignores resets.
          events.filter((event) => event.type !== 'ConversationReset'),
          table,
          read,
        ),
    };
    const wrong = await start([buggy]);
    for (const id of ['b', 'a', 'c']) await wrong.handle(id, new CreateSession());
    await wrong.handle('c', new AppendMessages([message('x')]));
    await wrong.live(seeded(), ['d', 'e', 'f'], 200);
    await caughtUp(wrong);
    expect(await wrong.projector.verify(buggy)).toMatchObject({ ok: true });
    await nodes.pop()?.stop();

    const right = await start();
    await caughtUp(right);
    const verified = await right.projector.verify(sessionsProjection);
    expect(verified).toMatchObject({ name: 'sessions', ok: false });
    // Sessions without a reset are right.
    expect(['d', 'e', 'f']).toContain(verified.firstDifference?.sessionId);
    await right.projector.rebuild(sessionsProjection);
    await rebuilt(right);
    expect(await right.projector.verify(sessionsProjection)).toMatchObject({
      ok: true,
      firstDifference: null,
    });
  }, 30_000);

  it.each([
    [
      'changed',
      `update history_v3 set message = jsonb_set(message::jsonb, '{content}', '"forged"')::json where message is not null`,
    ],
    ['lost', 'delete from history_v3 where version = 2'],
    [
      'made up',
      `insert into history_v3 select tenant, session_id, 99, incarnation, message from history_v3 where version = 2`,
    ],
  ])(
    'given a row that was %s behind the service’s back, when the read model is verified under load, then it names the session',
    async (_what, sql) => {
      const node = await start();
      for (const id of ['a', 'b', 'c', 'd'])
        for (const command of [new CreateSession(), new AppendMessages([message('x')])])
          await node.handle(id, command);
      await caughtUp(node);
      await db.query(`${sql}${sql.includes('where') ? ' and' : ' where'} session_id = 'c'`);
      const load = { isOver: false };
      const loading = (async () => {
        const random = seeded();
        while (!load.isOver) await node.live(random, ['x', 'y', 'z'], 5);
      })();

      const verified = await node.projector.verify(historyProjection);
      load.isOver = true;
      await loading;

      expect(verified).toMatchObject({
        ok: false,
        firstDifference: { tenant: TENANT, sessionId: 'c' },
      });
      expect(await node.projector.verify(usageProjection)).toMatchObject({ ok: true });
      // The verification leaves nothing behind.
      expect(await db.query(`select from pg_class where relname like '%fresh%'`)).toEqual([]);
    },
  );

  it('given a comparison in its snapshot, when the table is about to be swapped, then the swap waits, and the comparison uses the same table throughout', async () => {
    const gate = { calls: 0, open: (): void => undefined };
    const gated: Projection<SessionRecord> = {
      ...byCode(historyProjection),
      apply: async (events, table, read) => {
        const statements = await historyProjection.apply(events, table, read);
        if (!table.endsWith('_fresh')) return statements;
        gate.calls += 1;
        await new Promise<void>((resolve) => (gate.open = resolve));
        return statements;
      },
    };
    const node = await start([gated]);
    await node.handle('s', new CreateSession());
    await caughtUp(node);
    const before = await oidOf(historyProjection);

    const verified = node.projector.verify(gated);
    while (gate.calls < 1) await sleep(5);
    // These events are left for the second part of the fold, which runs in the snapshot.
    await node.handle('s', new AppendMessages([message('x')]));
    await caughtUp(node);
    gate.open();
    while (gate.calls < 2) await sleep(5);
    await node.projector.rebuild(gated);
    // A swap that does not wait would have happened in this time.
    await sleep(500);
    expect(await oidOf(historyProjection)).toBe(before);
    gate.open();

    expect(await verified).toMatchObject({ ok: true, rows: 2 });
    await rebuilt(node);
    expect(await oidOf(historyProjection)).not.toBe(before);
  }, 30_000);
});
