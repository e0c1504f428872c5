import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { describeWithKafka, tap } from '../support/kafka.js';
import { type RunningService, startService } from '../support/process.js';
import { heavy } from '../support/heavy.js';

let db: TestDatabase;
let service: RunningService | undefined;
let folder: string;
beforeEach(async () => {
  db = await createTestDatabase();
  folder = await mkdtemp(join(tmpdir(), 'colloquy-kafka-e2e-'));
});
afterEach(async () => {
  await service?.stop();
  service = undefined;
  await db.drop();
  await rm(folder, { recursive: true, force: true });
});

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function start(env: Record<string, string> = {}): Promise<RunningService> {
  service = await startService({ env: { DATABASE_URL: db.url, ...env }, cwd: folder });
  return service;
}

async function chat(url: string, message: string): Promise<void> {
  const response = await fetch(`${url}/v1/chat`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ message, sessionId: 'first' }),
  });
  expect(response.status).toBe(200);
}

const json = async (url: string): Promise<unknown> => (await fetch(url)).json();
const text = async (url: string): Promise<string> => (await fetch(url)).text();

const health = async (url: string) => {
  const response = await fetch(`${url}/health/ready`);
  const { checks } = (await response.json()) as {
    checks: Record<string, { status: string; detail?: string }>;
  };
  return { status: response.status, kafka: checks['kafka'] };
};

heavy(
  'given brokers that cannot be reached, when the service starts, then it serves requests, and reports the outage in health and once in the log',
  async () => {
    const probe = createServer().listen(0, '127.0.0.1');
    await once(probe, 'listening');
    const { port } = probe.address() as AddressInfo;
    probe.close();
    const running = await start({ KAFKA_BROKERS: `127.0.0.1:${port}` });
    const { url } = running;
    await chat(url, 'hello');
    await sleep(8_000);
    await chat(url, 'still there?');

    const { status, kafka } = await health(url);
    expect(status).toBe(200);
    expect(kafka).toEqual({
      status: 'degraded',
      detail: expect.stringMatching(/ECONNREFUSED.*; [1-9]\d* events behind the log/) as string,
    });
    expect(await json(`${url}/v1/admin/relay`)).toMatchObject({
      isOn: true,
      problem: expect.stringContaining('ECONNREFUSED') as string,
      behind: expect.any(Number) as number,
    });
    const metrics = await text(`${url}/metrics`);
    expect(metrics).toMatch(/^colloquy_relay_up 0$/m);
    expect(metrics).toMatch(/^colloquy_relay_lag_events\{lane="\d+"\} [1-9]/m);
    expect(running.output().match(/nothing is published to Kafka for now/g)).toHaveLength(1);
    // The log holds the greeting and one line about the outage.
    const warnings = running
      .output()
      .split('\n')
      .filter((line) => /"level":"(warn|error)"/.test(line));
    expect(warnings.length).toBeLessThan(10);
  },
  60_000,
);

it('given no brokers, when health and contract are requested, then health does not mention Kafka, and the contract is served without a key', async () => {
  const { url } = await start({ COLLOQUY_API_KEYS: 'one:acme:secret' });
  expect((await health(url)).kafka).toBeUndefined();
  const asyncapi = (await (await fetch(`${url}/asyncapi.json`)).json()) as { asyncapi: string };
  expect(asyncapi.asyncapi).toBe('3.0.0');
  const schema = await fetch(`${url}/schemas/MessageAppended.v1.json`);
  expect(schema.headers.get('content-type')).toContain('application/schema+json');
  expect(await schema.json()).toMatchObject({ $id: 'urn:colloquy:event:MessageAppended:v1' });
  expect((await fetch(`${url}/schemas/nothing.json`)).status).toBe(404);
}, 60_000);

describeWithKafka('a service with Kafka', (brokers) => {
  heavy(
    'given events from before brokers were configured, when brokers are configured, then all events arrive from the first on',
    async () => {
      const before = await start();
      await chat(before.url, 'before');
      await before.stop();

      const topic = `service-${randomUUID()}`;
      await writeFile(join(folder, 'colloquy.yml'), `kafka: { topic: ${topic} }\n`);
      const config = { KAFKA_BROKERS: brokers };
      const running = await start(config);
      const { url } = running;
      await chat(url, 'after');
      const listening = await tap(brokers, topic);
      const ids = (await db.query<{ id: string }>('select id::text from event')).map(({ id }) => id);
      const deadline = Date.now() + 20_000;
      const missing = () => ids.filter((id) => !listening.records.some((record) => record.id === id));
      while (missing().length > 0 && Date.now() < deadline) await sleep(100);
      await listening.stop();
      expect(missing()).toEqual([]);
      expect(running.output()).toContain(`events go to the topic ${topic}`);
      expect((await health(url)).kafka).toEqual({ status: 'ok', detail: '0 events behind the log' });
      expect(await json(`${url}/v1/admin/relay`)).toMatchObject({ isOn: true, problem: null, behind: 0 });
      const metrics = await text(`${url}/metrics`);
      expect(metrics).toMatch(/^colloquy_relay_up 1$/m);
      expect(metrics.match(/^colloquy_relay_lag_events\{lane="\d+"\} 0$/gm)).toHaveLength(16);
    },
    60_000,
  );
});

it('given no brokers, when the relay is loaded, then kafkajs is not loaded', () => {
  jest.isolateModules(() => {
    const name = randomUUID();
    jest.doMock('kafkajs', () => {
      throw new Error(`loaded ${name}`);
    });
    // eslint-disable-next-line @typescript-eslint/no-require-imports
    expect(() => require('../../src/kafka/relay.ts') as unknown).not.toThrow();
    jest.dontMock('kafkajs');
  });
});
