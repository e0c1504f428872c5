import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { colloquy } from '../support/colloquy.js';
import { describeWithPostgres, postgresHome, type PostgresHome } from '../support/debian-postgres.js';
import { type Api, apiOf, eventually } from '../support/http.js';
import { describeWithKafka, tap } from '../support/kafka.js';
import { type RunningService, startService } from '../support/process.js';

jest.setTimeout(120_000);

/** The commands that the documentation gives; they are what is tested. */
function commands(name: string): string {
  const text = readFileSync(join(__dirname, '../../docs/operations.md'), 'utf8');
  const block = new RegExp(`^\`\`\`sh ${name}\n(.*?)^\`\`\`$`, 'ms').exec(text)?.[1];
  if (block === undefined) throw new Error(`docs/operations.md has no commands named ${name}`);
  return block;
}

/** What was acknowledged, and until when. */
interface Written {
  readonly session: string;
  readonly version: number;
  readonly begunAt: number;
  readonly acknowledgedAt: number;
}

/** Writes to some sessions at the same time until it is stopped. */
function busy(api: Api): { written: Written[]; stop: () => Promise<void> } {
  const written: Written[] = [];
  let isStopped = false;
  const writing = Array.from({ length: 6 }, async (_, n) => {
    for (let i = 0; !isStopped; i += 1) {
      const session = `s${n}-${Math.floor(i / 20)}`;
      const begunAt = Date.now();
      const { status, body } =
        i % 20 === 0
          ? await api.post('/v1/sessions', { id: session })
          : await api.post(`/v1/sessions/${session}/messages`, { role: 'user', content: `message ${i}` });
      expect(status).toBe(201);
      const { version } = body as { version: number };
      written.push({ session, version, begunAt, acknowledgedAt: Date.now() });
    }
  });
  return {
    written,
    stop: async () => {
      isStopped = true;
      await Promise.all(writing);
    },
  };
}

