import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import { type AddressInfo } from 'node:net';
import { memoryPlaces } from '../../../src/consumer.js';
import { applyRecords, type PageLimits } from '../../../src/kafka/apply-records.js';
import { type AnsweredEvent, toMessage } from '../../../src/kafka/contract.js';
import { type IncomingMessage } from '../../../src/kafka/group-member.js';
import { said } from './fixture.js';

/** A service that generates the events of one session on request, so that the test itself holds none in memory. */
class MadeUpTrail {
  requests = 0;
  url = '';
  private readonly server: Server;

  constructor(contentOf: (version: number) => string) {
    this.server = createServer((request, response) => {
      this.requests += 1;
      const query = new URL(request.url ?? '', 'http://api').searchParams;
      const after = Number(query.get('after'));
      const limit = Number(query.get('limit'));
      const data = Array.from({ length: limit }, (_, n) => answer(after + n + 1, contentOf(after + n + 1)));
      response.end(JSON.stringify({ data }));
    });
  }

  async start(): Promise<this> {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    this.url = `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
    return this;
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    this.server.close();
    await once(this.server, 'close');
  }
}

const envelope = (version: number) => ({
  id: `id-${version}`,
  tenant: 'acme',
  incarnation: 1,
  version,
  time: '2026-01-01T00:00:00.000Z',
  correlationId: 'c',
  schemaVersion: 1,
});

const answer = (version: number, content: string): AnsweredEvent => ({
  ...envelope(version),
  sessionId: 's',
  logGeneration: 1,
  ...said(content),
});

/** Makes the record of the topic for a version of the session. */
function record(version: number, content = 'last'): IncomingMessage {
  const event = {
    ...envelope(version),
    type: 'MessageAppended',
    streamId: 's',
    lane: 0,
    position: version,
    actor: 'a',
    causationId: null,
  };
  const { key, value, headers } = toMessage(event, JSON.stringify(said(content).data), 1, 1_000_000);
  return { offset: String(version), key, value: Buffer.from(value), headers };
}

const upTo = (last: number) => Array.from({ length: last }, (_, index) => index + 1);

let trail: MadeUpTrail;
afterEach(() => trail.stop());

interface Page {
  readonly versions: number[];
  readonly bytes: number;
}

function applied(
  last: number,
  page: PageLimits,
  more: { fail?: (pages: readonly Page[]) => boolean; isOurs?: (pages: readonly Page[]) => boolean } = {},
): { pages: Page[]; finish: () => Promise<boolean> } {
  const pages: Page[] = [];
  const places = memoryPlaces();
  const finish = () =>
    applyRecords(
      {
        places,
        page,
        api: { url: trail.url },
        isOurs: () => more.isOurs?.(pages) ?? true,
        apply: (events) => {
          if (more.fail?.(pages) === true) return Promise.reject(new Error('the effect failed'));
          pages.push({
            versions: events.map(({ version }) => version),
            bytes: events.reduce((sum, { data }) => sum + JSON.stringify(data).length, 0),
          });
          return Promise.resolve();
        },
      },
      [record(last)],
    );
  return { pages, finish };
}

it('given a gap of many events, when it is applied, then no page has more events than allowed and each is applied once', async () => {
  trail = await new MadeUpTrail(() => 'small').start();
  const { pages, finish } = applied(5_000, { events: 300, bytes: 1_000_000 });
  expect(await finish()).toBe(true);
  expect(pages.flatMap(({ versions }) => versions)).toEqual(upTo(5_000));
  expect(Math.max(...pages.map(({ versions }) => versions.length))).toBe(300);
  // The answers hold 200 events. Fetched events are not fetched again at the end of a page.
  expect(trail.requests).toBe(25);
});

it('given a gap of large events, when it is applied, then no page is larger than allowed, except one with a single event that is larger than a page', async () => {
  const sizeOf = (version: number) => (version === 50 ? 1_000_000 : version % 10 === 0 ? 150_000 : 20_000);
  trail = await new MadeUpTrail((version) => 'x'.repeat(sizeOf(version))).start();
  const { pages, finish } = applied(200, { events: 500, bytes: 400_000 });
  expect(await finish()).toBe(true);
  expect(pages.flatMap(({ versions }) => versions)).toEqual(upTo(200));
  expect(pages.filter(({ bytes }) => bytes > 400_000).map(({ versions }) => versions)).toEqual([[50]]);
});

it('given an effect that fails in the middle of a gap, when it is tried again, then it continues after the last page that succeeded', async () => {
  trail = await new MadeUpTrail(() => 'small').start();
  let failures = 0;
  const { pages, finish } = applied(
    1_000,
    { events: 100, bytes: 1_000_000 },
    { fail: (before) => before.length === 4 && ++failures === 1 },
  );
  await expect(finish()).rejects.toThrow('the effect failed');
  expect(pages.flatMap(({ versions }) => versions)).toEqual(upTo(400));
  expect(await finish()).toBe(true);
  expect(pages.flatMap(({ versions }) => versions)).toEqual(upTo(1_000));
});

it('given a partition that is lost in the middle of a gap, then no further page is applied', async () => {
  trail = await new MadeUpTrail(() => 'small').start();
  const { pages, finish } = applied(
    1_000,
    { events: 100, bytes: 1_000_000 },
    { isOurs: (before) => before.length < 3 },
  );
  expect(await finish()).toBe(false);
  expect(pages.flatMap(({ versions }) => versions)).toEqual(upTo(300));
});
