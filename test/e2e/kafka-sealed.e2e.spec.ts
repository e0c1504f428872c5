import { createDecipheriv, randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Kafka as CloudEventsKafka, type CloudEvent } from 'cloudevents';
import fc from 'fast-check';
import { type ConsumedEvent, type UnknownEvent } from '../../src/consumer.js';
import { upcast } from '../../src/domain/session.events.js';
import { EventLog } from '../../src/event-store/log.js';
import { currentJson, placeOf, sealedIn, toEvent, toMessage } from '../../src/kafka/contract.js';
import { type IncomingMessage, toIncomingMessage } from '../../src/kafka/group-member.js';
import { KeyRing } from '../../src/kafka/key-ring.js';
import { type Api, eventually } from '../support/http.js';
import { describeWithKafka, listen, tap } from '../support/kafka.js';
import { masterKey } from '../support/master-keys.js';
import { freePort } from '../support/programs.js';
import { createWorld, type Node, say, user, type World } from './fixture.js';

type Heard = ConsumedEvent | UnknownEvent;

/** Stands in everything that is said, and in no id, type or setting. */
const PLANTED = 'Vermilion';
const MASTER = { COLLOQUY_MASTER_KEY: masterKey('one') };

const inOrder = (events: readonly Heard[]): Heard[] =>
  [...events].sort((a, b) =>
    a.sessionId < b.sessionId ? -1 : a.sessionId > b.sessionId ? 1 : a.version - b.version,
  );
const of = (events: readonly Heard[], sessionId: string): Heard[] =>
  events.filter((event) => event.sessionId === sessionId);

