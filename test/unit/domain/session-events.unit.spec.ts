import { sessionEvents, upcast } from '../../../src/domain/session.events.js';
import { event, said, user } from './given-when-then.js';

describe('lifting stored data to the current schema', () => {
  const catalog = { Renamed: { version: 3 }, Settled: { version: 1 } };
  const steps = {
    Renamed: [
      ({ label, ...rest }: Record<string, unknown>) => ({ ...rest, title: label }),
      (data: Record<string, unknown>) => ({ ...data, titles: [data['title']] }),
    ],
  };

  it('applies every upcaster from the stored version on', () => {
    expect(upcast('Renamed', 1, { label: 'a', by: 'b' }, steps, catalog)).toEqual({
      title: 'a',
      titles: ['a'],
      by: 'b',
    });
    expect(upcast('Renamed', 2, { title: 'a' }, steps, catalog)).toEqual({ title: 'a', titles: ['a'] });
  });

  it('returns data of the current version unchanged', () => {
    const data = Object.freeze({ title: 'a', titles: ['a'] });
    expect(upcast('Renamed', 3, data, steps, catalog)).toBe(data);
    expect(upcast('Settled', 1, data, steps, catalog)).toBe(data);
  });

  it('refuses a type that it does not know', () => {
    expect(() => upcast('Unheard', 1, {}, steps, catalog)).toThrow('event type Unheard is not known');
    expect(() => upcast('constructor', 1, {})).toThrow('event type constructor is not known');
  });

  it('refuses a version newer than it knows', () => {
    expect(() => upcast('Renamed', 4, {}, steps, catalog)).toThrow('Renamed v4 is newer');
    expect(() => upcast('SessionCreated', 99, {})).toThrow('SessionCreated v99 is newer');
  });

  it('refuses data when an upcaster on the way is missing', () => {
    expect(() => upcast('Renamed', 1, {}, { Renamed: steps.Renamed.slice(0, 1) }, catalog)).toThrow(
      'no upcaster lifts Renamed from v2 to v3',
    );
    expect(() => upcast('Renamed', 1, {}, {}, catalog)).toThrow('no upcaster lifts Renamed from v1 to v2');
  });

  it.each(Object.entries(sessionEvents))('has every upcaster that %s needs', (type, { version }) => {
    const noSteps = () => upcast(type, version, {});
    expect(noSteps).not.toThrow();
    for (let from = 1; from < version; from += 1) {
      expect(() => upcast(type, from, {})).not.toThrow('no upcaster');
    }
  });
});

describe('the schemas of events', () => {
  it.each([
    ['a message of no role', said(user('m1', { role: 'robot' as never }))],
    ['a message without parts', said(user('m1', { content: [] }))],
    ['a message with an unknown part', said(user('m1', { content: [{ type: 'sound' } as never] }))],
    ['an empty message id', said(user(''))],
    ['a tool name with a space', event('ToolApprovalRevoked', { tool: 'a b' })],
    ['an approval of unknown scope', event('ToolApprovalGranted', { tool: 'a', scope: 'ever' as never })],
    ['an empty title', event('SessionCreated', { title: '' })],
    ['metadata of more than 16 KiB', event('SessionCreated', { metadata: { a: 'x'.repeat(16_384) } })],
    [
      'usage below zero',
      event('GenerationCancelled', {
        generationId: 'g',
        model: 'm',
        usage: { inputTokens: -1, outputTokens: 0 },
      }),
    ],
    ['a fork of version 0', event('SessionCreated', { forkedFrom: { sessionId: 'bob', version: 0 } })],
    [
      'a time without zone',
      event('SessionExpired', { reason: 'ttl', lastActivityAt: '2026-01-01T00:00:00' }),
    ],
  ])('refuse %s', (_, { type, data }) => {
    expect(sessionEvents[type].data.safeParse(data).success).toBe(false);
  });
});
