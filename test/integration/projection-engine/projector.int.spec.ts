import { connect, DatabaseUnavailable } from '../../../src/database/connection.js';
import { CreateSession } from '../../../src/domain/session.commands.js';
import { type SessionState } from '../../../src/domain/session.state.js';
import { sessionDecider } from '../../../src/domain/session.js';
import { type SessionEvent } from '../../../src/domain/session.events.js';
import { LEASE_MS } from '../../../src/event-store/leases.js';
import { type Projection, tableOf } from '../../../src/projection-engine/projection.js';
import { type SessionRecord } from '../../../src/read-models/session-record.js';
import { historyProjection } from '../../../src/read-models/history.projection.js';
import { sessionsProjection } from '../../../src/read-models/sessions.projection.js';
import { usageProjection } from '../../../src/read-models/usage.projection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectSoundLog, seeded, sized, sleep } from '../event-store/fixture.js';
import { Node, READ_MODELS, TENANT } from './fixture.js';

let db: TestDatabase;
const nodes: Node[] = [];
const start = async (projections: readonly Projection[] = READ_MODELS): Promise<Node> => {
  const node = await Node.start(db.url, projections);
  nodes.push(node);
  return node;
};
const stop = async (node: Node): Promise<void> => {
  nodes.splice(nodes.indexOf(node), 1);
  await node.stop();
};
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(async () => {
  await Promise.all(nodes.splice(0).map((node) => node.stop()));
  await expectSoundLog(db).finally(() => db.drop());
});

/**
 * A read model that stores each applied event. Its rows have no key, so that a second application of an event shows.
 */
function journal(gate: () => Promise<void> = () => Promise.resolve()): Projection<SessionRecord> {
  return {
    name: 'journal',
    version: 1,
    createTable: (table) =>
      `create table ${table} (n bigserial, lane smallint, position bigint, stream_id text)`,
    apply: async (events, table) => {
      await gate();
      return [
        {
          text: `insert into ${table} (lane, position, stream_id)
                 select * from unnest($1::smallint[], $2::bigint[], $3::text[])`,
          values: [
            events.map((event) => event.lane),
            events.map((event) => event.position),
            events.map((event) => event.streamId),
          ],
        },
      ];
    },
  };
}

const inLog = async () => (await db.query('select from event')).length;
const inJournal = async () => (await db.query('select from journal_v1')).length;
async function until(condition: () => Promise<boolean>, limitMs: number): Promise<number> {
  const began = Date.now();
  while (!(await condition())) {
    if (Date.now() - began > limitMs) throw new Error(`not within ${limitMs} ms`);
    await sleep(10);
  }
  return Date.now() - began;
}
/** Checks that each event was applied once, and each lane in order. */
async function expectJournalOfLog(): Promise<void> {
  const differences = await db.query(
    `select * from (select lane, position, count(*) from journal_v1 group by 1, 2) j
     full join event e using (lane, position) where j.count is distinct from 1 or e.lane is null`,
  );
  expect(differences).toEqual([]);
  const disorder = await db.query(
    `select * from (select lane, position, lag(position) over (partition by lane order by n) as before from journal_v1) j
     where before >= position`,
  );
  expect(disorder).toEqual([]);
}
const createMany = (node: Node, prefix: string, count = 40) =>
  Promise.all(
    Array.from({ length: count }, (_, index) => node.handle(`${prefix}${index}`, new CreateSession())),
  );

