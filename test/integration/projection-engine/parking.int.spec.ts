import { type EventLogOptions } from '../../../src/event-store/log.js';
import { masterKey } from '../../support/master-keys.js';
import { AppendMessages, CreateSession } from '../../../src/domain/session.commands.js';
import { historyProjection } from '../../../src/read-models/history.projection.js';
import { type Projection, tableOf } from '../../../src/projection-engine/projection.js';
import { type SessionRecord } from '../../../src/read-models/session-record.js';
import { SessionParked } from '../../../src/projection-engine/strong-reads.js';
import { findSession, listSessions } from '../../../src/read-models/session-views.js';
import { sessionsProjection } from '../../../src/read-models/sessions.projection.js';
import { STATE_VERSION } from '../../../src/domain/session.state.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { expectSoundLog, seeded, sleep } from '../event-store/fixture.js';
import { byCode, historyPage, message, Node, READ_MODELS, TENANT } from './fixture.js';

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

const caughtUp = async (node: Node): Promise<void> => {
  while ((await node.projector.lag()).some(({ behind }) => behind > 0)) await sleep(10);
};
const textOf = (event: SessionRecord): unknown =>
  event.type === 'MessageAppended' ? event.data.content : undefined;

/** A projection with a bug: its code throws for messages of this text. */
const cannotTake = (text: string, projection: Projection<SessionRecord>): Projection<SessionRecord> => ({
  ...byCode(projection),
  apply: (events, table, read) => {
    if (events.some((event) => textOf(event) === text)) throw new Error('cannot take this');
    return projection.apply(events, table, read);
  },
});
/** The same, but the database is what refuses it. */
const isRefused = (text: string, projection: Projection<SessionRecord>): Projection<SessionRecord> => ({
  ...byCode(projection),
  apply: async (events, table, read) => {
    const statements = await projection.apply(events, table, read);
    const bad = events.some((event) => textOf(event) === text);
    return bad ? [...statements, { text: 'select 1 / 0', values: [] }] : statements;
  },
});
const say = (node: Node, id: string, ...texts: string[]) =>
  node.handle(id, new AppendMessages(texts.map((text) => message(text))));
const find = (node: Node, id: string) =>
  node
    .endOf(id)
    .then((end) => findSession(node.models, end, TENANT, id))
    .catch((error: unknown) => error);
const contents = async (projection: Projection<SessionRecord>) =>
  db.query(`select r::text from ${tableOf(projection)} r order by 1`);

it('given a log that is sealed, when a session is parked by an error that quotes what was said, then nothing of it is stored or told', async () => {
  const quoting: Projection<SessionRecord> = {
    ...byCode(sessionsProjection),
    apply: async (events, table, read) => [
      ...(await sessionsProjection.apply(events, table, read)),
      ...events.flatMap((event) =>
        textOf(event) === 'bad' ? [{ text: 'select $1::text::integer', values: ['bad'] }] : [],
      ),
    ],
  };
  const node = await start([quoting], { masterKeys: [masterKey('one')] });
  await node.handle('s', new CreateSession());
  await say(node, 's', 'bad');
  await caughtUp(node);
  const [parked] = await node.projector.parked();
  expect(parked?.error).toMatch(/^error 22P02; what it says is not kept/);
  expect(node.notices.join()).not.toContain('bad');
});

