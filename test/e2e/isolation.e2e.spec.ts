import { type Answer, type Api, apiOf } from '../support/http.js';
import { type OpenApi } from '../support/openapi-requests.js';
import { masterKey } from '../support/master-keys.js';
import { bearer, createIssuer } from '../support/tokens.js';
import { createWorld, user, type World } from './fixture.js';

/*
 * Whatever a stranger sends with what belongs to somebody else is answered as if there were no such thing, and changes
 * nothing. The strangers are another tenant and another owner of the same tenant.
 */

/** Stands in everything that belongs to the victim, so that any answer which contains it is a leak. */
const MARK = 'zanzibar';
const VICTIM = `${MARK}-session`;
const KEY = 'one-key-for-all';

const OWN = 'sessions:read:own sessions:write:own generate:own audit:read:own';
const issuer = createIssuer();

/** What a request refers to: ids, places and cursors, by the name of the parameter or field. */
interface Things {
  readonly session: string;
  readonly message: string;
  readonly generation: string;
  readonly response: string;
  readonly item: string;
  readonly tool: string;
  /** With which the first event of the session is sealed. */
  readonly key: string;
  readonly cursors: Readonly<Record<string, string>>;
}

let world: World;
let api: Api;
beforeAll(async () => {
  world = await createWorld();
  const env = {
    COLLOQUY_API_KEYS: 'victim:acme:key-of-victim,stranger:other:key-of-stranger',
    COLLOQUY_MASTER_KEY: masterKey('one'),
    ...issuer.env,
  };
  ({ api } = await world.node(env));
});
afterAll(() => world.end());

const as = (credential: string): Api => apiOf(api.url, bearer(credential));

/** Gives the victim one of everything. */
async function fill(victim: Api, tenant: string): Promise<Things> {
  const keyed = { 'idempotency-key': KEY };
  await victim.post('/v1/sessions', { id: VICTIM, title: MARK, metadata: { [MARK]: MARK } }, keyed);
  await victim.post('/v1/sessions', { title: MARK });
  const call = { id: 'call_1', name: MARK, arguments: '{}' };
  await victim.post(
    `/v1/sessions/${VICTIM}/messages`,
    { messages: [user(MARK), user(`${MARK} again`)] },
    keyed,
  );
  const generated = await victim.post(`/v1/sessions/${VICTIM}/generate`, { message: MARK }, keyed);
  const { generationId } = generated.body as { generationId: string };
  await victim.post(`/v1/sessions/${VICTIM}/messages`, {
    role: 'assistant',
    content: MARK,
    toolCalls: [call],
  });
  await victim.send('PUT', `/v1/sessions/${VICTIM}/approvals/${MARK}`, '{}', {
    'content-type': 'application/json',
  });
  await victim.post(`/v1/sessions/${VICTIM}/fork`, { id: `${MARK}-fork` });
  await victim.post('/openai/v1/responses', { input: MARK }, keyed);
  await victim.post('/openai/v1/conversations', { items: [{ role: 'user', content: MARK }] }, keyed);
  const pages = {
    sessions: await victim.get('/v1/sessions?limit=1'),
    messages: await victim.get(`/v1/sessions/${VICTIM}/messages?limit=1`),
    search: await victim.get(`/v1/search?q=${MARK}&limit=1`),
  };
  const cursors = Object.fromEntries(
    Object.entries(pages).map(([name, { body }]) => [name, (body as { nextCursor: string }).nextCursor]),
  );
  for (const cursor of Object.values(cursors)) expect(cursor).toEqual(expect.any(String));
  const messages = await victim.get(`/v1/sessions/${VICTIM}/messages`);
  const { data } = messages.body as { data: { id: string }[] };
  const items = await victim.get(`/openai/v1/conversations/${VICTIM}/items`);
  const [sealing] = await world.database.query<{ key: string }>(
    'select key_id::text as key from event where tenant = $1 and stream_id = $2 and version = 1',
    [tenant, VICTIM],
  );
  return {
    session: VICTIM,
    message: data[0]?.id ?? '',
    generation: generationId,
    response: `resp_${generationId.replace('gen_', '')}`,
    item: (items.body as { data: { id: string }[] }).data[0]?.id ?? '',
    tool: MARK,
    key: sealing?.key ?? '',
    cursors,
  };
}

