import { execFile } from 'node:child_process';
import { chmod } from 'node:fs/promises';
import { get } from 'node:http';
import { promisify } from 'node:util';
import { type Api, apiOf, eventually } from '../support/http.js';
import { alive, processesOn } from '../support/processes.js';
import { type RunningService, startService } from '../support/process.js';
import { createWorld, say, texts, type World } from './fixture.js';

/** How long what was killed may need to be gone, or replaced. */
const SOON_MS = 20_000;
const WRITES = 40;

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(() => world.end());

async function childrenOf(pid: number): Promise<number[]> {
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,ppid=,args=']);
  return stdout
    .split('\n')
    .map((line) => /^ *(\d+) +(\d+) .*main\.js/.exec(line))
    .filter((match) => Number(match?.[2]) === pid)
    .map((match) => Number(match?.[1]));
}

/** The processes that answered requests, by the lines of the log. */
const answering = (service: RunningService): Set<number> =>
  new Set([...service.output().matchAll(/^\{.*"pid":(\d+),.*"route":.*$/gm)].map(([, pid]) => Number(pid)));

/** `fetch` would go on with the connections that it has. */
const onNewConnection = (url: string): Promise<void> =>
  new Promise((resolve, reject) => {
    get(url, { agent: false }, (response) => {
      response.resume().once('end', resolve);
    }).once('error', reject);
  });

/** All at once, so that they come over many connections. */
async function writeAndRead(api: Api, prefix: string): Promise<void> {
  await Promise.all(
    Array.from({ length: WRITES }, async (_, index) => {
      const id = `${prefix}-${index}`;
      expect((await api.post('/v1/sessions', { id })).status).toBe(201);
      expect((await say(api, id, 'Hello')).status).toBe(201);
      expect(await texts(api, id)).toEqual(['Hello']);
    }),
  );
}

describe('a service of several processes', () => {
  it('given two processes, when requests come over many connections, then both answer, each sees what the other wrote, and metrics are those of both', async () => {
    const { service, api } = await world.node({ COLLOQUY_PROCESSES: '2', MAX_SESSIONS: '1000' });
    await writeAndRead(api, 'both');
    const children = await childrenOf(service.pid);
    expect(children).toHaveLength(2);
    await eventually(() => Promise.resolve(answering(service).size === 2));
    expect([...answering(service)].sort()).toEqual(children.sort());
    await world.database.query(
      `insert into projection_parked (projection, tenant, session_id, lane, version, error, parked_at)
       select projection, 'default', 'parked', 0, 1, 'for this test', now() from projection_checkpoint
       where starts_with(projection, 'usage') and lane = 0`,
    );
    const { text } = await api.get('/metrics');
    expect(/^colloquy_appends_total (\d+)$/m.exec(text)?.[1]).toBe(String(2 * WRITES));
    // Both processes see the same parked session, which is one and not two.
    expect(text).toMatch(/^colloquy_projection_parked_sessions\{projection="usage_v\d+"\} 1$/m);
    expect(service.output().match(/is listening on/g)).toHaveLength(1);
    expect(await service.stop()).toBe(0);
    expect(await alive([service.pid, ...children])).toEqual([]);
  });

  it('given two processes, when one is killed, then the service goes on, and another one takes its place', async () => {
    const { service, api } = await world.node({ COLLOQUY_PROCESSES: '2', MAX_SESSIONS: '1000' });
    const before = await childrenOf(service.pid);
    process.kill(before[0] ?? 0, 'SIGKILL');
    await eventually(() => Promise.resolve(/ended by itself \(SIGKILL\)/.test(service.output())));
    expect((await api.get('/health/live')).status).toBe(200);
    const after = await eventually(async () => {
      const children = await childrenOf(service.pid);
      return children.length === 2 && children;
    }, SOON_MS);
    expect(after).toContain(before[1]);
    await eventually(async () => {
      await onNewConnection(`${service.url}/v1/sessions?limit=1`);
      return after.every((pid) => answering(service).has(pid));
    }, SOON_MS);
    await service.stop();
  });

  it('given an embedded database, when the first process is killed, then nothing of the service is left, and the next start has the data', async () => {
    const dataDir = await world.folder();
    await chmod(dataDir, 0o755);
    const env = { COLLOQUY_PROCESSES: '2' };
    const first = await startService({ dataDir, env, cwd: dataDir });
    const api = apiOf(first.url);
    await api.post('/v1/sessions', { id: 'kept' });
    await say(api, 'kept', 'Still there');
    const all = [...(await childrenOf(first.pid)), ...(await processesOn(dataDir))];
    await first.kill9();
    await eventually(async () => (await alive(all)).length === 0, SOON_MS);

    const second = await startService({ dataDir, env, cwd: dataDir });
    expect(await texts(apiOf(second.url), 'kept')).toEqual(['Still there']);
    const rest = [...(await childrenOf(second.pid)), ...(await processesOn(dataDir))];
    expect(await second.stop()).toBe(0);
    expect(await alive(rest)).toEqual([]);
  });

  it('given a port that is taken, when several processes are started on it, then the start ends and says so', async () => {
    const { service } = await world.node();
    const PORT = new URL(service.url).port;
    await expect(
      startService({ env: { DATABASE_URL: world.database.url, COLLOQUY_PROCESSES: '2', PORT } }),
    ).rejects.toThrow(/is in use by another program/);
  });
});
