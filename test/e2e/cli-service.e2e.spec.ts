import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { type AddressInfo } from 'node:net';
import { colloquy } from '../support/colloquy.js';

/*
 * These tests need a service in rare states: one that disconnects in the middle of a stream, is rebuilding, or finds a
 * difference. They therefore use a scripted server in place of the service.
 */

interface Asked {
  readonly method: string;
  readonly url: string;
  readonly lastEventId: string | undefined;
  readonly body: string;
}

let server: Server;
let env: Record<string, string>;
let asked: Asked[];
/** A server that gives these answers, one per request, in this order. */
let answers: ((response: ServerResponse) => void)[];

beforeEach(async () => {
  asked = [];
  answers = [];
  server = createServer((request: IncomingMessage, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
    request.on('end', () => {
      const { method = '', url = '', headers } = request;
      asked.push({ method, url, lastEventId: headers['last-event-id'] as string | undefined, body });
      const answer = answers.shift();
      if (answer) answer(response);
      else response.writeHead(404).end('{"code":"not-found"}');
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  env = { COLLOQUY_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
});
afterEach(async () => {
  server.closeAllConnections();
  server.close();
  await once(server, 'close');
});

const json =
  (value: unknown, status = 200) =>
  (response: ServerResponse): void => {
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
  };
const event = (version: number) => ({ sessionId: 'a', version, type: 'MessageAppended', data: { version } });
/** A stream of these events, which then breaks or stays open. */
const stream =
  (versions: readonly number[], isTorn = false) =>
  (response: ServerResponse): void => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    const text = versions.map(
      (version) => `id: c${version}\nevent: MessageAppended\ndata: ${JSON.stringify(event(version))}\n\n`,
    );
    response.write(text.join(''), () => {
      if (isTorn) response.destroy();
    });
  };
const lines = (out: string): unknown[] =>
  out
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as unknown);

describe('tail', () => {
  it('given lost connections, when the tail reconnects, then it requests the events after the last one that it has', async () => {
    answers = [
      json({ data: [], nextCursor: null, cursor: 'c0' }),
      stream([1, 2], true),
      json({ code: 'database-unavailable', detail: 'away' }, 503),
      stream([], true),
      stream([3, 4]),
    ];

    const { code, out } = await colloquy(['tail', '--type', 'MessageAppended', '--limit', '4'], { env });

    expect(code).toBe(0);
    expect(lines(out)).toEqual([1, 2, 3, 4].map(event));
    expect(asked.map(({ url, lastEventId }) => [url, lastEventId])).toEqual([
      ['/v1/events?after=end&limit=1', undefined],
      ['/v1/events?type=MessageAppended&after=c0', undefined],
      ['/v1/events?type=MessageAppended&after=c0', 'c2'],
      ['/v1/events?type=MessageAppended&after=c0', 'c2'],
      ['/v1/events?type=MessageAppended&after=c0', 'c2'],
    ]);
  });

  it('given a tail that is forbidden, or has wrong options, when it is started, then it ends with 1', async () => {
    answers = [json({ code: 'unauthenticated', detail: 'no key' }, 401)];
    const denied = await colloquy(['tail', '--after', 'c9'], { env });
    expect(denied).toEqual({ code: 1, out: '', err: 'unauthenticated: no key\n' });
    expect(await colloquy(['tail', '--url', 'http://127.0.0.1:9'])).toMatchObject({ code: 1, out: '' });
  });
});

it('given more events than a page holds, when they are listed, then all pages up to the limit are requested', async () => {
  const page = (from: number, to: number) =>
    Array.from({ length: to - from + 1 }, (_, index) => event(from + index));
  answers = [
    json({ data: page(1, 200), nextCursor: 'c200' }),
    json({ data: page(201, 250), nextCursor: 'c250' }),
  ];

  const { out } = await colloquy(
    ['events', '--session', 'a', '--from', '2026-01-01T00:00:00Z', '--limit', '250'],
    { env },
  );

  expect(lines(out)).toEqual(page(1, 250));
  expect(asked.map(({ url }) => url)).toEqual([
    '/v1/events?session=a&from=2026-01-01T00%3A00%3A00Z&limit=200',
    '/v1/events?session=a&from=2026-01-01T00%3A00%3A00Z&after=c200&limit=50',
  ]);
});

it('given pages that a filter leaves empty, when events are listed, then the command goes on to the pages with matching events', async () => {
  answers = [
    json({ data: [], nextCursor: 'c1' }),
    json({ data: [event(7)], nextCursor: 'c2' }),
    json({ data: [], nextCursor: null }),
  ];

  const { code, out } = await colloquy(['events', '--type', 'SessionDeleted'], { env });

  expect([code, lines(out)]).toEqual([0, [event(7)]]);
  expect(asked.map(({ url }) => new URL(url, 'http://x').searchParams.get('after'))).toEqual([
    null,
    'c1',
    'c2',
  ]);
});

it('given a rebuild that takes a while, when the command starts it, then the command ends when the rebuild has ended', async () => {
  const row = { name: 'history', version: 1, status: 'live', behind: 0, parked: 0, rebuild: null };
  const building = { ...row, rebuild: { processed: 5, total: 9 } };
  answers = [
    json(building, 202),
    json({ data: [building] }),
    json({ data: [{ ...row, name: 'usage' }, row] }),
  ];

  const { code, out } = await colloquy(['rebuild', 'history'], { env });

  expect({ code, rows: lines(out) }).toEqual({ code: 0, rows: [row] });
  expect(asked.map(({ method, url }) => `${method} ${url}`)).toEqual([
    'POST /v1/admin/projections/history/rebuild',
    'GET /v1/admin/projections',
    'GET /v1/admin/projections',
  ]);
});

it('given one read model that differs, when all are verified, then the result of each is printed, and the exit code is 1', async () => {
  const same = { name: 'usage', ok: true, rows: 3, hash: 'ab', firstDifference: null };
  const other = { ...same, name: 'history', ok: false, firstDifference: { tenant: 't', sessionId: 's' } };
  const oneCell = json({ data: [{ name: 'default' }] });
  answers = [oneCell, json({ data: [{ name: 'history' }, { name: 'usage' }] }), json(other), json(same)];

  const { code, out } = await colloquy(['verify'], { env });

  expect({ code, rows: lines(out) }).toEqual({ code: 1, rows: [other, same] });
  // A service that knows nothing of cells yet has one.
  answers = [json({ code: 'not-found', detail: 'no such route' }, 404), json(same)];
  expect(await colloquy(['verify', 'usage'], { env })).toMatchObject({ code: 0 });
});

it('given parked sessions, when they are listed, retried and skipped, then the requests name the given session', async () => {
  const which = { projection: 'history', tenant: 'acme', sessionId: 'a:1' };
  const row = { ...which, version: 7, error: 'no', parkedAt: '2026-01-01T00:00:00.000Z' };
  answers = [
    json({ data: [{ name: 'default' }] }),
    json({ data: [row] }),
    json({ parked: null }),
    json({ parked: row }),
  ];

  expect(lines((await colloquy(['parked'], { env })).out)).toEqual([row]);
  expect(lines((await colloquy(['parked', 'retry', 'history', 'acme', 'a:1'], { env })).out)).toEqual([
    which,
  ]);
  // The read model cannot apply the next event of the session either.
  const again = await colloquy(['parked', 'skip', 'history', 'acme', 'a:1'], { env });
  expect({ code: again.code, rows: lines(again.out) }).toEqual({ code: 1, rows: [row] });
  expect(asked.map(({ method, url, body }) => [method, url, body && (JSON.parse(body) as unknown)])).toEqual([
    ['GET', '/v1/admin/cells', ''],
    ['GET', '/v1/admin/parked', ''],
    ['POST', '/v1/admin/parked/retry', which],
    ['POST', '/v1/admin/parked/skip', which],
  ]);
});

it('given a fork at a version or a time, when the command is run, then the request holds that version or time', async () => {
  answers = [json({ id: 'f' }, 201), json({ id: 'g' }, 201)];
  await colloquy(['fork', 'a', '--at', '7', '--id', 'f'], { env });
  await colloquy(['fork', 'a', '--at', '2026-01-01T00:00:00Z', '--tenant', 'acme'], { env });
  expect(asked.map(({ url, body }) => [url, JSON.parse(body) as unknown])).toEqual([
    ['/v1/sessions/a/fork', { at: 7, id: 'f' }],
    ['/v1/sessions/a/fork', { at: '2026-01-01T00:00:00Z' }],
  ]);
});
