import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { type AddressInfo } from 'node:net';
import { type ConsumedEvent, type UnknownEvent } from '../../../src/consumer.js';
import { createPool } from '../../../src/database/connection.js';
import { upcast } from '../../../src/domain/session.events.js';
import { EventLog } from '../../../src/event-store/log.js';
import { lostEvents } from '../../../src/kafka/lost-events.js';
import { Relay } from '../../../src/kafka/relay.js';
import { recoverSessions } from '../../../src/transfer/recovery.js';
import { appendOf } from '../../support/append.js';
import { describeWithKafka, listen } from '../../support/kafka.js';
import { masterKey } from '../../support/master-keys.js';
import { insist, settableDatabase } from '../../support/settable-database.js';
import { said, sleep } from './fixture.js';

const created = { type: 'SessionCreated', data: { title: 'Vermilion' } };
const options = { upcast, masterKeys: [masterKey('one')] };

describeWithKafka('a sealed topic after the log was set back', (brokers) => {
  const ends: (() => Promise<unknown>)[] = [];
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
  });
  const kafka = { brokers: brokers.split(',') };

  async function open(url: string): Promise<EventLog> {
    const log = await EventLog.open(url, options);
    ends.push(() => log.close());
    return log;
  }

  /** Publishes everything, sealed. */
  async function publish(log: EventLog, url: string, topic: string): Promise<void> {
    const pool = createPool(url, 'relay');
    const leases = log.leases(randomUUID());
    const troubles: Error[] = [];
    const relay = new Relay(log, pool, leases, {
      ...{ kafka, topic, partitions: 4, retentionMs: 3_600_000, maxMessageBytes: 1_048_576 },
      ...{ compression: 'gzip', payload: 'sealed', onRecovered: () => undefined },
      onTrouble: (error) => troubles.push(error),
    });
    relay.start();
    try {
      for (const deadline = Date.now() + 30_000; (await relay.lag()).behind > 0 || relay.problem;) {
        if (Date.now() > deadline) throw new Error(`the relay did not catch up: ${relay.problem ?? ''}`);
        await sleep(50);
      }
      expect(troubles).toEqual([]);
    } finally {
      await relay.stop();
      await leases.close();
      await pool.end();
    }
  }

  const write = (
    log: EventLog,
    streamId: string,
    expected: number,
    events: readonly { type: string; data: unknown }[],
    more = {},
  ) => insist(() => log.append(appendOf({ tenant: 'acme', streamId }, expected, events, more)));

  /** Keys and events of a log, as the routes of the service answer them. */
  async function serve(log: EventLog): Promise<string> {
    const server = createServer((request, response) => {
      const url = new URL(request.url ?? '', 'http://api');
      const answer = async (): Promise<[status: number, body: object]> => {
        const keyId = /^\/v1\/keys\/([^/]+)$/.exec(url.pathname)?.[1];
        if (keyId !== undefined) {
          const [streamId, version] = [
            url.searchParams.get('session') ?? '',
            Number(url.searchParams.get('version')),
          ];
          const key = await log.keyOfEvent({ tenant: 'acme', streamId, version, keyId });
          if (key) return [200, { key: key.toString('base64'), maxAgeSeconds: 60 }];
          if (key === null) return [410, { code: 'key-destroyed' }];
          return [404, { code: 'key-not-found', logGeneration: log.generations.current }];
        }
        const streamId = /^\/v1\/sessions\/([^/]+)\/events$/.exec(url.pathname)?.[1] ?? '';
        const from = Number(url.searchParams.get('after')) + 1;
        const events = await log.streams.read({ tenant: 'acme', streamId }, { from, erasedToo: true });
        const data = events.map((event) => ({
          ...event,
          sessionId: streamId,
          logGeneration: log.generations.of(event),
        }));
        return [200, { data }];
      };
      void answer().then(([status, body]) => response.writeHead(status).end(JSON.stringify(body)));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    ends.push(() => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    });
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  it('given sealed events that are gone, when they are recovered, then those are there whose keys are, others are said to be lost, an erasure is made again; and a consumer passes over what nobody can open', async () => {
    const topic = `set-back-${randomUUID()}`;
    const database = await settableDatabase(ends);
    const one = await open(database.url);
    await write(one, 'kept', 0, [created]);
    await write(one, 'erased', 0, [created]);
    await publish(one, database.url, topic);
    await database.keep();

    await write(one, 'kept', 1, [said('Ochre')], { begins: false });
    const { keys } = await insist(() => one.streams.keysOf({ tenant: 'acme', streamId: 'erased' }, 0, 1));
    const erasure = { incarnations: [{ incarnation: 1, from: 1, to: 1 }], keys };
    await write(one, 'erased', 1, [{ type: 'SessionErased', data: erasure }], {
      begins: false,
      destroys: keys,
    });
    // Its keys are made by a process that begins now, and are lost with the events.
    const two = await open(database.url);
    await write(two, 'fresh', 0, [created, said('Turquoise')]);
    await insist(() => publish(one, database.url, topic));
    await database.setBack();

    const three = await insist(() => open(database.url));
    expect(three.generations.current).toBe(2);
    const recover = async (append: boolean) => {
      const lost = await lostEvents(kafka, topic, three, undefined);
      const sessions = await recoverSessions(three, lost, { append, maxSessions: () => 100 });
      return Object.fromEntries(sessions.map(({ sessionId, outcome }) => [sessionId, outcome]));
    };
    expect(await recover(false)).toEqual({ kept: 'lost', erased: 'erased', fresh: 'key lost' });

    // The relay looks into the topic before it goes on.
    await publish(three, database.url, topic);
    const url = await serve(three);
    const heard: (ConsumedEvent | UnknownEvent)[] = [];
    const cut: unknown[] = [];
    const consumer = listen(brokers, topic, (event) => heard.push(event), {
      keys: { url },
      api: { url },
      truncated: (sessions) => {
        cut.push(...sessions);
        return Promise.resolve();
      },
    });
    try {
      for (const deadline = Date.now() + 30_000; cut.length < 3 && Date.now() < deadline;) await sleep(50);
    } finally {
      await consumer.stop();
    }
    expect(cut).toContainEqual({ tenant: 'acme', sessionId: 'fresh', version: 0, applied: 2 });
    const fresh = heard.filter(({ sessionId }) => sessionId === 'fresh');
    expect(fresh).toMatchObject(
      [1, 2].map((version) => ({ version, type: 'unknown', data: null, sealed: {} })),
    );
    // The erasure is gone, and so is the destruction of the key.
    expect(heard.filter(({ sessionId }) => sessionId === 'erased')).toMatchObject([
      created,
      { type: 'SessionErased' },
    ]);

    expect(await recover(true)).toEqual({ kept: 'recovered', erased: 'erased', fresh: 'key lost' });
    expect(await three.streams.read({ tenant: 'acme', streamId: 'kept' })).toMatchObject([
      created,
      said('Ochre'),
    ]);
    expect(await recover(true)).toEqual({ kept: 'there', erased: 'there', fresh: 'key lost' });
  }, 120_000);
});