describeWithPostgres('backup and restore', () => {
  describeWithKafka('of a service that publishes', (brokers) => {
    let home: PostgresHome;
    let folder: string;
    let topic: string;
    const services: RunningService[] = [];
    beforeEach(async () => {
      home = await postgresHome();
      folder = await mkdtemp(join(tmpdir(), 'colloquy-backup-'));
      await publishTo(`backup-${randomUUID()}`);
    });
    afterEach(async () => {
      await Promise.all(services.splice(0).map((service) => service.kill9()));
      await home.end();
      await rm(folder, { recursive: true, force: true });
    });

    async function publishTo(name: string): Promise<void> {
      topic = name;
      await writeFile(
        join(folder, 'colloquy.yml'),
        `kafka: { topic: ${topic}, partitions: 4, brokers: [${brokers}] }\nsessions: { maxSessions: 100000 }\n`,
      );
    }

    async function startOn(url: string): Promise<{ service: RunningService; api: Api }> {
      const service = await startService({ env: { DATABASE_URL: url }, cwd: folder });
      services.push(service);
      const api = apiOf(service.url);
      await eventually(async () => (await api.get('/health/ready')).status === 200, 30_000);
      return { service, api };
    }

    async function query<Row>(url: string, sql: string): Promise<Row[]> {
      const client = new Client({ connectionString: url });
      await client.connect();
      try {
        return (await client.query(sql)).rows as Row[];
      } finally {
        await client.end();
      }
    }

    /** The ids of the events of the log, by session, in their order. */
    async function logOf(url: string): Promise<Map<string, string[]>> {
      const rows = await query<{ session: string; ids: string[]; last: number }>(
        url,
        `select stream_id as session, array_agg(id::text order by version) as ids, max(version) as last
         from event group by 1`,
      );
      for (const { ids, last } of rows) expect(ids).toHaveLength(last);
      return new Map(rows.map(({ session, ids }) => [session, ids]));
    }

    /** The same of the topic, without what came again. */
    async function published(name: string, count: number): Promise<Map<string, string[]>> {
      const listening = await tap(brokers, name);
      const ids = () => new Set(listening.records.filter(({ key }) => key !== '~log').map(({ id }) => id));
      await eventually(() => Promise.resolve(ids().size >= count), 30_000);
      await listening.stop();
      const seen = new Set<string>();
      const bySession = new Map<string, string[]>();
      for (const { id, key } of listening.records) {
        if (seen.has(id) || key === '~log') continue;
        seen.add(id);
        const session = key.slice(key.indexOf('/') + 1);
        bySession.set(session, [...(bySession.get(session) ?? []), id]);
      }
      return bySession;
    }

    /** What a consumer ends with that drops what it is told is gone: the ids of each session, in order. */
    async function afterTruncations(name: string): Promise<Map<string, string[]>> {
      const listening = await tap(brokers, name);
      // One truncation of each lane.
      const isCut = ({ key }: { key: string }): boolean => key === '~log';
      await eventually(() => Promise.resolve(listening.records.filter(isCut).length >= 16), 30_000);
      await sleep(1_000);
      await listening.stop();
      const held = new Map<string, { session: string; lane: number; position: number }>();
      for (const { message, key, id } of listening.records) {
        const header = (of: string): string => message.headers?.[of]?.toString() ?? '';
        if (isCut({ key })) {
          const { lane, from } = JSON.parse(message.value?.toString() ?? '') as {
            lane: number;
            from: number;
          };
          for (const [one, place] of held)
            if (place.lane === lane && place.position >= from) held.delete(one);
        } else if (!held.has(id)) {
          const session = key.slice(key.indexOf('/') + 1);
          held.set(id, {
            session,
            lane: Number(header('ce_lane')),
            position: Number(header('ce_position')),
          });
        }
      }
      const bySession = new Map<string, string[]>();
      for (const [id, { session }] of [...held].sort(([, one], [, other]) => one.position - other.position))
        bySession.set(session, [...(bySession.get(session) ?? []), id]);
      return bySession;
    }

    const eventsOf = (log: ReadonlyMap<string, readonly string[]>): number =>
      [...log.values()].reduce((sum, ids) => sum + ids.length, 0);

    async function expectSound(api: Api): Promise<void> {
      const { body } = await api.get('/v1/admin/projections');
      for (const { name } of (body as unknown as { data: { name: string }[] }).data)
        expect((await api.post(`/v1/admin/projections/${name}/verify`)).body).toMatchObject({ ok: true });
    }

    const kafkaOf = async (api: Api) =>
      ((await api.get('/health/ready')).body as unknown as { checks: { kafka: { detail?: string } } }).checks
        .kafka;

    it('given a dump of a busy service, when it is restored after the service is gone, then it has all that was acknowledged before, its read models are right, and the topic says what is gone and goes on, or a new one gets every event', async () => {
      const server = await home.create('server');
      await home.run(`createdb -U colloquy -h 127.0.0.1 -p ${new URL(server.urlOf('')).port} colloquy`);
      const url = server.urlOf('colloquy');
      const { service, api } = await startOn(url);
      const { written, stop } = busy(api);
      await eventually(() => Promise.resolve(written.length > 100), 30_000);
      const dumpedAt = Date.now();
      await home.run(commands('backup'), { DATABASE_URL: url });
      const atDump = written.length;
      await eventually(() => Promise.resolve(written.length > atDump + 100), 30_000);
      await stop();
      await eventually(async () => (await kafkaOf(api)).detail === '0 events behind the log', 30_000);
      await service.kill9();

      const restored = server.urlOf('restored');
      await home.run(`createdb -U colloquy -h 127.0.0.1 -p ${new URL(restored).port} restored`);
      await home.run(commands('restore'), { DATABASE_URL: restored });
      const second = await startOn(restored);
      const log = await logOf(restored);
      const whole = await logOf(url);
      for (const [session, ids] of log) expect(whole.get(session)?.slice(0, ids.length)).toEqual(ids);
      const lost = written.filter(({ session, version }) => (log.get(session)?.length ?? 0) < version);
      expect(lost.filter(({ acknowledgedAt }) => acknowledgedAt < dumpedAt)).toEqual([]);
      expect(lost.length).toBeGreaterThan(0);
      await expectSound(second.api);

      // New events have the positions of those that are gone.
      expect(
        (await second.api.post('/v1/sessions/s0-0/messages', { role: 'user', content: 'on' })).status,
      ).toBe(201);
      const first = topic;
      await eventually(async () => (await kafkaOf(second.api)).detail === '0 events behind the log', 30_000);
      expect(await afterTruncations(first)).toEqual(await logOf(restored));
      await second.service.stop();
      await publishTo(`backup-${randomUUID()}`);
      expect(
        await colloquy(['relay', 'anew'], { env: { DATABASE_URL: restored }, cwd: folder }),
      ).toMatchObject({
        code: 0,
      });
      await startOn(restored);
      const now = await logOf(restored);
      expect(await published(topic, eventsOf(now))).toEqual(now);
    });

    it('given a service that moves by a dump without a loss, when it starts on the other database, then the topic goes on: nothing is skipped, and what comes twice is what it was', async () => {
      const server = await home.create('server');
      const port = new URL(server.urlOf('')).port;
      await home.run(`createdb -U colloquy -h 127.0.0.1 -p ${port} colloquy`);
      await home.run(`createdb -U colloquy -h 127.0.0.1 -p ${port} other`);
      const { service, api } = await startOn(server.urlOf('colloquy'));
      const { written, stop } = busy(api);
      await eventually(() => Promise.resolve(written.length > 200), 30_000);
      await stop();
      // Killed, so that the relay has possibly sent more than it has noted.
      await service.kill9();
      await home.run(commands('backup'), { DATABASE_URL: server.urlOf('colloquy') });
      await home.run(commands('restore'), { DATABASE_URL: server.urlOf('other') });

      const second = await startOn(server.urlOf('other'));
      expect((await second.api.post('/v1/sessions', { id: 'after' })).status).toBe(201);
      const log = await logOf(server.urlOf('other'));
      expect(await published(topic, eventsOf(log))).toEqual(log);
    });

    it('given an archived log and a base backup of a busy service, when the server is restored to a moment, then it has what was acknowledged before and nothing that began after', async () => {
      const server = await home.create('server');
      await home.run(`createdb -U colloquy -h 127.0.0.1 -p ${new URL(server.urlOf('')).port} colloquy`);
      const url = server.urlOf('colloquy');
      const env = {
        DATABASE_URL: url,
        ARCHIVE: join(home.folder, 'archive'),
        BACKUP: join(home.folder, 'backup'),
      };
      await home.run('mkdir archive');
      const [setup = '', backup = ''] = commands('archive').split(/^# .*$/m);
      await home.run(setup, env);
      await server.restart();
      const { service, api } = await startOn(url);
      const { written, stop } = busy(api);
      await eventually(() => Promise.resolve(written.length > 50), 30_000);
      await home.run(backup, env);
      const atBackup = written.length;
      await eventually(() => Promise.resolve(written.length > atBackup + 50), 30_000);
      const [row] = await query<{ now: string; ms: string }>(
        url,
        `select now::text, (extract(epoch from now) * 1000)::bigint::text as ms from clock_timestamp() now`,
      );
      const moment = Number(row?.ms);
      await eventually(
        () => Promise.resolve(written.filter(({ begunAt }) => begunAt > moment).length > 50),
        30_000,
      );
      await stop();
      await service.kill9();
      await query(url, 'select pg_switch_wal()');
      await query(url, 'checkpoint');
      await server.stop();

      await home.run(commands('moment'), { ...env, MOMENT: row?.now ?? '' });
      const back = await home.start(env.BACKUP);
      const restored = back.urlOf('colloquy');
      await eventually(
        async () =>
          (await query<{ on: boolean }>(restored, 'select pg_is_in_recovery() as on'))[0]?.on === false,
        30_000,
      );
      const log = await logOf(restored);
      const isThere = ({ session, version }: Written) => (log.get(session)?.length ?? 0) >= version;
      expect(written.filter((one) => one.acknowledgedAt < moment && !isThere(one))).toEqual([]);
      expect(written.filter((one) => one.begunAt > moment && isThere(one))).toEqual([]);
      const second = await startOn(restored);
      await expectSound(second.api);
      await eventually(async () => (await kafkaOf(second.api)).detail === '0 events behind the log', 30_000);
      expect(await afterTruncations(topic)).toEqual(log);
    });
  });
});
