import { isDeepStrictEqual } from 'node:util';
import { Past } from '../../../src/audit/past.js';
import { DomainError } from '../../../src/domain/decider.js';
import { isActivity, STATE_VERSION } from '../../../src/domain/session.state.js';
import { sessionDecider } from '../../../src/domain/session.js';
import { StreamHandler } from '../../../src/event-store/stream-handler.js';
import { SessionQueries } from '../../../src/sessions/session-queries.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { messagesIn, recount, removalIn, rewoundIn } from '../../unit/domain/naive-session.js';
import { seeded, sized, tallies, by, Nodes } from '../event-store/fixture.js';
import { Node, TENANT } from '../sweeper/fixture.js';
import { anyCommand, eventsOf, expectProblemCode, type Logged } from './fixture.js';

const SEQUENCES = sized(10_000, 300, 100);
const COMMANDS = 11;
/** The main property is tested on all sessions, and the other slow properties on this part of them. */
const PART = sized(1, 6);
const WRITERS = 8;
const AT_ONCE = 8;
const OVERALL_MS = sized(1_800_000, 60_000);

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

/** After so many writes the read models may need longer to catch up than one strong read waits. */
const caughtUp = (node: Node): Promise<boolean> =>
  eventually(
    () =>
      node.caughtUp().then(
        () => true,
        () => false,
      ),
    OVERALL_MS,
  );

/** Number of sessions at the same time: more would only wait for connections. */
async function inTurns<T>(
  items: readonly T[],
  atOnce: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const rest = items.values();
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (const item of rest) await work(item);
    }),
  );
}

function expectSame(what: string, actual: unknown, expected: unknown): void {
  // Jest's own comparison prints differences well, but is too slow for so many comparisons.
  if (isDeepStrictEqual(actual, expected)) return;
  expect({ [what]: actual }).toEqual({ [what]: expected });
}

/** The state of a session after some of its events, computed from these events by the naive rules. */
function stateOf(sessionId: string, log: readonly Logged[]): unknown {
  const begun =
    log.findLastIndex(({ type }) => type === 'SessionCreated' || type === 'ConversationReset') + 1;
  const state = recount(log);
  return {
    sessionId,
    ...state,
    historyStart: state.status === 'deleted' ? 0 : begun,
    time: log.at(-1)?.time,
  };
}

/**
 * The messages of the history at that version. After a delete, the last history can be read by naming the incarnation.
 */
function historyOf(log: readonly Logged[]): unknown[] {
  const kept =
    recount(log).status === 'deleted'
      ? log.slice(
          0,
          log.findLastIndex(({ type }) => type === 'SessionDeleted'),
        )
      : log;
  return messagesIn(kept).map(({ version, message: { messageId, ...message } }) => ({
    id: messageId,
    ...message,
    version,
    createdAt: log[version - 1]?.time,
  }));
}