describe('one owner per lane', () => {
  it('given a node that is suspended in the middle of a batch, when another node has taken over and written, then the batch of the first is refused, and every row is there once', async () => {
    let open = (): void => undefined;
    let paused = 0;
    const gate = new Promise<void>((resolve) => (open = resolve));
    const zombie = await start([
      journal(() => {
        paused += 1;
        return gate;
      }),
    ]);
    await createMany(zombie, 'a');
    await until(() => Promise.resolve(paused > 0), 5_000);
    await zombie.suspend();
    expect(await inJournal()).toBe(0);

    await db.setClock({ offsetMs: LEASE_MS + 1_000 });
    const heir = await start([journal()]);
    await createMany(heir, 'b');
    await until(async () => (await inJournal()) === 80, 5_000);
    open();
    await createMany(heir, 'c');
    await until(async () => (await inJournal()) >= 120, 5_000);
    // A batch that was not refused would have been written in this time.
    await sleep(200);

    expect(await inJournal()).toBe(120);
    await expectJournalOfLog();
    // The refusal is no failure, and the first node has noticed by now that it lost the lane.
    expect(zombie.errors).toEqual([]);
    const [epochs] = await db.query<{ least: string; most: string }>(
      'select min(epoch) as least, max(epoch) as most from projection_checkpoint where position > 0',
    );
    const owner = await db.query<{ owner: string }>(
      `select distinct owner from lease where name like 'projection/journal_v1/lane/%'`,
    );
    expect(owner).toEqual([{ owner: heir.leases.owner }]);
    expect(Number(epochs?.least)).toBeGreaterThan(0);
  });

  it('given a node that has taken over and has read but not written, when the batch of the first node arrives, then every row is there once', async () => {
    const gateOf = () => {
      const gate = { open: (): void => undefined, reached: false };
      const opened = new Promise<void>((resolve) => (gate.open = resolve));
      const projection = journal(() => {
        gate.reached = true;
        return opened;
      });
      return { gate, projection };
    };
    const [first, second] = [gateOf(), gateOf()];
    const slow = await start([first.projection]);
    await createMany(slow, 'a');
    await until(() => Promise.resolve(first.gate.reached), 5_000);
    await slow.suspend();
    await db.setClock({ offsetMs: LEASE_MS + 1_000 });
    await start([second.projection]);
    await until(() => Promise.resolve(second.gate.reached), 5_000);

    // No node has written with a newer epoch yet, so the batch is not refused.
    first.gate.open();
    await until(async () => (await inJournal()) > 0, 5_000);
    second.gate.open();

    await until(async () => (await inJournal()) >= 40, 5_000);
    await sleep(200);
    expect(await inJournal()).toBe(40);
    await expectJournalOfLog();
    expect(nodes.flatMap((node) => node.errors)).toEqual([]);
  });

  it('given a node that has taken over and was closed in order, when a third node starts, then it continues from there', async () => {
    const first = await start([journal()]);
    await createMany(first, 'a');
    await until(async () => (await inJournal()) === 40, 5_000);
    await first.suspend();
    await db.setClock({ offsetMs: LEASE_MS + 1_000 });
    const second = await start([journal()]);
    await createMany(second, 'b');
    await until(async () => (await inJournal()) === 80, 5_000);
    await stop(second);

    const third = await start([journal()]);
    await createMany(third, 'c');
    await until(async () => (await inJournal()) === 120, 3_000);
    await expectJournalOfLog();
  });

  it('given nodes that start and stop under load, when all events are applied, then each was applied once, in order', async () => {
    const random = seeded();
    const writer = await start([]);
    await start([journal()]);
    const load = { isOver: false };
    const writing = (async () => {
      for (let round = 0; !load.isOver; round += 1) await createMany(writer, `r${round}-`, 8);
    })();
    for (let change = 0; change < sized(30, 6); change += 1) {
      await sleep(random(200));
      const projecting = nodes.slice(1);
      const one = projecting[random(projecting.length)];
      if (projecting.length < 3 || !one) await start([journal()]);
      else await stop(one);
    }
    load.isOver = true;
    await writing;
    const total = await inLog();
    await until(async () => (await inJournal()) >= total, 20_000);
    await expectJournalOfLog();
    expect(nodes.flatMap((node) => node.errors)).toEqual([]);
  }, 60_000);

  it('given a transaction of a projector that is left open, when another node takes over, then it waits no longer than the idle timeout', async () => {
    const first = await start([journal()]);
    await createMany(first, 'a');
    await until(async () => (await inJournal()) === 40, 5_000);
    await stop(first);
    // This is the state of a process that is suspended between the statements of its batch.
    const timeout = sized(5_000, 1_000);
    const left = await connect(db.url, 'projector', {
      ...(timeout === 1_000 && { settings: { idle_in_transaction_session_timeout: '1000' } }),
    });
    await left.query('begin');
    await left.query('update projection_checkpoint set position = position + 1');

    const heir = await start([journal()]);
    await createMany(heir, 'b');
    const waited = await until(async () => (await inJournal()) === 80, timeout + 3_000);

    expect(waited).toBeLessThan(timeout + 1_500);
    await expectJournalOfLog();
    await left.end().catch(() => undefined);
  }, 30_000);

  it('given several nodes that start at once, when they create the tables, then each table is created once', async () => {
    await Promise.all(Array.from({ length: 5 }, () => start()));
    expect(
      await db.query('select projection, count(*)::int from projection_checkpoint group by 1 order by 1'),
    ).toEqual(
      READ_MODELS.map((projection) => ({ projection: tableOf(projection), count: 16 })).sort((a, b) =>
        a.projection < b.projection ? -1 : 1,
      ),
    );
  });

  it('given a read model that fails for a while, in its code or in its writes, when it works again, then no row is missing or duplicated', async () => {
    const plain = journal();
    let failures = 4;
    const failing: Projection<SessionRecord> = {
      ...plain,
      apply: async (events, table, read) => {
        failures -= 1;
        if (failures >= 2) throw new DatabaseUnavailable(new Error('not now'));
        const statements = await plain.apply(events, table, read);
        // The rows are written, and then the statement fails as if the disk were full.
        const full = `do $$ begin raise exception using errcode = 'disk_full'; end $$`;
        return failures >= 0 ? [...statements, { text: full, values: [] }] : statements;
      },
    };
    const node = await start([failing]);
    await createMany(node, 'a');
    await until(async () => (await inJournal()) === 40, 5_000);
    expect(node.errors).toHaveLength(4);
    await expectJournalOfLog();
  });

  it('given a log that is older than the read model, when a node starts, then it catches up in many batches', async () => {
    const writer = await start([]);
    const ids = ['long1', 'long2'];
    for (const id of ids) await writer.handle(id, new CreateSession());
    const batch = Array.from({ length: 400 }, (_, index) => ({ type: 'SessionResumed', data: { index } }));
    for (const streamId of ids) {
      for (let part = 0; part < 3; part += 1) {
        await writer.store.append({
          stream: { tenant: TENANT, streamId },
          expected: 1 + part * 400,
          incarnation: 1,
          begins: part === 0,
          chain: { version: 1 + part * 400, createdAt: null, lastActivityAt: null },
          activity: true,
          state: {},
          stateVersion: 99,
          actor: 'tester',
          correlationId: 'test',
          causationId: null,
          events: batch.map((event) => ({ ...event, schemaVersion: 1 })),
        });
      }
    }
    await start([journal()]);
    await until(async () => (await inJournal()) === 2_402, 10_000);
    await expectJournalOfLog();
  });
});

