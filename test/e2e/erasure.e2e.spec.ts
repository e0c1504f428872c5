import { readdir } from 'node:fs/promises';
import { Agent } from '../../src/client/agent.js';
import { colloquy } from '../support/colloquy.js';
import { openEvents } from '../support/event-stream.js';
import { conducted } from '../support/fake-openai.js';
import { eventually } from '../support/http.js';
import { masterKey } from '../support/master-keys.js';
import { startTraceCollector } from '../support/trace-collector.js';
import { createWorld, type EventAnswer, say, texts, type World } from './fixture.js';

interface Receipt {
  readonly sessionId: string;
  readonly erasedAt: string;
  readonly version: number;
  readonly incarnations: readonly unknown[];
  readonly keys: readonly string[];
  readonly forks: readonly string[];
}
interface Trail {
  readonly data: readonly EventAnswer[];
}

/** Words that stand in no id, type or setting. */
const SECRET = /Vermilion|Cerulean|Ochre|Turquoise/;

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(() => world.end());
const env = { COLLOQUY_MASTER_KEY: masterKey('one'), LOG_LEVEL: 'debug' };

/** The tables in which one of the words is. */
async function tablesWith(word: RegExp): Promise<string[]> {
  const tables = await world.database.query<{ name: string }>(
    `select oid::regclass::text as name from pg_class
     where relnamespace = current_schema()::regnamespace and relkind = 'r' order by 1`,
  );
  const found: string[] = [];
  for (const { name } of tables) {
    const rows = await world.database.query<{ row: string }>(`select t::text as row from ${name} t`);
    const content = rows.map(({ row }) => row).join('\n');
    const bytes = word.source.split('|').some((one) => content.includes(Buffer.from(one).toString('hex')));
    if (word.test(content) || bytes) found.push(name);
  }
  return found;
}

