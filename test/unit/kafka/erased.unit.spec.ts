import { type StoredEvent } from '../../../src/event-store/recorded-event.js';
import { currentJson, fromAnswer, toEvent, toMessage } from '../../../src/kafka/contract.js';
import { type IncomingMessage } from '../../../src/kafka/group-member.js';

const event = (more: Partial<StoredEvent>): StoredEvent => ({
  ...{ id: '00000000-0000-4000-8000-000000000000', type: 'MessageAppended', schemaVersion: 1 },
  ...{ tenant: 'acme', streamId: 's', incarnation: 1, version: 2, lane: 3, position: 4 },
  ...{ time: '2026-11-22T10:00:00.000Z', actor: 'a', correlationId: 'c', causationId: null },
  ...{ json: 'null', isCopy: false },
  ...more,
});
const published = (one: StoredEvent): IncomingMessage => {
  const { key, value, headers, partition } = toMessage(one, currentJson(one), 4, 1_000_000);
  return { key: Buffer.from(key), value: Buffer.from(value), headers, partition, offset: '0' } as never;
};

it('given an event that was erased before it was published, when it is published, then its value is null, a header says so, and a consumer gets it as one that it need not know', () => {
  const message = published(event({ erased: true }));
  expect(message.value?.toString()).toBe('null');
  expect(message.headers).toMatchObject({ ce_erased: 'true', ce_type: 'colloquy.MessageAppended.v2' });
  expect(toEvent(message)).toMatchObject({
    ...{ type: 'unknown', ceType: 'colloquy.MessageAppended.v2', data: null, erased: true },
    ...{ tenant: 'acme', sessionId: 's', version: 2 },
  });
});

it('given an erasure, when it is published, then it is an event like any other', () => {
  const data = { incarnations: [{ incarnation: 1, from: 1, to: 2 }], keys: [] };
  const message = published(event({ type: 'SessionErased', version: 3, json: JSON.stringify(data) }));
  expect(message.headers).not.toHaveProperty('ce_erased');
  expect(toEvent(message)).toMatchObject({ type: 'SessionErased', data });
});

it('given an erased event as the API answers it, when a gap is filled with it, then it is the same', () => {
  const { streamId: sessionId, json: _json, isCopy: _copy, ...envelope } = event({});
  const answered = { ...envelope, sessionId, logGeneration: 1, data: null, erased: true as const };
  expect(fromAnswer(answered)).toMatchObject({ type: 'unknown', data: null, erased: true, version: 2 });
});
