import { type Api, eventually } from '../support/http.js';
import { type Replicated, startReplicated } from '../support/replica.js';
import { createWorld, type Node, say, texts, type World } from './fixture.js';

let world: World;
let replicated: Replicated;
beforeEach(async () => {
  world = await createWorld();
  replicated = await startReplicated();
});
afterEach(async () => {
  await world.end();
  await replicated.end();
});

const node = (): Promise<Node> => world.node({ DATABASE_URL: replicated.bothUrl, MAX_SESSIONS: '1000' });

const upTo = (count: number): string[] => Array.from({ length: count }, (_, index) => `Message ${index}`);

const ids = async (api: Api): Promise<string[]> => {
  const { status, body } = await api.get<{ data: { id: string }[] }>('/v1/sessions?limit=200');
  return status === 200 ? body.data.map(({ id }) => id).sort() : [`status ${status}`];
};

/** Repeats a request while the database is away. */
async function untilAnswered<T>(ask: () => Promise<{ status: number } & T>): Promise<{ status: number } & T> {
  let answer: ({ status: number } & T) | undefined;
  await eventually(async () => {
    answer = await ask();
    return answer.status !== 503;
  }, 20_000);
  if (!answer) throw new Error('no answer');
  return answer;
}

describe('the failover to a standby', () => {
  it('given a standby that has everything, when it takes over, then nothing is lost, and both nodes go on by themselves', async () => {
    const [one, two] = [await node(), await node()];
    await one.api.post('/v1/sessions', { id: 'kept' });
    for (const text of upTo(5)) await say(one.api, 'kept', text);
    expect(await texts(two.api, 'kept')).toEqual(upTo(5));
    await replicated.inStep();
    await replicated.failOver();

    const path = '/v1/sessions/kept/messages';
    const written = await untilAnswered(() => two.api.post(path, { role: 'user', content: 'Message 5' }));
    expect(written).toMatchObject({ status: 201, body: { version: 7 } });
    for (const { api } of [one, two]) {
      await untilAnswered(() => api.get('/v1/sessions'));
      expect(await texts(api, 'kept')).toEqual(upTo(6));
      expect(await ids(api)).toEqual(['kept']);
    }
    const [row] = await replicated.query(
      'replica',
      'select max(generation) as generation from log_generation',
    );
    expect(row).toEqual({ generation: 2 });
  });

  it('given a standby without the last events, when it takes over, then both nodes answer what it has, and what was lost can be done again', async () => {
    const [one, two] = [await node(), await node()];
    await one.api.post('/v1/sessions', { id: 'cut' });
    for (const text of upTo(5)) await say(one.api, 'cut', text);
    const before = (await one.api.get<{ cursor: string }>('/v1/events')).body.cursor;
    await replicated.inStep();
    await replicated.detach();
    // All of this will be lost, and both nodes know of it.
    const keyed = { role: 'user', content: 'Once' };
    const key = { 'idempotency-key': 'k-1' };
    for (const { api } of [one, two]) for (let n = 0; n < 10; n += 1) await say(api, 'cut', `Lost ${n}`);
    await one.api.post('/v1/sessions/cut/messages', keyed, key);
    await one.api.put('/v1/admin/tenants/default', { maxSessions: 7 });
    await two.api.post('/v1/sessions', { id: 'lost' });
    await say(two.api, 'lost', 'Lost');
    for (const { api } of [one, two]) {
      expect(await texts(api, 'cut')).toHaveLength(26);
      expect(await ids(api)).toEqual(['cut', 'lost']);
    }
    const beyond = (await one.api.get<{ cursor: string }>('/v1/events?after=end')).body.cursor;
    await replicated.failOver();

    for (const { api } of [one, two]) {
      await untilAnswered(() => api.get('/v1/sessions'));
      expect(await texts(api, 'cut')).toEqual(upTo(5));
      expect(await ids(api)).toEqual(['cut']);
      expect((await api.get('/v1/sessions/lost')).status).toBe(404);
    }
    for (const { api } of [one, two]) {
      await eventually(async () => {
        const { body } = await api.get<{ effective: { maxSessions: number } }>('/v1/admin/tenants/default');
        return body.effective.maxSessions === 1_000;
      });
      expect((await api.get('/metrics')).text).toMatch(/^colloquy_log_generation 2$/m);
    }
    // A cursor of what is gone says so, and where to go on; one of what is there goes on.
    expect(await one.api.get(`/v1/events?after=${before}`)).toMatchObject({
      status: 200,
      body: { data: [] },
    });
    const gone = await two.api.get<{ code: string; after: string }>(`/v1/events?after=${beyond}`);
    expect(gone).toMatchObject({ status: 410, body: { code: 'position-gone' } });
    const { after } = gone.body;
    const follow = { accept: 'text/event-stream', 'last-event-id': '27' };
    expect(await two.api.get('/v1/sessions/cut/events', follow)).toMatchObject({
      status: 410,
      body: { code: 'position-gone', after: 6 },
    });
    // Versions and positions are given out a second time; a key whose write was lost is free again.
    const again = await one.api.post('/v1/sessions/cut/messages', keyed, key);
    expect(again).toMatchObject({ status: 201, body: { version: 7 } });
    expect(await two.api.post('/v1/sessions/cut/messages', keyed, key)).toMatchObject({
      status: 201,
      body: { version: 7 },
    });
    const { data } = (await two.api.get<{ data: { version: number }[] }>(`/v1/events?after=${after}`)).body;
    expect(data.map(({ version }) => version)).toEqual([7]);
    await say(two.api, 'cut', 'Anew');
    expect(await two.api.post('/v1/sessions', { id: 'lost' })).toMatchObject({ status: 201 });
    for (const { api } of [one, two]) {
      expect(await texts(api, 'cut')).toEqual([...upTo(5), 'Once', 'Anew']);
      expect(await ids(api)).toEqual(['cut', 'lost']);
    }
  });
});
