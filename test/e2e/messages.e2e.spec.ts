import { type Api, expectProblem } from '../support/http.js';
import { createWorld, logged, type MessageView, say, stored, texts, user, type World } from './fixture.js';

interface Page {
  readonly data: readonly MessageView[];
  readonly nextCursor: string | null;
  readonly version: number;
}
interface Appended {
  readonly messages: readonly { readonly messageId: string; readonly version: number }[];
  readonly version: number;
  readonly position: string;
}

const contents = ({ body }: { readonly body: Page }): unknown[] =>
  body.data.map((message) => message.content);
const numbered = (from: number, to: number): string[] =>
  Array.from({ length: to - from + 1 }, (_, index) => `m${from + index}`);

describe('messages', () => {
  let world: World;
  let api: Api;

  beforeAll(async () => {
    world = await createWorld();
    ({ api } = await world.node());
  });
  afterAll(() => world.end());
  afterEach(() => world.database.setClock({ offsetMs: 0 }));

  /** A session whose message m<n> has version n + 1. */
  async function conversation(id: string, count: number): Promise<void> {
    await api.post('/v1/sessions', { id });
    await append(id, 1, count);
  }
  const append = (id: string, from: number, to: number) =>
    api.post(`/v1/sessions/${id}/messages`, { messages: numbered(from, to).map(user) });
  const read = (id: string, query = '') => api.get<Page>(`/v1/sessions/${id}/messages?${query}`);

  describe('append', () => {
    it('given a session, when a message is appended, then 201 returns its version, and reads show it there', async () => {
      await api.post('/v1/sessions', { id: 'a-1' });
      const appended = await api.post<Appended>('/v1/sessions/a-1/messages', {
        role: 'user',
        content: 'Hello, 🌍\n\u2028"',
        name: 'Alice B.',
      });
      expect(appended.status).toBe(201);
      expect(appended.headers.get('etag')).toBe('"2"');
      const [message] = appended.body.messages;
      expect(appended.body).toEqual({
        messages: [{ messageId: expect.stringMatching(/^msg_[0-9a-z]{26}$/) as string, version: 2 }],
        version: 2,
        position: expect.any(String) as string,
      });
      const page = await read('a-1');
      expect(page.status).toBe(200);
      expect(page.headers.get('etag')).toBe('"2"');
      expect(page.body).toEqual({
        data: [
          {
            id: message?.messageId,
            role: 'user',
            content: 'Hello, 🌍\n\u2028"',
            name: 'Alice B.',
            version: 2,
            createdAt: expect.stringMatching(/Z$/) as string,
            status: 'complete',
          },
        ],
        nextCursor: null,
        version: 2,
      });
      const { body } = await api.get<{ data: { position: string }[] }>('/v1/sessions/a-1/events?after=1');
      expect(body.data[0]?.position).toBe(appended.body.position);
    });

    it('given messages of every role and typed parts, when they are appended in one request, then they are read unchanged', async () => {
      await api.post('/v1/sessions', { id: 'a-2' });
      const messages = [
        { role: 'system', content: 'Be brief.' },
        {
          role: 'user',
          content: [
            { type: 'text', text: 'What is this?' },
            { type: 'image', url: 'data:image/png;base64,AA==', detail: 'low' },
          ],
        },
        {
          role: 'assistant',
          content: '',
          toolCalls: [
            { id: 'c1', name: 'look', arguments: '{"at":1}' },
            { id: 'c2', name: 'look', arguments: '' },
          ],
        },
        { role: 'tool', content: 'a cat', toolCallId: 'c2' },
        { role: 'tool', content: '', toolCallId: 'c1', name: 'look' },
        { role: 'assistant', content: 'A cat.' },
      ];
      const appended = await api.post<Appended>('/v1/sessions/a-2/messages', { messages });
      expect(appended.status).toBe(201);
      expect(appended.body.messages.map((message) => message.version)).toEqual([2, 3, 4, 5, 6, 7]);
      const { body } = await read('a-2');
      expect(body.data.map((message) => message.id)).toEqual(
        appended.body.messages.map((one) => one.messageId),
      );
      for (const [index, given] of messages.entries()) expect(body.data[index]).toMatchObject(given);
      expect((await api.get('/v1/sessions/a-2')).body).toMatchObject({ messageCount: 6, version: 7 });
    });

    it('given a session, when 1000 messages are sent in one request, then all are stored; of 1001 none is', async () => {
      await api.post('/v1/sessions', { id: 'a-3' });
      const before = await stored(world.database);
      const refused = await append('a-3', 1, 1001);
      expectProblem(refused, 400, 'invalid-request', '/messages');
      expect(await stored(world.database)).toEqual(before);
      const { status, body } = await append('a-3', 1, 1000);
      expect(status).toBe(201);
      expect(body).toMatchObject({ version: 1001 });
      const seen: unknown[] = [];
      let cursor = '';
      for (let pages = 0; pages < 6; pages += 1) {
        const page = await read('a-3', `limit=200${cursor}`);
        seen.push(...contents(page));
        if (page.body.nextCursor === null) break;
        cursor = `&cursor=${page.body.nextCursor}`;
      }
      expect(seen).toEqual(numbered(1, 1000));
      const times = await world.database.query(
        'select distinct time from event where stream_id = $1 and version > 1',
        ['a-3'],
      );
      expect(times).toHaveLength(1);
    });

    it('given a request in which one message is invalid, when it is sent, then no message is stored', async () => {
      await conversation('a-4', 1);
      const before = await stored(world.database);
      const messages = [
        user('fine'),
        { role: 'tool', content: 'x', toolCallId: 'nobody-asked' },
        user('fine too'),
      ];
      expectProblem(
        await api.post('/v1/sessions/a-4/messages', { messages }),
        400,
        'invalid-request',
        '/messages/1/toolCallId',
      );
      expect(await stored(world.database)).toEqual(before);
    });
  });

  describe('pages', () => {
    it('given more than a page, when messages arrive between pages, then pages from the oldest on have no gap and no duplicate', async () => {
      await conversation('p-1', 5);
      const first = await read('p-1', 'limit=2');
      expect(contents(first)).toEqual(['m1', 'm2']);
      expect(first.body.version).toBe(6);
      await append('p-1', 6, 7);
      const second = await read('p-1', `limit=2&cursor=${first.body.nextCursor ?? ''}`);
      expect(contents(second)).toEqual(['m3', 'm4']);
      const third = await read('p-1', `limit=4&cursor=${second.body.nextCursor ?? ''}`);
      expect(contents(third)).toEqual(['m5', 'm6', 'm7']);
      expect(third.body).toMatchObject({ nextCursor: null, version: 8 });
    });

    it('given more than a page, when messages arrive between pages, then pages from the newest on go on into the past', async () => {
      await conversation('p-2', 5);
      const first = await read('p-2', 'order=desc&limit=2');
      expect(contents(first)).toEqual(['m5', 'm4']);
      await append('p-2', 6, 9);
      const second = await read('p-2', `order=desc&limit=2&cursor=${first.body.nextCursor ?? ''}`);
      expect(contents(second)).toEqual(['m3', 'm2']);
      const third = await read('p-2', `order=desc&limit=2&cursor=${second.body.nextCursor ?? ''}`);
      expect(contents(third)).toEqual(['m1']);
      expect(third.body.nextCursor).toBeNull();
    });

    it('given exactly one page of messages, when it is read, then there is no next page', async () => {
      await conversation('p-3', 2);
      expect((await read('p-3', 'limit=2')).body.nextCursor).toBeNull();
      expect((await read('p-3', 'limit=2&order=desc')).body.nextCursor).toBeNull();
    });

    it('given a cursor, when it is used for another order, session or tenant, then it is refused', async () => {
      await conversation('p-4', 3);
      await conversation('p-5', 3);
      const tenant = { 'colloquy-tenant': 'other' };
      await api.post('/v1/sessions', { id: 'p-4' }, tenant);
      const cursor = (await read('p-4', 'limit=1')).body.nextCursor ?? '';
      for (const answer of [
        await read('p-4', `order=desc&cursor=${cursor}`),
        await read('p-4', `at=3&cursor=${cursor}`),
        await read('p-5', `cursor=${cursor}`),
        await api.get(`/v1/sessions/p-4/messages?cursor=${cursor}`, tenant),
        await api.get(`/v1/sessions?cursor=${cursor}`),
      ]) {
        expectProblem(answer, 400, 'invalid-cursor');
      }
    });

    it('given a cursor of either order, when the session is reset, deleted or created again, then 410', async () => {
      for (const order of ['asc', 'desc']) {
        const id = `p-6-${order}`;
        await conversation(id, 3);
        const cursor = (await read(id, `order=${order}&limit=1`)).body.nextCursor ?? '';
        const next = () => read(id, `order=${order}&cursor=${cursor}`);
        expect((await next()).status).toBe(200);
        await api.post(`/v1/sessions/${id}/reset`);
        expectProblem(await next(), 410, 'cursor-expired');
        await append(id, 1, 3);
        expectProblem(await next(), 410, 'cursor-expired');
        await api.delete(`/v1/sessions/${id}`);
        expectProblem(await next(), 410, 'cursor-expired');
        await conversation(id, 3);
        expectProblem(await next(), 410, 'cursor-expired');
        expect(await texts(api, id)).toEqual(['m1', 'm2', 'm3']);
      }
    });
  });

  describe('the past', () => {
    it('given a conversation, when it is read at a version, then its pages end there, whatever is appended later', async () => {
      await conversation('v-1', 6);
      const first = await read('v-1', 'at=5&limit=2');
      expect(contents(first)).toEqual(['m1', 'm2']);
      expect(first.body.version).toBe(5);
      expect(first.headers.get('etag')).toBe('"5"');
      await append('v-1', 7, 8);
      const rest = await read('v-1', `at=5&limit=9&cursor=${first.body.nextCursor ?? ''}`);
      expect(contents(rest)).toEqual(['m3', 'm4']);
      expect(rest.body.nextCursor).toBeNull();
      expect(contents(await read('v-1', 'at=5&order=desc&limit=3'))).toEqual(['m4', 'm3', 'm2']);
      expect(contents(await read('v-1', 'at=1'))).toEqual([]);
    });

    it('given a time, when the history is read at that time, then later messages are missing', async () => {
      await conversation('v-2', 1);
      await world.database.setClock({ offsetMs: 60_000 });
      await say(api, 'v-2', 'a minute later');
      const [early, late] = (await read('v-2')).body.data;
      const at = (time = '') => read('v-2', `at=${encodeURIComponent(time)}`);
      expect(contents(await at(early?.createdAt))).toEqual(['m1']);
      expect(contents(await at(late?.createdAt))).toEqual(['m1', 'a minute later']);
      const between = new Date(Date.parse(late?.createdAt ?? '') - 1).toISOString();
      expect(contents(await at(between))).toEqual(['m1']);
      // The same moment, in another zone.
      expect(contents(await at(between.replace('Z', '+00:00')))).toEqual(['m1']);
      expect(contents(await at('2999-01-01T00:00:00Z'))).toEqual(['m1', 'a minute later']);
    });

    it('given a reset, when a version or time before it is requested, then the old history is returned', async () => {
      await conversation('v-3', 2);
      const before = (await read('v-3')).body.data[1]?.createdAt ?? '';
      await world.database.setClock({ offsetMs: 60_000 });
      await api.post('/v1/sessions/v-3/reset');
      await say(api, 'v-3', 'after');
      expect(contents(await read('v-3'))).toEqual(['after']);
      expect(contents(await read('v-3', 'at=3'))).toEqual(['m1', 'm2']);
      expect(contents(await read('v-3', `at=${before}`))).toEqual(['m1', 'm2']);
      expect(contents(await read('v-3', 'at=4'))).toEqual([]);
      expect(contents(await read('v-3', 'at=5'))).toEqual(['after']);
      // Pages of the old history can be read on after further resets.
      const page = await read('v-3', 'at=3&limit=1');
      await api.post('/v1/sessions/v-3/reset');
      expect(contents(await read('v-3', `at=3&limit=1&cursor=${page.body.nextCursor ?? ''}`))).toEqual([
        'm2',
      ]);
    });

    it('given an older incarnation, when a read does not name it, then nothing of it is returned; when a read names it, then its history is returned', async () => {
      await conversation('v-4', 2);
      const before = (await read('v-4')).body.data[0]?.createdAt ?? '';
      await world.database.setClock({ offsetMs: 60_000 });
      await api.delete('/v1/sessions/v-4');
      expectProblem(await read('v-4'), 404, 'session-not-found');
      expectProblem(await read('v-4', 'at=3'), 404, 'session-not-found');
      expect(contents(await read('v-4', 'incarnation=1'))).toEqual(['m1', 'm2']);
      await api.post('/v1/sessions', { id: 'v-4' });
      await say(api, 'v-4', 'second life');
      expect(contents(await read('v-4'))).toEqual(['second life']);
      for (const at of ['1', '2', '3', '4', before]) {
        expectProblem(await read('v-4', `at=${at}`), 400, 'invalid-request', '/at');
      }
      expect(contents(await read('v-4', 'incarnation=1&at=2'))).toEqual(['m1']);
      expect(contents(await read('v-4', `incarnation=1&at=${before}`))).toEqual(['m1', 'm2']);
      expect(contents(await read('v-4', 'incarnation=2'))).toEqual(['second life']);
      expectProblem(await read('v-4', 'incarnation=1&at=6'), 400, 'invalid-request', '/at');
      expectProblem(await read('v-4', 'incarnation=3'), 404, 'session-not-found');
      const page = await read('v-4', 'incarnation=1&limit=1');
      expect(contents(await read('v-4', `incarnation=1&cursor=${page.body.nextCursor ?? ''}`))).toEqual([
        'm2',
      ]);
    });

    it('given a version that does not exist, when it is requested, then 400 names the parameter, however large the number is', async () => {
      await conversation('v-5', 1);
      for (const at of [
        '0',
        '-1',
        '3',
        '2147483648',
        '9007199254740991',
        '1e99',
        '1.5',
        'yesterday',
        '0000-01-01T00:00:00Z',
        '1999-01-01T00:00:00Z',
        '',
      ]) {
        expectProblem(await read('v-5', `at=${encodeURIComponent(at)}`), 400, 'invalid-request', '/at');
      }
      for (const incarnation of ['2147483648', '9007199254740991']) {
        expectProblem(await read('v-5', `incarnation=${incarnation}`), 404, 'session-not-found');
      }
    });
  });

  it('given many concurrent writers, when all are answered, then every message is stored once, at the version that its answer names', async () => {
    await api.post('/v1/sessions', { id: 'race' });
    const answers = await Promise.all(
      Array.from({ length: 60 }, (_, index) => say(api, 'race', `m${index}`)),
    );
    expect(answers.map((answer) => answer.status)).toEqual(answers.map(() => 201));
    const versions = answers.map((answer) => answer.body.version);
    expect([...versions].sort((a, b) => a - b)).toEqual(answers.map((_, index) => index + 2));
    const events = await logged(world.database, 'race');
    const byVersion = new Map(events.map((event) => [event.version, event.data['content']]));
    answers.forEach((answer, index) => {
      expect(byVersion.get(answer.body.version)).toBe(`m${index}`);
    });
  });
});

