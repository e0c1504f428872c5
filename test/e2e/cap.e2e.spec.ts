import { type FakeOpenAi, held, says } from '../support/fake-openai.js';
import { type Answer, type Api, eventually, expectProblem } from '../support/http.js';
import { createWorld, FULL, logged, say, type SessionAnswer, user, type World } from './fixture.js';

const CAP = 50;
const CREATES = FULL ? 1000 : 200;
const HOUR = 3_600_000;

describe('the cap on active sessions', () => {
  let world: World;
  let nodes: readonly [Api, Api];

  async function start(env: Record<string, string> = {}): Promise<void> {
    const all = { MAX_SESSIONS: String(CAP), ...env };
    const [one, two] = await Promise.all([world.node(all), world.node(all)]);
    nodes = [one.api, two.api];
  }
  beforeEach(async () => {
    world = await createWorld();
  });
  afterEach(async () => {
    try {
      await expectExact();
    } finally {
      await world.end();
    }
  });

  /** The number of active sessions by the log, independent of the counter and the read models. */
  async function active(): Promise<string[]> {
    const rows = await world.database.query<{ stream_id: string }>(
      `select stream_id from (
         select distinct on (stream_id) stream_id, type from event
         where tenant = 'default' and type in ('SessionCreated', 'SessionResumed', 'SessionExpired', 'SessionDeleted')
         order by stream_id, version desc
       ) last where type in ('SessionCreated', 'SessionResumed')`,
    );
    return rows.map((row) => row.stream_id);
  }
  async function expectExact(): Promise<void> {
    const [counter] = await world.database.query<{ value: number }>(
      `select value::int from counter where key = 'active:default'`,
    );
    expect(counter?.value).toBe((await active()).length);
    expect(counter?.value).toBeLessThanOrEqual(CAP);
  }
  const createMany = (count: number, from = 0) =>
    Promise.all(
      Array.from({ length: count }, (_, index) =>
        (nodes[index % 2] ?? nodes[0]).post<SessionAnswer>('/v1/sessions', { id: `s-${from + index}` }),
      ),
    );
  const withStatus = (answers: readonly Answer<SessionAnswer>[], status: number) =>
    answers.filter((answer) => answer.status === status);

  it(`given a cap of ${CAP}, when ${CREATES} are created at once on two nodes, then exactly ${CAP} are made`, async () => {
    await start();
    const answers = await createMany(CREATES);
    expect(withStatus(answers, 201)).toHaveLength(CAP);
    const refused = withStatus(answers, 429);
    expect(refused).toHaveLength(CREATES - CAP);
    for (const answer of refused) {
      const problem = expectProblem(answer, 429, 'session-limit-reached');
      expect(problem).toMatchObject({ activeSessions: CAP, maxSessions: CAP });
    }
    const made = withStatus(answers, 201).map((answer) => answer.body.id);
    expect((await active()).sort()).toEqual(made.sort());
    expect(await world.database.query('select from event')).toHaveLength(CAP);

    // An active session may be used at the cap. An expired one may not be resumed, and a new one may not be created.
    const [first = ''] = made;
    expect((await nodes[0].post('/v1/sessions', { id: first })).status).toBe(200);
    expect((await say(nodes[1], first, 'hello')).status).toBe(201);
    expectProblem(
      await nodes[0].post('/v1/chat', { message: 'x', sessionId: 'new' }),
      429,
      'session-limit-reached',
    );
    // Another tenant has a cap of its own.
    expect((await nodes[0].post('/v1/sessions', {}, { 'colloquy-tenant': 'other' })).status).toBe(201);

    // Each deleted session makes room for exactly one.
    const leaving = made.slice(0, 10);
    await Promise.all(
      leaving.map((id, index) => (nodes[index % 2] ?? nodes[0]).delete(`/v1/sessions/${id}`)),
    );
    const again = await createMany(30, CREATES);
    expect(withStatus(again, 201)).toHaveLength(10);
    expect(withStatus(again, 429)).toHaveLength(20);
  });

  it('given overdue sessions at the cap, when many sessions are created at once, then the overdue ones expire and make room for all new ones', async () => {
    await start();
    expect(withStatus(await createMany(CAP), 201)).toHaveLength(CAP);
    await world.database.setClock({ offsetMs: 2 * HOUR });
    // One of the overdue sessions is used before it expires.
    expect((await say(nodes[0], 's-0', 'still here')).status).toBe(201);
    const answers = await createMany(CAP - 1, 1000);
    expect(withStatus(answers, 201)).toHaveLength(CAP - 1);
    expectProblem(await nodes[0].post('/v1/sessions', {}), 429, 'session-limit-reached');
    expect(await active()).toContain('s-0');
    expect((await logged(world.database, 's-1')).at(-1)).toMatchObject({
      type: 'SessionExpired',
      data: { reason: 'ttl' },
    });
    // An expired session is resumed only if there is room.
    expectProblem(await say(nodes[1], 's-1', 'me too'), 429, 'session-limit-reached');
    await nodes[0].delete('/v1/sessions/s-0');
    expect((await say(nodes[1], 's-1', 'me too')).status).toBe(201);
    expect((await nodes[0].get('/v1/sessions/s-1')).body).toMatchObject({
      status: 'active',
      messageCount: 1,
    });
  });

  describe('when the policy is to evict', () => {
    it(`given a tenant at its cap, when ${CREATES} more sessions are created at once on two nodes, then all are created, and never more than the cap are active`, async () => {
      await start({ SESSION_CAP_POLICY: 'evict' });
      await createMany(CAP);
      const watching = watch();
      const answers = await createMany(CREATES, 1000);
      expect(new Set(answers.map((answer) => answer.status))).toEqual(new Set([201]));
      expect(await watching()).toBeLessThanOrEqual(CAP);
      expect(await active()).toHaveLength(CAP);
      const reasons = await world.database.query(
        `select data ->> 'reason' as reason, count(*)::int as n from event where type = 'SessionExpired' group by 1`,
      );
      expect(reasons).toEqual([{ reason: 'cap', n: CREATES }]);
    });

    it('given a tenant at its cap, when one more session is created, then the least recently used one expires, and is resumed when it is used', async () => {
      await start({ SESSION_CAP_POLICY: 'evict', MAX_SESSIONS: '3' });
      for (const [index, id] of ['a', 'b', 'c'].entries()) {
        // Not within one millisecond, to which times are compared.
        await world.database.setClock({ offsetMs: index * 100 });
        expect((await nodes[0].post('/v1/sessions', { id })).status).toBe(201);
      }
      await world.database.setClock({ offsetMs: 1000 });
      expect((await say(nodes[0], 'a', 'hello')).status).toBe(201);
      await world.database.setClock({ offsetMs: 2000 });
      // The first to leave is found by the read model as it is, so it must have seen all three: a list waits for that.
      expect((await nodes[0].get<{ data: object[] }>('/v1/sessions')).body.data).toHaveLength(3);
      expect((await nodes[0].post('/v1/sessions', { id: 'd' })).status).toBe(201);
      expect((await active()).sort()).toEqual(['a', 'c', 'd']);
      const [expired] = (await logged(world.database, 'b')).slice(-1);
      expect(expired).toMatchObject({ type: 'SessionExpired', data: { reason: 'cap' } });
      expect((await nodes[1].get('/v1/sessions/b')).body).toMatchObject({ status: 'expired' });
      // Reading does not count as use.
      await nodes[1].get('/v1/sessions/c');
      expect((await say(nodes[1], 'b', 'back')).status).toBe(201);
      expect((await logged(world.database, 'c')).at(-1)).toMatchObject({ type: 'SessionExpired' });
      expect((await active()).sort()).toEqual(['a', 'b', 'd']);
    });

    it('given a tenant at its cap whose sessions are all generating, when one more is created, then it is refused; when one generation has ended, it is created', async () => {
      const model: FakeOpenAi = await world.model();
      await start({ SESSION_CAP_POLICY: 'evict', MAX_SESSIONS: '2' });
      const replies = [held(says('one')), held(says('two'))];
      model.next(...replies.map((one) => one.reply));
      const answers: Promise<Answer>[] = [];
      for (const [index, reply] of replies.entries()) {
        await nodes[0].post('/v1/sessions', { id: `g-${index}` });
        answers.push(nodes[0].post(`/v1/sessions/g-${index}/generate`, { message: user('x') }));
        await reply.asked;
      }
      const problem = expectProblem(
        await nodes[1].post('/v1/sessions', { id: 'new' }),
        429,
        'session-limit-reached',
      );
      expect(problem).toMatchObject({ activeSessions: 2, maxSessions: 2 });
      replies.forEach((reply) => {
        reply.release();
      });
      await Promise.all(answers);
      expect((await nodes[1].post('/v1/sessions', { id: 'new' })).status).toBe(201);
    });

    /** Counts the active sessions by the log, again and again until it is stopped. Resolves to the highest count. */
    function watch(): () => Promise<number> {
      let stopped = false;
      let most = 0;
      const done = eventually(async () => {
        most = Math.max(most, (await active()).length);
        return stopped;
      }, 60_000);
      return async () => {
        stopped = true;
        await done;
        return most;
      };
    }
  });
});
