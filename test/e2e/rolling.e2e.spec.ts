import { writeFile } from 'node:fs/promises';
import { Agent, createServer, type IncomingMessage, request, type Server } from 'node:http';
import { once } from 'node:events';
import { type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Api, apiOf, eventually } from '../support/http.js';
import { nextBuild } from '../support/next-build.js';
import { type RunningService, startService } from '../support/process.js';
import { createWorld, texts, type World } from './fixture.js';

const DRAIN_MS = 1_500;
const CHECK_MS = 100;

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(() => world.end());

/** A balancer as they all are: it asks each node whether it is ready, keeps connections, and tries nothing again. */
async function startBalancer(): Promise<{ url: string; nodes: Set<string>; stop(): Promise<void> }> {
  const nodes = new Set<string>();
  const ready = new Set<string>();
  const agent = new Agent({ keepAlive: true });
  const stopping = new AbortController();
  const checking = (async () => {
    while (!stopping.signal.aborted) {
      for (const node of nodes) {
        const isReady = await fetch(`${node}/health/ready`).then(
          ({ ok }) => ok,
          () => false,
        );
        if (isReady) ready.add(node);
        else ready.delete(node);
      }
      await sleep(CHECK_MS);
    }
  })();
  let turn = 0;
  const server: Server = createServer((incoming, outgoing) => {
    const all = [...ready];
    const node = all[(turn += 1) % all.length];
    const fail = (error: Error): void => {
      outgoing.writeHead(502, { 'content-type': 'text/plain' }).end(error.message);
    };
    if (node === undefined) {
      fail(new Error('no node is ready'));
      return;
    }
    const { method, url, headers } = incoming;
    const forwarded = request(node + (url ?? ''), { method, headers, agent }, (answer: IncomingMessage) => {
      outgoing.writeHead(answer.statusCode ?? 502, { 'content-type': answer.headers['content-type'] ?? '' });
      answer.pipe(outgoing);
    });
    forwarded.on('error', fail);
    incoming.pipe(forwarded);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    nodes,
    stop: async () => {
      stopping.abort();
      await checking;
      agent.destroy();
      server.closeAllConnections();
      server.close();
    },
  };
}

it('given a service of two nodes behind a balancer, when they are replaced one by one by those of another build, then no request fails and nothing is missing', async () => {
  const balancer = await startBalancer();
  const services: RunningService[] = [];
  const start = async (main?: string): Promise<RunningService> => {
    const cwd = await world.folder();
    await writeFile(
      join(cwd, 'colloquy.yml'),
      `server: { drainMs: ${DRAIN_MS} }\nsessions: { maxSessions: 10000 }\n`,
    );
    const service = await startService({
      env: { DATABASE_URL: world.database.url },
      cwd,
      ...(main !== undefined && { main }),
    });
    services.push(service);
    balancer.nodes.add(service.url);
    await eventually(async () => (await fetch(`${service.url}/health/ready`)).status === 200, 30_000);
    return service;
  };
  const build = await nextBuild(await world.folder());
  const old = [await start(), await start()];
  const api: Api = apiOf(balancer.url);
  await eventually(async () => (await api.get('/health/ready')).status === 200);

  const failures: string[] = [];
  const said = new Map<string, string[]>();
  const stopping = new AbortController();
  const clients = Array.from({ length: 6 }, async (_, n) => {
    const id = `chat-${n}`;
    const ask = async (method: 'get' | 'post', path: string, body?: unknown): Promise<void> => {
      const { status, text } = method === 'get' ? await api.get(path) : await api.post(path, body);
      if (status >= 300) failures.push(`${method} ${path}: ${status} ${text}`);
    };
    await ask('post', '/v1/sessions', { id });
    said.set(id, []);
    for (let i = 0; !stopping.signal.aborted; i += 1) {
      await ask('post', `/v1/sessions/${id}/messages`, { role: 'user', content: `${n}-${i}` });
      said.get(id)?.push(`${n}-${i}`);
      await ask('get', `/v1/sessions/${id}/messages?order=desc&limit=5`);
      await ask('get', '/v1/sessions');
      if (i % 5 === 0) await ask('post', '/v1/chat', { message: 'Hello', sessionId: `talk-${n}` });
      await sleep(5);
    }
  });
  for (const service of old) {
    await start(build);
    expect(await service.stop()).toBe(0);
    balancer.nodes.delete(service.url);
  }
  await sleep(200);
  stopping.abort();
  await Promise.all(clients);

  expect(failures).toEqual([]);
  for (const [id, all] of said) {
    expect(all.length).toBeGreaterThan(10);
    expect((await texts(api, id)).slice(-10)).toEqual(all.slice(-10));
    expect((await api.get(`/v1/sessions/${id}`)).body).toMatchObject({ messageCount: all.length });
  }
  await Promise.all(services.map((service) => service.kill9()));
  await balancer.stop();
}, 120_000);
