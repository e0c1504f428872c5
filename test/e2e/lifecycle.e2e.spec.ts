import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type FakeOpenAi, held, neverAnswers, says } from '../support/fake-openai.js';
import { type Api, apiOf, eventually, expectProblem } from '../support/http.js';
import { type RunningService, startService } from '../support/process.js';
import { startProxy, type TcpProxy } from '../support/tcp-proxy.js';
import {
  createWorld,
  type EventAnswer,
  expectWellFormed,
  FULL,
  type GeneratedAnswer,
  logged,
  type MessageView,
  type Node,
  say,
  type SessionAnswer,
  texts,
  user,
  type World,
} from './fixture.js';
import { heavy } from '../support/heavy.js';

const WRITERS = FULL ? 32 : 8;
const WRITES = FULL ? 5_000 : 400;

describe('the life of the service', () => {
  describe('with a database of its own', () => {
    let folder: string;
    let dataDir: string;
    const services: RunningService[] = [];

    beforeEach(async () => {
      folder = await mkdtemp(join(tmpdir(), 'colloquy-e2e-'));
      // When this process is root, the server runs as another user, who must be able to enter the folder.
      await chmod(folder, 0o755);
      dataDir = join(folder, 'data');
    });
    afterEach(async () => {
      await Promise.all(services.splice(0).map((service) => service.kill9()));
      // Ends what a killed service left running, also after a failed test.
      const pid = await postmaster();
      if (pid !== undefined) {
        kill(pid, 'SIGINT');
        await eventually(() => Promise.resolve(!kill(pid, 0)));
      }
      await rm(folder, { recursive: true, force: true });
    });

    async function start(): Promise<{ service: RunningService; api: Api }> {
      const service = await startService({ dataDir, cwd: folder, env: { MAX_SESSIONS: '1000' } });
      services.push(service);
      return { service, api: apiOf(service.url) };
    }
    /** The pid of the PostgreSQL on the folder, from its pid file. */
    async function postmaster(): Promise<number | undefined> {
      const files = await readdir(dataDir, { recursive: true }).catch(() => []);
      const file = files.find((path) => path.endsWith('postmaster.pid'));
      if (file === undefined) return undefined;
      // A server whose owner was killed ends by itself and removes its pid file.
      const content = await readFile(join(dataDir, file), 'utf8').catch(() => '');
      const pid = Number(content.split('\n')[0]);
      return pid > 0 ? pid : undefined;
    }
    /** @returns whether there was such a process. */
    function kill(pid: number, signal: NodeJS.Signals | 0): boolean {
      try {
        process.kill(pid, signal);
        return true;
      } catch {
        return false;
      }
    }
    /** Everything that clients can read of a session. */
    const everything = async (api: Api, id: string): Promise<unknown[]> =>
      Promise.all(
        ['', '/messages', '/events', '/usage'].map(
          async (part) => (await api.get(`/v1/sessions/${id}${part}`)).body,
        ),
      );

    it('given a service with data, when it is stopped and started again, then all data is there; a second service on the folder is refused', async () => {
      const first = await start();
      expect(first.service.output()).toContain('embedded PostgreSQL');
      await first.api.post('/v1/sessions', {
        id: 'kept',
        title: 'T',
        metadata: { a: { b: [1, null, 'é'] } },
      });
      await first.api.post('/v1/chat', { message: 'Hello', sessionId: 'kept' });
      await first.api.post('/v1/sessions', { id: 'gone' });
      await first.api.delete('/v1/sessions/gone');
      const cursor = (await first.api.get<{ nextCursor: string }>('/v1/sessions/kept/messages?limit=1')).body
        .nextCursor;
      const before = await everything(first.api, 'kept');

      const second = startService({ dataDir, cwd: folder });
      await expect(second).rejects.toThrow(
        `already running on the data folder ${dataDir}: process ${first.service.pid}`,
      );
      expect((await first.api.get('/health/ready')).status).toBe(200);

      const pid = await postmaster();
      expect(await first.service.stop()).toBe(0);
      expect(pid === undefined || kill(pid, 0)).toBe(false);

      const { api } = await start();
      expect(await everything(api, 'kept')).toEqual(before);
      expect((await api.get(`/v1/sessions/kept/messages?cursor=${cursor}`)).status).toBe(200);
      expect((await api.get('/v1/sessions/gone')).status).toBe(404);
      expect((await api.get('/v1/sessions/gone/events')).status).toBe(200);
      expect((await api.post('/v1/chat', { message: 'Again', sessionId: 'kept' })).status).toBe(200);
    });

    heavy(
      'given load, when the service is killed and started again, then every acknowledged write is there, without gaps',
      async () => {
        const { service, api } = await start();
        const acknowledged = new Map<string, Map<number, string>>();
        let count = 0;
        let killed = false;
        const writers = Array.from({ length: WRITERS }, async (_, index) => {
          const id = `load-${index}`;
          await api.post('/v1/sessions', { id });
          const mine = new Map<number, string>();
          acknowledged.set(id, mine);
          for (let round = 0; !killed; round += 1) {
            const text = `${id} ${round}`;
            const answer = await say(api, id, text);
            if (answer.status !== 201) throw new Error(`refused: ${answer.text}`);
            mine.set(answer.body.version, text);
            count += 1;
          }
        });
        // Each writer ends when its connection breaks.
        const ends = Promise.allSettled(writers);
        await eventually(() => Promise.resolve(count > WRITES), 30_000);
        killed = true;
        await service.kill9();
        await ends;

        const again = await start();
        for (const [id, mine] of acknowledged) {
          const events: EventAnswer[] = [];
          for (;;) {
            const { body } = await again.api.get<{ data: EventAnswer[] }>(
              `/v1/sessions/${id}/events?limit=200&after=${events.length}`,
            );
            events.push(...body.data);
            if (body.data.length < 200) break;
          }
          expectWellFormed(events);
          const found = new Map(events.map((event) => [event.version, event.data?.['content']]));
          for (const [version, text] of mine) expect([version, found.get(version)]).toEqual([version, text]);
          const session = await again.api.get<SessionAnswer>(`/v1/sessions/${id}`);
          expect(session.body).toMatchObject({ version: events.length, messageCount: events.length - 1 });
          expect((await say(again.api, id, 'goes on')).body.version).toBe(events.length + 1);
        }
        expect(await again.service.stop()).toBe(0);
      },
    );

    heavy(
      'given a database that is killed under the service, when the database is back, then the service works again, and nothing is lost',
      async () => {
        const { service, api } = await start();
        await api.post('/v1/sessions', { id: 's' });
        await say(api, 's', 'before');
        const pid = await postmaster();
        if (pid === undefined) throw new Error('there is no database');
        kill(pid, 'SIGKILL');
        // Every request is answered, whether it was refused or done, and the service recovers by itself.
        await eventually(async () => {
          const answer = await say(api, 's', 'after');
          if (answer.status === 201) return true;
          expectProblem(answer, 503, 'database-unavailable');
          return false;
        }, 30_000);
        await eventually(async () => (await api.get('/v1/sessions/s/messages')).status === 200, 30_000);
        const said = await texts(api, 's');
        expect(said[0]).toBe('before');
        expect(said.at(-1)).toBe('after');
        await eventually(async () => (await api.get('/health/ready')).status === 200, 30_000);
        expect(await service.stop()).toBe(0);
      },
    );
  });

  describe('with an external database', () => {
    let world: World;
    let model: FakeOpenAi;
    beforeAll(async () => {
      world = await createWorld();
      model = await world.model();
    });
    afterAll(() => world.end());

    /** A node in the middle of a model call. */
    async function thinking(id: string, node: Node) {
      await node.api.post('/v1/sessions', { id });
      const reply = held(says('worth the wait'));
      model.next(reply.reply);
      const answer = node.api.post<GeneratedAnswer>(`/v1/sessions/${id}/generate`, { message: 'question' });
      await reply.asked;
      return { reply, answer };
    }
    const stopping = (node: Node) =>
      eventually(() => Promise.resolve(node.service.output().includes('then stopping')));

    it.each(['SIGINT', 'SIGTERM'] as const)(
      'given a model that thinks, when %s comes, then the reply is waited for, answered and recorded before the end',
      async (signal) => {
        const node = await world.node();
        const id = `drain-${signal}`;
        const { reply, answer } = await thinking(id, node);
        node.service.signal(signal);
        await stopping(node);
        reply.release();
        const { status, body, headers } = await answer;
        expect([status, body.content]).toEqual([200, 'worth the wait']);
        // Otherwise the connection would stay open and keep the service from ending.
        expect(headers.get('connection')).toBe('close');
        expect(await node.service.stop()).toBe(0);
        expect((await logged(world.database, id)).at(-1)?.type).toBe('GenerationCompleted');
      },
    );

    it('given a model that never answers, when the service is stopped, then it waits for the grace period and not longer, and the session is free', async () => {
      const folder = await world.folder();
      await writeFile(join(folder, 'colloquy.yml'), 'server: { shutdownGraceMs: 200 }');
      const node = await world.node({}, folder);
      await node.api.post('/v1/sessions', { id: 'stuck' });
      let ask = (): void => undefined;
      const asked = new Promise<void>((resolve) => (ask = resolve));
      model.next((request, response) => {
        ask();
        return neverAnswers(request, response);
      });
      const answer = node.api.post('/v1/sessions/stuck/generate', { message: 'question' });
      await asked;
      const begun = performance.now();
      const ended = node.service.stop();
      expectProblem(await answer, 502, 'model-failed');
      expect(await ended).toBe(0);
      expect(performance.now() - begun).toBeLessThan(8_000);
      expect((await logged(world.database, 'stuck')).at(-1)?.type).toBe('GenerationFailed');
      const next = await world.node();
      expect((await next.api.post('/v1/sessions/stuck/generate', {})).status).toBe(200);
    });

    it('given a reply for a client that disconnected, when the service is stopped, then the reply is recorded before the service ends', async () => {
      const node = await world.node();
      await node.api.post('/v1/sessions', { id: 'alone' });
      const reply = held(says('for nobody'));
      model.next(reply.reply);
      const controller = new AbortController();
      const gone = fetch(`${node.api.url}/v1/sessions/alone/generate`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ message: 'question' }),
        signal: controller.signal,
      }).catch(() => 'gone');
      await reply.asked;
      controller.abort();
      await gone;
      const ended = node.service.stop();
      await stopping(node);
      reply.release();
      expect(await ended).toBe(0);
      expect((await logged(world.database, 'alone')).at(-1)?.type).toBe('GenerationCompleted');
    });

    it('given load, when the service is stopped, then every acknowledged write is there, and no request gets half an answer', async () => {
      const node = await world.node();
      let count = 0;
      const writers = Array.from({ length: 8 }, async (_, index) => {
        const id = `stop-${index}`;
        await node.api.post('/v1/sessions', { id });
        let last = 1;
        for (;;) {
          const answer = await say(node.api, id, 'x').catch(() => undefined);
          if (answer === undefined) return { id, last };
          if (answer.status !== 201) throw new Error(`refused: ${answer.text}`);
          last = answer.body.version;
          count += 1;
        }
      });
      await eventually(() => Promise.resolve(count > 100));
      expect(await node.service.stop()).toBe(0);
      for (const { id, last } of await Promise.all(writers)) {
        expect((await logged(world.database, id)).length).toBeGreaterThanOrEqual(last);
      }
    });

    it('given a port that is in use, when a service is started on it, then it says so and ends with 1', async () => {
      const node = await world.node();
      const { port } = new URL(node.api.url);
      const start = startService({
        env: { DATABASE_URL: world.database.url, PORT: port },
        cwd: await world.folder(),
      });
      await expect(start).rejects.toThrow(
        new RegExp(`exit code 1[^]*127\\.0\\.0\\.1:${port} is in use by another program: set PORT`),
      );
      expect((await node.api.get('/health/ready')).status).toBe(200);
    });

    it.each([
      ['sessions: { maxSesions: 5 }', {}, 'sessions.maxSesions'],
      ['sessions: {', {}, 'colloquy.yml, line 1'],
      ['', { SESSION_TTL_MS: '1h' }, 'SESSION_TTL_MS'],
      ['', { DATABASE_URL: 'mysql://user:geheim@db/x' }, 'DATABASE_URL'],
    ])(
      'given the settings %j and %j, when it is started, then the message names %s, and no value',
      async (file, env, name) => {
        const folder = await world.folder();
        await writeFile(join(folder, 'colloquy.yml'), file);
        const start = startService({ env: { DATABASE_URL: world.database.url, ...env }, cwd: folder });
        const error = await start.then(
          () => new Error('it started'),
          (reason: unknown) => reason as Error,
        );
        expect(error.message).toContain('exit code 1');
        expect(error.message).toContain(name);
        expect(error.message).not.toMatch(/geheim|\bat .*\.js/);
      },
    );
  });

  describe('while the database is unavailable', () => {
    let world: World;
    let model: FakeOpenAi;
    let proxy: TcpProxy;
    let api: Api;

    beforeAll(async () => {
      world = await createWorld();
      model = await world.model();
      proxy = await startProxy(world.database.url);
      // The service is started before its database exists.
      proxy.down();
      const started = world.node({ DATABASE_URL: proxy.url });
      await new Promise((resolve) => setImmediate(resolve));
      proxy.up();
      ({ api } = await started);
    });
    afterAll(async () => {
      await world.end();
      await proxy.close();
    });

    it('given a service in use, when the database becomes unavailable, then the service reports it; when the database is back, the service works again', async () => {
      await api.post('/v1/sessions', { id: 's' });
      await say(api, 's', 'before');
      proxy.down();
      const answers = await Promise.all([
        say(api, 's', 'meanwhile'),
        api.post('/v1/sessions', { id: 'new' }),
        api.post('/v1/sessions', { id: 'new' }, { 'idempotency-key': 'k' }),
        api.patch('/v1/sessions/s', { title: 'x' }),
        api.post('/v1/sessions/s/generate', { message: 'x' }),
        api.delete('/v1/sessions/s'),
        api.get('/v1/sessions/s'),
        api.get('/v1/sessions/s/messages'),
        api.get('/v1/sessions/s/messages?consistency=eventual'),
        api.get('/v1/sessions/s/events'),
        api.get('/v1/sessions'),
      ]);
      for (const answer of answers) {
        expectProblem(answer, 503, 'database-unavailable');
        expect(answer.headers.get('retry-after')).toBe('1');
      }
      const live = await api.get('/health/live');
      expect([live.status, live.body]).toEqual([200, { status: 'ok' }]);
      const ready = await api.get('/health/ready');
      expect([ready.status, ready.body]).toMatchObject([
        503,
        { status: 'unavailable', checks: { database: { status: 'unavailable' } } },
      ]);
      proxy.up();
      await eventually(async () => (await say(api, 's', 'after')).status === 201, 15_000);
      await eventually(async () => (await api.get('/health/ready')).status === 200, 15_000);
      await eventually(async () => (await api.get('/v1/sessions/s/messages')).status === 200, 15_000);
      const said = await texts(api, 's');
      expect([said[0], said.at(-1)]).toEqual(['before', 'after']);
      expectWellFormed(await logged(world.database, 's'));
      expect(model.requests).toEqual([]);
    });

    it('given a reply that arrives while the database is unavailable, when the database is back, then the reply is recorded and returned', async () => {
      await api.post('/v1/sessions', { id: 'paid' });
      const reply = held(says('worth money'));
      model.next(reply.reply);
      const answer = api.post<GeneratedAnswer>('/v1/sessions/paid/generate', { message: 'question' });
      await reply.asked;
      proxy.down();
      reply.release();
      // A write that is refused meanwhile shows that the reply could not be recorded yet.
      expectProblem(await api.get('/v1/sessions/paid/events'), 503, 'database-unavailable');
      proxy.up();
      const { status, body } = await answer;
      expect([status, body.content]).toEqual([200, 'worth money']);
      expect(await texts(api, 'paid')).toEqual(['question', 'worth money']);
      expectWellFormed(await logged(world.database, 'paid'));
    });

    heavy(
      'given connections that break again and again, when messages are written, then each acknowledged message is there once',
      async () => {
        await api.post('/v1/sessions', { id: 'flaky' });
        const acknowledged: string[] = [];
        for (let round = 0; round < 30; round += 1) {
          if (round % 5 === 2) {
            proxy.down();
            setImmediate(() => {
              proxy.up();
            });
          }
          const text = `m${round}`;
          const answer = await api.post('/v1/sessions/flaky/messages', user(text), {
            'idempotency-key': text,
          });
          if (answer.status === 201) acknowledged.push(text);
          else expectProblem(answer, 503, 'database-unavailable');
        }
        expect(acknowledged.length).toBeGreaterThan(20);
        await eventually(async () => (await api.get('/v1/sessions/flaky')).status === 200, 15_000);
        const said = await texts(api, 'flaky');
        expect(said.filter((text) => acknowledged.includes(text as string))).toEqual(acknowledged);
        expect(new Set(said).size).toBe(said.length);
        const { body } = await api.get<{ data: MessageView[] }>('/v1/sessions/flaky/messages?limit=200');
        expect(body.data.map((message) => message.version)).toEqual(body.data.map((_, index) => index + 2));
      },
    );
  });
});