it('given a talk that is still answered on another node, when it is erased, then nothing of it is anywhere, the trail shows what there was, and the id begins anew', async () => {
  const model = await world.model();
  const collector = await startTraceCollector();
  const temporary = await world.folder();
  const watched = { ...env, OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, TMPDIR: temporary };
  const [one, two] = [await world.node(watched), await world.node(watched)];
  const { api } = one;
  await api.post('/v1/sessions', { id: 'talk', title: 'Vermilion title', metadata: { note: 'Cerulean' } });
  await say(api, 'talk', 'Where is the Ochre parcel?');
  await api.post('/v1/sessions/talk/fork', { id: 'copy' });
  await api.post('/v1/sessions/talk/fork', { id: 'erased-copy' });
  expect((await api.post<Receipt>('/v1/sessions/erased-copy/erase')).status).toBe(200);
  await api.delete('/v1/sessions/talk');
  await api.post('/v1/sessions', { id: 'talk', title: 'Vermilion again' });
  const reply = conducted();
  model.next(reply.reply);
  const stream = await openEvents(`${two.api.url}/v1/sessions/talk/generate`, {
    body: { message: 'And the Ochre one?' },
  });
  await stream.next();
  await reply.asked;
  reply.say('It is in the ', 'Turquoise ');
  await eventually(async () => (await world.database.query('select from generation_chunk')).length > 0);

  const erased = await api.post<Receipt>('/v1/sessions/talk/erase', { reason: 'art. 17' });
  expect(erased).toMatchObject({
    status: 200,
    body: {
      sessionId: 'talk',
      version: 7,
      incarnations: [
        { incarnation: 1, from: 1, to: 3 },
        { incarnation: 2, from: 4, to: 6 },
      ],
      reason: 'art. 17',
      forks: ['copy'],
    },
  });
  expect(erased.body.keys.length).toBe(2);
  reply.say('van.');
  reply.end();

  // Whatever was there before is 410, and what is there now is not found.
  for (const path of [
    'state?at=2&incarnation=1',
    'state?at=5&incarnation=2',
    'diff?from=1&incarnation=1',
    'messages?at=2&incarnation=1',
  ])
    expect([path, (await two.api.get<{ code: string }>(`/v1/sessions/talk/${path}`)).body.code]).toEqual([
      path,
      'session-erased',
    ]);
  expect((await api.get(`/v1/sessions/talk/state?at=7&incarnation=2`)).body).toMatchObject({
    status: 'deleted',
    title: null,
    owner: null,
    metadata: {},
    erasedUpTo: 7,
  });
  for (const node of [one, two]) {
    for (const path of ['', '/messages', '/usage', '/forks'])
      expect((await node.api.get(`/v1/sessions/talk${path}`)).status).toBe(404);
    expect(JSON.stringify((await node.api.get('/v1/sessions?status=all')).body)).not.toContain('"id":"talk"');
    expect((await node.api.get<Trail>('/v1/search?q=parcel')).body.data).toMatchObject([
      { sessionId: 'copy' },
    ]);
  }
  // Nor can what was there be changed.
  const message = { role: 'user', content: 'Hello' };
  for (const [path, body] of [
    ['rewind', { toVersion: 1 }],
    ['messages', { messages: [message], replaceLast: 1 }],
    ['generate', { regenerate: true }],
    ['reset', {}],
  ] as const)
    expect([path, (await two.api.post(`/v1/sessions/talk/${path}`, body)).status]).toEqual([path, 404]);
  expect((await two.api.delete('/v1/sessions/talk/messages/msg_1')).status).toBe(404);
  const trail = (await api.get<Trail>('/v1/sessions/talk/events')).body.data;
  expect(trail.map(({ type, erased: isErased, data }) => [type, isErased === true, data === null])).toEqual([
    ['SessionCreated', true, true],
    ['MessageAppended', true, true],
    ['SessionDeleted', true, true],
    ['SessionCreated', true, true],
    ['MessageAppended', true, true],
    ['GenerationStarted', true, true],
    ['SessionErased', false, false],
  ]);
  const feed = (await api.get<Trail>('/v1/events?session=talk')).body.data;
  expect(feed).toEqual(trail);
  const live = await openEvents(`${api.url}/v1/sessions/talk/events`);
  expect((await live.next()).data).toMatchObject({ data: null, erased: true });

  // Again: the same receipt, and nothing is appended.
  expect((await api.post<Receipt>('/v1/sessions/talk/erase')).body).toEqual(erased.body);
  expect((await two.api.get('/v1/sessions/talk/erasure')).body).toEqual({
    data: [erased.body],
    scheduled: [],
  });
  expect((await api.get('/v1/sessions/copy/erasure')).status).toBe(404);
  expect((await api.post('/v1/sessions/nobody/erase')).status).toBe(404);

  await api.post('/v1/sessions', { id: 'talk' });
  await say(api, 'talk', 'Hello');
  for (const node of [one, two]) {
    await eventually(async () => (await texts(node.api, 'talk')).length === 1);
    expect((await node.api.get('/v1/sessions/talk')).body).toMatchObject({ title: null, messageCount: 1 });
  }
  expect((await api.get<Trail>('/v1/sessions/talk/events?after=7')).body.data).toMatchObject([
    { type: 'SessionCreated', incarnation: 3 },
    { type: 'MessageAppended', data: { content: 'Hello' } },
  ]);
  expect((await api.post<{ code: string }>('/v1/sessions/talk/fork', { at: 5 })).status).toBe(400);
  expect((await api.post('/v1/sessions/talk/fork', { at: 9 })).status).toBe(201);

  // Of the copy that was made before, everything is left; erased as well, nothing is.
  expect((await tablesWith(/Vermilion again|Turquoise/)).filter(Boolean)).toEqual([]);
  expect((await api.post<Receipt>('/v1/sessions/copy/erase')).status).toBe(200);
  await eventually(async () => (await api.get<Trail>('/v1/search?q=parcel')).body.data.length === 0);
  await eventually(async () => (await tablesWith(SECRET)).length === 0);
  expect((await two.api.get<{ data: Receipt[] }>('/v1/sessions/talk/erasure')).body.data[0]?.forks).toEqual(
    [],
  );
  for (const node of [one, two]) expect((await node.api.get('/metrics')).text).not.toMatch(SECRET);
  await Promise.all([one.service.stop(), two.service.stop()]);
  expect(world.output()).not.toMatch(SECRET);
  // A node sends its last spans before it ends.
  await collector.close();
  expect(collector.spans.length).toBeGreaterThan(50);
  expect(JSON.stringify(collector.spans)).not.toMatch(SECRET);
  expect(await readdir(temporary, { recursive: true })).toEqual([]);
});

