import fc from 'fast-check';
import { EventLog } from '../../src/event-store/log.js';
import { appendOf } from '../support/append.js';
import { type Api, apiOf, expectProblem } from '../support/http.js';
import {
  documentedStatuses,
  type GeneratedRequest,
  type OpenApi,
  requestsOf,
} from '../support/openapi-requests.js';
import { sized } from '../support/heavy.js';
import { createWorld, say, type World } from './fixture.js';

const REQUESTS = sized(20_000, 2_000, 1_000);
const AT_ONCE = 16;
/** SEED=n generates other requests; the same seed generates the same requests. */
const SEED = Number(process.env['SEED'] ?? 20_261_127);

let world: World;
let api: Api;
beforeAll(async () => {
  world = await createWorld();
  ({ api } = await world.node({ MAX_SESSIONS: '1000000' }));
});
afterAll(() => world.end());

/** The answer to a request. A stream of events is closed as soon as it has begun. */
async function answerTo(url: string, { method, path, headers, body }: GeneratedRequest) {
  const leave = new AbortController();
  const response = await fetch(url + path, {
    method,
    headers,
    signal: leave.signal,
    ...(body !== undefined && { body: Buffer.from(body) }),
  });
  const type = response.headers.get('content-type') ?? '';
  if (type.startsWith('text/event-stream')) {
    leave.abort();
    return { status: response.status, type, text: '', named: null };
  }
  const named = response.headers.get('x-error-code');
  return { status: response.status, type, text: await response.text(), named };
}

/** The code of an error, in the form of its surface; OpenAI's has some that are null. */
function codeOf(type: string, text: string): string | undefined {
  if (type.includes('problem+json')) return (JSON.parse(text) as { code: string }).code;
  if (!type.startsWith('application/json')) return undefined;
  const { error } = JSON.parse(text) as { error?: { code: string | null; type: string } };
  return error && (error.code ?? error.type);
}

it(`given ${REQUESTS} requests generated from the OpenAPI document, at and past every bound, when they are sent, then each answer is one of the documented ones and none is an internal error`, async () => {
  const { body: document } = (await api.get('/openapi.json')) as unknown as { body: OpenApi };
  const requests = fc.sample(requestsOf(document), { numRuns: REQUESTS, seed: SEED });
  const faults: unknown[] = [];
  const statuses = new Map<number, number>();

  const check = async (request: GeneratedRequest): Promise<void> => {
    const { status, type, text, named } = await answerTo(api.url, request);
    statuses.set(status, (statuses.get(status) ?? 0) + 1);
    const code = named ?? codeOf(type, text);
    const isKnown =
      documentedStatuses(document, request).includes(String(status)) ||
      // A path that matches no route is no operation of the document.
      ['not-found', 'method-not-allowed', 'not_found', 'method_not_allowed'].includes(code ?? '');
    const isError = status >= 400 && !request.path.startsWith('/health');
    if (status === 500 || !isKnown || (isError && code === undefined)) {
      faults.push({
        ...request,
        body: request.body?.slice(0, 300),
        path: request.path.slice(0, 300),
        status,
        text: text.slice(0, 300),
      });
    }
  };
  const queue = requests.values();
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (const request of queue) await check(request);
    }),
  );

  expect(faults.slice(0, 5)).toEqual([]);
  // Many of the generated requests must succeed; otherwise this test would only test refusals.
  expect(statuses.get(200) ?? 0).toBeGreaterThan(REQUESTS / 20);
  // Few of all operations create something, and fewer with each operation that is added.
  expect(statuses.get(201) ?? 0).toBeGreaterThan(REQUESTS / 1_000);
  expect((await api.get('/health/ready')).status).toBe(200);
});

it.each([
  '2026-01-01T00:00:00+16:00',
  '2026-01-01T00:00:00-16:00',
  '0000-01-01T00:00:00Z',
  '2026-01-01T00:00:00.1234567890Z',
])(
  'given the time %s, which PostgreSQL refuses, when any parameter holds it, then the request is refused before it reaches the database',
  async (time) => {
    await api.post('/v1/sessions', { id: 'timed' });
    const at = encodeURIComponent(time);
    for (const path of [
      `/v1/sessions/timed/messages?at=${at}`,
      `/v1/sessions/timed/state?at=${at}`,
      `/v1/events?from=${at}`,
      `/v1/events?to=${at}`,
      `/v1/sessions/timed/events?from=${at}`,
    ]) {
      expectProblem(await api.get(path), 400, 'invalid-request');
    }
    expectProblem(
      await api.put('/v1/sessions/timed/approvals/x', { expiresAt: time }),
      400,
      'invalid-request',
    );
    expectProblem(await api.post('/v1/sessions/timed/fork', { at: time }), 400, 'invalid-request');
  },
);

it('given an event that a newer version wrote, when a client writes to its session, then the answer says that this node has to be upgraded, and the audit trail still works', async () => {
  // The generated requests may have left the default tenant with sessions that expire at once.
  const calm = apiOf(api.url, { 'colloquy-tenant': 'calm' });
  await calm.post('/v1/sessions', { id: 'newer' });
  await say(calm, 'newer', 'Hello');
  const newer = await EventLog.open(world.database.url);
  const appended = await newer.append({
    ...appendOf({ tenant: 'calm', streamId: 'newer' }, 2, [
      { type: 'MessagePinned', data: { messageId: 'x' } },
    ]),
    lag: { events: 0, bytes: 0 },
  });
  await newer.close();
  expect(appended.status).toBe('ok');

  const refused = await say(calm, 'newer', 'Are you there?');

  const { detail } = expectProblem(refused, 503, 'upgrade-in-progress');
  expect(detail).toMatch(/MessagePinned .*upgrade this one/);
  expect(refused.headers.get('retry-after')).toBe('5');
  const trail = await calm.get<{ data: { type: string; data: object }[] }>('/v1/sessions/newer/events');
  expect(trail.body.data.at(-1)).toMatchObject({ type: 'MessagePinned', data: { messageId: 'x' } });
});

it('given a body past the limit, when it is refused, then the answer names the limit and its setting', async () => {
  const refused = await api.post('/v1/sessions', { title: 'x'.repeat(2 * 1024 * 1024) });

  expect(expectProblem(refused, 413, 'body-too-large').detail).toBe(
    'The body is larger than 1048576 bytes, which is the limit of this server (server.bodyLimit).',
  );
});
