import { chmod, mkdtemp, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from '@redis/client';
import { colloquy } from '../support/colloquy.js';
import { type TestDatabase } from '../support/database.js';
import { openEvents } from '../support/event-stream.js';
import { conducted, type FakeOpenAi } from '../support/fake-openai.js';
import { apiOf, eventually } from '../support/http.js';
import { masterKey } from '../support/master-keys.js';
import { startService } from '../support/process.js';
import { describeWith, startRedis } from '../support/programs.js';
import { createWorld, type Node, texts, type World } from './fixture.js';

const ONE = masterKey('one');
const TWO = masterKey('two');

/** Texts that no id, type or setting contains. */
const PLANTED = {
  title: 'Vermilion title',
  metadata: 'Cerulean metadata',
  question: 'Where is the Ochre parcel?',
  reply: 'It is in the Turquoise van.',
  thought: 'Magenta consideration',
  note: 'Saffron note',
  reason: 'Indigo reason',
};

/** Which of the planted texts are in a table, as text or as bytes, by table. Empty tables are left out. */
async function found(database: TestDatabase): Promise<Record<string, string[]>> {
  const tables = await database.query<{ name: string }>(
    `select oid::regclass::text as name from pg_class
     where relnamespace = current_schema()::regnamespace and relkind = 'r' order by 1`,
  );
  const found: Record<string, string[]> = {};
  for (const { name } of tables) {
    const rows = await database.query<{ row: string }>(`select t::text as row from ${name} t`);
    const content = rows.map(({ row }) => row).join('\n');
    const words = Object.values(PLANTED).filter((text) =>
      text
        .split(' ')
        .filter((word) => /^[A-Z][a-z]{4,}$/.test(word))
        .some((word) => content.includes(word) || content.includes(Buffer.from(word).toString('hex'))),
    );
    if (words.length > 0) found[name] = words;
  }
  return found;
}

describe('a service with a master key', () => {
  let world: World;
  beforeAll(async () => {
    world = await createWorld();
  });
  afterAll(() => world.end());
  const env = { COLLOQUY_MASTER_KEY: ONE };
  const readModels = async (): Promise<string[]> =>
    (
      await world.database.query<{ name: string }>(
        'select distinct projection as name from projection_checkpoint',
      )
    ).map(({ name }) => name);
  const stored = () =>
    Promise.all(
      ['event', 'stream_state', 'data_key', 'migration', 'log_generation', 'lease'].map((table) =>
        world.database.query(`select * from ${table} order by 1, 2`),
      ),
    );

  it('given a talk, when the tables are searched while a reply arrives and afterwards, then only read models show what was said, and every node does', async () => {
    const model = await world.model();
    const [one, two] = [await world.node(env), await world.node(env)];
    await one.api.post('/v1/sessions', {
      id: 'talk',
      title: PLANTED.title,
      metadata: { note: PLANTED.metadata },
    });
    const reply = conducted();
    model.next(reply.reply);
    const own = await openEvents(`${one.api.url}/v1/sessions/talk/generate`, {
      body: { message: PLANTED.question },
    });
    const generationId = String((await own.next()).data['generationId']);
    await reply.asked;
    reply.send(
      `data: ${JSON.stringify({ choices: [{ index: 0, delta: { reasoning_content: PLANTED.thought } }] })}\n\n`,
    );
    reply.say('It is in the ', 'Turquoise ');
    const pieces = await eventually(async () => {
      const rows = await world.database.query<{ plain: boolean; generation: string }>(
        'select text is not null as plain, generation from generation_chunk',
      );
      // What it says, and what it thinks.
      return new Set(rows.map(({ generation }) => generation)).size === 2 && rows;
    });
    expect(pieces.filter(({ plain }) => plain)).toEqual([]);
    const models = await readModels();
    const elsewhere = async () =>
      Object.fromEntries(
        Object.entries(await found(world.database)).filter(([name]) => !models.includes(name)),
      );
    expect(await elsewhere()).toEqual({});
    // The other node opens the pieces.
    const stream = await openEvents(`${two.api.url}/v1/sessions/talk/generations/${generationId}/stream`);
    let seen = '';
    while (!seen.includes('Turquoise')) seen += JSON.stringify((await stream.next()).data);
    expect(seen).toContain('Magenta');
    reply.say('van.');
    reply.end();
    await eventually(async () => (await texts(two.api, 'talk')).length === 2);
    const keyed = { 'idempotency-key': 'k1' };
    const note = { messages: [{ role: 'user', content: PLANTED.note }] };
    for (const node of [one, two])
      expect((await node.api.post('/v1/sessions/talk/messages', note, keyed)).status).toBeLessThan(300);
    expect(await texts(two.api, 'talk')).toHaveLength(3);
    await one.api.post('/v1/sessions', { id: 'other' });
    expect((await two.api.post('/v1/sessions/other/reset', { reason: PLANTED.reason })).status).toBeLessThan(
      300,
    );
    // Snapshots of the past.
    expect((await one.api.get('/v1/sessions/talk/state?at=2')).status).toBeLessThan(500);
    expect(await elsewhere()).toEqual({});
    const shown = Object.values(await found(world.database)).flat();
    for (const text of [PLANTED.title, PLANTED.question, PLANTED.reply, PLANTED.note])
      expect(shown).toContain(text);
    expect(await world.database.query('select from event where sealed is null')).toEqual([]);
    const trail = JSON.stringify((await two.api.get('/v1/sessions/talk/events')).body);
    expect(trail).toContain(PLANTED.question);
    await Promise.all([one.service.stop(), two.service.stop()]);
    expect(`${one.service.output()}${two.service.output()}`).not.toContain(ONE);
  });

  it('given what was sealed, when the service starts again, then it goes on; with another key, or with none, it does not start and writes nothing', async () => {
    const again = await world.node(env);
    expect(await texts(again.api, 'talk')).toHaveLength(3);
    await again.service.stop();
    const before = await stored();
    for (const other of [{ COLLOQUY_MASTER_KEY: TWO }, {}]) {
      const start = world.node(other);
      await expect(start).rejects.toThrow('sealed under the master key');
      await expect(start).rejects.not.toThrow(TWO);
    }
    expect(await stored()).toEqual(before);
    for (const command of [['export'], ['import', '-']]) {
      const refused = await colloquy(command, { env: { DATABASE_URL: world.database.url }, input: '' });
      expect(refused).toMatchObject({
        code: 1,
        err: expect.stringContaining('sealed under the master key') as string,
      });
    }
  });

  it('given a node that runs, when the master key is exchanged, then it goes on, and the former key is of no use', async () => {
    const both = { COLLOQUY_MASTER_KEY: `${TWO},${ONE}` };
    const node = await world.node(both);
    const database = { DATABASE_URL: world.database.url };
    const list = await colloquy(['master-key'], { env: { ...database, ...both } });
    expect(
      list.out
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as unknown),
    ).toMatchObject([{ use: 'seals' }, { use: 'opens' }]);
    expect(`${list.out}${list.err}`).not.toMatch(/[A-Za-z0-9+/]{43}=/);
    const rotated = await colloquy(['master-key', 'rotate'], { env: { ...database, ...both } });
    expect(rotated).toMatchObject({ code: 0 });
    expect((JSON.parse(rotated.out) as { wrapped: number }).wrapped).toBeGreaterThan(0);
    expect(await texts(node.api, 'talk')).toHaveLength(3);
    await node.service.stop();
    await expect(world.node(env)).rejects.toThrow('sealed under the master key');
    const after = await world.node({ COLLOQUY_MASTER_KEY: TWO });
    expect(await texts(after.api, 'talk')).toHaveLength(3);
    await after.service.stop();
  });
});

