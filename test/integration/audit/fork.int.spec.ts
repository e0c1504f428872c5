import { AppendMessages, ExpireSession, GrantToolApproval } from '../../../src/domain/session.commands.js';
import { type Node, World } from '../sweeper/fixture.js';
import { eventsOf } from './fixture.js';
import { heavy } from '../../support/heavy.js';

const world = World.perTest();

interface Message {
  readonly id: string;
  readonly content: string;
  readonly createdAt: string;
  readonly status: string;
  readonly generationId?: string;
  readonly origin?: { readonly sessionId: string; readonly messageId: string; readonly createdAt: string };
}

type Answer = Awaited<ReturnType<Node['inject']>>;
const fork = (node: Node, id: string, body: object = {}, headers = {}): Promise<Answer> =>
  node.inject('POST', `/v1/sessions/${id}/fork`, body, headers);

async function messages(node: Node, id: string, query = ''): Promise<Message[]> {
  const { body } = await node.inject('GET', `/v1/sessions/${id}/messages?limit=200${query}`);
  return body['data'] as Message[];
}
const contents = async (node: Node, id: string, query = '') =>
  (await messages(node, id, query)).map(({ content }) => content);
const forksOf = async (node: Node, id: string, query = '') => {
  const { body } = await node.inject('GET', `/v1/sessions/${id}/forks${query}`);
  return (body['data'] as { id: string }[]).map((one) => one.id);
};
function expectProblem({ status, body }: Answer, expected: number, code: string, pointer?: string): void {
  expect({ status, code: body['code'] }).toEqual({ status: expected, code });
  if (pointer !== undefined) expect(body['errors']).toMatchObject([{ pointer }]);
}

it('given a session, when it is forked at a version, then the fork has the history, title and metadata of that version, names its source, and has no approvals', async () => {
  const node = await world.start();
  await node.inject('POST', '/v1/sessions', { id: 's', title: 'Then', metadata: { topic: 'sea' } });
  await node.say('s', 'one');
  await node.handle('s', new GrantToolApproval({ tool: 'search', scope: 'session' }));
  await node.inject('POST', '/v1/sessions/s/generate', { message: 'two' });
  await node.inject('PATCH', '/v1/sessions/s', { title: 'Now' });
  await node.say('s', 'three');
  const source = await eventsOf(world.db, 's');
  const at = source.findIndex(({ type }) => type === 'GenerationCompleted') + 1;

  const answer = await fork(node, 's', { at, id: 'f' });

  expect(answer.status).toBe(201);
  expect(answer.headers).toMatchObject({ location: '/v1/sessions/f', etag: '"4"' });
  expect(answer.body).toMatchObject({
    id: 'f',
    title: 'Then',
    metadata: { topic: 'sea' },
    messageCount: 3,
    version: 4,
    usage: { inputTokens: 0 },
    forkedFrom: { sessionId: 's', version: at },
  });
  const [copies, originals] = [await messages(node, 'f'), await messages(node, 's', `&at=${at}`)];
  expect(copies.map(({ content }) => content)).toEqual(originals.map(({ content }) => content));
  expect(copies.map(({ origin }) => origin)).toEqual(
    originals.map(({ id, createdAt }) => ({ sessionId: 's', messageId: id, createdAt })),
  );
  expect(copies.map(({ createdAt }) => createdAt)).toEqual(originals.map(({ createdAt }) => createdAt));
  expect(copies.filter((copy) => originals.some(({ id }) => id === copy.id) || copy.generationId)).toEqual(
    [],
  );
  expect((await node.inject('GET', '/v1/sessions/f/approvals')).body).toEqual({ data: [] });
  expect((await node.inject('GET', '/v1/sessions/f')).body).toEqual(answer.body);
  expect(await eventsOf(world.db, 's')).toEqual(source);
});