describe('the past of sessions that lived through random commands', () => {
  const random = seeded();
  const ids = Array.from({ length: SEQUENCES }, (_, index) => `s${index}`);
  // Each session has a writer of its own, so their order is up to the database.
  const randoms = new Map(ids.map((id) => [id, seeded(random(2 ** 31))]));
  let node: Node;
  let past: Past;
  let queries: SessionQueries;
  const logs = new Map<string, Logged[]>();

  beforeAll(async () => {
    node = await Node.start(db, { sessions: { maxSessions: 1_000_000 } });
    past = node.app.get(Past);
    queries = node.app.get(SessionQueries);
    let offsetMs = -100 * 86_400_000;
    for (let round = 0; round < COMMANDS; round += 1) {
      // Sometimes the clock stands still, as it may for commands in a row.
      offsetMs += random(3) * 3_600_000;
      await db.setClock({ offsetMs });
      await inTurns(ids, WRITERS, async (id) => {
        const own = randoms.get(id) ?? random;
        const commands = [anyCommand(own, round), anyCommand(own, round + 1)];
        for (const command of commands.slice(0, 1 + own(2))) {
          await node.handle(id, command).catch((error: unknown) => {
            if (!(error instanceof DomainError)) throw error;
          });
        }
      });
    }
    for (const id of ids) logs.set(id, await eventsOf(db, id));
    await caughtUp(node);
  }, OVERALL_MS);
  afterAll(() => node.stop());

  /** Runs work on every session, or on a part of them. */
  const each = (
    work: (sessionId: string, log: readonly Logged[]) => Promise<void>,
    part = 1,
  ): Promise<void> =>
    inTurns(
      [...logs].filter((_, index) => index % part === 0),
      AT_ONCE,
      (one) => work(...one),
    );

  it('given the random commands, when their events are counted, then every kind of event occurred', () => {
    const all = [...logs.values()].flat();
    expect(all.length).toBeGreaterThan(SEQUENCES * 6);
    expect(new Set(all.map(({ type }) => type)).size).toBe(17);
    expect(Math.max(...all.map(({ incarnation }) => incarnation))).toBeGreaterThan(2);
  });

  it('given the random commands, when messages left a history, then each event says what the naive rules say', () => {
    for (const log of logs.values()) {
      log.forEach((event, index) => {
        const before = log.slice(0, index);
        if (event.type === 'MessageRemoved') {
          const { messageId } = event.data;
          expectSame('what leaves with a message', event.data, {
            messageId,
            ...removalIn(before, messageId),
          });
        }
        if (event.type === 'HistoryRewound') {
          const { reason: _reason, ...data } = event.data;
          expectSame('what is left by a rewinding', data, rewoundIn(before, data.toVersion));
        }
      });
    }
  });

  it(
    'given any version and its incarnation, when state and messages are asked for, then they are those of a naive fold',
    async () => {
      await each(async (sessionId, log) => {
        const session = { tenant: TENANT, sessionId, ownedBy: null };
        for (const { version: at, incarnation } of log) {
          const before = log.slice(0, at);
          expectSame(
            `${sessionId} at ${at}`,
            await past.state(session, { at, incarnation }),
            stateOf(sessionId, before),
          );
          const page = await queries.messages(session, {
            at,
            incarnation,
            limit: 200,
            order: 'asc',
            consistency: 'strong',
          });
          expectSame(`messages of ${sessionId} at ${at}`, JSON.parse(page.messages), historyOf(before));
        }
      });
    },
    OVERALL_MS,
  );

  it(
    'given any time, when state and messages are asked for, then they are those of the last event up to it in that incarnation',
    async () => {
      await each(async (sessionId, log) => {
        const session = { tenant: TENANT, sessionId, ownedBy: null };
        for (const { time, incarnation } of log) {
          const later = new Date(Date.parse(time) + 1_000).toISOString();
          for (const at of [time, later]) {
            const last = log.findLastIndex((one) => one.incarnation === incarnation && one.time <= at) + 1;
            const state = await past.state(session, { at, incarnation });
            expectSame(`${sessionId} at ${at}`, state, stateOf(sessionId, log.slice(0, last)));
          }
          const page = { limit: 200, order: 'asc', consistency: 'strong' } as const;
          const last = log.findLastIndex((one) => one.incarnation === incarnation && one.time <= time) + 1;
          const { messages } = await queries.messages(session, { ...page, at: time, incarnation });
          expectSame(
            `messages of ${sessionId} at ${time}`,
            JSON.parse(messages),
            historyOf(log.slice(0, last)),
          );
        }
        const [first] = log;
        const earlier = new Date(Date.parse(first?.time ?? '') - 1).toISOString();
        await expectProblemCode(past.state(session, { at: earlier, incarnation: 1 }), 'invalid-request');
      }, PART);
    },
    OVERALL_MS,
  );

  it(
    'given an earlier incarnation, when a request does not name it, then nothing of it is returned, by version or by time',
    async () => {
      let refused = 0;
      await each(async (sessionId, log) => {
        const session = { tenant: TENANT, sessionId, ownedBy: null };
        const now = log.at(-1);
        const isGone = recount(log).status === 'deleted';
        const page = { limit: 200, order: 'asc', consistency: 'strong' } as const;
        for (const { version, incarnation, time } of log) {
          if (incarnation === now?.incarnation && !isGone) {
            const state = await past.state(session, { at: version });
            expectSame(`${sessionId} at ${version}`, state, stateOf(sessionId, log.slice(0, version)));
            continue;
          }
          const code = isGone ? 'session-not-found' : 'invalid-request';
          // For a time that belongs to both incarnations, the present one is returned.
          const isShared = log.some((one) => one.incarnation === now?.incarnation && one.time <= time);
          for (const at of isShared && !isGone ? [version] : [version, time]) {
            await expectProblemCode(past.state(session, { at }), code);
            await expectProblemCode(queries.messages(session, { ...page, at }), code);
            refused += 1;
          }
        }
        const next = (now?.incarnation ?? 0) + 1;
        await expectProblemCode(past.state(session, { incarnation: next }), 'session-not-found');
      }, PART);
      expect(refused).toBeGreaterThan(SEQUENCES / PART / 2);
    },
    OVERALL_MS,
  );

  it(
    'given any two versions of an incarnation, when they are compared, then the difference equals that of two naive folds',
    async () => {
      await each(async (sessionId, log) => {
        const session = { tenant: TENANT, sessionId, ownedBy: null };
        const own = randoms.get(sessionId) ?? random;
        const { incarnation } = log[own(log.length)] ?? { incarnation: 1 };
        const versions = log.filter((one) => one.incarnation === incarnation).map(({ version }) => version);
        const [from = 1, to = 1] = [own(versions.length), own(versions.length)]
          .sort((a, b) => a - b)
          .map((index) => versions[index] ?? 1);
        const diff = await past.diff(session, { from, to, incarnation, limit: 200 });
        expectDifference(diff, log, from, to);
      });
    },
    OVERALL_MS,
  );

  it('given some of these states, when they are requested over HTTP, then they are the same', async () => {
    for (const id of ids.slice(0, 10)) {
      const log = logs.get(id) ?? [];
      for (const { version, incarnation } of log) {
        const url = `/v1/sessions/${id}/state?at=${version}&incarnation=${incarnation}`;
        const { status, body, headers } = await node.inject('GET', url);
        expect({ status, body, etag: headers['etag'] }).toEqual({
          status: 200,
          body: stateOf(id, log.slice(0, version)),
          etag: `"${version}"`,
        });
      }
    }
  });

  it('given states that are stored every few versions, when folds begin from them, then each state equals that of a naive fold', async () => {
    const sessions = new StreamHandler(node.store, {
      decider: sessionDecider,
      stateVersion: STATE_VERSION + 1,
      schemaVersion: () => 1,
      isActivity,
      incarnation: (state) => state.incarnation,
      snapshotEvery: 4,
    });
    for (const id of ids.slice(0, 20)) {
      const log = logs.get(id) ?? [];
      // The fold runs twice: the first one stores the states from which the second one begins.
      for (const version of [...log, ...log].map((one) => one.version).reverse()) {
        const { historyStart: _, ...state } = await sessions.stateAt(
          { tenant: TENANT, streamId: id },
          version,
        );
        expectSame(`${id} at ${version}`, state, recount(log.slice(0, version)));
      }
    }
    const [kept] = await db.query<{ count: number }>('select count(*)::int as count from stream_snapshot');
    expect(kept?.count).toBeGreaterThan(20);
  });
});

