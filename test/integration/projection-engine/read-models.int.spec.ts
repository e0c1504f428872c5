import {
  AppendMessages,
  ChangeSessionDetails,
  CompleteGeneration,
  CreateSession,
  DeleteSession,
  ExpireSession,
  FailGeneration,
  ResetConversation,
  StartGeneration,
} from '../../../src/domain/session.commands.js';
import { tableOf } from '../../../src/projection-engine/projection.js';
import { ProjectionLagging } from '../../../src/projection-engine/strong-reads.js';
import { eventually } from '../../support/http.js';
import { findSession, listSessions } from '../../../src/read-models/session-views.js';
import { sessionUsage } from '../../../src/read-models/usage.projection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { expectSoundLog, seeded, sized } from '../event-store/fixture.js';
import { historyPage, message, Node, READ_MODELS, target, TENANT } from './fixture.js';

let db: TestDatabase;
const nodes: Node[] = [];
const start = async (projections = READ_MODELS): Promise<Node> => {
  const node = await Node.start(db.url, projections);
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

const AT = (minutes: number) => `2026-11-22T10:0${minutes}:00.000Z`;
const clockAt = (minutes: number) =>
  db.query(`create or replace function colloquy_now() returns timestamptz language sql volatile as
    $$ select timestamptz '${AT(minutes)}' $$`);

describe('the rows of a life', () => {
  const to = target('chat');
  const all = { status: 'all', limit: 50 } as const;
  const begun = { order: 'asc', limit: 50, at: 1e9 } as const;

  it('given the whole life of a session on one node, when it is read on another, then sessions, history and usage show them', async () => {
    await clockAt(0);
    const [one, two] = [await start(), await start()];
    const other = () => two.endOf('chat');

    await one.handle(to.sessionId, new CreateSession({ title: 'Trip', metadata: { user: 'alice' } }));
    await clockAt(1);
    await one.handle(
      to.sessionId,
      new StartGeneration({ generationId: 'g1', model: 'small' }, [message('hello', { messageId: 'm1' })]),
    );
    await clockAt(2);
    await one.handle(
      to.sessionId,
      new CompleteGeneration(
        {
          generationId: 'g1',
          finishReason: 'stop',
          usage: { inputTokens: 10, outputTokens: 4, cachedTokens: 3 },
        },
        { messageId: 'm2', content: 'hi' },
      ),
    );
    expect(await findSession(two.models, await other(), TENANT, 'chat')).toEqual({
      id: 'chat',
      status: 'active',
      owner: null,
      title: 'Trip',
      metadata: { user: 'alice' },
      messageCount: 2,
      version: 5,
      createdAt: AT(0),
      lastActivityAt: AT(2),
      usage: { inputTokens: 10, outputTokens: 4, cachedTokens: 3, reasoningTokens: 0 },
    });
    const chat = { tenant: TENANT, sessionId: 'chat', incarnation: 1 };
    expect(await historyPage(two.models, await other(), chat, begun)).toEqual({
      start: 1,
      messages: [
        { id: 'm1', role: 'user', content: 'hello', status: 'complete', version: 2, createdAt: AT(1) },
        {
          id: 'm2',
          role: 'assistant',
          content: 'hi',
          status: 'complete',
          generationId: 'g1',
          version: 4,
          createdAt: AT(2),
        },
      ],
    });

    // A generation that fails counts, and its tokens as well.
    await one.handle(
      to.sessionId,
      new StartGeneration({ generationId: 'g2', model: 'big' }, [message('again')]),
    );
    await one.handle(
      to.sessionId,
      new FailGeneration({
        generationId: 'g2',
        code: 'model-failed',
        message: 'no',
        usage: { inputTokens: 7, outputTokens: 0, reasoningTokens: 2 },
      }),
    );
    await one.handle(to.sessionId, new ChangeSessionDetails({ title: null, metadata: { user: 'bob' } }));
    await clockAt(3);
    await one.handle(to.sessionId, new ResetConversation());
    expect(await historyPage(two.models, await other(), chat, begun)).toEqual({ start: 10, messages: [] });
    // The session is as it was before.
    expect(await historyPage(two.models, await other(), chat, { ...begun, at: 9 })).toMatchObject({
      start: 1,
      messages: [{ version: 2 }, { version: 4 }, { version: 6 }],
    });
    const usage = [
      {
        model: 'big',
        day: '2026-11-22',
        generations: 1,
        inputTokens: 7,
        outputTokens: 0,
        cachedTokens: 0,
        reasoningTokens: 2,
      },
      {
        model: 'small',
        day: '2026-11-22',
        generations: 1,
        inputTokens: 10,
        outputTokens: 4,
        cachedTokens: 3,
        reasoningTokens: 0,
      },
    ];
    expect(await sessionUsage(two.models, await other(), TENANT, 'chat')).toEqual(usage);
    expect(await findSession(two.models, await other(), TENANT, 'chat')).toMatchObject({
      title: null,
      metadata: { user: 'bob' },
      messageCount: 0,
      lastActivityAt: AT(3),
      usage: { inputTokens: 17, outputTokens: 4, cachedTokens: 3, reasoningTokens: 2 },
    });

    await clockAt(4);
    await one.handle(to.sessionId, new ExpireSession('ttl', AT(3)));
    // An expiry is no activity.
    expect(await findSession(two.models, await other(), TENANT, 'chat')).toMatchObject({
      status: 'expired',
      lastActivityAt: AT(3),
    });
    expect(
      await listSessions(two.models, await two.models.ends(), TENANT, { ...all, status: 'active' }),
    ).toEqual([]);
    expect(
      await listSessions(two.models, await two.models.ends(), TENANT, { ...all, status: 'expired' }),
    ).toHaveLength(1);
    await one.handle(to.sessionId, new AppendMessages([message('back', { messageId: 'm9' })]));
    expect(await findSession(two.models, await other(), TENANT, 'chat')).toMatchObject({
      status: 'active',
      messageCount: 1,
    });

    await one.handle(to.sessionId, new DeleteSession());
    expect(await findSession(two.models, await other(), TENANT, 'chat')).toBeUndefined();
    expect(await listSessions(two.models, await two.models.ends(), TENANT, all)).toEqual([]);

    // The id is created again: nothing of the earlier session shows, but its usage stays counted.
    await clockAt(5);
    await one.handle(to.sessionId, new CreateSession());
    expect(await findSession(two.models, await other(), TENANT, 'chat')).toEqual({
      id: 'chat',
      status: 'active',
      owner: null,
      title: null,
      metadata: {},
      messageCount: 0,
      version: 15,
      createdAt: AT(5),
      lastActivityAt: AT(5),
      usage: { inputTokens: 0, outputTokens: 0, cachedTokens: 0, reasoningTokens: 0 },
    });
    expect(await historyPage(two.models, await other(), { ...chat, incarnation: 2 }, begun)).toEqual({
      start: 15,
      messages: [],
    });
    expect(await historyPage(two.models, await other(), chat, begun)).toMatchObject({
      start: 10,
      messages: [{ id: 'm9' }],
    });
    expect(await historyPage(two.models, await other(), { ...chat, incarnation: 3 }, begun)).toBeUndefined();
    expect(await sessionUsage(two.models, await other(), TENANT, 'chat')).toEqual(usage);
    expect(nodes.flatMap((node) => node.errors)).toEqual([]);
  });

  it('given many sessions, when they are listed by pages and filters, then each session of the tenant is found once, and none of another tenant', async () => {
    const node = await start();
    const created = await Promise.all(
      Array.from({ length: 25 }, (_, index) =>
        node.handle(
          `s${index}`,
          new CreateSession({
            ...(index % 2 === 0 && { title: `Reise nach Köln ${index}` }),
            metadata: { even: String(index % 2 === 0), place: index === 7 ? 'LONDON' : 'x' },
          }),
        ),
      ),
    );
    expect(created).toHaveLength(25);
    const wanted = await node.models.ends();
    const list = (more: object) => listSessions(node.models, wanted, TENANT, { ...all, ...more });

    const pages = [];
    for (let after: { createdAt: string; id: string } | undefined; ;) {
      const page = await list({ limit: 4, after });
      pages.push(...page);
      const last = page.at(-1);
      if (!last || page.length < 4) break;
      after = { createdAt: last.createdAt, id: last.id };
    }
    expect(pages.map(({ id }) => id).sort()).toEqual(
      Array.from({ length: 25 }, (_, index) => `s${index}`).sort(),
    );
    expect(pages).toEqual(await list({}));
    expect(await list({ q: 'nach köln' })).toHaveLength(13);
    expect((await list({ q: 'london' })).map(({ id }) => id)).toEqual(['s7']);
    expect(await list({ metadata: { even: 'false' } })).toHaveLength(12);
    expect(await list({ metadata: { even: 'false', none: 'x' } })).toEqual([]);
    expect(await listSessions(node.models, wanted, 'beta', all)).toEqual([]);
  });

  it('given a history of many messages, when it is read by pages in either direction, then each message comes once', async () => {
    const node = await start();
    await node.handle(to.sessionId, new CreateSession());
    await node.handle(
      to.sessionId,
      new AppendMessages(Array.from({ length: 23 }, (_, index) => message(`${index}`))),
    );
    const wanted = await node.endOf('chat');
    const chat = { tenant: TENANT, sessionId: 'chat', incarnation: 1 };
    for (const order of ['asc', 'desc'] as const) {
      const read: unknown[] = [];
      for (let after: number | undefined; ;) {
        const page = await historyPage(node.models, wanted, chat, { at: 20, after, order, limit: 5 });
        if (!page || page.messages.length === 0) break;
        read.push(...page.messages.map(({ content }) => content));
        after = page.messages.at(-1)?.version;
      }
      const expected = Array.from({ length: 19 }, (_, index) => `${index}`);
      expect(read).toEqual(order === 'asc' ? expected : expected.reverse());
    }
  });
});

describe('strong reads', () => {
  it('given steady load on two nodes, when each write is read at once on the other node, then every acknowledged write is there', async () => {
    const pair = [await start(), await start()] as const;
    let isOver = false;
    const noise = pair.map(async (node, index) => {
      const random = seeded(index);
      const ids = Array.from({ length: 40 }, (_, number) => `noise${index}-${number}`);
      while (!isOver) await Promise.all([1, 2, 3, 4].map(() => node.live(random, ids, 5)));
    });
    const rounds = sized(100, 15, 6);
    const waits: number[] = [];
    const timed = async <T>(read: () => Promise<T>): Promise<T> => {
      const began = performance.now();
      const result = await read();
      waits.push(performance.now() - began);
      return result;
    };

    await Promise.all(
      Array.from({ length: 8 }, async (_, loop) => {
        const [writer, reader] = loop % 2 ? pair : [pair[1], pair[0]];
        const id = `mine${loop}`;
        await writer.handle(id, new CreateSession({ metadata: { loop: String(loop) } }));
        for (let round = 1; round <= rounds; round += 1) {
          const text = `${id} ${round}`;
          const { state } = await writer.handle(id, new AppendMessages([message(text)]));
          const found = await timed(async () =>
            findSession(reader.models, await reader.endOf(id), TENANT, id),
          );
          expect(found).toMatchObject({ version: state.version, messageCount: round });
          const listed = await timed(async () =>
            listSessions(reader.models, await reader.models.ends(), TENANT, {
              status: 'active',
              limit: 5,
              metadata: { loop: String(loop) },
            }),
          );
          expect(listed).toMatchObject([{ id, messageCount: round }]);
          const page = await historyPage(
            reader.models,
            await reader.endOf(id),
            { tenant: TENANT, sessionId: id, incarnation: 1 },
            { at: state.version, order: 'desc', limit: 1 },
          );
          expect(page?.messages[0]?.content).toBe(text);
        }
      }),
    );
    isOver = true;
    await Promise.all(noise);

    expect(Math.max(...waits)).toBeLessThan(2_000);
    expect(nodes.flatMap((node) => node.errors)).toEqual([]);
  }, 120_000);

  it('given no running projector, when a strong read is made after a write, then it fails with projection-lagging after 2 s; an eventual read answers at once', async () => {
    const projecting = await start();
    await projecting.handle('seen', new CreateSession());
    await eventually(async () => (await projecting.projector.lag()).every(({ behind }) => behind === 0));
    await projecting.projector.stop();
    const node = await start([]);
    await node.handle('unseen', new CreateSession());

    const began = Date.now();
    const lagging = await findSession(node.models, await node.endOf('unseen'), TENANT, 'unseen').catch(
      (error: unknown) => error,
    );
    const waited = Date.now() - began;

    expect(lagging).toBeInstanceOf(ProjectionLagging);
    expect(lagging).toMatchObject({ code: 'projection-lagging' });
    expect(waited).toBeGreaterThanOrEqual(2_000);
    expect(waited).toBeLessThan(6_000);
    // Rows that were applied before are returned, also by a strong read whose lane is up to date.
    expect(await findSession(node.models, 'eventual', TENANT, 'unseen')).toBeUndefined();
    expect(await findSession(node.models, 'eventual', TENANT, 'seen')).toBeDefined();
    expect(await findSession(node.models, await node.endOf('seen'), TENANT, 'seen')).toBeDefined();
    expect(Date.now() - began - waited).toBeLessThan(2_000);
    expect(await projecting.projector.lag()).toEqual(
      READ_MODELS.map((projection) => ({ projection: tableOf(projection), behind: 1 })),
    );
  });
});