it('given a fork, when it and its source are used, then neither shows changes of the other; and a fork of a fork names its whole ancestry', async () => {
  const node = await world.start();
  await node.create('s');
  await node.say('s', 'one');
  await fork(node, 's', { id: 'f' });
  await node.say('s', 'of s');
  await node.say('f', 'of f');
  await fork(node, 'f', { id: 'ff' });
  await node.inject('POST', '/v1/sessions/f/reset');
  await node.inject('DELETE', '/v1/sessions/s');
  await node.say('ff', 'of ff');

  expect(await contents(node, 'f')).toEqual([]);
  expect(await contents(node, 'ff')).toEqual(['one', 'of f', 'of ff']);
  expect((await node.inject('GET', '/v1/sessions/ff')).body).toMatchObject({
    forkedFrom: { sessionId: 'f', version: 3 },
  });
  const [first] = await messages(node, 'ff');
  const [original] = await messages(node, 's', '&incarnation=1');
  expect(first).toMatchObject({ createdAt: original?.createdAt, origin: { sessionId: 'f' } });
  expect(await forksOf(node, 'f')).toEqual(['ff']);
  expect(await forksOf(node, 'ff')).toEqual([]);
  // The source is deleted. Its forks are listed for its old incarnation, and not for a new session of the same id.
  expectProblem(await node.inject('GET', '/v1/sessions/s/forks'), 404, 'session-not-found');
  await node.create('s');
  expect(await forksOf(node, 's')).toEqual([]);
  expect(await forksOf(node, 's', '?incarnation=1')).toEqual(['f']);
});

it('given a long history of which most was taken back, when it is forked, then only what is left counts', async () => {
  const node = await world.start();
  await node.create('s');
  await node.say('s', 'kept');
  for (let n = 0; n < 3; n += 1) await node.say('s', 'x'.repeat(12 * 1024 * 1024));
  expectProblem(await fork(node, 's', { id: 'too-long' }), 400, 'invalid-request', '/at');
  await node.inject('POST', '/v1/sessions/s/rewind', { toVersion: 2 });
  expect((await fork(node, 's', { id: 'f' })).status).toBe(201);
  expect(await contents(node, 'f')).toEqual(['kept']);
});

it('given many forks, when they are listed in pages, then each comes once, and deleted ones are missing', async () => {
  const node = await world.start();
  await node.create('s');
  await node.create('s', 'other');
  for (let index = 0; index < 7; index += 1) await fork(node, 's', { id: `f${index}` });
  await fork(node, 's', { id: 'theirs' }, { 'colloquy-tenant': 'other' });
  await node.inject('DELETE', '/v1/sessions/f3');
  const seen: string[] = [];
  for (let cursor = ''; ;) {
    const { body } = await node.inject('GET', `/v1/sessions/s/forks?limit=2${cursor}`);
    seen.push(...(body['data'] as { id: string }[]).map(({ id }) => id));
    if (body['nextCursor'] === null) break;
    cursor = `&cursor=${body['nextCursor'] as string}`;
    expectProblem(await node.inject('GET', `/v1/sessions/f0/forks?limit=2${cursor}`), 400, 'invalid-cursor');
  }
  expect(seen).toEqual(['f0', 'f1', 'f2', 'f4', 'f5', 'f6']);
});

it('given an expired session, when it is forked, then it stays expired and unchanged', async () => {
  const node = await world.start();
  await node.create('s');
  await node.say('s', 'one');
  await node.handle('s', new ExpireSession('cap', (await node.say('s', 'two')).lastActivityAt));
  const before = await eventsOf(world.db, 's');
  const { status, body } = await fork(node, 's');
  expect(status).toBe(201);
  expect(await contents(node, String(body['id']))).toEqual(['one', 'two']);
  expect(await eventsOf(world.db, 's')).toEqual(before);
});

it('given a reset, when the session is forked, then at a version before the reset the old history is copied, and after it the new one', async () => {
  const node = await world.start();
  await node.create('s');
  await node.say('s', 'old');
  await node.inject('POST', '/v1/sessions/s/reset');
  await node.say('s', 'new');
  const at = (await eventsOf(world.db, 's'))[1]?.time;
  for (const [body, expected] of [
    [{ at: 1 }, []],
    [{ at: 2 }, ['old']],
    [{ at: 3 }, []],
    [{}, ['new']],
  ] as const) {
    const answer = await fork(node, 's', body);
    expect(await contents(node, String(answer.body['id']))).toEqual(expected);
  }
  const byTime = await fork(node, 's', { at });
  expect(byTime.body['forkedFrom']).toMatchObject({ sessionId: 's' });
});