function expectDifference(
  diff: Awaited<ReturnType<Past['diff']>>,
  log: readonly Logged[],
  from: number,
  to: number,
) {
  const [before, after] = [log.slice(0, from), log.slice(0, to)];
  const [one, two] = [recount(before), recount(after)];
  const versionsIn = (some: readonly Logged[]) => messagesIn(some).map(({ version }) => version);
  const [older, newer] = [versionsIn(before), versionsIn(after)];
  const between = log.slice(from, to);
  const counts: Record<string, number> = {};
  for (const { type } of between) counts[type] = (counts[type] ?? 0) + 1;
  const changed = (name: 'status' | 'title' | 'metadata' | 'legalHold') =>
    isDeepStrictEqual(one[name], two[name]) ? {} : { [name]: { before: one[name], after: two[name] } };
  const without = (some: readonly unknown[], others: readonly unknown[]) =>
    some.filter((approval) => !others.some((other) => isDeepStrictEqual(approval, other)));
  const list = (versions: readonly number[]) => ({ count: versions.length, versions });
  const ends = between.flatMap((event) => (/^Generation[CF]/.test(event.type) ? [event] : [])) as {
    data: { usage?: { inputTokens: number } };
  }[];
  const { messages, usage, generations, ...rest } = diff;
  expectSame(`${diff.sessionId} from ${from} to ${to}`, rest, {
    sessionId: diff.sessionId,
    incarnation: log[from - 1]?.incarnation,
    from,
    to,
    events: counts,
    ...changed('status'),
    ...changed('title'),
    ...changed('metadata'),
    ...changed('legalHold'),
    approvals: {
      added: without(two.approvals, one.approvals),
      removed: without(one.approvals, two.approvals),
    },
  });
  const shown = ({ count, data }: { count: number; data: { version: number }[] }) => ({
    count,
    versions: data.map(({ version }) => version),
  });
  expectSame(
    'the messages added',
    shown(messages.added),
    list(newer.filter((version) => !older.includes(version))),
  );
  expectSame(
    'the messages removed',
    shown(messages.removed),
    list(older.filter((version) => !newer.includes(version))),
  );
  expectSame(
    'the tokens used',
    usage.inputTokens,
    ends.reduce((sum, { data }) => sum + (data.usage?.inputTokens ?? 0), 0),
  );
  const versionsOf = (pattern: RegExp) =>
    between.filter(({ type }) => pattern.test(type)).map((event) => event.version);
  const reportedVersions = (which: 'started' | 'ended') =>
    generations.flatMap((generation) => generation[which] ?? []);
  expectSame('the begins of generations', reportedVersions('started'), versionsOf(/^GenerationStarted/));
  expectSame('the ends of generations', reportedVersions('ended'), versionsOf(/^Generation[CF]/));
}