/** Things that nobody has, of the same forms. */
const nothing = (things: Things): Things => ({
  session: 'nobodys-session',
  message: `msg_${'0'.repeat(26)}`,
  generation: `gen_${'0'.repeat(26)}`,
  response: `resp_${'0'.repeat(26)}`,
  item: `msg_${'0'.repeat(26)}`,
  tool: 'nobodys-tool',
  key: '00000000-0000-4000-8000-000000000000',
  cursors: Object.fromEntries(Object.keys(things.cursors).map((name) => [name, 'bm90aGluZw'])),
});

interface Sent {
  readonly path: string;
  readonly body?: object;
}

const ui = { id: 'ui1', role: 'user', parts: [{ type: 'text', text: 'hello' }] };
/**
 * What is sent to an operation, by method and path of the document. An operation that is missing here fails the test:
 * whoever adds one says how a stranger would use it.
 */
const REQUESTS: Readonly<Record<string, (t: Things) => Sent[]>> = {
  'POST /v1/sessions': ({ session }) => [{ path: '/v1/sessions', body: { id: session } }],
  'GET /v1/sessions': ({ cursors }) => [
    { path: '/v1/sessions' },
    { path: `/v1/sessions?q=${MARK}` },
    { path: `/v1/sessions?metadata.${MARK}=${MARK}` },
    { path: '/v1/sessions?owner=alice' },
    { path: `/v1/sessions?cursor=${cursors['sessions']}` },
    { path: '/v1/sessions?order=desc' },
  ],
  'GET /v1/sessions/{id}': ({ session }) => [
    { path: `/v1/sessions/${session}` },
    { path: `/v1/sessions/${session}?consistency=eventual` },
  ],
  'PATCH /v1/sessions/{id}': ({ session }) => [{ path: `/v1/sessions/${session}`, body: { title: 'mine' } }],
  'DELETE /v1/sessions/{id}': ({ session }) => [{ path: `/v1/sessions/${session}`, body: {} }],
  'POST /v1/sessions/{id}/reset': ({ session }) => [{ path: `/v1/sessions/${session}/reset`, body: {} }],
  'POST /v1/sessions/{id}/erase': ({ session }) => [
    { path: `/v1/sessions/${session}/erase`, body: {} },
    { path: `/v1/sessions/${session}/erase`, body: { at: '2999-01-01T00:00:00Z' } },
  ],
  'DELETE /v1/sessions/{id}/erasure': ({ session }) => [
    { path: `/v1/sessions/${session}/erasure`, body: {} },
  ],
  'GET /v1/sessions/{id}/erasure': ({ session }) => [{ path: `/v1/sessions/${session}/erasure` }],
  'POST /v1/sessions/{id}/messages': ({ session }) => [
    { path: `/v1/sessions/${session}/messages`, body: user('intruder') },
    { path: `/v1/sessions/${session}/messages`, body: { messages: [], replaceLast: 1 } },
  ],
  'GET /v1/sessions/{id}/messages': ({ session, cursors }) => [
    { path: `/v1/sessions/${session}/messages` },
    { path: `/v1/sessions/${session}/messages?at=2` },
    { path: `/v1/sessions/${session}/messages?incarnation=1&consistency=eventual` },
    { path: `/v1/sessions/${session}/messages?cursor=${cursors['messages']}` },
  ],
  'DELETE /v1/sessions/{id}/messages/{messageId}': ({ session, message }) => [
    { path: `/v1/sessions/${session}/messages/${message}` },
  ],
  'POST /v1/sessions/{id}/rewind': ({ session }) => [
    { path: `/v1/sessions/${session}/rewind`, body: { toVersion: 1 } },
  ],
  'GET /v1/sessions/{id}/usage': ({ session }) => [{ path: `/v1/sessions/${session}/usage` }],
  'GET /v1/sessions/{id}/forks': ({ session }) => [{ path: `/v1/sessions/${session}/forks` }],
  'GET /v1/search': ({ cursors }) => [
    { path: `/v1/search?q=${MARK}` },
    { path: `/v1/search?q=${MARK}&owner=alice` },
    { path: `/v1/search?q=${MARK}&limit=1&cursor=${cursors['search']}` },
  ],
  'GET /v1/usage': () => [
    { path: '/v1/usage' },
    { path: '/v1/usage?by=owner' },
    { path: '/v1/usage?owner=alice' },
  ],
  'GET /v1/sessions/{id}/approvals': ({ session }) => [{ path: `/v1/sessions/${session}/approvals` }],
  'PUT /v1/sessions/{id}/approvals/{tool}': ({ session, tool }) => [
    { path: `/v1/sessions/${session}/approvals/${tool}`, body: {} },
  ],
  'DELETE /v1/sessions/{id}/approvals/{tool}': ({ session, tool }) => [
    { path: `/v1/sessions/${session}/approvals/${tool}` },
  ],
  'GET /v1/events': ({ session }) => [
    { path: '/v1/events' },
    { path: `/v1/events?session=${session}` },
    { path: '/v1/events?actor=victim' },
  ],
  'GET /v1/sessions/{id}/events': ({ session }) => [
    { path: `/v1/sessions/${session}/events` },
    { path: `/v1/sessions/${session}/events?after=3` },
  ],
  'GET /v1/keys/{id}': ({ key, session }) => [{ path: `/v1/keys/${key}?session=${session}&version=1` }],
  'GET /v1/sessions/{id}/state': ({ session }) => [
    { path: `/v1/sessions/${session}/state` },
    { path: `/v1/sessions/${session}/state?at=2&incarnation=1` },
  ],
  'GET /v1/sessions/{id}/diff': ({ session }) => [
    { path: `/v1/sessions/${session}/diff?from=1` },
    { path: `/v1/sessions/${session}/diff?from=1&to=3&incarnation=1` },
  ],
  'POST /v1/sessions/{id}/fork': ({ session }) => [
    { path: `/v1/sessions/${session}/fork`, body: {} },
    { path: `/v1/sessions/${session}/fork`, body: { at: 3 } },
  ],
  'POST /v1/sessions/{id}/generate': ({ session }) => [
    { path: `/v1/sessions/${session}/generate`, body: { message: 'intruder' } },
    { path: `/v1/sessions/${session}/generate`, body: { regenerate: true } },
  ],
  'POST /v1/chat': ({ session }) => [{ path: '/v1/chat', body: { message: 'intruder', sessionId: session } }],
  'POST /v1/sessions/{id}/cancel': ({ session }) => [{ path: `/v1/sessions/${session}/cancel`, body: {} }],
  'GET /v1/sessions/{id}/generations/{generationId}': ({ session, generation }) => [
    { path: `/v1/sessions/${session}/generations/${generation}` },
  ],
  'GET /v1/sessions/{id}/generations/{generationId}/stream': ({ session, generation }) => [
    { path: `/v1/sessions/${session}/generations/${generation}/stream` },
  ],
  'POST /v1/sessions/{id}/title': ({ session }) => [
    { path: `/v1/sessions/${session}/title`, body: { overwrite: true } },
  ],
  'POST /openai/v1/conversations': () => [
    { path: '/openai/v1/conversations', body: { items: [{ role: 'user', content: 'mine' }] } },
  ],
  'GET /openai/v1/conversations': ({ session }) => [
    { path: '/openai/v1/conversations' },
    { path: `/openai/v1/conversations?after=${session}` },
  ],
  'GET /openai/v1/conversations/{id}': ({ session }) => [{ path: `/openai/v1/conversations/${session}` }],
  'POST /openai/v1/conversations/{id}': ({ session }) => [
    { path: `/openai/v1/conversations/${session}`, body: { metadata: {} } },
  ],
  'DELETE /openai/v1/conversations/{id}': ({ session }) => [{ path: `/openai/v1/conversations/${session}` }],
  'POST /openai/v1/conversations/{id}/items': ({ session }) => [
    {
      path: `/openai/v1/conversations/${session}/items`,
      body: { items: [{ role: 'user', content: 'intruder' }] },
    },
  ],
  'GET /openai/v1/conversations/{id}/items': ({ session, item }) => [
    { path: `/openai/v1/conversations/${session}/items` },
    { path: `/openai/v1/conversations/${session}/items?after=${item}` },
  ],
  'GET /openai/v1/conversations/{id}/items/{itemId}': ({ session, item }) => [
    { path: `/openai/v1/conversations/${session}/items/${item}` },
  ],
  'DELETE /openai/v1/conversations/{id}/items/{itemId}': ({ session, item }) => [
    { path: `/openai/v1/conversations/${session}/items/${item}` },
  ],
  'POST /openai/v1/responses': ({ session, response }) => [
    { path: '/openai/v1/responses', body: { input: 'intruder', previous_response_id: response } },
    { path: '/openai/v1/responses', body: { input: 'x', previous_response_id: response, store: false } },
    { path: '/openai/v1/responses', body: { input: 'intruder', conversation: session } },
  ],
  'GET /openai/v1/responses/{id}': ({ response }) => [
    { path: `/openai/v1/responses/${response}` },
    { path: `/openai/v1/responses/${response}?stream=true` },
  ],
  'DELETE /openai/v1/responses/{id}': ({ response }) => [{ path: `/openai/v1/responses/${response}` }],
  'POST /openai/v1/responses/{id}/cancel': ({ response }) => [
    { path: `/openai/v1/responses/${response}/cancel`, body: {} },
  ],
  'GET /openai/v1/responses/{id}/input_items': ({ response }) => [
    { path: `/openai/v1/responses/${response}/input_items` },
  ],
  'POST /openai/v1/chat/completions': ({ session }) => [
    {
      path: '/openai/v1/chat/completions',
      body: {
        model: 'echo',
        store: true,
        metadata: { session_id: session },
        messages: [{ role: 'user', content: 'intruder' }],
      },
    },
  ],
  'GET /openai/v1/models': () => [{ path: '/openai/v1/models' }],
  'GET /openai/v1/models/{id}': () => [{ path: '/openai/v1/models/echo' }],
  'POST /ai-sdk/chat': ({ session }) => [
    { path: '/ai-sdk/chat', body: { id: session, messages: [ui], trigger: 'submit-message' } },
    { path: '/ai-sdk/chat', body: { id: session, messages: [ui], trigger: 'regenerate-message' } },
  ],
  'GET /ai-sdk/chat/{id}/stream': ({ session }) => [{ path: `/ai-sdk/chat/${session}/stream` }],
  'GET /ai-sdk/chat/{id}/messages': ({ session }) => [{ path: `/ai-sdk/chat/${session}/messages` }],
  'POST /ai-sdk/chat/{id}/stop': ({ session }) => [{ path: `/ai-sdk/chat/${session}/stop`, body: {} }],
};