it('given an earlier incarnation, when a fork names one of its versions, then the fork is refused', async () => {
  const node = await world.start();
  await node.create('s');
  await node.say('s', 'of before');
  await node.inject('DELETE', '/v1/sessions/s');
  expectProblem(await fork(node, 's', { at: 2 }), 404, 'session-not-found');
  await node.create('s');
  for (const at of [2, 5, '2020-01-01T00:00:00Z']) {
    expectProblem(await fork(node, 's', { at }), 400, 'invalid-request', '/at');
  }
  expect((await eventsOf(world.db, 's')).length).toBe(4);
});

it('given a key, when the same fork is requested again, then it is the same session, whatever happened to the source; another body is refused', async () => {
  const node = await world.start();
  await node.create('s');
  await node.say('s', 'one');
  const key = { 'idempotency-key': 'k' };
  const first = await fork(node, 's', {}, key);
  await node.say('s', 'two');
  await node.inject('DELETE', '/v1/sessions/s');
  const again = await fork(node, 's', {}, key);
  expect([again.status, again.body]).toEqual([201, first.body]);
  expectProblem(await fork(node, 's', { at: 1 }, key), 409, 'idempotency-key-reused');
  expect(await contents(node, String(first.body['id']))).toEqual(['one']);
});

it('given an id that is in use, when a session is forked to it, then only the same fork again is answered, with the session as it is', async () => {
  const node = await world.start();
  await node.create('s');
  await node.say('s', 'one');
  await node.create('taken');
  expectProblem(await fork(node, 's', { id: 'taken' }), 400, 'invalid-request', '/id');
  expectProblem(await fork(node, 's', { id: 's' }), 400, 'invalid-request', '/id');
  expect((await fork(node, 's', { id: 'f', at: 2 })).status).toBe(201);
  await node.say('f', 'own');
  const again = await fork(node, 's', { id: 'f', at: 2 });
  expect([again.status, again.body['messageCount'], again.headers['location']]).toEqual([200, 2, undefined]);
  expectProblem(await fork(node, 's', { id: 'f', at: 1 }), 400, 'invalid-request', '/id');
});

it('given an If-Match on the source, when it does not match, then nothing is forked', async () => {
  const node = await world.start();
  await node.create('s');
  await node.say('s', 'one');
  expectProblem(await fork(node, 's', { id: 'f' }, { 'if-match': '"1"' }), 412, 'version-mismatch');
  expect((await fork(node, 's', { id: 'f' }, { 'if-match': '"2"' })).status).toBe(201);
});

it('given a tenant at its cap, when a session is forked, then 429, because the fork counts', async () => {
  const node = await world.start({ sessions: { maxSessions: 2 } });
  await node.create('s');
  expect((await fork(node, 's')).status).toBe(201);
  expectProblem(await fork(node, 's'), 429, 'session-limit-reached');
});

heavy(
  'given a very long history, when it is forked, then 10 000 messages are copied in one append, and 10 001 are refused',
  async () => {
    const MOST = 10_000;
    const node = await world.start();
    await node.create('s');
    for (let written = 0; written < MOST; written += 1_000) {
      const batch = Array.from({ length: 1_000 }, (_, index) => ({
        messageId: `m${written + index}`,
        role: 'user' as const,
        content: `message ${written + index}`,
        status: 'complete' as const,
      }));
      await node.handle('s', new AppendMessages(batch));
    }
    const began = performance.now();
    const answer = await fork(node, 's', { id: 'f' });
    if (process.env['FULL'] === '1') expect(performance.now() - began).toBeLessThan(5_000);
    expect([answer.status, answer.body['messageCount']]).toEqual([201, MOST]);
    await node.say('s', 'one too many');
    expectProblem(await fork(node, 's', { id: 'g' }), 400, 'invalid-request', '/at');
    expect((await fork(node, 's', { id: 'g', at: MOST + 1 })).status).toBe(201);
    const big = Array.from({ length: 40 }, (_, index) => ({
      messageId: `b${index}`,
      role: 'user' as const,
      content: 'x'.repeat(1_000_000),
      status: 'complete' as const,
    }));
    await node.create('big');
    await node.handle('big', new AppendMessages(big));
    expectProblem(await fork(node, 'big', { id: 'h' }), 400, 'invalid-request', '/at');
  },
  60_000,
);