describeWith('redis-server', 'replies that travel by Redis', () => {
  const ends: (() => Promise<unknown>)[] = [];
  let one: Node;
  let two: Node;
  let model: FakeOpenAi;
  let client: ReturnType<typeof createClient>;
  beforeAll(async () => {
    const world = await createWorld();
    const redis = await startRedis();
    ends.push(
      () => redis.end(),
      () => world.end(),
    );
    model = await world.model();
    const env = { COLLOQUY_MASTER_KEY: ONE, REDIS_URL: `redis://127.0.0.1:${redis.port}` };
    [one, two] = await Promise.all([world.node(env), world.node(env)]);
    client = createClient({ url: env.REDIS_URL });
    await client.connect();
    ends.push(async () => {
      client.destroy();
      await Promise.resolve();
    });
  });
  afterAll(async () => {
    for (const end of ends.reverse()) await end();
  });

  /** A reply that the first node runs, the other one shows, and of which Redis has the beginning. */
  async function begun(id: string) {
    await one.api.post('/v1/sessions', { id });
    const reply = conducted();
    model.next(reply.reply);
    const own = await openEvents(`${one.api.url}/v1/sessions/${id}/generate`, {
      body: { message: PLANTED.question },
    });
    const generationId = String((await own.next()).data['generationId']);
    await reply.asked;
    const path = `/v1/sessions/${id}/generations/${generationId}/stream`;
    const stream = await openEvents(`${two.api.url}${path}`);
    const name = `colloquy:reply:${generationId}`;
    // The first use of Redis only begins to connect.
    const entry = await eventually(async () => {
      reply.say('Turquoise ');
      const found = await client.xRange(name, '-', '+');
      return found?.[0];
    });
    let seen = '';
    while (!seen.includes('Turquoise')) seen += JSON.stringify((await stream.next()).data);
    return { reply, own, stream, path, name, entry };
  }

  it('given a master key, when a reply arrives, then Redis has it sealed, and another node shows it', async () => {
    const { reply, entry } = await begun('talk');
    expect(JSON.stringify(entry)).not.toContain('Turquoise');
    expect(Object.keys(entry.message).sort()).toEqual(['key', 'sealed']);
    reply.end();
  });

  it('given a reply that arrives, when its session is erased on another node, then Redis has nothing of it any more, nobody shows it, and what comes later is dropped', async () => {
    const { reply, own, stream, path, name } = await begun('erased');
    expect(await client.exists(name)).toBe(1);
    expect((await two.api.post('/v1/sessions/erased/erase')).status).toBe(200);
    reply.say('van.');
    reply.end();
    await Promise.all([own.rest(), stream.rest()]);
    expect(await eventually(async () => (await client.exists(name)) === 0)).toBe(true);
    for (const { api } of [one, two]) {
      expect((await api.get(path)).status).toBe(404);
      expect((await api.get('/v1/sessions/erased/messages')).status).toBe(404);
    }
    const trail = await two.api.get<{ data: { data: unknown; type: string }[] }>(
      '/v1/sessions/erased/events',
    );
    expect(trail.body.data.map(({ type, data }) => [type, data !== null])).toEqual([
      ['SessionCreated', false],
      ['MessageAppended', false],
      ['GenerationStarted', false],
      ['SessionErased', true],
    ]);
  });
});