it('given conditions and keys of requests, when sessions are erased, then these hold, and a legal hold, a missing scope and plain sessions refuse', async () => {
  const node = await world.node(env);
  const { api } = node;
  await api.post('/v1/sessions', { id: 's', title: 'title' });
  expect((await api.post('/v1/sessions/s/erase', {}, { 'if-match': '"7"' })).status).toBe(412);
  await api.patch('/v1/sessions/s', { legalHold: true });
  expect((await api.post('/v1/sessions/s/erase')).body).toMatchObject({ status: 409, code: 'legal-hold' });
  await api.patch('/v1/sessions/s', { legalHold: false });
  const keyed = { 'idempotency-key': 'once', 'if-match': '"3"' };
  const first = await api.post<Receipt>('/v1/sessions/s/erase', { reason: 'asked' }, keyed);
  expect(first).toMatchObject({ status: 200, body: { version: 4 } });
  await api.post('/v1/sessions', { id: 's', title: 'second life' });
  expect((await api.post<Receipt>('/v1/sessions/s/erase', { reason: 'asked' }, keyed)).body).toEqual(
    first.body,
  );
  expect((await api.post('/v1/sessions/s/erase', { reason: 'other' }, keyed)).status).toBe(409);
  expect((await api.get('/v1/sessions/s')).body).toMatchObject({ title: 'second life' });

  const shown = await colloquy(['erase', 's', '--reason', 'by command'], {
    env: { COLLOQUY_URL: api.url },
  });
  expect(shown).toMatchObject({ code: 0 });
  expect(JSON.parse(shown.out)).toMatchObject({ sessionId: 's', version: 6 });
  expect(
    (await api.get<{ data: Receipt[] }>('/v1/sessions/s/erasure')).body.data.map(({ version }) => version),
  ).toEqual([4, 6]);
  await node.service.stop();

  const other = await createWorld();
  try {
    const plain = await other.node({ AUTH_MODE: 'none' });
    await plain.api.post('/v1/sessions', { id: 'plain', title: 'title' });
    const refused = await plain.api.post('/v1/sessions/plain/erase');
    expect(refused.body).toMatchObject({ status: 409, code: 'not-sealed' });
    expect((await plain.api.get('/v1/sessions/plain')).body).toMatchObject({ title: 'title' });
  } finally {
    await other.end();
  }
});