describe.each([
  ['its code throws', cannotTake],
  ['the database refuses its rows', isRefused],
])('a session that a read model cannot apply, because %s', (_why, bug) => {
  it('given many sessions, when one has a poison event, then only this session is parked: reads of it say so, and everything else works; after a fix and a retry no row is missing or duplicated', async () => {
    const buggy = bug('bad', sessionsProjection);
    const node = await start([buggy, historyProjection]);
    const told: unknown[] = [];
    node.store.telemetry.on('parked', (event) => told.push(event));
    let projected = 0;
    node.store.telemetry.on('projected', ({ events }) => (projected += events));
    const ids = Array.from({ length: 20 }, (_, index) => `s${index}`);
    await Promise.all(ids.map((id) => node.handle(id, new CreateSession({ title: id }))));
    await Promise.all(ids.map((id) => say(node, id, 'good', 'fine', id === 's7' ? 'bad' : 'well', 'after')));

    // Events are read in the order of the log, so those after the poison event are read as well.
    for (const id of ids.filter((one) => one !== 's7'))
      expect(await find(node, id)).toMatchObject({ id, messageCount: 4 });
    const parked = await find(node, 's7');
    expect(parked).toBeInstanceOf(SessionParked);
    expect(parked).toMatchObject({ code: 'projection-lagging' });
    expect(await findSession(node.models, 'eventual', TENANT, 's7').catch(String)).toMatch(/parked/);
    // Lists show the session as it was before.
    const listed = await listSessions(node.models, await node.models.ends(), TENANT, {
      status: 'all',
      limit: 50,
    });
    expect(listed).toHaveLength(20);
    expect(listed.find(({ id }) => id === 's7')).toMatchObject({ version: 3, messageCount: 2 });
    // Other read models show the session, and clients can write to it.
    expect((await say(node, 's7', 'later')).state.messageCount).toBe(5);
    const page = await historyPage(
      node.models,
      await node.endOf('s7'),
      { tenant: TENANT, sessionId: 's7', incarnation: 1 },
      { at: 6, order: 'asc', limit: 50 },
    );
    expect(page?.messages.map(({ content }) => content)).toEqual(['good', 'fine', 'bad', 'after', 'later']);

    expect(await node.projector.parked()).toMatchObject([
      { projection: 'sessions', tenant: TENANT, sessionId: 's7', version: 4 },
    ]);
    // That one read model has parked the session does not affect reads of another one.
    await caughtUp(node);
    expect(await node.projector.status()).toMatchObject([
      { name: 'sessions', parked: 1, behind: 0 },
      { name: 'history', parked: 0 },
    ]);
    expect(node.notices.filter((notice) => notice.includes('parked session s7'))).toHaveLength(1);
    expect(told).toEqual([{ projection: tableOf(sessionsProjection) }]);
    expect(projected).toBeGreaterThan(2 * 5 * ids.length);
    expect(node.errors).toEqual([]);
    // While the bug remains, a retry parks the session again at the same event.
    const session = { tenant: TENANT, sessionId: 's7' };
    const again = await node.projector.resume(buggy, session, 'parked');
    expect(again?.parked).toMatchObject({ version: 4 });
    await stop(node);

    const fixed = await start();
    await say(fixed, 's7', 'and later');
    expect(await find(fixed, 's7')).toBeInstanceOf(SessionParked);
    expect(await fixed.projector.resume(sessionsProjection, session, 'parked')).toEqual({ parked: null });
    expect(await find(fixed, 's7')).toMatchObject({ version: 7, messageCount: 6 });
    expect(await fixed.projector.parked()).toEqual([]);
    expect(await fixed.projector.resume(sessionsProjection, session, 'parked')).toBeUndefined();
    await say(fixed, 's7', 'and on');
    expect(await find(fixed, 's7')).toMatchObject({ version: 8, messageCount: 7 });
    expect(await fixed.projector.verify(sessionsProjection)).toMatchObject({ ok: true, parked: 0 });
  }, 30_000);
});

it('given a parked session, when its poison event is skipped, then its other events are applied; a later poison event parks it again', async () => {
  const buggy = cannotTake('bad', historyProjection);
  const node = await start([buggy]);
  await node.handle('s', new CreateSession());
  await say(node, 's', 'one', 'bad', 'two', 'three', 'bad', 'four');
  await caughtUp(node);
  const session = { tenant: TENANT, sessionId: 's' };
  const first = await node.projector.resume(buggy, session, 'next');
  expect(first).toMatchObject({ parked: { version: 6 } });
  expect(await node.projector.resume(buggy, session, 'next')).toEqual({ parked: null });
  const page = await historyPage(
    node.models,
    await node.endOf('s'),
    { ...session, incarnation: 1 },
    { at: 7, order: 'asc', limit: 9 },
  );
  expect(page?.messages.map(({ content }) => content)).toEqual(['one', 'two', 'three', 'four']);
  // No fold can apply all of its events, so there is nothing to compare it with.
  expect(await node.projector.verify(buggy)).toMatchObject({ ok: true, rows: 0, parked: 1 });
});

