import { randomBytes } from 'node:crypto';
import { memoryPlaces } from '../../../src/consumer.js';
import { type StoredEvent } from '../../../src/event-store/recorded-event.js';
import { seal } from '../../../src/event-store/sealing/sealed-bytes.js';
import { applyRecords } from '../../../src/kafka/apply-records.js';
import {
  type ConsumedEvent,
  currentJson,
  sealedIn,
  toEvent,
  toMessage,
  type UnknownEvent,
} from '../../../src/kafka/contract.js';
import { type IncomingMessage } from '../../../src/kafka/group-member.js';
import { KeyRing, type SealedRecord } from '../../../src/kafka/key-ring.js';

const KEY = randomBytes(32);
const KEY_ID = '00000000-0000-4000-8000-000000000001';
const DATA = { messageId: 'm', role: 'user', content: 'Where is the Ochre parcel?', status: 'complete' };

const envelope = (version: number) => ({
  ...{ id: `00000000-0000-4000-8000-00000000000${version}`, type: 'MessageAppended', schemaVersion: 2 },
  ...{ tenant: 'acme', streamId: 's', incarnation: 1, version, lane: 3, position: version },
  ...{ time: '2026-11-22T10:00:00.000Z', actor: 'a', correlationId: 'c', causationId: null },
});

const sealed = (version: number, more: Partial<StoredEvent> = {}, data: object = DATA): StoredEvent => {
  const one = { ...envelope(version), ...more };
  return {
    ...{ ...one, isCopy: false, json: 'null' },
    sealed: { keyId: KEY_ID, bytes: seal({ ...one, data }, KEY, 'chacha20-poly1305') },
  };
};

const published = (
  one: StoredEvent,
  { maxBytes = 1_000_000, cell = undefined as string | undefined } = {},
) => {
  const { key, value, headers } = toMessage(one, currentJson(one), 4, maxBytes, 1, cell);
  return { offset: '0', key, value: Buffer.from(value), headers } satisfies IncomingMessage;
};

const recordOf = (message: IncomingMessage): SealedRecord => {
  const payload = sealedIn(message);
  if (!payload) throw new Error('the record is not sealed');
  return { ...payload, generation: 1, cell: message.headers['ce_cell'] };
};

/** A service that has the key, until it is told otherwise. */
function service() {
  const state = { status: 200, body: undefined as object | undefined, isAway: false, takesMs: 0 };
  const asked: string[] = [];
  let clock = 1_000;
  const answer = (url: string): Response => {
    asked.push(url);
    clock += state.takesMs;
    if (state.isAway) throw new TypeError('fetch failed');
    const body = state.body ?? { id: KEY_ID, key: KEY.toString('base64'), maxAgeSeconds: 60 };
    return new Response(JSON.stringify(body), { status: state.status });
  };
  const ring = new KeyRing(
    {
      url: 'http://colloquy',
      apiKey: 'secret',
      fetch: async (url) => answer(await Promise.resolve(url as string)),
    },
    () => clock,
  );
  rings.push(ring);
  return {
    ring,
    asked,
    answers: (status: number, body: object): void => {
      Object.assign(state, { status, body });
    },
    takes: (takesMs: number): void => {
      state.takesMs = takesMs;
    },
    goesAway: (isAway: boolean): void => {
      state.isAway = isAway;
    },
    passes: (ms: number): void => {
      clock += ms;
    },
  };
}
const rings: KeyRing[] = [];
afterEach(() => {
  for (const ring of rings.splice(0)) ring.close();
});

describe('a record of a sealed event', () => {
  it('given an event that is sealed in the log, when it is published, then the value is what the log has, and headers say how it is sealed and with which key', () => {
    const event = sealed(1);
    const message = published(event);
    expect(message.value).toEqual(event.sealed?.bytes);
    expect(message.headers).toMatchObject({
      'content-type': 'application/octet-stream',
      ce_sealed: 'chacha20-poly1305;v=4',
      ce_keyid: KEY_ID,
      ce_type: 'colloquy.MessageAppended.v2',
      ce_dataschema: 'urn:colloquy:event:MessageAppended:v2',
    });
    expect(JSON.stringify(message)).not.toContain('Ochre');
  });

  it('given an event of an earlier schema version, when it is published sealed and opened, then it is published as it was written, and lifted by who opens it', () => {
    const created = { type: 'MessageAppended', schemaVersion: 1 };
    const message = published(sealed(1, created));
    expect(message.headers['ce_type']).toBe('colloquy.MessageAppended.v1');
    expect(toEvent(message, DATA)).toMatchObject({ type: 'MessageAppended', schemaVersion: 2, data: DATA });
  });

  it('given a sealed event that is too large, when it is published, then its record is a reference that is not sealed', () => {
    const message = published(sealed(1, {}, { ...DATA, content: 'x'.repeat(30_000) }), { maxBytes: 20_000 });
    expect(message.headers).toMatchObject({
      'content-type': 'application/json',
      ce_dataref: '/v1/sessions/s/events?after=0&limit=1',
    });
    expect(sealedIn(message)).toBeUndefined();
    expect(toEvent(message)).toBeUndefined();
  });

  it('given nobody who opens it, when it is consumed, then it comes with its envelope, its key id and its bytes, and without data', () => {
    const event = sealed(4);
    expect(toEvent(published(event))).toEqual({
      ...{ id: event.id, tenant: 'acme', sessionId: 's', incarnation: 1, version: 4, time: event.time },
      ...{ correlationId: 'c', schemaVersion: 2, type: 'unknown', ceType: 'colloquy.MessageAppended.v2' },
      ...{ data: null, sealed: event.sealed },
    });
  });

  it('given a record that says it is sealed and not with which key, when it is consumed, then that is an error', () => {
    const message = published(sealed(1));
    const headers = { ...message.headers, ce_keyid: 'none' };
    expect(() => toEvent({ ...message, headers })).toThrow('does not say with which key');
  });
});