describeWithKafka('events on Kafka', (brokers) => {
  const ends: (() => Promise<unknown>)[] = [];
  const worlds: World[] = [];
  afterAll(async () => {
    for (const end of ends.reverse()) await end();
    for (const world of worlds) await world.end();
  });

  /** A database, and a folder whose settings name a topic of its own. */
  async function place(payload: 'plain' | 'sealed') {
    const world = await createWorld();
    worlds.push(world);
    const topic = `${payload}-${randomUUID()}`;
    const folder = await world.folder();
    await writeFile(join(folder, 'colloquy.yml'), `kafka: { topic: ${topic}, payload: ${payload} }\n`);
    const node = (env: Record<string, string>): Promise<Node> =>
      world.node({ LOG_LEVEL: 'debug', ...env }, folder);
    return { world, topic, node };
  }

  /** A consumer that goes on until the end of the file. */
  function consumer(topic: string, more: Parameters<typeof listen>[3] = {}): Heard[] {
    const heard: Heard[] = [];
    const started = listen(brokers, topic, (event) => heard.push(event), { groupId: randomUUID(), ...more });
    ends.push(() => started.stop());
    return heard;
  }

  const rowsOf = async ({ database }: World): Promise<number> =>
    (await database.query<{ count: number }>('select count(*)::int as count from event'))[0]?.count ?? 0;

  describe('sealed', () => {
    let world: World;
    let topic: string;
    let start: (env: Record<string, string>) => Promise<Node>;
    let one: Node;
    let port: number;
    let records: IncomingMessage[];
    let opened: Heard[];
    let sealed: Heard[];

    /** What a consumer would get if the topic were plain. */
    async function asPlain(): Promise<Heard[]> {
      const log = await EventLog.open(world.database.url, {
        upcast,
        masterKeys: [MASTER.COLLOQUY_MASTER_KEY],
      });
      try {
        const lanes = new Map(Array.from({ length: log.laneCount }, (_, lane) => [lane, 0]));
        const stored = await log.lanes.readStored(lanes, 10_000);
        return stored.flatMap((event) => {
          const { key, value, headers } = toMessage(event, currentJson(event), 16, 1_000_000);
          return toEvent({ offset: '0', key, value: Buffer.from(value), headers }) ?? [];
        });
      } finally {
        await log.close();
      }
    }

    const recordOf = (sessionId: string, version: number): IncomingMessage => {
      const found = records.find((record) => {
        const at = placeOf(record);
        return at.sessionId === sessionId && at.version === version;
      });
      if (!found) throw new Error(`the topic has no version ${version} of ${sessionId}`);
      return found;
    };
    const ringRecord = (record: IncomingMessage) => {
      const payload = sealedIn(record);
      if (!payload) throw new Error('the record is not sealed');
      return { ...payload, generation: 1, cell: undefined };
    };
    const keyPath = (record: IncomingMessage): string => {
      const { keyId, streamId, version } = ringRecord(record);
      return `/v1/keys/${keyId}?session=${streamId}&version=${version}`;
    };

    /** Some of what can happen to sessions, with a planted word in whatever people and models say. */
    async function live(api: Api): Promise<void> {
      const sessions = ['a', 'b', 'c'];
      const step = fc.record({
        session: fc.constantFrom(...sessions),
        what: fc.constantFrom('create', 'say', 'say', 'chat', 'title', 'reset', 'delete', 'rewind', 'erase'),
        text: fc
          .string({ unit: 'binary', maxLength: 40 })
          .map((text) => `${PLANTED} ${text.replaceAll('\0', '')}`),
      });
      const [steps = []] = fc.sample(fc.array(step, { minLength: 60, maxLength: 60 }), {
        seed: 7,
        numRuns: 1,
      });
      await api.post('/v1/sessions', { id: 'kept', title: PLANTED, metadata: { note: PLANTED } });
      for (const { session, what, text } of steps) {
        const path = `/v1/sessions/${session}`;
        const { status } = await {
          create: () => api.post('/v1/sessions', { id: session, title: text, metadata: { text } }),
          say: () => api.post(`${path}/messages`, user(text)),
          chat: () => api.post('/v1/chat', { sessionId: session, message: text }),
          title: () => api.patch(path, { title: text }),
          reset: () => api.post(`${path}/reset`, { reason: text }),
          delete: () => api.delete(path),
          rewind: () => api.post(`${path}/rewind`, { toVersion: 1, reason: text }),
          erase: () => api.post(`${path}/erase`),
        }[what]();
        expect(status).toBeLessThan(500);
      }
      await say(api, 'kept', `${PLANTED} words`);
      await api.post('/v1/sessions', { id: 'talk', title: PLANTED });
      await say(api, 'talk', `${PLANTED} question`);
    }

    beforeAll(async () => {
      ({ world, topic, node: start } = await place('sealed'));
      port = await freePort();
      one = await start({ ...MASTER, KAFKA_BROKERS: brokers, PORT: String(port) });
      const listening = await tap(brokers, topic);
      ends.push(() => listening.stop());
      opened = consumer(topic, { keys: { url: one.api.url } });
      sealed = consumer(topic);
      await live(one.api);
      await listening.distinct(await rowsOf(world));
      records = listening.records.map(({ message }) => toIncomingMessage(message));
    });

    it('given a history of all kinds of events, when it is published, then no record has anything of what was said, and each is a valid CloudEvent', () => {
      const raw = records.map(
        ({ key, value, headers }) => `${key}${value?.toString('latin1') ?? ''}${JSON.stringify(headers)}`,
      );
      expect(raw.filter((text) => text.includes(PLANTED))).toEqual([]);
      const kinds = new Set(records.map(({ headers }) => `${headers['ce_type']} ${headers['content-type']}`));
      expect(kinds).toContain('colloquy.MessageAppended.v2 application/octet-stream');
      // What was erased, and by which keys, is no secret.
      expect(kinds).toContain('colloquy.SessionErased.v1 application/json');
      for (const { headers, value } of records) {
        const isErasure = headers['ce_type'] === 'colloquy.SessionErased.v1';
        expect(headers['ce_sealed']).toBe(isErasure ? undefined : 'chacha20-poly1305;v=4');
        const event = CloudEventsKafka.toEvent({ headers, value } as never) as CloudEvent;
        expect(event.validate()).toBe(true);
        expect(event['keyid']).toBe(headers['ce_keyid']);
      }
    });

    it('given a consumer with access to keys, when it has read the topic, then it has seen what a plain topic would have shown; one without has seen the same order and envelopes, and no data', async () => {
      const count = await rowsOf(world);
      await eventually(() => Promise.resolve(opened.length === count && sealed.length === count), 30_000);
      const plain = inOrder(await asPlain());
      expect(plain.filter((event) => event.type === 'unknown' && event.erased).length).toBeGreaterThan(0);
      expect(JSON.stringify(plain)).toContain(PLANTED);
      // Some were read before they were erased, as a plain topic would have shown them then.
      const withoutErased = (events: readonly Heard[]) =>
        inOrder(events).map((event) =>
          plain.some((one) => one.id === event.id && one.type === 'unknown') ? { id: event.id } : event,
        );
      expect(withoutErased(opened)).toEqual(withoutErased(plain));
      expect(JSON.stringify(sealed)).not.toContain(PLANTED);
      const placesOf = (events: readonly Heard[]) =>
        inOrder(events).map(({ id, tenant, sessionId, incarnation, version, time }) => [
          ...[id, tenant, sessionId, incarnation, version, time],
        ]);
      expect(placesOf(sealed)).toEqual(placesOf(plain));
      for (const event of sealed) {
        if (event.type === 'SessionErased') continue;
        expect(event).toMatchObject({
          type: 'unknown',
          data: null,
          sealed: { bytes: expect.any(Buffer) as Buffer },
        });
      }
      // In the order of their versions as they came, too.
      for (const session of new Set(sealed.map(({ sessionId }) => sessionId))) {
        const versions = of(sealed, session).map(({ version }) => version);
        expect(versions).toEqual(versions.map((_, index) => index + 1));
      }
    });

    it('given a record and its key, when it is opened as docs/events.md says, then it is the data', async () => {
      const record = recordOf('kept', 2);
      const answer = await one.api.get<{ key: string }>(keyPath(record));
      expect(answer).toMatchObject({ status: 200, body: { maxAgeSeconds: 60 } });
      expect(answer.headers.get('cache-control')).toBe('private, max-age=60');
      const { value, headers } = record;
      if (!value) throw new Error('there is no value');
      expect(value[0]).toBe(4);
      const [nonce, tag, text] = [value.subarray(1, 13), value.subarray(13, 29), value.subarray(29, -32)];
      const type = headers['ce_type']?.split('.')[1];
      const identity = [
        headers['ce_tenant'],
        headers['ce_subject'],
        Number(headers['ce_sessionversion']),
        type,
      ];
      const key = Buffer.from(answer.body.key, 'base64');
      const cipher = createDecipheriv('chacha20-poly1305', key, nonce, { authTagLength: 16 });
      cipher.setAAD(Buffer.from(JSON.stringify(identity)), { plaintextLength: text.length }).setAuthTag(tag);
      const plain = Buffer.concat([cipher.update(text), cipher.final()]).toString();
      expect(JSON.parse(plain.slice(22))).toMatchObject({ role: 'user', content: `${PLANTED} words` });
      expect(world.output()).not.toContain(answer.body.key);
    });

    it('given the key of an event, when it is asked for by another tenant, for another session or version, then there is none; and one that is no UUID is a bad request', async () => {
      const path = keyPath(recordOf('kept', 2));
      const asked = [
        one.api.get(path, { 'colloquy-tenant': 'other' }),
        one.api.get(path.replace('session=kept', 'session=talk')),
        one.api.get(path.replace('version=2', 'version=3')),
        one.api.get(path.replace(/keys\/[^?]+/, `keys/${randomUUID()}`)),
      ];
      for (const answer of await Promise.all(asked))
        expect(answer).toMatchObject({ status: 404, body: { code: 'key-not-found', logGeneration: 1 } });
      for (const bad of [
        '/v1/keys/1?session=kept&version=2',
        path.replace('version=2', 'version=0'),
        path.split('&')[0] ?? '',
      ])
        expect(await one.api.get(bad)).toMatchObject({ status: 400, body: { code: 'invalid-request' } });
    });

    it('given a consumer that has the key, when the session is erased, then the key opens nothing after a minute, nobody gets it any more, and who reads the topic from then on gets erased events', async () => {
      let clock = 1_000;
      const ring = new KeyRing({ url: one.api.url }, () => clock);
      const record = ringRecord(recordOf('talk', 2));
      try {
        expect(await ring.open(record)).toMatchObject({ content: `${PLANTED} question` });
        expect((await one.api.post('/v1/sessions/talk/erase')).status).toBe(200);
        clock += 60_001;
        expect(await ring.open(record)).toBeNull();
      } finally {
        ring.close();
      }
      expect(await one.api.get(keyPath(recordOf('talk', 2)))).toMatchObject({
        status: 410,
        body: { code: 'key-destroyed' },
      });
      const late = consumer(topic, { keys: { url: one.api.url } });
      const count = await rowsOf(world);
      await eventually(() => Promise.resolve(late.length === count), 30_000);
      expect(of(late, 'talk')).toMatchObject([
        { version: 1, type: 'unknown', ceType: 'colloquy.SessionCreated.v1', data: null, erased: true },
        { version: 2, type: 'unknown', ceType: 'colloquy.MessageAppended.v2', data: null, erased: true },
        { version: 3, type: 'SessionErased', data: { incarnations: [{ incarnation: 1, from: 1, to: 2 }] } },
      ]);
      // All that was erased before is erased for it as well: now it is as a plain topic would be that begins now.
      expect(inOrder(late)).toEqual(inOrder(await asPlain()));
    });

    it('given a service that is away, when a consumer comes to sealed events, then it waits and skips nothing, and goes on by itself when the service is back', async () => {
      await one.service.stop();
      const errors: unknown[] = [];
      const waiting = consumer(topic, {
        keys: { url: one.api.url },
        onError: (error) => errors.push(error),
      });
      await eventually(() => Promise.resolve(errors.length >= 2), 30_000);
      const isReadable = (event: Heard): boolean => event.type !== 'SessionErased';
      expect(waiting.filter(isReadable)).toEqual([]);
      one = await start({ ...MASTER, KAFKA_BROKERS: brokers, PORT: String(port) });
      const plain = await asPlain();
      await eventually(() => Promise.resolve(waiting.length === plain.length), 50_000);
      expect(inOrder(waiting)).toEqual(inOrder(plain));
    });

    it('given no master key that seals, when the service starts, then it says what is wrong and does not', async () => {
      const empty = await place('sealed');
      const started = empty.node({ KAFKA_BROKERS: brokers });
      await expect(started).rejects.toThrow('kafka.payload is sealed, and no master key seals');
      const plain = empty.node({ COLLOQUY_MASTER_KEY: `plain,${MASTER.COLLOQUY_MASTER_KEY}` });
      await expect(plain).rejects.toThrow('no master key seals');
    });
  });

  it('given plain values, when sessions are erased before they are published and after, then consumers get erased events, or what there was, and the erasure', async () => {
    const { topic, node } = await place('plain');
    const before = await node(MASTER);
    for (const id of ['before', 'after']) {
      await before.api.post('/v1/sessions', { id, title: PLANTED });
      await say(before.api, id, `${PLANTED} ${id}`);
    }
    expect((await before.api.post('/v1/sessions/before/erase')).status).toBe(200);
    await before.service.stop();

    const { api } = await node({ ...MASTER, KAFKA_BROKERS: brokers });
    const listening = await tap(brokers, topic);
    ends.push(() => listening.stop());
    const heard = consumer(topic);
    await eventually(() => Promise.resolve(heard.length === 5), 30_000);
    const erased = { type: 'unknown', data: null, erased: true };
    expect(of(heard, 'before')).toMatchObject([
      { ...erased, version: 1, ceType: 'colloquy.SessionCreated.v1' },
      { ...erased, version: 2, ceType: 'colloquy.MessageAppended.v2' },
      { version: 3, type: 'SessionErased' },
    ]);
    expect(of(heard, 'after')).toMatchObject([
      { version: 1, type: 'SessionCreated', data: { title: PLANTED } },
      { version: 2, type: 'MessageAppended', data: { content: `${PLANTED} after` } },
    ]);
    expect((await api.post('/v1/sessions/after/erase')).status).toBe(200);
    await eventually(() => Promise.resolve(heard.length === 6), 30_000);
    expect(of(heard, 'after')[2]).toMatchObject({ version: 3, type: 'SessionErased' });
    const raw = listening.records.map(({ message }) => message.value?.toString() ?? '').join('\n');
    expect(raw).not.toContain(`${PLANTED} before`);
  });
});