/** Operations that make a session where there is none: to another owner of the tenant, the id is taken all the same. */
const CREATES = [
  'POST /v1/sessions',
  'POST /v1/chat',
  'POST /openai/v1/chat/completions',
  'POST /ai-sdk/chat',
];

/** Everything of the victim that anybody could change. */
async function snapshot(tenant: string, sessions: readonly string[]): Promise<unknown> {
  const [row] = await world.database.query(
    `select (select count(*)::int from event where tenant = $1 and stream_id = any ($2)) as events,
            (select md5(string_agg(s::text, ',' order by stream_id)) from stream_state s
             where tenant = $1 and stream_id = any ($2)) as states,
            (select count(*)::int from command where tenant = $1 and stream_id = any ($2)) as keyed`,
    [tenant, sessions],
  );
  return row;
}

const sessionsOf = async (tenant: string): Promise<string[]> =>
  (
    await world.database.query<{ stream_id: string }>(
      'select stream_id from stream_state where tenant = $1',
      [tenant],
    )
  ).map((row) => row.stream_id);

const activeIn = async (tenant: string): Promise<unknown> =>
  world.database.query('select value::int from counter where key like $1', [`%${tenant}`]);

const send = async (stranger: Api, method: string, { path, body }: Sent, headers = {}): Promise<Answer> =>
  stranger.send(method, path, body && JSON.stringify(body), {
    ...(body && { 'content-type': 'application/json' }),
    ...headers,
  });

