import { connect, type Socket } from 'node:net';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { heavy, sized } from '../support/heavy.js';
import { type Api, eventually } from '../support/http.js';
import { createWorld, type Node, say, texts, type World } from './fixture.js';

const CONNECTIONS = sized(2_000, 500);
/** What the connections may cost: their sockets, and what is kept for each. */
const BYTES_EACH = 100 * 1024;
const BYTES_MORE = 150 * 1024 * 1024;
/** When the headers of a request have to be there. */
const HEADERS_LIMIT_MS = 15_000;

let world: World;
let node: Node;
let sockets: Socket[];
let before: number;
let others = 0;
beforeEach(async () => {
  world = await createWorld();
  node = await world.node({ MAX_SESSIONS: '10000' });
  sockets = [];
  await node.api.post('/v1/sessions', { id: 'first' });
  await say(node.api, 'first', 'Hello');
  before = residentBytes();
});
afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  await world.end();
});

const residentBytes = (): number =>
  Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${node.service.pid}/status`, 'utf8'))?.[1]) * 1_024;

/** Opens connections, sends each the same bytes, and counts those that the service has ended. */
async function open(bytes: string): Promise<{ ended: () => number }> {
  const { hostname, port } = new URL(node.service.url);
  let ended = 0;
  for (let n = 0; n < CONNECTIONS; n += 1) {
    const socket = connect(Number(port), hostname);
    sockets.push(socket);
    socket.on('error', () => undefined);
    socket.once('close', () => (ended += 1));
    await once(socket, 'connect');
    socket.write(bytes);
  }
  return { ended: () => ended };
}

/** Others are served, and not slowly, and a connection costs no more than its socket and what is `keptForEach`. */
async function expectService(api: Api, keptForEach = 0): Promise<void> {
  for (let n = 0; n < 20; n += 1) {
    const id = `other-${(others += 1)}`;
    const begun = performance.now();
    expect((await api.post('/v1/sessions', { id })).status).toBe(201);
    expect((await say(api, id, 'Hello')).status).toBe(201);
    expect(await texts(api, id)).toEqual(['Hello']);
    expect(performance.now() - begun).toBeLessThan(3_000);
  }
  expect(residentBytes() - before).toBeLessThan(CONNECTIONS * (BYTES_EACH + keptForEach) + BYTES_MORE);
}

heavy(
  `given ${CONNECTIONS} feeds on which nothing happens, when others write and read, then they are served, and each feed gets what is written`,
  async () => {
    await open('GET /v1/events?after=end HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n');
    const got = new Set<Socket>();
    for (const socket of sockets)
      socket.on('data', (bytes: Buffer) => {
        if (bytes.includes('told to everybody')) got.add(socket);
      });
    await sleep(500);
    await expectService(node.api);
    await say(node.api, 'first', 'told to everybody');
    await eventually(() => Promise.resolve(got.size === CONNECTIONS), 20_000);
  },
  120_000,
);

heavy(
  `given ${CONNECTIONS} requests of which half has come, when others write and read, then they are served, and requests whose headers do not come are ended`,
  async () => {
    const { ended } = await open('POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: appl');
    for (const socket of sockets) socket.resume();
    await expectService(node.api);
    // Node looks at them now and then.
    await eventually(() => Promise.resolve(ended() === CONNECTIONS), HEADERS_LIMIT_MS + 45_000);
    await open(
      'POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"id"',
    );
    await expectService(node.api);
  },
  120_000,
);

heavy(
  `given ${CONNECTIONS} clients that read nothing of their answers, when others write and read, then they are served`,
  async () => {
    for (let n = 0; n < 50; n += 1) await say(node.api, 'first', 'x'.repeat(4_000));
    const path = '/v1/sessions/first/messages?limit=200';
    const answer = JSON.stringify((await node.api.get(path)).body).length;
    await open(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    for (const socket of sockets) socket.pause();
    // An answer that is not read is kept whole until its connection ends.
    await expectService(node.api, answer);
  },
  120_000,
);