it('given erasures for a time to come, when they are asked for, shown and called off over HTTP, by command and by the library, then the trail tells of each, and a repeated request takes effect once', async () => {
  const node = await world.node(env);
  const { api } = node;
  const at = '2999-01-01T00:00:00.000Z';
  await api.post('/v1/sessions', { id: 'later', title: 'Ochre title' });
  const keyed = { 'idempotency-key': 'later-once', 'if-match': '"1"' };
  const ask = () =>
    api.post('/v1/sessions/later/erase', { at: '2999-01-01T02:00:00+02:00', reason: 'asked' }, keyed);
  expect(await ask()).toMatchObject({ status: 202, body: { sessionId: 'later', at, reason: 'asked' } });
  expect((await api.get('/v1/sessions/later/erasure')).body).toEqual({
    data: [],
    scheduled: [{ sessionId: 'later', at, reason: 'asked' }],
  });
  expect((await api.get('/v1/sessions/later/state')).body).toMatchObject({
    planned: { requested: { at, incarnation: 1, reason: 'asked' } },
  });
  expect((await api.get('/v1/sessions/later')).body).toMatchObject({ version: 2, status: 'active' });
  expect((await api.delete('/v1/sessions/later/erasure')).status).toBe(204);
  expect((await ask()).status).toBe(202);
  expect((await api.get('/v1/sessions/later/erasure')).status).toBe(404);

  const cli = (...args: string[]) =>
    colloquy(['erase', 'later', ...args], { env: { COLLOQUY_URL: api.url } });
  const shown = await cli('--at', at, '--reason', 'by command');
  expect(shown).toMatchObject({ code: 0 });
  expect(JSON.parse(shown.out)).toEqual({ sessionId: 'later', at, reason: 'by command' });
  expect(await cli('--cancel', '--reason', 'a mistake')).toMatchObject({ code: 0, out: '' });
  expect((await cli('--cancel')).code).toBe(1);
  expect((await cli('--cancel', '--at', at)).code).not.toBe(0);
  expect((await cli('--at', '2020-01-01T00:00:00Z')).err).toMatch(/past/);

  const agent = new Agent({ url: api.url });
  await agent.start();
  expect(await agent.eraseSession('later', { at: new Date(at), reason: 'by program' })).toEqual({
    sessionId: 'later',
    at,
    reason: 'by program',
  });
  await agent.cancelErasure('later');
  await expect(agent.cancelErasure('later')).rejects.toMatchObject({ code: 'not-found' });

  // What is scheduled is no use of a deleted session, and its totals count until it was deleted.
  await say(api, 'later', 'Where is it?');
  await api.delete('/v1/sessions/later');
  await agent.eraseSession('later', { at });
  expect((await api.get('/v1/sessions/later/diff?from=1&incarnation=1')).body).toMatchObject({
    status: { before: 'active', after: 'deleted' },
    usage: { inputTokens: 0, outputTokens: 0 },
  });
  const trail = (await api.get<Trail>('/v1/sessions/later/events')).body.data;
  expect(trail.map(({ type, data }) => [type, data?.['reason'] ?? data?.['cause'] ?? null])).toEqual([
    ['SessionCreated', null],
    ['ErasureScheduled', 'asked'],
    ['ErasureCancelled', 'request'],
    ['ErasureScheduled', 'by command'],
    ['ErasureCancelled', 'a mistake'],
    ['ErasureScheduled', 'by program'],
    ['ErasureCancelled', 'request'],
    ['MessageAppended', null],
    ['SessionDeleted', null],
    ['ErasureScheduled', null],
  ]);

  // The sweeper of the running service carries it out.
  await world.database.setClock({ offsetMs: Date.parse(at) - Date.now() + 1_000 });
  expect((await api.get('/v1/sessions?limit=1')).status).toBe(200);
  expect((await api.post('/v1/admin/sweep')).body).toMatchObject({ swept: { erasure: 1 } });
  expect((await api.get('/v1/sessions/later/erasure')).body).toMatchObject({
    data: [{ actor: 'system:sweeper', incarnations: [{ incarnation: 1, from: 1, to: 10 }] }],
    scheduled: [],
  });
  await agent.stop();
  await node.service.stop();
});

it('given a node that is killed while it erases what a policy has scheduled, when another one sweeps, then each session is erased once, with its key', async () => {
  const [doomed, other] = [await world.node(env), await world.node(env)];
  const tenant = { 'colloquy-tenant': 'retained' };
  const ids = Array.from({ length: 300 }, (_, index) => `s${index}`);
  await other.api.put('/v1/admin/tenants/retained', { eraseAfter: 1, maxSessions: 1_000 });
  await Promise.all(ids.map((id) => other.api.post('/v1/sessions', { id, title: 'Ochre' }, tenant)));
  await Promise.all(ids.map((id) => other.api.delete(`/v1/sessions/${id}`, tenant)));
  const count = async (condition: string): Promise<number> =>
    (
      await world.database.query<{ count: number }>(
        `select count(*)::int as count from event where tenant = 'retained' and ${condition}`,
      )
    )[0]?.count ?? 0;
  const erased = () => count(`type = 'SessionErased'`);

  const cut = doomed.api.post('/v1/admin/sweep').catch(() => 'cut');
  await eventually(async () => (await erased()) > 10);
  await doomed.service.kill9();
  await cut;
  await eventually(async () => {
    await other.api.post('/v1/admin/sweep');
    return (await erased()) >= ids.length;
  }, 60_000);
  expect(await erased()).toBe(ids.length);
  expect(
    await count(`type = 'SessionErased' and exists (
      select from event e join data_key k on k.id = e.key_id
      where e.tenant = event.tenant and e.stream_id = event.stream_id and k.wrapped is not null)`),
  ).toBe(0);
  await other.service.stop();
}, 120_000);
