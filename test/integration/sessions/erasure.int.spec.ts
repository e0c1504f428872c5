import { DomainError } from '../../../src/domain/decider.js';
import * as session from '../../../src/domain/session.commands.js';
import { type EventData, type SessionEvent, upcast } from '../../../src/domain/session.events.js';
import { STATE_VERSION } from '../../../src/domain/session.state.js';
import { type EventLogOptions } from '../../../src/event-store/log.js';
import { type LostEvent } from '../../../src/kafka/lost-events.js';
import { applyOn, tableOf } from '../../../src/projection-engine/projection.js';
import { recoverSessions } from '../../../src/transfer/recovery.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { masterKey } from '../../support/master-keys.js';
import { messagesIn, recount } from '../../unit/domain/naive-session.js';
import { expectSoundLog, seeded, sized } from '../event-store/fixture.js';
import { message, Node, READ_MODELS, TENANT } from '../projection-engine/fixture.js';
import { exportedHistories, exportOf, importInto, linesOf } from '../transfer/fixture.js';

const KEYED: EventLogOptions = { masterKeys: [masterKey('one')] };

let db: TestDatabase;
const nodes: Node[] = [];
const start = async (options = KEYED, projections = READ_MODELS): Promise<Node> => {
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

const stream = (sessionId: string) => ({ tenant: TENANT, streamId: sessionId });
const erase = (node: Node, sessionId: string, reason?: string) =>
  node.handle(sessionId, new session.EraseSession(reason));
const caughtUp = (node: Node): Promise<boolean> =>
  eventually(async () => (await node.projector.status()).every(({ behind }) => behind === 0));

/** Which of these words are in the database, as text or as bytes, by table. */
async function found(words: readonly string[]): Promise<Record<string, string[]>> {
  const tables = await db.query<{ name: string }>(
    `select oid::regclass::text as name from pg_class
     where relnamespace = current_schema()::regnamespace and relkind = 'r'`,
  );
  const places: Record<string, string[]> = {};
  for (const { name } of tables) {
    const rows = await db.query<{ row: string }>(`select t::text as row from ${name} t`);
    const content = rows.map(({ row }) => row).join('\n');
    const there = words.filter(
      (word) => content.includes(word) || content.includes(Buffer.from(word).toString('hex')),
    );
    if (there.length > 0) places[name] = there;
  }
  return places;
}

/** What a session was, event by event, as the commands were answered. It knows of erasure by a rule of its own. */
class Remembered {
  readonly events: SessionEvent[] = [];
  incarnations: number[] = [];

  add(events: readonly SessionEvent[]): void {
    for (const event of events) {
      this.events.push(event);
      const last = this.incarnations.at(-1) ?? 0;
      this.incarnations.push(event.type === 'SessionCreated' ? last + 1 : last);
    }
  }

  /** Version of the last erasure. */
  get erasedUpTo(): number {
    return 1 + this.events.findLastIndex(({ type }) => type === 'SessionErased');
  }

  get trail(): unknown[] {
    return this.events.map(({ type, data }, index) => ({
      type,
      version: index + 1,
      incarnation: this.incarnations[index],
      ...(index + 1 < this.erasedUpTo && type !== 'SessionErased' ? { data: null, erased: true } : { data }),
    }));
  }

  /** The events that are still there, with their versions. */
  get left(): { readonly version: number; readonly event: SessionEvent }[] {
    return this.events.map((event, index) => ({ version: index + 1, event })).slice(this.erasedUpTo);
  }
}

let planted = 0;
const plant = (): string => `Planted${(planted += 1)}Word`;

function anyCommand(random: (below: number) => number, sessionId: string): session.SessionCommand {
  const generationId = `g-${sessionId}-${random(3)}`;
  const usage = { inputTokens: random(100), outputTokens: random(50) };
  const make = [
    () => new session.CreateSession({ title: plant(), metadata: { note: plant() }, owner: plant() }),
    () => new session.CreateSession({ title: plant() }),
    () => new session.CreateSession(),
    () => new session.AppendMessages([message(plant()), message(plant())]),
    () => new session.AppendMessages([message(plant())]),
    () => new session.AppendMessages([message(plant())]),
    () =>
      new session.StartGeneration({ generationId, model: `model-${random(2)}`, instructions: plant() }, [
        message(plant()),
      ]),
    () =>
      new session.CompleteGeneration(
        { generationId, finishReason: 'stop', usage, durationMs: 5 },
        { messageId: plant(), content: plant() },
      ),
    () => new session.FailGeneration({ generationId, code: 'model-failed', message: plant(), usage }),
    () => new session.ChangeSessionDetails({ title: plant(), metadata: { note: plant() } }),
    () => new session.ChangeSessionDetails({ legalHold: random(4) === 0 }),
    () => new session.ChangeSessionDetails({ legalHold: false }),
    () => new session.ResetConversation(plant()),
    () => new session.ExpireSession('ttl', '2026-11-22T10:00:00.000Z'),
    () => new session.DeleteSession(plant()),
    () => new session.ScheduleErasure('2999-01-01T00:00:00.000Z', 'by request'),
    () => new session.ScheduleErasure('2999-01-01T00:00:00.000Z', undefined, { eraseAfter: 1 + random(2) }),
    () => new session.CancelErasure(),
    () => new session.EraseSession(undefined, undefined, random(2) ? 'requested' : 'byPolicy'),
    () => new session.EraseSession('by request'),
    () => new session.EraseSession(),
  ];
  return (make[random(make.length)] ?? make[0])?.() as session.SessionCommand;
}

describe('any history with erasures', () => {
  const ROUNDS = sized(60, 20, 4);
  it.each(Array.from({ length: ROUNDS }, (_, round) => round))(
    'round %i: given two nodes, when everything is read, then it is what a naive model says, rebuilt equals live, and nothing erased is in any table',
    async (round) => {
      const random = seeded(Number(process.env['SEED'] ?? 20_261_129) + round);
      const [one, two] = [await start(), await start()];
      const sessions = new Map<string, Remembered>();
      const ids = ['a', 'b', 'c', 'd'];
      const remembered = (id: string): Remembered => {
        const known = sessions.get(id) ?? new Remembered();
        sessions.set(id, known);
        return known;
      };
      let erasures = 0;
      for (let step = 0; step < 160; step += 1) {
        const node = random(2) ? one : two;
        const id = ids[random(ids.length)] ?? '';
        const known = remembered(id);
        if (random(12) === 0 && known.left.length > 0) {
          const fork = `fork-${step}`;
          const copies = messagesIn(known.events).map(({ message: one }) => ({
            ...one,
            toolCalls: undefined,
            messageId: `copy-${one.messageId}`,
          }));
          const command = new session.ForkSession(
            { sessionId: id, version: known.events.length },
            JSON.parse(JSON.stringify(copies)) as session.NewMessage[],
          );
          remembered(fork).add((await node.handle(fork, command)).events);
          if (random(2)) ids.push(fork);
          continue;
        }
        const command = anyCommand(random, id);
        const before = recount(known.events);
        try {
          const { events } = await node.handle(id, command);
          known.add(events);
          if (!(command instanceof session.EraseSession)) continue;
          erasures += events.length;
          if (command.planned && events.length === 0) continue;
          expect(before.legalHold).toBe(false);
          expect(events.length).toBe(before.version === before.erasedUpTo ? 0 : 1);
        } catch (error) {
          if (!(error instanceof DomainError)) throw error;
          if (!(command instanceof session.EraseSession)) continue;
          expect(error.code).toBe(before.version === 0 ? 'session-not-found' : 'legal-hold');
          expect(error.code === 'legal-hold').toBe(before.legalHold);
        }
      }
      expect(erasures).toBeGreaterThan(0);

      // The other node may have keys for a minute.
      for (const node of nodes) await node.store['dataKeys']?.confirm();
      const fresh = await start();
      for (const node of [one, two, fresh]) {
        for (const [id, known] of sessions) {
          const { historyStart: _, ...state } = (await node.load(id)).state;
          expect({ id, state }).toEqual({ id, state: recount(known.events) });
          const trail = await node.store.streams.read(stream(id), { erasedToo: true });
          expect(trail).toMatchObject(known.trail);
          expect(trail.filter(({ erased }) => erased)).toHaveLength(
            known.trail.filter((event) => (event as { erased?: true }).erased).length,
          );
        }
      }

      const expectReadModels = async (): Promise<void> => {
        await caughtUp(one);
        const rowsOf = async (name: string, columns: string): Promise<string[]> => {
          const projection = READ_MODELS.find((model) => model.name === name);
          const table = projection && tableOf(projection);
          const rows = await db.query<{ row: string }>(
            `select concat_ws('/', ${columns}) as row from ${table ?? ''}`,
          );
          return rows.map(({ row }) => row).sort();
        };
        const every = <T>(pick: (id: string, known: Remembered) => readonly T[]): T[] =>
          [...sessions].flatMap(([id, known]) => pick(id, known)).sort();
        const versions = (...types: SessionEvent['type'][]) =>
          every((id, known) =>
            known.left.flatMap(({ version, event }) =>
              types.includes(event.type) ? [`${id}/${version}`] : [],
            ),
          );
        expect(await rowsOf('sessions', 'session_id, status, title, owner')).toEqual(
          every((id, known) => {
            if (known.left.length === 0) return [];
            const { status } = recount(known.events);
            // The row of a deleted session keeps what it was.
            const begun = known.events.findLastIndex(({ type }) => type === 'SessionCreated');
            const end =
              status === 'deleted'
                ? known.events.findLastIndex(({ type }) => type === 'SessionDeleted')
                : undefined;
            const { title, owner } = recount(known.events.slice(0, end));
            expect(begun).toBeGreaterThanOrEqual(known.erasedUpTo);
            return [[id, status, title, owner].filter((value) => value !== null).join('/')];
          }),
        );
        expect(await rowsOf('history', 'session_id, version')).toEqual(
          versions('SessionCreated', 'ConversationReset', 'MessageAppended'),
        );
        expect(await rowsOf('generations', 'session_id, version')).toEqual(versions('GenerationStarted'));
        expect(await rowsOf('search', `session_id, nullif(version, 0)`)).toEqual(
          every((id, known) => {
            const owned = known.left.some(
              ({ event }) => event.type === 'SessionCreated' && event.data.owner !== undefined,
            );
            return [
              ...(owned ? [id] : []),
              ...messagesIn(known.events).map(({ version }) => `${id}/${version}`),
            ];
          }),
        );
        const [sum] = await db.query<{ tokens: number }>(
          `select coalesce(sum(input_tokens + output_tokens), 0)::int as tokens from usage_v1`,
        );
        const used = every((_, known) =>
          known.left.map(({ event }) => {
            const data = event.data as { usage?: { inputTokens: number; outputTokens: number } };
            return (data.usage?.inputTokens ?? 0) + (data.usage?.outputTokens ?? 0);
          }),
        );
        expect(sum?.tokens).toBe(used.reduce((total, one) => total + one, 0));
        for (const projection of READ_MODELS)
          expect(await one.projector.verify(projection)).toMatchObject({ ok: true, parked: 0 });
      };
      expect(await db.query('select * from projection_parked')).toEqual([]);
      await expectReadModels();
      for (const projection of READ_MODELS) await one.projector.rebuild(projection);
      await eventually(async () => (await db.query('select from projection_rebuild')).length === 0, 60_000);
      await expectReadModels();

      const text = await exportOf(db, {}, KEYED);
      const lines = linesOf(text).filter((line) => 'id' in line);
      for (const [id, known] of sessions)
        expect(lines.filter(({ sessionId }) => sessionId === id)).toMatchObject(known.trail);
      const other = await createTestDatabase();
      try {
        await importInto(other, text, KEYED);
        expect(await importInto(other, text, KEYED)).toMatchObject({ imported: 0 });
        const again = linesOf(await exportOf(other, {}, KEYED)).filter(
          (line) => 'id' in line && line['actor'] !== 'system:import',
        );
        expect(again).toEqual(lines);
      } finally {
        await other.drop();
      }

      const alive = new Set(
        [...sessions.values()].flatMap(({ left }) =>
          left.flatMap(({ event }) => JSON.stringify(event.data).match(/Planted\d+Word/g) ?? []),
        ),
      );
      const gone = [...sessions.values()]
        .flatMap(({ events }) => JSON.stringify(events).match(/Planted\d+Word/g) ?? [])
        .filter((word) => !alive.has(word));
      expect(gone.length).toBeGreaterThan(0);
      expect(await found(gone)).toEqual({});
      // The search would find them.
      if (alive.size > 0) expect(await found([...alive])).not.toEqual({});
    },
    120_000,
  );
});

describe('one commit', () => {
  const begun = async (node: Node, id = 's'): Promise<void> => {
    await node.handle(id, new session.CreateSession({ title: 'Secret title' }));
    for (let count = 0; count < 12; count += 1)
      await node.handle(id, new session.AppendMessages([message('Secret message')]));
  };
  const wrapped = () =>
    db.query('select from data_key where wrapped is not null and id in (select key_id from event)');
  const erasuresIn = () => db.query(`select from event where type = 'SessionErased'`);

  it('given an erasure that hangs between its event and its keys, when its connection is killed there, then it has not begun; and it is done whole once that is possible', async () => {
    const node = await start(KEYED, []);
    await begun(node);
    const holder = await (await start(KEYED, [])).store.pool.connect();
    await holder.query('begin');
    await holder.query('select from data_key for update');
    const erased = erase(node, 's');
    const erasing = async (): Promise<number | undefined> =>
      (
        await db.query<{ pid: number }>(
          `select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
             and query like '%append_destroying%' and pid <> pg_backend_pid()`,
        )
      )[0]?.pid;
    for (let kills = 0; kills < 3; kills += 1) {
      const pid = await eventually(erasing);
      expect(await erasuresIn()).toHaveLength(0);
      await db.query('select pg_terminate_backend($1)', [pid]);
      await eventually(async () => (await erasing()) !== pid);
      expect(await erasuresIn()).toHaveLength(0);
      expect(await wrapped()).toHaveLength(1);
    }
    await holder.query('rollback');
    holder.release();
    expect((await erased).events).toMatchObject([{ type: 'SessionErased' }]);
    expect(await erasuresIn()).toHaveLength(1);
    expect(await wrapped()).toHaveLength(0);
    // What is left holds nothing, and needs no key.
    expect(await db.query('select from stream_state where state is null or sealed is not null')).toEqual([]);
    expect(await db.query(`select from event where type = 'SessionErased' and data is null`)).toEqual([]);
  });

  it('given a database that refuses to destroy keys, when a session is erased, then nothing has changed', async () => {
    const node = await start(KEYED, []);
    await begun(node);
    await db.query(`create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
      create trigger refuse before update on data_key for each row execute function refuse()`);
    const before = await db.query('select * from event order by version');
    await expect(erase(node, 's')).rejects.toThrow('no');
    expect(await db.query('select * from event order by version')).toEqual(before);
    expect((await node.load('s')).state).toMatchObject({ title: 'Secret title', version: 13 });
    await db.query('drop trigger refuse on data_key');
    await erase(node, 's');
    expect(await wrapped()).toHaveLength(0);
  });

  it('given appends of two nodes all the time, when the session is erased in between, then all that came before is unreadable and all that came after is there', async () => {
    const [one, two] = [await start(KEYED, []), await start(KEYED, [])];
    await begun(one);
    let isOver = false;
    const writer = async (node: Node): Promise<void> => {
      while (!isOver) {
        await new Promise((resolve) => setTimeout(resolve, 2));
        await node.handle('s', new session.AppendMessages([message('x')])).catch(async (error: unknown) => {
          if (!(error instanceof DomainError)) throw error;
          await node.handle('s', new session.CreateSession({ title: 'Next' }));
        });
      }
    };
    const writers = [writer(one), writer(two), writer(one), writer(two)];
    for (let count = 0; count < sized(30, 10, 5); count += 1) {
      await new Promise((resolve) => setTimeout(resolve, 60));
      expect((await erase(count % 2 ? one : two, 's')).events.length).toBeLessThanOrEqual(1);
    }
    isOver = true;
    await Promise.all(writers);
    const fresh = await start(KEYED, []);
    const trail = await fresh.store.streams.read(stream('s'), { erasedToo: true });
    const last = trail.findLastIndex(({ type }) => type === 'SessionErased');
    expect(trail.slice(0, last).every(({ type, erased }) => type === 'SessionErased' || erased)).toBe(true);
    expect(trail.slice(last).some(({ erased }) => erased)).toBe(false);
    expect(trail.length).toBeGreaterThan(30);
    for (const node of [one, two])
      expect((await node.load('s')).state).toEqual((await fresh.load('s')).state);
    const receipts = trail.filter(({ type }) => type === 'SessionErased');
    let from = 1;
    for (const { data, version } of receipts) {
      const { incarnations } = data as EventData<'SessionErased'>;
      expect(incarnations.at(0)?.from).toBe(from);
      expect(incarnations.at(-1)?.to).toBe(version - 1);
      from = version + 1;
    }
  }, 60_000);

  it('given a node that is late with a snapshot, or with a piece of a reply, when the session was erased, then that can be read nowhere', async () => {
    const [one, late] = [await start(KEYED, []), await start({ ...KEYED }, [])];
    await begun(one);
    await late.load('s');
    const { state } = await late.load('s');
    await erase(one, 's');
    await late.store['dataKeys']?.confirm();
    late.store['dataKeys']?.forget();
    await late.store.snapshots.save(stream('s'), STATE_VERSION, 1, state);
    expect(await db.query('select from stream_snapshot')).toEqual([]);
    const [piece] = await late.store.codec.encode([
      {
        ...{ tenant: '', streamId: 'g', version: 1, type: '~reply', incarnation: 1, data: 'Secret' },
        keyOf: { ...stream('s'), incarnation: 1, version: 13 },
      },
    ]);
    expect(
      await db.query('select from data_key where id = $1 and wrapped is null', [piece?.keyId]),
    ).toHaveLength(1);
  });

  it('given snapshots of a session, when it is erased, then they are gone', async () => {
    const node = await start(KEYED, []);
    await begun(node);
    const { state } = await node.load('s');
    await node.store.snapshots.save(stream('s'), STATE_VERSION, 1, state);
    expect(await db.query('select from stream_snapshot')).toHaveLength(1);
    await erase(node, 's');
    expect(await db.query('select from stream_snapshot')).toEqual([]);
  });
});

it('given a session that was written in plain, or a part of it, when it is erased, then that is refused and nothing changes', async () => {
  const [plain, sealed] = [await start({}, []), await start(KEYED, [])];
  await plain.handle('plain', new session.CreateSession({ title: 'Plain' }));
  await sealed.handle('plain', new session.AppendMessages([message('sealed')]));
  const rows = () =>
    db.query('select e.*, k.wrapped from event e left join data_key k on k.id = e.key_id order by version');
  const before = await rows();
  await expect(erase(sealed, 'plain')).rejects.toMatchObject({ code: 'not-sealed' });
  expect(await rows()).toEqual(before);
});

it('given a session that is parked, when it is erased, then its rows are gone and it is parked no longer', async () => {
  const node = await start();
  await node.handle('s', new session.CreateSession({ title: 'Secret title' }));
  await node.handle('s', new session.AppendMessages([message('Secret message')]));
  await caughtUp(node);
  await db.query(`create function poison() returns trigger language plpgsql as $$ begin raise 'Secret error'; end $$;
    create trigger poison before insert on history_v3 for each row execute function poison()`);
  await node.handle('s', new session.AppendMessages([message('Secret poison')]));
  await caughtUp(node);
  expect(await db.query('select from projection_parked')).toHaveLength(1);
  await erase(node, 's');
  await caughtUp(node);
  expect(await db.query('select from projection_parked')).toEqual([]);
  expect(await found(['Secret'])).toEqual({});
  await db.query('drop trigger poison on history_v3');
  await node.handle('s', new session.CreateSession());
  await node.handle('s', new session.AppendMessages([message('anew')]));
  await caughtUp(node);
  expect(await db.query('select from history_v3')).toHaveLength(2);
  for (const projection of READ_MODELS)
    expect(await node.projector.verify(projection)).toMatchObject({ ok: true, parked: 0 });
});

it('given a batch in which a session is erased and begins anew, when it is applied, then nothing that the table had of it is carried over', async () => {
  const node = await start(KEYED, []);
  await node.handle('s', new session.CreateSession({ owner: 'Secret owner' }));
  await node.handle('s', new session.AppendMessages([message('Secret message')]));
  const search = READ_MODELS.find(({ name }) => name === 'search');
  if (!search) throw new Error('there is no search');
  const read = (from: number) => node.store.streams.read(stream('s'), { from, erasedToo: true });
  await db.query(search.createTable('batches'));
  await applyOn(node.store.pool, search, 'batches', await read(1));
  expect(await db.query('select distinct owner from batches')).toEqual([{ owner: 'Secret owner' }]);
  await erase(node, 's');
  await node.handle('s', new session.CreateSession());
  await node.handle('s', new session.AppendMessages([message('anew')]));
  await applyOn(node.store.pool, search, 'batches', await read(3));
  expect(await db.query('select version, owner, text from batches')).toEqual([
    { version: 5, owner: null, text: 'anew' },
  ]);
});

describe('an erasure that a failover has taken', () => {
  const lostErasure = (version: number, time: string, type = 'SessionErased'): LostEvent =>
    ({
      ...{ tenant: TENANT, sessionId: 's', version, incarnation: 1, generation: 1, time },
      ...{ id: `00000000-0000-7000-8000-00000000000${version}`, correlationId: `c${version}` },
      event: {
        type,
        data:
          type === 'SessionErased'
            ? { incarnations: [{ incarnation: 1, from: 1, to: version - 1 }], keys: [] }
            : message('Secret lost'),
      },
    }) as unknown as LostEvent;
  const all = { append: true, maxSessions: () => 100 };

  it('given events and an erasure that were lost, when they are recovered, then the session is erased and nothing of it comes back', async () => {
    const node = await start();
    await node.handle('s', new session.CreateSession({ title: 'Secret title' }));
    const later = new Date(Date.now() + 60_000).toISOString();
    const lost = [lostErasure(2, later, 'MessageAppended'), lostErasure(3, later)];
    expect(await recoverSessions(node.store, lost, { ...all, append: false })).toMatchObject([
      { outcome: 'erased' },
    ]);
    expect((await node.load('s')).state.title).toBe('Secret title');
    expect(await recoverSessions(node.store, lost, all)).toMatchObject([{ outcome: 'erased' }]);
    expect(await recoverSessions(node.store, lost, all)).toMatchObject([{ outcome: 'there' }]);
    await caughtUp(node);
    expect((await node.load('s')).state).toMatchObject({ status: 'deleted', title: null, version: 2 });
    expect(await found(['Secret'])).toEqual({});
  });

  it('given a session that was erased, when events of before are recovered, then they stay away', async () => {
    const node = await start();
    await node.handle('s', new session.CreateSession({ title: 'Secret title' }));
    await erase(node, 's');
    const lost = [lostErasure(2, new Date().toISOString(), 'MessageAppended')];
    expect(await recoverSessions(node.store, lost, all)).toMatchObject([{ outcome: 'went on' }]);
    const next = [lostErasure(3, new Date().toISOString(), 'MessageAppended')];
    expect(await recoverSessions(node.store, next, all)).toMatchObject([{ outcome: 'incomplete' }]);
  });
});

it('given sessions of which one was erased, when they are exported for others, then that one is left out', async () => {
  const node = await start(KEYED, []);
  for (const id of ['s', 't']) {
    await node.handle(id, new session.CreateSession());
    await node.handle(id, new session.AppendMessages([message('said')]));
  }
  await erase(node, 's');
  expect(await exportedHistories({ url: db.url }, { upcast, ...KEYED })).toMatchObject([{ id: 't' }]);
});
