import { DatabaseUnavailable } from '../../../src/database/connection.js';
import { Fenced, findPoison, isPoison } from '../../../src/projection-engine/poison.js';
import { type SessionRecord } from '../../../src/read-models/session-record.js';
import { seeded } from '../../integration/event-store/fixture.js';

const event = (streamId: string, version: number): SessionRecord =>
  ({ tenant: 'acme', streamId, version, lane: 3, type: 'SessionResumed', data: {} }) as SessionRecord;
const key = ({ streamId, version }: { streamId: string; version: number }) => `${streamId}@${version}`;

describe('finding poison', () => {
  it('given random batches with random bad events, when they are searched, then the first bad event of each session is found in few attempts', async () => {
    const random = seeded();
    for (let round = 0; round < 300; round += 1) {
      const versions = new Map<string, number>();
      const events = Array.from({ length: 1 + random(200) }, () => {
        const session = `s${random(40)}`;
        const version = (versions.get(session) ?? 0) + 1;
        versions.set(session, version);
        return event(session, version);
      });
      const bad = new Set(events.filter(() => random(60) === 0).map(key));
      let attempts = 0;

      const found = await findPoison(events, (some) => {
        attempts += 1;
        const first = some.find((one) => bad.has(key(one)));
        return first ? Promise.reject(new Error(`cannot take ${key(first)}`)) : Promise.resolve();
      });

      const expected = new Map<string, number>();
      for (const one of events)
        if (bad.has(key(one)) && !expected.has(one.streamId)) expected.set(one.streamId, one.version);
      expect(new Map(found.map(({ sessionId, version }) => [sessionId, version]))).toEqual(expected);
      for (const one of found) {
        expect(one).toMatchObject({ tenant: 'acme', lane: 3 });
        expect(one.error.message).toBe(`cannot take ${one.sessionId}@${one.version}`);
      }
      expect(attempts).toBeLessThanOrEqual(1 + expected.size * 30);
    }
  });

  it('given a failure that does not happen again, when the poison event is searched, then no session is named', async () => {
    expect(await findPoison([event('a', 1), event('b', 1)], () => Promise.resolve())).toEqual([]);
  });

  it('given a database that becomes unavailable meanwhile, when the poison event is searched, then its error is thrown and no session is named', async () => {
    const away = new DatabaseUnavailable(new Error('gone'));
    await expect(findPoison([event('a', 1)], () => Promise.reject(away))).rejects.toBe(away);
  });

  it.each([
    ['a bug', {}, true],
    ['a duplicate key', { severity: 'ERROR', code: '23505' }, true],
    ['bad text', { severity: 'ERROR', code: '22P02' }, true],
    ['a full disk', { severity: 'ERROR', code: '53100' }, false],
    ['a lock that was not to be had', { severity: 'ERROR', code: '55P03' }, false],
    ['a table that is gone', { severity: 'ERROR', code: '42P01' }, false],
    ['a server that is away', { code: 'ECONNREFUSED' }, false],
    ['Connection terminated unexpectedly', {}, false],
  ])('given %s (%j), when it is classified, then it is poison: %s', (message, more, expected) => {
    expect(isPoison(Object.assign(new Error(message), more))).toBe(expected);
  });

  it('given a batch that another node has already applied, when the refusal is classified, then it is not poison', () => {
    expect(isPoison(new Fenced())).toBe(false);
  });
});
