import { setTimeout as sleep } from 'node:timers/promises';
import { type RunningService, startService } from '../support/process.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { type Api, apiOf, eventually, type Problem } from '../support/http.js';
import { startProxy, type TcpProxy } from '../support/tcp-proxy.js';
import { type MessageView, say, texts, user } from './fixture.js';

/** Milliseconds that an answer may take while the database hangs, and the allowance for a busy machine. */
const READY_MS = 2_000;
const APPEND_MS = 5_000;
const SLACK_MS = 2_000;

let db: TestDatabase;
let proxy: TcpProxy;
let service: RunningService;
let api: Api;
beforeAll(async () => {
  db = await createTestDatabase();
  proxy = await startProxy(db.url);
  service = await startService({ env: { DATABASE_URL: proxy.url, LOG_LEVEL: 'fatal' } });
  api = apiOf(service.url);
  await api.post('/v1/sessions', { id: 'chat' });
}, 60_000);
afterAll(async () => {
  await service.stop();
  await proxy.close();
  await db.drop();
});

async function timed<T>(work: Promise<T>): Promise<[T, ms: number]> {
  const started = performance.now();
  return [await work, performance.now() - started];
}

it('given a database that hangs, when messages are sent, then these requests and the readiness check are answered in time; when the database answers again, each message is there at most once, and the service works again', async () => {
  expect((await say(api, 'chat', 'before')).status).toBe(201);
  const others = ['early', 'later', 'late'];
  for (const id of others) {
    await api.post('/v1/sessions', { id });
    expect((await say(api, id, 'before')).status).toBe(201);
  }
  proxy.hang();
  /** On sessions of their own, while the commit of the first messages hangs. */
  const arriving = others.map(async (id, index) => {
    await sleep((index + 1) * 1_000);
    return timed(say(api, id, 'while another commit hangs'));
  });
  const sent = Array.from({ length: 20 }, (_, n) => `while it hangs ${n}`);
  const [ready, appends, read] = await Promise.all([
    timed(api.get('/health/ready')),
    timed(Promise.all(sent.map((text) => say(api, 'chat', text)))),
    timed(api.get<Problem>('/v1/sessions/chat/messages')),
  ]);

  expect(ready[0]).toMatchObject({ status: 503, body: { checks: { database: { status: 'unavailable' } } } });
  expect(ready[1]).toBeLessThan(READY_MS + SLACK_MS);
  for (const answer of appends[0])
    expect(answer).toMatchObject({ status: 503, body: { code: 'database-unavailable' } });
  expect(appends[1]).toBeLessThan(APPEND_MS + SLACK_MS);
  expect(read[0].status).toBe(503);
  for (const [answer, ms] of await Promise.all(arriving)) {
    expect(answer).toMatchObject({ status: 503, body: { code: 'database-unavailable' } });
    expect(ms).toBeLessThan(APPEND_MS + SLACK_MS);
  }

  proxy.up();
  await eventually(async () => (await api.get('/health/ready')).status === 200);
  await eventually(async () => (await say(api, 'chat', 'after')).status === 201);
  const found = await texts(api, 'chat');
  expect(found.at(0)).toBe('before');
  expect(found.at(-1)).toBe('after');
  // A message that was not acknowledged may have been written, but none is there twice.
  expect(new Set(found).size).toBe(found.length);
}, 60_000);

it('given a full disk, when messages are sent, then the answer says so and reads work; when the disk has room again, writes work', async () => {
  await db.query(
    `create function no_space() returns trigger language plpgsql as
     $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$`,
  );
  const partitions = await db.query<{ name: string }>(
    `select relid::regclass::text as name from pg_partition_tree('event') where isleaf`,
  );
  for (const { name } of partitions)
    await db.query(
      `create trigger no_space before insert on ${name} for each row execute function no_space()`,
    );

  const refused = await api.post<Problem>('/v1/sessions/chat/messages', user('no room'));

  expect(refused).toMatchObject({ status: 503, body: { code: 'database-unavailable' } });
  expect(refused.body.detail).toContain('the disk of the database is full');
  const read = await api.get<{ data: MessageView[] }>('/v1/sessions/chat/messages?limit=1');
  expect([read.status, read.body.data.length]).toEqual([200, 1]);
  for (const { name } of partitions) await db.query(`drop trigger no_space on ${name}`);
  expect((await say(api, 'chat', 'room again')).status).toBe(201);
  expect((await texts(api, 'chat')).at(-1)).toBe('room again');
});
