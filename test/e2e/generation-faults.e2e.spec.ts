import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  callsTools,
  conducted,
  type ConductedReply,
  type FakeOpenAi,
  held,
  says,
} from '../support/fake-openai.js';
import { type EventStream, openEvents } from '../support/event-stream.js';
import { type Api, eventually, expectProblem } from '../support/http.js';
import {
  createWorld,
  expectWellFormed,
  FULL,
  type GeneratedAnswer,
  logged,
  type MessageView,
  type Node,
  texts,
  type World,
} from './fixture.js';
import { heavy } from '../support/heavy.js';

const LEASE_OVER_MS = 10_000;
type Stage = 'before the first token' | 'in the middle of the text';
const STAGES: readonly Stage[] = ['before the first token', 'in the middle of the text'];

/**
 * Everything that ends a generation early, at every stage and from every node. The fake model checks each prompt as
 * strictly as the strictest provider.
 */
describe('generations that are ended early', () => {
  let world: World;
  let model: FakeOpenAi;
  let api: Api;
  /** Another node on the same database. */
  let other: Api;
  let folder: string;
  /** Nodes that were killed. */
  let deaths = 0;

  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    model.beStrict();
    folder = await world.folder();
    // These tests move the clock forward, which must not expire any session.
    await writeFile(
      join(folder, 'colloquy.yml'),
      'sessions: { maxSessions: 10000, sessionTTL: 86400000000 }',
    );
    [{ api }, { api: other }] = await Promise.all([world.node({}, folder), world.node({}, folder)]);
  });
  afterAll(() => world.end());
  afterEach(async () => {
    expect(model.faults).toEqual([]);
    const ids = await world.database.query<{ stream_id: string }>('select distinct stream_id from event');
    for (const { stream_id: id } of ids) expectWellFormed(await logged(world.database, id));
  });

  const create = (id: string) => api.post('/v1/sessions', { id });
  const generate = (id: string, body: object, through = api, headers = {}) =>
    through.post<GeneratedAnswer>(`/v1/sessions/${id}/generate`, body, headers);
  const cancel = (id: string, through = api, headers = {}) =>
    through.post<{ cancelled: boolean }>(`/v1/sessions/${id}/cancel`, undefined, headers);
  /** Waits until strong reads succeed: they wait for the lanes of a killed node until another node has taken them. */
  const history = (id: string) =>
    eventually(async () => {
      const answer = await api.get<{ data: MessageView[] }>(`/v1/sessions/${id}/messages?limit=200`);
      return answer.status === 503 ? undefined : answer.body.data;
    }, 20_000);
  const chunks = (generation: string) =>
    world.database.query<{ text: string }>(
      'select text from generation_chunk where generation = $1 order by number',
      [generation],
    );
  /** Waits until every node can show so much of a reply. */
  const shared = (generation: string, text: string) =>
    eventually(async () => (await chunks(generation)).map((one) => one.text).join('') === text);
  const types = async (id: string) => (await logged(world.database, id)).map(({ type }) => type);

  /** Takes the next turn on each node, and checks that the model accepts its prompt. */
  async function usable(id: string): Promise<void> {
    for (const through of [api, other]) {
      const next = await generate(id, { message: 'and now?' }, through);
      expect(next.status).toBe(200);
      expect(next.body.finishReason).toBe('stop');
    }
    // No question is answered twice.
    const roles = (await history(id)).map(({ role, status }) => (status === 'complete' ? role : `${role}?`));
    expect(roles.join()).not.toMatch(/assistant,assistant/);
  }

  interface Streaming {
    readonly reply: ConductedReply;
    readonly stream: EventStream;
    readonly generationId: string;
    /** The text that has arrived. */
    readonly text: string;
  }
  async function streaming(id: string, stage: Stage, through: Api, headers = {}): Promise<Streaming> {
    await create(id);
    const reply = conducted();
    model.next(reply.reply);
    const stream = await openEvents(`${through.url}/v1/sessions/${id}/generate`, {
      body: { message: 'question' },
      headers,
    });
    const generationId = String((await stream.next()).data['generationId']);
    await reply.asked;
    if (stage === 'before the first token') return { reply, stream, generationId, text: '' };
    reply.say('Once \ud83d', '\ude00upon');
    const text = await stream.text('Once 😀upon'.length);
    await shared(generationId, text);
    return { reply, stream, generationId, text };
  }
  const partialOf = (text: string) =>
    text === '' ? [] : [{ role: 'assistant', content: text, status: 'incomplete' }];

  describe('cancel', () => {
    const cases = STAGES.flatMap((stage) => [
      { stage, where: 'the same node', from: () => api },
      { stage, where: 'the other node', from: () => other },
    ]);
    it.each(cases)(
      'given a reply $stage, when $where cancels it, then the text that had arrived is kept and the session is free',
      async ({ stage, where, from }) => {
        const id = `c-${STAGES.indexOf(stage)}-${where.split(' ')[1] ?? ''}`;
        // Both nodes know the session of old, from before the generation began.
        await create(id);
        for (const through of [api, other]) await through.patch(`/v1/sessions/${id}`, { title: through.url });
        const { reply, stream, generationId, text } = await streaming(id, stage, api);
        const answer = await cancel(id, from());
        expect(answer.body).toEqual({ cancelled: true });
        // The session is free at once, without waiting for a lease to expire.
        expect((await generate(id, { message: 'next' }, from())).status).toBe(200);
        await reply.abandoned;
        const [last] = await stream.rest();
        expect(last).toMatchObject({
          event: 'generation.cancelled',
          data: { content: text, finishReason: 'cancelled', generationId, sessionId: id },
        });
        expect(await history(id)).toMatchObject([
          { role: 'user', content: 'question' },
          ...partialOf(text),
          { role: 'user', content: 'next' },
          { role: 'assistant' },
        ]);
        await eventually(async () => (await chunks(generationId)).length === 0);
        await usable(id);
      },
    );

    it('given a reply that has ended, or none, when it is cancelled, then the answer says that there was nothing to cancel', async () => {
      await create('c-end');
      expect((await cancel('c-end')).body).toEqual({ cancelled: false });
      await generate('c-end', { message: 'question' });
      for (const through of [api, other]) {
        expect((await cancel('c-end', through)).body).toEqual({ cancelled: false });
      }
      expectProblem(await cancel('c-none'), 404, 'session-not-found');
      await usable('c-end');
    });

    it('given a cancel with a key, when it is sent again, then it does not cancel the next generation', async () => {
      const { stream } = await streaming('c-key', 'in the middle of the text', api);
      const key = { 'idempotency-key': 'cancel once' };
      expect((await cancel('c-key', other, key)).body).toEqual({ cancelled: true });
      await stream.rest();
      const reply = held(says('finished'));
      model.next(reply.reply);
      const next = generate('c-key', { message: 'next' });
      await reply.asked;
      expect((await cancel('c-key', api, key)).body).toEqual({ cancelled: true });
      reply.release();
      expect((await next).body.content).toBe('finished');
    });

    it('given tool calls of a reply that was cut off, when the next turn is taken, then the prompt holds no call without a result and no result without a call', async () => {
      await create('c-tools');
      model.next(callsTools([{ id: 'c1', name: 'look', arguments: '{}' }]));
      await generate('c-tools', { message: 'look', tools: [{ name: 'look' }] });
      const reply = conducted();
      model.next(reply.reply);
      const going = generate('c-tools', { message: { role: 'tool', toolCallId: 'c1', content: 'seen' } });
      await reply.asked;
      const call = { index: 0, id: 'c2', type: 'function', function: { name: 'look', arguments: '{"a' } };
      reply.send(`data: ${JSON.stringify({ choices: [{ index: 0, delta: { tool_calls: [call] } }] })}\n\n`);
      await cancel('c-tools', other);
      expect((await going).body).toMatchObject({ finishReason: 'cancelled', message: null });
      expect((await generate('c-tools', {})).status).toBe(200);
      await usable('c-tools');
    });
  });

  describe('reset and delete', () => {
    const cases = STAGES.flatMap((stage) =>
      ['the same node', 'the other node'].map((where) => ({ stage, where })),
    );
    it.each(cases)(
      'given a reply $stage, when $where resets the session, then its history is empty',
      async ({ stage, where }) => {
        const id = `r-${STAGES.indexOf(stage)}-${where.split(' ')[1] ?? ''}`;
        const from = where === 'the same node' ? api : other;
        await create(id);
        for (const through of [api, other]) await through.patch(`/v1/sessions/${id}`, { title: through.url });
        await api.put(`/v1/sessions/${id}/approvals/pay`, { scope: 'session' });
        const { reply, stream, text } = await streaming(id, stage, api);
        expect((await from.post(`/v1/sessions/${id}/reset`)).status).toBe(200);
        await reply.abandoned;
        expect((await stream.rest())[0]).toMatchObject({
          event: 'generation.cancelled',
          data: { content: text },
        });
        expect(await history(id)).toEqual([]);
        expect((await api.get(`/v1/sessions/${id}/approvals`)).body).toEqual({ data: [] });
        await usable(id);
        expect(
          model.requests.slice(-2).flatMap(({ messages }) => messages.map((one) => one.content)),
        ).not.toContain('question');
        // The text that had arrived belongs to the history before the reset.
        const events = await logged(world.database, id);
        const reset = events.findIndex(({ type }) => type === 'ConversationReset');
        expect(events.slice(0, reset).filter(({ data }) => data['status'] === 'incomplete')).toMatchObject(
          partialOf(text).map((data) => ({ data })),
        );
      },
    );

    it.each(cases)(
      'given a reply $stage, when $where deletes the session, then nothing of the reply appears later',
      async ({ stage, where }) => {
        const id = `d-${STAGES.indexOf(stage)}-${where.split(' ')[1] ?? ''}`;
        const { reply, stream } = await streaming(id, stage, api);
        expect((await (where === 'the same node' ? api : other).delete(`/v1/sessions/${id}`)).status).toBe(
          204,
        );
        await reply.abandoned;
        expect((await stream.rest())[0]).toMatchObject({
          event: 'generation.failed',
          data: { code: 'session-not-found' },
        });
        expectProblem(await generate(id, { message: 'x' }), 404, 'session-not-found');
        await create(id);
        expect(await history(id)).toEqual([]);
        await usable(id);
      },
    );
  });

  describe('kill -9', () => {
    /** Moves the clock forward so far that the leases of all killed nodes have expired. */
    let offsetMs = 0;
    const leaseOver = () => world.database.setClock({ offsetMs: (offsetMs += LEASE_OVER_MS) });

    async function killed(id: string, stage: Stage, headers = {}): Promise<Streaming> {
      const victim: Node = await world.node({}, folder);
      // Both nodes know the session of old, from before the generation began.
      await create(id);
      for (const through of [api, other]) await through.patch(`/v1/sessions/${id}`, { title: through.url });
      const running = await streaming(id, stage, victim.api, headers);
      await victim.service.kill9();
      deaths += 1;
      await running.stream.rest().catch(() => undefined);
      return running;
    }

    heavy.each(STAGES)(
      'given a node that was killed %s, when the next turn is requested, then it waits for the lease, and the text that had arrived is kept',
      async (stage) => {
        const id = `k-${STAGES.indexOf(stage)}`;
        const { generationId, text } = await killed(id, stage);
        expectProblem(await generate(id, { message: 'too soon' }), 409, 'session-busy');
        await leaseOver();
        expect((await generate(id, { message: 'next' }, other)).status).toBe(200);
        expect(await history(id)).toMatchObject([
          { role: 'user', content: 'question' },
          ...partialOf(text),
          { role: 'user', content: 'next' },
          { role: 'assistant', status: 'complete' },
        ]);
        expect(
          (await logged(world.database, id)).find(({ type }) => type === 'GenerationFailed')?.data,
        ).toMatchObject({
          generationId,
          code: 'lease-expired',
        });
        await eventually(async () => (await chunks(generationId)).length === 0);
        await usable(id);
      },
    );

    heavy.each([
      ['cancelled', (id: string) => cancel(id, other)],
      ['reset', (id: string) => other.post(`/v1/sessions/${id}/reset`)],
    ])(
      'given a node that was killed, when the session is %s before its lease has expired, then the session is free',
      async (what, end) => {
        const id = `k-${what}`;
        const { text } = await killed(id, 'in the middle of the text');
        expect((await end(id)).status).toBe(200);
        expect(
          (await logged(world.database, id)).find(({ data }) => data['status'] === 'incomplete')?.data,
        ).toMatchObject({
          content: text,
        });
        await usable(id);
      },
    );

    it('given a reader on another node, when the node that generates is killed, then the reader gets the failure', async () => {
      const victim = await world.node({}, folder);
      const { generationId, text, stream } = await streaming(
        'k-read',
        'in the middle of the text',
        victim.api,
      );
      const reader = await openEvents(`${other.url}/v1/sessions/k-read/generations/${generationId}/stream`);
      await reader.next();
      expect(await reader.text(text.length)).toBe(text);
      await victim.service.kill9();
      deaths += 1;
      await stream.rest().catch(() => undefined);
      await leaseOver();
      expect(await reader.rest()).toMatchObject([
        { event: 'generation.failed', data: { code: 'model-failed' } },
      ]);
      await usable('k-read');
    });

    it('given a request with a key, when its node is killed and the request is sent again, then the retry attaches to the generation and gets its end', async () => {
      const key = { 'idempotency-key': 'killed' };
      const { generationId, text } = await killed('k-key', 'in the middle of the text', key);
      const before = model.requests.length;
      const whole = generate('k-key', { message: 'question' }, other, key);
      const stream = await openEvents(`${api.url}/v1/sessions/k-key/generate`, {
        body: { message: 'question' },
        headers: key,
      });
      expect((await stream.next()).data).toMatchObject({ generationId });
      expect(await stream.text(text.length)).toBe(text);
      await leaseOver();
      expectProblem(await whole, 502, 'model-failed');
      expect(await stream.rest()).toMatchObject([{ event: 'generation.failed' }]);
      expect(model.requests.length).toBe(before);
      await usable('k-key');
    });

    heavy(
      'given a reply that has ended, when its node is killed and another one is started, then a retry gets the reply without a model call',
      async () => {
        const victim = await world.node({}, folder);
        await create('k-end');
        const key = { 'idempotency-key': 'ended' };
        const first = await generate('k-end', { message: 'question' }, victim.api, key);
        await victim.service.kill9();
        deaths += 1;
        const before = model.requests.length;
        const reborn = await world.node({}, folder);
        expect((await generate('k-end', { message: 'question' }, reborn.api, key)).body).toEqual(first.body);
        expect(model.requests.length).toBe(before);
        await usable('k-end');
      },
    );
  });

  describe('a reply of many minutes', () => {
    it('given a reply that takes many times as long as its lease, when other requests come, then its generation is not taken for abandoned', async () => {
      const { reply, stream, generationId } = await streaming('l-1', 'in the middle of the text', api);
      const [{ until: first } = { until: '' }] = await leaseOf(generationId);
      for (let renewed = 0, until = first; renewed < 2; renewed += 1) {
        until = await eventually(async () => {
          const [lease] = await leaseOf(generationId);
          return lease && lease.until > until && lease.until;
        });
      }
      expectProblem(await generate('l-1', { message: 'too soon' }, other), 409, 'session-busy');
      reply.end();
      expect((await stream.rest()).at(-1)).toMatchObject({ event: 'message.completed' });
      await eventually(async () => (await leaseOf(generationId)).length === 0);
    });
    const leaseOf = (generation: string) =>
      world.database.query<{ until: string }>('select until::text from lease where name like $1', [
        `%${generation}`,
      ]);
  });

  describe('a stop', () => {
    it('given a running reply and a queued request, when the node is stopped, then both get an error and the sessions stay usable', async () => {
      const impatient = await world.folder();
      await writeFile(
        join(impatient, 'colloquy.yml'),
        'server: { shutdownGraceMs: 0 }\nsessions: { maxSessions: 10000, sessionTTL: 86400000000 }',
      );
      const node = await world.node({}, impatient);
      const { stream, text } = await streaming('s-1', 'in the middle of the text', node.api);
      const waiting = generate('s-1', { message: 'me too', onBusy: 'queue' }, node.api).catch(
        () => undefined,
      );
      await node.api.get('/v1/sessions/s-1');
      const asked = model.requests.length;
      expect(await node.service.stop()).toBe(0);
      expect((await stream.rest())[0]).toMatchObject({
        event: 'generation.failed',
        data: { code: 'model-failed' },
      });
      // The queued request was refused, or it was started at the last moment and ended at once, or its connection was
      // refused.
      expect([502, 503, undefined]).toContain((await waiting)?.status);
      expect(model.requests.length).toBe(asked);
      expect(await history('s-1')).toMatchObject([{ content: 'question' }, ...partialOf(text)]);
      await usable('s-1');
    });
  });

  describe('a busy session', () => {
    it('given queued requests, when the session becomes free, then they are answered in their order', async () => {
      await create('q-1');
      const first = held(says('first'));
      model.next(first.reply);
      const going = generate('q-1', { message: '0' });
      await first.asked;
      const waiting: Promise<unknown>[] = [];
      for (let n = 1; n <= 16; n += 1) {
        waiting.push(generate('q-1', { message: String(n), onBusy: 'queue' }));
        // The requests are sent one after the other, on connections of their own: each only when the one before has
        // arrived.
        await api.get('/v1/sessions/q-1');
      }
      expectProblem(await generate('q-1', { message: 'no', onBusy: 'queue' }), 409, 'session-busy');
      expectProblem(await generate('q-1', { message: 'no' }), 409, 'session-busy');
      first.release();
      await going;
      for (const one of await Promise.all(waiting)) expect(one).toMatchObject({ status: 200 });
      const asked = (await texts(api, 'q-1')).filter((_, index) => index % 2 === 0);
      expect(asked).toEqual(Array.from({ length: 17 }, (_, n) => String(n)));
      expect((await generate('q-1', { message: 'again', onBusy: 'queue' })).status).toBe(200);
    });

    it('given a generation on one node, when a request is queued on the other, then it gets its turn', async () => {
      const { reply, stream } = await streaming('q-2', 'in the middle of the text', api);
      const waiting = generate('q-2', { message: 'next', onBusy: 'queue' }, other);
      reply.end();
      await stream.rest();
      expect((await waiting).status).toBe(200);
      expect(await texts(api, 'q-2')).toEqual(['question', 'Once 😀upon', 'next', expect.any(String)]);
    });

    it('given a queued request, when the running generation is cancelled, then the request gets its turn', async () => {
      const { stream, text } = await streaming('q-4', 'in the middle of the text', api);
      const waiting = generate('q-4', { message: 'next', onBusy: 'queue' });
      await api.get('/v1/sessions/q-4');
      await cancel('q-4', other);
      await stream.rest();
      expect((await waiting).status).toBe(200);
      expect(await texts(api, 'q-4')).toEqual(['question', text, 'next', expect.any(String)]);
      await usable('q-4');
    });

    it('given a client that disconnects while its request is queued, when its turn comes, then the request is answered once, and the session stays usable', async () => {
      const { reply, stream } = await streaming('q-5', 'in the middle of the text', api);
      const gone = new AbortController();
      const waiting = fetch(`${api.url}/v1/sessions/q-5/generate`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ message: 'next', onBusy: 'queue' }),
        signal: gone.signal,
      });
      await api.get('/v1/sessions/q-5');
      gone.abort();
      await expect(waiting).rejects.toThrow(/abort/i);
      reply.end();
      await stream.rest();
      await eventually(async () => (await texts(api, 'q-5')).length === 4);
      expect((await texts(api, 'q-5')).slice(0, 3)).toEqual(['question', 'Once 😀upon', 'next']);
      await usable('q-5');
    });

    // The request waits for as long as a request may.
    (FULL ? it : it.skip)(
      'given a reply that takes longer, when a request has queued for a minute, then the session is busy',
      async () => {
        const { reply, stream } = await streaming('q-6', 'before the first token', api);
        // A model that is silent for so long would be given up.
        const talking = setInterval(() => {
          reply.say('and so on, ');
        }, 10_000);
        const answer = await generate('q-6', { message: 'next', onBusy: 'queue' });
        clearInterval(talking);
        expectProblem(answer, 409, 'session-busy');
        reply.end();
        await stream.rest();
        await usable('q-6');
      },
    );

    it('given a queued request, when the session is deleted, then the request gets 404', async () => {
      const { stream } = await streaming('q-3', 'before the first token', api);
      const waiting = generate('q-3', { message: 'next', onBusy: 'queue' });
      await api.delete('/v1/sessions/q-3');
      expectProblem(await waiting, 404, 'session-not-found');
      await stream.rest();
    });
  });

  it('given all generations of this file, when they have ended, then the table of partial replies is empty', async () => {
    const left = async (): Promise<number> => {
      const [{ n } = { n: -1 }] = await world.database.query<{ n: number }>(
        'select count(distinct generation)::int as n from generation_chunk',
      );
      return n;
    };
    // A node that is killed after the end of a generation and before the removal of its text leaves the text behind for
    // a day.
    await eventually(async () => (await left()) <= deaths);
    await world.database.setClock({ offsetMs: 25 * 3_600_000 });
    await world.node({}, folder);
    await eventually(async () => (await left()) === 0);
    expect(await types('c-end')).not.toContain('GenerationFailed');
  });
});