describe('a very long session', () => {
  const LENGTH = sized(100_000, 5_000);
  const PAGE = { limit: 50, order: 'asc', consistency: 'strong' } as const;
  let node: Node;
  const session = { tenant: TENANT, sessionId: 'long', ownedBy: null };

  beforeAll(async () => {
    node = await Node.start(db, { sessions: { maxSessions: 1_000_000 } });
    await node.create('long');
    for (let written = 0; written < LENGTH; written += 1_000) {
      const messages = Array.from({ length: 1_000 }, (_, index) => ({
        role: 'user',
        content: `Could you tell me how far along order ${written + index} is? It should have been here by now.`,
      }));
      const { status } = await node.inject('POST', '/v1/sessions/long/messages', { messages });
      expect(status).toBe(201);
    }
    await caughtUp(node);
  }, OVERALL_MS);
  afterAll(() => node.stop());

  /** The lower quartile, which shows the time of the work rather than other load on the machine. */
  const quartile = (times: number[]): number =>
    times.sort((a, b) => a - b)[Math.floor(times.length / 4)] ?? 0;
  async function timed(work: (at: number) => Promise<unknown>): Promise<number> {
    const times: number[] = [];
    for (let turn = 0; turn < 20; turn += 1) {
      const at = 2 + Math.floor((turn * (LENGTH - 1)) / 20);
      const began = performance.now();
      await work(at);
      times.push(performance.now() - began);
    }
    return quartile(times);
  }

  it(
    'given any version or time, when its state or a page of its history is requested, then the answer is fast',
    async () => {
      const past = node.app.get(Past);
      const queries = node.app.get(SessionQueries);
      const [{ time: middle } = { time: new Date() }] = await db.query<{ time: Date }>(
        `select time from event where stream_id = 'long' and version = $1`,
        [LENGTH / 2],
      );
      const at = middle.toISOString();
      const times = {
        state: await timed(async (version) => {
          expect((await past.state(session, { at: version })).messageCount).toBe(version - 1);
        }),
        stateByTime: await timed(() => past.state(session, { at })),
        page: await timed(async (version) => {
          const { messages } = await queries.messages(session, { ...PAGE, at: version, order: 'desc' });
          expect((JSON.parse(messages) as unknown[])[0]).toMatchObject({ version });
        }),
        firstPage: await timed((version) => queries.messages(session, { ...PAGE, at: version })),
        pageByTime: await timed(() => queries.messages(session, { ...PAGE, at })),
      };
      if (process.env['FULL'] === '1') console.log(`${LENGTH} messages, ms:`, times);
      expect(Math.max(times.state, times.stateByTime)).toBeLessThan(sized(150, 1_500));
      expect(Math.max(times.page, times.firstPage, times.pageByTime)).toBeLessThan(sized(50, 500));
    },
    OVERALL_MS,
  );
});

describe('states that are kept', () => {
  const nodes = new Nodes();
  afterAll(() => nodes.stopAll());

  it('given a stream that has grown past an interval of stored states, when a past state is requested, then few events are read', async () => {
    const store = await nodes.start(db.url);
    const stream = { tenant: 'acme', streamId: 'tally' };
    const handler = tallies(store, { snapshotEvery: 10 });
    // Commands do not wait until their snapshot is stored, but this test has to.
    const stored: Promise<void>[] = [];
    const save = store.snapshots.save.bind(store.snapshots);
    store.snapshots.save = (...args) => {
      const saved = save(...args);
      stored.push(saved);
      return saved;
    };
    for (let number = 1; number <= 95; number += 1) await handler.handle(stream, { numbers: [number] }, by);
    await Promise.all(stored);
    const reads: { from?: number }[] = [];
    const original = store.streams.events.bind(store.streams);
    store.streams.events = (of, range, limit) => {
      reads.push(range ?? {});
      return original(of, range, limit);
    };
    expect(await handler.stateAt(stream, 94)).toMatchObject({ version: 94, sum: (94 * 95) / 2 });
    expect(reads).toMatchObject([{ from: 91, to: 94 }]);
    // States that another version of the code has stored are not used.
    const other = tallies(store, { snapshotEvery: 10, stateVersion: 2 });
    expect(await other.stateAt(stream, 94)).toMatchObject({ version: 94, sum: (94 * 95) / 2 });
    expect(reads.at(-1)).toMatchObject({ from: 1, to: 94 });
  });
});