describe('the read models after crashes', () => {
  it('given nodes whose projector connections break and which disappear, when everything is caught up, then the rows equal a plain fold of the log', async () => {
    const random = seeded();
    const writer = await start([]);
    let projecting = await start();
    const ids = Array.from({ length: 30 }, (_, index) => `s${index}`);
    // Connections are not cut while a node starts, because a node that cannot start ends, and its supervisor starts it
    // again.
    const cutting = { isOver: false, isPaused: false };
    let cuts = 0;
    const cutter = (async () => {
      while (!cutting.isOver) {
        await sleep(20 + random(30));
        if (cutting.isPaused) continue;
        const cut = await db.query(
          `select pg_terminate_backend(pid) from pg_stat_activity
           where application_name = 'colloquy projector' and datname = current_database() and random() < 0.5`,
        );
        cuts += cut.length;
      }
    })();
    for (let round = 1; round <= sized(12, 3); round += 1) {
      await Promise.all([1, 2, 3, 4].map(() => writer.live(random, ids, sized(150, 60))));
      // The node disappears without releasing its leases, and another one starts after they have expired.
      await projecting.suspend();
      await db.setClock({ offsetMs: round * (LEASE_MS + 1_000) });
      cutting.isPaused = true;
      await sleep(60);
      projecting = await start();
      cutting.isPaused = false;
    }
    cutting.isOver = true;
    await cutter;
    // The query of this check may itself use a connection that was cut at last.
    const lag = () => projecting.projector.lag().catch(() => [{ behind: Infinity }]);
    await until(async () => (await lag()).every(({ behind }) => behind === 0), 20_000);

    expect(cuts).toBeGreaterThan(10);
    const folded = fold((await readAll(writer)) as SessionRecord[]);
    expect(folded.sessions.length).toBeGreaterThan(20);
    // How many there are depends on how the writers take turns.
    expect(folded.usage.length).toBeGreaterThan(3);
    expect(
      await db.query(
        `select session_id, incarnation, version, status, title, metadata, message_count, generation_id,
                input_tokens::int, output_tokens::int, cached_tokens::int
         from ${tableOf(sessionsProjection)} order by session_id`,
      ),
    ).toEqual(folded.sessions);
    expect(
      await db.query(
        `select session_id, version, incarnation, message ->> 'id' as id from ${tableOf(historyProjection)}
         order by session_id, version`,
      ),
    ).toEqual(folded.history);
    expect(
      await db.query(
        `select session_id, model, generations::int, input_tokens::int, output_tokens::int
         from ${tableOf(usageProjection)} order by session_id, model`,
      ),
    ).toEqual(folded.usage);
  }, 120_000);

  async function readAll(node: Node) {
    const after = new Map(Array.from({ length: node.store.laneCount }, (_, lane) => [lane, 0]));
    return node.store.lanes.read(after, 1_000_000);
  }

  /** The expected rows, computed by the fold of the domain without the code of the projections. */
  function fold(events: readonly SessionRecord[]) {
    const states = new Map<string, SessionState>();
    const kept = new Map<string, Record<string, unknown>>();
    const history: object[] = [];
    const usage = new Map<string, { generations: number; input_tokens: number; output_tokens: number }>();
    for (const event of events) {
      const before = states.get(event.streamId) ?? sessionDecider.initialState;
      const state = sessionDecider.evolve(before, event as unknown as SessionEvent);
      states.set(event.streamId, state);
      const isDeleted = event.type === 'SessionDeleted';
      // A deleted session keeps its last row.
      const shown = isDeleted ? before : state;
      kept.set(event.streamId, {
        session_id: event.streamId,
        incarnation: shown.incarnation,
        version: event.version,
        status: state.status,
        title: shown.title,
        metadata: shown.metadata,
        message_count: shown.messageCount,
        generation_id: state.generation?.id ?? null,
        input_tokens: shown.usage.inputTokens,
        output_tokens: shown.usage.outputTokens,
        cached_tokens: shown.usage.cachedTokens,
      });
      if (['SessionCreated', 'ConversationReset', 'MessageAppended'].includes(event.type)) {
        history.push({
          session_id: event.streamId,
          version: event.version,
          incarnation: event.incarnation,
          id: event.type === 'MessageAppended' ? event.data.messageId : null,
        });
      }
      if (/^Generation(Completed|Failed|Cancelled)$/.test(event.type)) {
        const { model, usage: used } = event.data as {
          model: string;
          usage?: { inputTokens: number; outputTokens: number };
        };
        const key = JSON.stringify([event.streamId, model]);
        const sum = usage.get(key) ?? { generations: 0, input_tokens: 0, output_tokens: 0 };
        usage.set(key, {
          generations: sum.generations + 1,
          input_tokens: sum.input_tokens + (used?.inputTokens ?? 0),
          output_tokens: sum.output_tokens + (used?.outputTokens ?? 0),
        });
      }
    }
    const bySession = <Row extends Record<string, unknown>>(rows: Row[], then: keyof Row): Row[] =>
      rows.sort((a, b) =>
        a['session_id'] === b['session_id']
          ? a[then] < b[then]
            ? -1
            : 1
          : String(a['session_id']) < String(b['session_id'])
            ? -1
            : 1,
      );
    return {
      sessions: bySession([...kept.values()], 'version'),
      history: bySession(history as Record<string, unknown>[], 'version'),
      usage: bySession(
        [...usage].map(([key, sums]) => {
          const [session_id, model] = JSON.parse(key) as [string, string];
          return { session_id, model, ...sums };
        }),
        'model',
      ),
    };
  }
});