describe('search', () => {
  interface Result {
    readonly data: readonly {
      readonly sessionId: string;
      readonly messageId: string;
      readonly version: number;
      readonly role: string;
      readonly createdAt: string;
      readonly snippet: readonly { readonly text: string; readonly match: boolean }[];
    }[];
    readonly nextCursor: string | null;
  }
  let world: World;
  let api: Api;
  beforeAll(async () => {
    world = await createWorld();
    ({ api } = await world.node());
    await api.post('/v1/sessions', { id: 's-1' });
    await api.post('/v1/sessions', { id: 's-2' });
  });
  afterAll(() => world.end());

  const search = (query: Record<string, string>, headers = {}) =>
    api.get<Result>(`/v1/search?${new URLSearchParams(query).toString()}`, headers);

  it('given messages of several sessions, when a part of a word is searched, then those that contain it are found, the newest first', async () => {
    await say(api, 's-1', 'My Refund is late');
    await say(api, 's-2', 'No news of the refunds?');
    await say(api, 's-1', 'Something else');
    const { status, body } = await search({ q: 'REFUN' });
    expect(status).toBe(200);
    expect(body.data.map(({ sessionId, version }) => [sessionId, version])).toEqual([
      ['s-2', 2],
      ['s-1', 2],
    ]);
    const { data } = (await api.get<Page>('/v1/sessions/s-1/messages')).body;
    expect(body.data[1]).toMatchObject({
      messageId: data[0]?.id,
      role: 'user',
      createdAt: data[0]?.createdAt,
    });
    expect(body.data[1]?.snippet).toEqual([
      { text: 'My ', match: false },
      { text: 'Refun', match: true },
      { text: 'd is late', match: false },
    ]);
    expect(body.nextCursor).toBeNull();
    expect((await search({ q: 'refun' }, { 'colloquy-tenant': 'other' })).body.data).toEqual([]);
  });

  it('given writes, when a search comes right behind each, then it shows it; a reset or deletion takes it out', async () => {
    for (let round = 0; round < 20; round += 1) {
      await say(api, 's-2', `Round number-${round}.`);
      expect((await search({ q: `number-${round}.` })).body.data).toHaveLength(1);
    }
    await api.post('/v1/sessions/s-2/reset');
    expect((await search({ q: 'number-' })).body.data).toEqual([]);
    await say(api, 's-2', 'Round number-20.');
    expect((await search({ q: 'number-' })).body.data).toHaveLength(1);
    await api.delete('/v1/sessions/s-2');
    expect((await search({ q: 'number-' })).body.data).toEqual([]);
  });

  it('given more hits than a page holds, when pages are read by cursor, then each hit comes once; with other filters the cursor is refused', async () => {
    await api.post('/v1/sessions', { id: 's-3' });
    await api.post('/v1/sessions/s-3/messages', {
      messages: numbered(1, 7).map((text) => user(`page ${text}`)),
    });
    const versions: number[] = [];
    let cursor: string | null = '';
    while (cursor !== null) {
      const page: { body: Result } = await search({ q: 'page', limit: '3', ...(cursor && { cursor }) });
      versions.push(...page.body.data.map(({ version }) => version));
      if (page.body.nextCursor !== null) {
        expectProblem(await search({ q: 'pages', cursor: page.body.nextCursor }), 400, 'invalid-cursor');
      }
      cursor = page.body.nextCursor;
    }
    expect(versions).toEqual([8, 7, 6, 5, 4, 3, 2]);
  });

  it.each([
    ['no text', {}],
    ['a text without a word', { q: ' "" ' }],
    ['an unknown role', { q: 'a', role: 'robot' }],
    ['a time that is none', { q: 'a', from: 'yesterday' }],
    ['an unknown parameter', { q: 'a', order: 'asc' }],
  ])('given %s, when it is searched, then 400 names the parameter', async (_, query) => {
    expectProblem(await search(query), 400, 'invalid-request');
  });
});