describe('a service with a database of its own', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'colloquy-sealed-'));
    // When this process is root, PostgreSQL runs as another user, who must be able to reach its data.
    await chmod(folder, 0o755);
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it('given no setting, when it starts, then it makes a key that only its owner can read; without the file it does not start, and makes no other', async () => {
    const dataDir = join(folder, 'data');
    const file = join(dataDir, 'master.key');
    const start = (env = {}) => startService({ dataDir, cwd: folder, env: { LOG_LEVEL: 'warn', ...env } });
    const service = await start({ COLLOQUY_PROCESSES: '2' });
    await apiOf(service.url).post('/v1/chat', { message: PLANTED.question, sessionId: 'talk' });
    await service.stop();
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    const key = (await readFile(file, 'utf8')).trim();
    expect(Buffer.from(key, 'base64')).toHaveLength(32);
    expect(service.output()).not.toContain(key);

    await rename(file, join(folder, 'kept'));
    await expect(start()).rejects.toThrow('put the file master.key back');
    expect((await readdir(dataDir)).filter((name) => name.startsWith('master.key'))).toEqual([]);
    const env = { COLLOQUY_DATA_DIR: dataDir };
    expect(await colloquy(['export'], { cwd: folder, env })).toMatchObject({ code: 1 });

    await rename(join(folder, 'kept'), file);
    const exported = await colloquy(['export'], { cwd: folder, env });
    expect(exported).toMatchObject({ code: 0, out: expect.stringContaining(PLANTED.question) as string });
    // The key of the settings seals from then on, and that of the file opens.
    const moved = await start({ COLLOQUY_MASTER_KEY: ONE });
    expect(await texts(apiOf(moved.url), 'talk')).toHaveLength(2);
    const rotated = await colloquy(['master-key', 'rotate'], {
      cwd: folder,
      env: { ...env, COLLOQUY_MASTER_KEY: ONE },
    });
    expect(rotated).toMatchObject({ code: 0 });
    await moved.stop();
    await rm(file);
    const last = await start({ COLLOQUY_MASTER_KEY: ONE });
    expect(await texts(apiOf(last.url), 'talk')).toHaveLength(2);
    await last.stop();
  }, 120_000);
});