describe('keys of sealed values', () => {
  it('given a key that was fetched, when more is sealed with it, then it is asked for again after a minute, counted from the request', async () => {
    const { ring, asked, passes, takes } = service();
    const record = recordOf(published(sealed(1)));
    takes(10_000);
    expect(await ring.open(record)).toEqual(DATA);
    passes(50_000);
    expect(await ring.open(recordOf(published(sealed(2))))).toEqual(DATA);
    expect(asked).toEqual([`http://colloquy/v1/keys/${KEY_ID}?session=s&version=1`]);
    passes(1);
    expect(await ring.open(record)).toEqual(DATA);
    expect(asked).toHaveLength(2);
  });

  it('given an erasure, when the minute is over, then what was opened before is opened by nobody', async () => {
    const { ring, answers, passes } = service();
    const message = published(sealed(1));
    expect(await ring.open(recordOf(message))).toEqual(DATA);
    answers(410, { code: 'key-destroyed' });
    passes(60_001);
    const opened = await ring.open(recordOf(message));
    expect(opened).toBeNull();
    expect(toEvent(message, opened)).toMatchObject({ type: 'unknown', data: null, erased: true, version: 1 });
    expect(toEvent(message, opened)).not.toHaveProperty('sealed');
  });

  it('given a service that allows less than a minute, when the time is over, then the key is asked for again', async () => {
    const { ring, asked, answers, passes } = service();
    answers(200, { key: KEY.toString('base64'), maxAgeSeconds: 5 });
    const record = recordOf(published(sealed(1)));
    await ring.open(record);
    passes(5_000);
    await ring.open(record);
    expect(asked).toHaveLength(1);
    passes(1);
    await ring.open(record);
    expect(asked).toHaveLength(2);
  });

  it('given many records, when they are prepared, then each key is asked for once', async () => {
    const { ring, asked } = service();
    const records = Array.from({ length: 40 }, (_, index) => ({
      ...recordOf(published(sealed(1))),
      keyId: `00000000-0000-4000-8000-0000000000${10 + (index % 20)}`,
    }));
    await ring.prepare(records);
    expect(new Set(asked).size).toBe(20);
    expect(asked).toHaveLength(20);
    await ring.prepare(records);
    expect(asked).toHaveLength(20);
  });

  it.each([
    ['its tenant is not that of the API key', 403, { code: 'forbidden' }],
    ['the service is overloaded', 503, { code: 'overloaded' }],
    ['there is another server', 404, {}],
    ['the log has no such event and was never set back', 404, { code: 'key-not-found', logGeneration: 1 }],
  ])(
    'given that %s, when a value is to be opened, then it is an error that names the event',
    async (_, status, body) => {
      const { ring, answers } = service();
      answers(status, body);
      await expect(ring.open(recordOf(published(sealed(7))))).rejects.toThrow(
        `the key of version 7 of acme/s could not be fetched: http://colloquy/v1/keys/${KEY_ID}?session=s&version=7 answered ${status}`,
      );
    },
  );

  it.each([
    ['the log was set back', { code: 'key-not-found', logGeneration: 2 }, undefined],
    ['its tenant has moved without it', { code: 'key-not-found', logGeneration: 1, cell: 'two' }, 'one'],
  ])(
    'given that %s, when a value is to be opened, then nobody has its key, and that is no error',
    async (_, body, cell) => {
      const { ring, answers } = service();
      answers(404, body);
      expect(await ring.open(recordOf(published(sealed(7), { cell })))).toBeUndefined();
    },
  );

  it('given a value that is that of another event, when it is opened, then that is an error', async () => {
    const { ring } = service();
    const message = published({ ...sealed(1), version: 2 });
    await expect(ring.open(recordOf(message))).rejects.toThrow('does not authenticate');
  });
});

it('given a service that is away, when sealed records come, then nothing is skipped, and all is applied when it is back; repetitions need no keys', async () => {
  const { ring, asked, goesAway, passes } = service();
  const seen: (ConsumedEvent | UnknownEvent)[] = [];
  const places = memoryPlaces();
  let onApplied = (): void => undefined;
  const messages = [1, 2, 3].map((version) => published(sealed(version)));
  const apply = () =>
    applyRecords(
      {
        ...{ places, keys: ring, page: { events: 1, bytes: 1_000_000 }, isOurs: () => true },
        apply: (events) => {
          seen.push(...events);
          onApplied();
          return Promise.resolve();
        },
      },
      messages,
    );
  goesAway(true);
  await expect(apply()).rejects.toThrow('fetch failed');
  expect(seen).toEqual([]);
  goesAway(false);
  // In the middle it goes away again, while a page takes so long that the keys which were fetched before run out.
  onApplied = () => {
    passes(60_001);
    goesAway(true);
  };
  await expect(apply()).rejects.toThrow('fetch failed');
  expect(seen).toHaveLength(1);
  onApplied = () => undefined;
  goesAway(false);
  expect(await apply()).toBe(true);
  expect(seen.map(({ version, type, data }) => ({ version, type, data }))).toEqual(
    [1, 2, 3].map((version) => ({ version, type: 'MessageAppended', data: DATA })),
  );
  const before = asked.length;
  ring.close();
  expect(await apply()).toBe(true);
  expect(asked).toHaveLength(before);
  expect(seen).toHaveLength(3);
});