it('given a session that is being retried, when more is written to it meanwhile, then its lane waits, and the new events are applied too', async () => {
  const gate = { isFixed: false, isHeld: false, open: (): void => undefined };
  const slow: Projection<SessionRecord> = {
    ...byCode(historyProjection),
    apply: async (events, table, read) => {
      if (events.some((event) => textOf(event) === 'bad')) {
        if (!gate.isFixed) throw new Error('cannot take this');
        gate.isHeld = true;
        await new Promise<void>((resolve) => (gate.open = resolve));
      }
      return historyProjection.apply(events, table, read);
    },
  };
  const node = await start([slow]);
  await node.handle('s', new CreateSession());
  await say(node, 's', 'bad');
  await caughtUp(node);
  gate.isFixed = true;
  const resumed = node.projector.resume(slow, { tenant: TENANT, sessionId: 's' }, 'parked');
  while (!gate.isHeld) await sleep(5);
  await say(node, 's', 'meanwhile');
  // A lane that does not wait would have advanced in this time.
  await sleep(300);
  expect(await node.projector.lag()).toMatchObject([{ behind: 1 }]);
  gate.open();
  expect(await resumed).toEqual({ parked: null });
  await caughtUp(node);
  expect(await contents(historyProjection)).toHaveLength(3);
}, 30_000);

it('given a lane in the middle of a batch that leaves a parked session out, when that session is retried, then the batch is computed again and no event of the session is lost', async () => {
  // Two sessions of the same lane are enough for this case.
  const finder = await start([]);
  const lane = finder.store.laneOf({ tenant: TENANT, streamId: 'a' });
  let other = 0;
  while (finder.store.laneOf({ tenant: TENANT, streamId: `b${other}` }) !== lane) other += 1;
  let isFixed = false;
  let [hold, open, isHeld] = [false, (): void => undefined, false];
  const gated: Projection<SessionRecord> = {
    ...byCode(historyProjection),
    apply: async (events, table, read) => {
      if (!isFixed && events.some((event) => textOf(event) === 'bad')) throw new Error('cannot take this');
      const statements = await historyProjection.apply(events, table, read);
      if (hold) {
        hold = false;
        isHeld = true;
        await new Promise<void>((resolve) => (open = resolve));
      }
      return statements;
    },
  };
  const node = await start([gated]);
  await node.handle('a', new CreateSession());
  await node.handle(`b${other}`, new CreateSession());
  await say(node, 'a', 'bad');
  await caughtUp(node);
  expect(await node.projector.parked()).toHaveLength(1);
  isFixed = true;

  // Both events are in the batch that is held. The retry sees neither of them, because the checkpoint is before them.
  await stop(finder);
  hold = true;
  await Promise.all([say(node, 'a', 'after'), say(node, `b${other}`, 'hello')]);
  while (!isHeld) await sleep(5);
  const resumed = await node.projector.resume(gated, { tenant: TENANT, sessionId: 'a' }, 'parked');
  expect(resumed).toEqual({ parked: null });
  open();
  await caughtUp(node);

  expect(await node.projector.verify(historyProjection)).toMatchObject({ ok: true, rows: 5 });
}, 30_000);

