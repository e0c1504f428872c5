import { eventually } from '../support/http.js';
import { createWorld, type World } from './fixture.js';

let world: World;
beforeEach(async () => {
  world = await createWorld();
});
afterEach(() => world.end());

type Line = Readonly<Record<string, unknown>>;
const lines = (): Line[] =>
  world
    .output()
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Line);
/** Waits until the line is written, because the logger collects lines for a moment. */
const requests = (count: number): Promise<Line[]> =>
  eventually(() => {
    const found = lines().filter((line) => line['requestId'] !== undefined);
    return Promise.resolve(found.length >= count && found);
  });

it('given requests, when the log is read, then each request has a line of JSON with caller, route and outcome, and without content', async () => {
  const { api } = await world.node({ COLLOQUY_API_KEYS: 'desk:acme:secret-desk' });
  const key = { authorization: 'Bearer secret-desk' };
  await api.post('/v1/sessions', { id: 'alice', title: 'a private title' }, key);
  await api.post('/v1/sessions/alice/messages', { role: 'user', content: 'a private word' }, key);
  await api.get('/v1/sessions?q=private', { ...key, 'x-correlation-id': 'mine' });
  await api.get('/v1/sessions', { authorization: 'Bearer wrong-secret' });
  await api.get('/some/private/path', key);
  await api.get('/health/live');

  const seen = await requests(5);

  expect(
    seen.map(({ method, route, status, tenant, key: name, session }) => [
      method,
      route,
      status,
      tenant,
      name,
      session,
    ]),
  ).toEqual([
    ['POST', '/v1/sessions', 201, 'acme', 'desk', undefined],
    ['POST', '/v1/sessions/:id/messages', 201, 'acme', 'desk', 'alice'],
    ['GET', '/v1/sessions', 200, 'acme', 'desk', undefined],
    ['GET', '/v1/sessions', 401, undefined, undefined, undefined],
    ['GET', 'unmatched', 404, 'acme', 'desk', undefined],
  ]);
  expect(seen[2]).toMatchObject({ requestId: 'mine', level: 'info', ms: expect.any(Number) as number });
  expect(world.output()).not.toMatch(/private|secret/);
});

it('given a log level, when requests are made, then only lines of this level or above are written', async () => {
  const { api } = await world.node({ LOG_LEVEL: 'warn' });
  await api.get('/v1/sessions');
  await api.post('/v1/sessions', { id: 'no title', wrong: true });
  // The greeting is written first, whatever the level.
  expect(lines()).toHaveLength(1);
  expect(lines()[0]).toMatchObject({ msg: expect.stringContaining('is listening on') as string });
});
