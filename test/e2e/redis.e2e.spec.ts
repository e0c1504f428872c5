import { createClient } from '@redis/client';
import { conducted, type ConductedReply, type FakeOpenAi } from '../support/fake-openai.js';
import { type EventStream, openEvents } from '../support/event-stream.js';
import { heavy } from '../support/heavy.js';
import { eventually } from '../support/http.js';
import { describeWith, freePort, type RunningProgram, startRedis } from '../support/programs.js';
import { createWorld, type MessageView, type Node, say, texts, type World } from './fixture.js';

let world: World;
let model: FakeOpenAi;
let redis: RunningProgram;
let one: Node;
let two: Node;

interface Followed {
  readonly reply: ConductedReply;
  readonly generationId: string;
  /** The reply as the node shows it that does not run it. */
  readonly stream: EventStream;
}

const node = (port = redis.port): Promise<Node> => world.node({ REDIS_URL: `redis://127.0.0.1:${port}` });

/** A reply that runs on one node and is followed on another one. */
async function followed(id: string, runs = one): Promise<Followed> {
  await one.api.post('/v1/sessions', { id });
  const reply = conducted();
  model.next(reply.reply);
  const own = await openEvents(`${runs.api.url}/v1/sessions/${id}/generate`, {
    body: { message: 'question' },
  });
  const generationId = String((await own.next()).data['generationId']);
  await reply.asked;
  const stream = await openEvents(`${two.api.url}/v1/sessions/${id}/generations/${generationId}/stream`);
  await stream.next();
  return { reply, generationId, stream };
}

async function connectedNodes(): Promise<number> {
  const client = createClient({ url: `redis://127.0.0.1:${redis.port}` });
  await client.connect();
  try {
    return (await client.clientList()).filter(({ name }) => name === 'colloquy').length;
  } finally {
    client.destroy();
  }
}

/** The text of a generation that is in the table, which is the place for it when Redis is away. */
async function inTable(generation: string): Promise<string> {
  const rows = await world.database.query<{ text: string }>(
    'select text from generation_chunk where generation = $1 order by number',
    [generation],
  );
  return rows.map(({ text }) => text).join('');
}

describeWith('redis-server', 'replies that travel between nodes by Redis', () => {
  beforeAll(async () => {
    world = await createWorld();
    model = await world.model();
    redis = await startRedis();
    [one, two] = await Promise.all([node(), node()]);
  });
  afterAll(async () => {
    await world.end();
    await redis.end();
  });

  /** Uses Redis until text goes through it: the first use only begins to connect. */
  async function connected(id: string, runs = one): Promise<void> {
    const { reply, stream, generationId } = await followed(id, runs);
    await eventually(async () => {
      reply.say('.');
      const before = await inTable(generationId);
      await new Promise((resolve) => setTimeout(resolve, 200));
      return (await inTable(generationId)) === before;
    });
    reply.end();
    await stream.rest();
  }

  it('given two nodes with Redis, when a reply arrives on one, then the other shows it, and the table holds nothing', async () => {
    await connected('warm');
    const { reply, stream, generationId } = await followed('by-redis');
    reply.say('Grüße ', '\u{1f600} ', 'from ');
    expect(await stream.text('Grüße \u{1f600} from '.length)).toBe('Grüße \u{1f600} from ');
    reply.say('afar');
    expect(await stream.text('afar'.length)).toBe('afar');
    expect(await inTable(generationId)).toBe('');
    reply.end();
    expect((await stream.rest()).at(-1)).toMatchObject({ event: 'message.completed' });
    expect((await texts(two.api, 'by-redis')).at(-1)).toBe('Grüße \u{1f600} from afar');
  });

  it('given a reply that arrives, when Redis is killed and comes back empty, then no character is missing or doubled', async () => {
    await connected('before-killed');
    const { reply, stream, generationId } = await followed('killed');
    reply.say('before ');
    expect(await stream.text('before '.length)).toBe('before ');
    await redis.kill9();
    reply.say('without ');
    expect(await stream.text('without '.length)).toBe('without ');
    expect(await inTable(generationId)).toBe('before without ');
    await redis.start();
    // Whoever comes now finds the whole text as well.
    reply.say('after');
    expect(await stream.text('after'.length)).toBe('after');
    const late = await openEvents(`${two.api.url}/v1/sessions/killed/generations/${generationId}/stream`);
    await late.next();
    expect(await late.text('before without after'.length)).toBe('before without after');
    reply.end();
    expect((await stream.rest()).at(-1)?.data['content']).toBe('before without after');
  });

  heavy(
    'given a reply that pauses, when Redis has come back empty before it goes on, then whoever comes later finds the whole text',
    async () => {
      await connected('before-paused');
      const { reply, stream, generationId } = await followed('paused');
      // Both nodes follow a reply of the other one, and connect again for it.
      const other = await followed('elsewhere', two);
      const path = `/v1/sessions/elsewhere/generations/${other.generationId}/stream`;
      const back = await openEvents(one.api.url + path);
      reply.say('before ');
      expect(await stream.text('before '.length)).toBe('before ');
      await redis.kill9();
      await redis.start();
      await eventually(async () => (await connectedNodes()) === 2);
      reply.say('after');
      // A node that has not read anything of it yet.
      const three = await node();
      const late = await openEvents(`${three.api.url}/v1/sessions/paused/generations/${generationId}/stream`);
      await late.next();
      expect(await late.text('before after'.length)).toBe('before after');
      expect(await inTable(generationId)).toBe('');
      reply.end();
      expect((await stream.rest()).at(-1)?.data['content']).toBe('before after');
      other.reply.end();
      await back.rest();
    },
  );

  heavy(
    'given a reply that arrives, when Redis hangs, then the other node shows it all the same, and a node that starts meanwhile can be stopped',
    async () => {
      await connected('before-hanging');
      const { reply, stream } = await followed('hanging');
      reply.say('before ');
      expect(await stream.text('before '.length)).toBe('before ');
      redis.suspend();
      try {
        reply.say('during');
        expect(await stream.text('during'.length)).toBe('during');
        const three = await node();
        (await followed('hanging-too', three)).reply.end();
        expect(await three.service.stop()).toBe(0);
      } finally {
        redis.resume();
      }
      reply.end();
      await stream.rest();
    },
  );

  it('given a node that is killed in the middle of a reply, when its lease has run out, then another node keeps the text that was in Redis', async () => {
    const three = await node();
    await connected('before-orphan', three);
    const { reply, stream, generationId } = await followed('orphan', three);
    reply.say('half of ');
    expect(await stream.text('half of '.length)).toBe('half of ');
    expect(await inTable(generationId)).toBe('');
    await three.service.kill9();
    await world.database.setClock({ offsetMs: 10_000 });
    await stream.rest();
    const { body } = await two.api.get<{ data: MessageView[] }>('/v1/sessions/orphan/messages');
    expect(body.data.at(-1)).toMatchObject({ content: 'half of ', status: 'incomplete' });
  });

  it('given no Redis at its URL, when a node starts, then it works as without one, and ends', async () => {
    const { api, service } = await node(await freePort());
    await api.post('/v1/sessions', { id: 'alone' });
    expect((await say(api, 'alone', 'Hello')).status).toBe(201);
    expect((await api.get('/health/ready')).status).toBe(200);
    expect(await service.stop()).toBe(0);
  });
});