it('given a session with a poison event, when it is retried again and again under load, then the rows are exact in the end', async () => {
  let isFixed = false;
  const flaky: Projection<SessionRecord> = {
    ...sessionsProjection,
    apply: (events, table, read) => {
      if (!isFixed && events.some((event) => textOf(event) === 'bad')) throw new Error('cannot take this');
      return sessionsProjection.apply(events, table, read);
    },
  };
  const pair = [await start([flaky]), await start([flaky])] as const;
  const ids = Array.from({ length: 12 }, (_, index) => `s${index}`);
  const random = seeded();
  for (const id of ids) await pair[0].handle(id, new CreateSession());
  for (const id of ids.slice(0, 6)) await say(pair[0], id, 'bad');
  let isOver = false;
  const load = pair.map(async (node, index) => {
    const own = seeded(index);
    while (!isOver) await node.live(own, ids, 5);
  });
  for (let round = 0; round < 40; round += 1) {
    isFixed = round > 20;
    const session = { tenant: TENANT, sessionId: ids[random(6)] ?? '' };
    await pair[round % 2 ? 1 : 0].projector.resume(flaky, session, 'parked');
  }
  isOver = true;
  await Promise.all(load);
  // What failed just before the fix may be parked only now.
  await eventually(async () => {
    for (const { tenant, sessionId } of await pair[0].projector.parked())
      await pair[0].projector.resume(flaky, { tenant, sessionId }, 'parked');
    await caughtUp(pair[0]);
    return (await pair[0].projector.parked()).length === 0;
  });

  expect(await pair[0].projector.verify(sessionsProjection)).toMatchObject({ ok: true, parked: 0 });
  // A batch that failed just before the fix, and in which no poison event was found after it, is tried again.
  const others = nodes
    .flatMap((one) => one.errors)
    .filter((error) => !String(error).includes('cannot take this'));
  expect(others).toEqual([]);
}, 60_000);

it('given an event that is newer than the code, when it is applied, then only its session is parked', async () => {
  const node = await start();
  for (const id of ['old', 'new']) await node.handle(id, new CreateSession());
  const newer = { type: 'MessageAppended', schemaVersion: 99, data: {} };
  const newerNode = await start([]);
  await newerNode.store.append({
    ...appendOf({ tenant: TENANT, streamId: 'new' }, 1, []),
    stateVersion: STATE_VERSION,
    events: [newer],
  });
  await say(node, 'old', 'goes on');

  expect(await find(node, 'old')).toMatchObject({ messageCount: 1 });
  expect(await find(node, 'new')).toBeInstanceOf(SessionParked);
  await caughtUp(node);
  const parked = (await node.projector.parked()).map(({ projection, error }) => [projection, error]);
  expect(parked.sort()).toEqual(
    ['generations', 'history', 'search', 'sessions', 'usage'].map((name) => [
      name,
      expect.stringContaining('newer than this version') as string,
    ]),
  );
  // A session that cannot be folded cannot be compared either.
  expect(await node.projector.verify(sessionsProjection)).toMatchObject({ ok: true, parked: 1 });
  expect(await contents(sessionsProjection)).toHaveLength(2);
  const session = { tenant: TENANT, sessionId: 'new' };
  expect(await node.projector.resume(sessionsProjection, session, 'parked')).toMatchObject({
    parked: { version: 2 },
  });
}, 30_000);

it('given parked sessions, when the read model is rebuilt with the fixed code, then no session is parked any more; with the bug they are parked again', async () => {
  const buggy = cannotTake('bad', historyProjection);
  const node = await start([buggy]);
  for (const id of ['a', 'b', 'c']) {
    await node.handle(id, new CreateSession());
    await say(node, id, id === 'b' ? 'bad' : 'good', 'more');
  }
  await caughtUp(node);
  const rebuilt = async (one: Node) => {
    while ((await one.projector.status()).some(({ rebuild }) => rebuild)) await sleep(10);
  };
  await node.projector.rebuild(buggy);
  await rebuilt(node);
  expect(await node.projector.parked()).toMatchObject([{ sessionId: 'b', version: 2 }]);
  await say(node, 'b', 'still parked');
  await caughtUp(node);
  expect(await contents(historyProjection)).toHaveLength(7);
  await stop(node);

  const fixed = await start([historyProjection]);
  await fixed.projector.rebuild(historyProjection);
  await rebuilt(fixed);
  expect(await fixed.projector.parked()).toEqual([]);
  expect(await fixed.projector.verify(historyProjection)).toMatchObject({ ok: true, rows: 10, parked: 0 });
}, 30_000);