/** An answer without what differs between two requests for different things. */
const comparable = ({ status, text }: Answer, { cursors: _cursors, ...ids }: Things): unknown => {
  let plain = text;
  for (const id of Object.values(ids)) plain = plain.replaceAll(id, '…');
  return { status, text: plain };
};

describe.each([
  {
    stranger: 'another tenant',
    credentials: () => ['key-of-victim', 'key-of-stranger'],
    tenant: 'acme',
    isOfTenant: false,
  },
  {
    stranger: 'another owner of the tenant',
    credentials: async () => [
      await issuer.token('owned', 'alice', OWN),
      await issuer.token('owned', 'mallory', OWN),
    ],
    tenant: 'owned',
    isOfTenant: true,
  },
])('given what belongs to somebody, when $stranger sends it', ({ credentials, tenant, isOfTenant }) => {
  let things: Things;
  let stranger: Api;
  let document: OpenApi;
  let sessions: string[];
  const operations: { name: string; scope: string }[] = [];
  beforeAll(async () => {
    const [victim = '', other = ''] = await credentials();
    stranger = as(other);
    things = await fill(as(victim), tenant);
    sessions = await sessionsOf(tenant);
    document = (await api.get('/openapi.json')).body as unknown as OpenApi;
    for (const [path, methods] of Object.entries(document.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        const { 'x-required-scope': scope } = operation as { 'x-required-scope'?: string };
        if (scope !== undefined && scope !== 'admin')
          operations.push({ name: `${method.toUpperCase()} ${path}`, scope });
      }
    }
  });

  it('to each operation of the document, then it is as if there were nothing, and nothing changes', async () => {
    expect(operations.map(({ name }) => name).sort()).toEqual(Object.keys(REQUESTS).sort());
    const nobodys = nothing(things);
    const before = await snapshot(tenant, sessions);
    const active = await activeIn(tenant);
    for (const { name, scope } of operations) {
      if (CREATES.includes(name)) continue;
      const [method = ''] = name.split(' ');
      const requests = REQUESTS[name]?.(things) ?? [];
      for (const [index, request] of requests.entries()) {
        for (const headers of [{}, { 'if-match': '"3"' }, { 'last-event-id': '2' }]) {
          const answer = await send(stranger, method, request, headers);
          const where = `${name} ${request.path} ${JSON.stringify(request.body)} ${JSON.stringify(headers)}`;
          expect({ where, status: answer.status }).not.toMatchObject({ status: 500 });
          // What the stranger sent may be in the answer, but nothing else of what belongs to the victim.
          const [path = ''] = request.path.split('?');
          const told = answer.text.replaceAll(path, '').replaceAll(things.session, '');
          expect({ where, leaks: told.includes(MARK) }).toEqual({ where, leaks: false });
          const needsWhole = isOfTenant && !scope.endsWith(':own');
          if (needsWhole) {
            expect({ where, status: answer.status }).toEqual({ where, status: 403 });
            continue;
          }
          if (request.path.includes(things.session) || request.path.includes(things.response))
            expect({ where, isRefused: refusals(request.path, headers).includes(answer.status) }).toEqual({
              where,
              isRefused: true,
            });
          const twin = REQUESTS[name]?.(nobodys)[index];
          const same = twin && (await send(stranger, method, twin, headers));
          if (same && !isCreating(answer)) {
            expect({ where, ...(comparable(answer, things) as object) }).toEqual({
              where,
              ...(comparable(same, nobodys) as object),
            });
          }
        }
      }
    }
    expect(await snapshot(tenant, sessions)).toEqual(before);
    // The sessions that the other owner has made count for the tenant as well.
    if (!isOfTenant) expect(await activeIn(tenant)).toEqual(active);
  });

  it('with an idempotency key of the victim, then the key is that of a request of its own', async () => {
    const asked = [
      { path: '/v1/sessions', body: { title: 'mine' } },
      { path: '/openai/v1/conversations', body: { items: [{ role: 'user', content: 'mine' }] } },
      { path: '/openai/v1/responses', body: { input: 'mine' } },
      { path: '/v1/chat', body: { message: 'mine' } },
    ];
    for (const request of asked) {
      const first = await send(stranger, 'POST', request, { 'idempotency-key': KEY });
      expect({ path: request.path, ok: first.status < 300 }).toEqual({ path: request.path, ok: true });
      expect(first.text).not.toContain(MARK);
    }
    const keyed = await send(
      stranger,
      'POST',
      { path: `/v1/sessions/${things.session}/generate`, body: { message: MARK } },
      { 'idempotency-key': KEY },
    );
    expect(keyed.status).toBe(404);
    expect(keyed.text.replaceAll(things.session, '')).not.toContain(MARK);
  });

  it('to read it after a deletion, then there is nothing either', async () => {
    const [victim = ''] = await credentials();
    await as(victim).delete(`/v1/sessions/${things.session}`);
    for (const path of [
      'events',
      'state?incarnation=1',
      'messages?incarnation=1',
      'diff?from=1&incarnation=1',
    ]) {
      const answer = await stranger.get(`/v1/sessions/${things.session}/${path}`);
      expect([path, answer.status]).toEqual([path, 404]);
    }
  });

  it('to make a session of its id, then another tenant gets one of its own, and another owner none', async () => {
    const before = await snapshot(tenant, sessions);
    for (const name of CREATES) {
      for (const request of REQUESTS[name]?.(things) ?? []) {
        const { status, text } = await send(stranger, 'POST', request);
        const where = `${name} ${JSON.stringify(request.body)}`;
        expect({ where, made: status < 300 }).toEqual({ where, made: !isOfTenant });
        if (isOfTenant) expect({ where, status }).toEqual({ where, status: 404 });
        expect(text.replaceAll(things.session, '')).not.toContain(MARK);
      }
    }
    expect(await snapshot(tenant, sessions)).toEqual(before);
    const trail = await stranger.get(`/v1/sessions/${things.session}/events`);
    expect(trail.text.replaceAll(things.session, '')).not.toContain(MARK);
  });
});

/** No such thing; or a condition on the version of what does not exist; or a cursor that was not given to the stranger. */
const refusals = (path: string, headers: object): number[] => [
  path.includes('cursor=') ? 400 : 404,
  // Filters find nothing, and nothing is being generated for a chat that is not there.
  ...(path.startsWith('/v1/events') ? [200] : path.startsWith('/ai-sdk') ? [204] : []),
  ...('if-match' in headers ? [412] : []),
];

/** Made something of the stranger's own: two of them differ in ids and times. */
const isCreating = ({ status }: Answer): boolean => status === 201 || status === 200;
