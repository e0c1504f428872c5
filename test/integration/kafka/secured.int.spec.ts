import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Pool } from 'pg';
import { consume, memoryPlaces } from '../../../src/consumer.js';
import { createPool } from '../../../src/database/connection.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { type KafkaSettings } from '../../../src/kafka/kafka-connection.js';
import { Relay } from '../../../src/kafka/relay.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { describeWithKafka, ownBroker, type OwnBroker } from '../../support/kafka.js';
import { eventually } from '../../support/http.js';
import { openStore, said } from './fixture.js';

const USERNAME = 'colloquy';
const PASSWORD = 'a-password-of-the-broker';

describeWithKafka('a broker that wants TLS and a password', () => {
  let folder: string;
  let ca: string;
  let broker: OwnBroker;
  let db: TestDatabase;
  let store: EventLog;
  let pool: Pool;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'colloquy-secured-'));
    const [key, certificate, both] = ['key', 'certificate', 'both'].map((name) =>
      join(folder, `${name}.pem`),
    ) as [string, string, string];
    execFileSync(
      'openssl',
      // prettier-ignore
      ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', certificate, '-days', '2',
       '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1'],
      { stdio: 'ignore' },
    );
    ca = readFileSync(certificate, 'utf8');
    writeFileSync(both, readFileSync(key, 'utf8') + ca);
    const login = 'org.apache.kafka.common.security.plain.PlainLoginModule required';
    broker = await ownBroker(
      (port, controller) => `
listeners=SASL_SSL://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controller}
advertised.listeners=SASL_SSL://127.0.0.1:${port}
controller.quorum.voters=1@127.0.0.1:${controller}
inter.broker.listener.name=SASL_SSL
listener.security.protocol.map=SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=${login} username="${USERNAME}" password="${PASSWORD}" user_${USERNAME}="${PASSWORD}";
ssl.keystore.type=PEM
ssl.keystore.location=${both}
ssl.truststore.type=PEM
ssl.truststore.location=${certificate}`,
    );
    db = await createTestDatabase();
    store = await openStore(db.url);
    pool = createPool(db.url, 'relay');
    await store.append(appendOf({ tenant: 'acme', streamId: 'one' }, 0, [said('a secret')]));
  }, 120_000);
  afterAll(async () => {
    await pool.end();
    await store.close();
    await db.drop();
    await broker.remove();
    rmSync(folder, { recursive: true });
  }, 60_000);

  async function withRelay(kafka: KafkaSettings, topic: string, work: (relay: Relay) => Promise<void>) {
    const leases = store.leases(randomUUID());
    const relay = new Relay(store, pool, leases, {
      kafka,
      topic,
      partitions: 2,
      retentionMs: 3_600_000,
      maxMessageBytes: 1_048_576,
      compression: 'gzip',
      onTrouble: () => undefined,
      onRecovered: () => undefined,
    });
    relay.start();
    try {
      await work(relay);
    } finally {
      await relay.stop();
      await leases.close();
    }
  }

  it('given a wrong password or an untrusted certificate, when the relay starts, then it reports the problem without the password, and publishes nothing', async () => {
    const brokers = [broker.brokers];
    const sasl = { mechanism: 'plain', username: USERNAME, password: 'a-wrong-one' } as const;
    for (const [kafka, problem] of [
      [{ brokers, ssl: { ca }, sasl }, /SASL PLAIN authentication failed/i],
      [{ brokers, ssl: true, sasl: { ...sasl, password: PASSWORD } }, /self-signed certificate/i],
    ] as const) {
      await withRelay(kafka, `refused-${randomUUID()}`, async (relay) => {
        const told = await eventually(() =>
          Promise.resolve(relay.problem === 'connecting' ? undefined : relay.problem),
        );
        expect(told).toMatch(problem);
        expect(told).not.toContain('a-wrong-one');
        expect((await relay.lag()).behind).toBe(1);
      });
    }
  }, 60_000);

  it('given the certificate and the password of the broker, when relay and consumer start, then events are published and consumed', async () => {
    const kafka: KafkaSettings = {
      brokers: [broker.brokers],
      ssl: { ca },
      sasl: { mechanism: 'plain', username: USERNAME, password: PASSWORD },
    };
    const topic = `secured-${randomUUID()}`;
    await withRelay(kafka, topic, async (relay) => {
      await eventually(async () => (await relay.lag()).behind === 0, 30_000);
    });
    const found: unknown[] = [];
    const consumer = consume({
      kafka,
      groupId: topic,
      topic,
      maxWaitMs: 100,
      places: memoryPlaces(),
      apply: (events) => {
        found.push(
          ...events.map(({ tenant, sessionId, version, data }) => ({ tenant, sessionId, version, data })),
        );
        return Promise.resolve();
      },
    });
    try {
      await eventually(() => Promise.resolve(found.length > 0), 30_000);
    } finally {
      await consumer.stop();
    }
    expect(found).toEqual([{ tenant: 'acme', sessionId: 'one', version: 1, data: said('a secret').data }]);
  }, 90_000);
});
