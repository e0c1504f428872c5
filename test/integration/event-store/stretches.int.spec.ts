import { type EventLog, type EventLogOptions } from '../../../src/event-store/log.js';
import { type Stretch } from '../../../src/event-store/stretches.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { masterKey } from '../../support/master-keys.js';
import { sealingCodec } from '../../support/sealing-codec.js';
import { logPerTest } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

const STREAM = { tenant: 'acme', streamId: 's' };
const KNOWN = { Said: [1, 2] };
const KEYED: EventLogOptions = { masterKeys: [masterKey('one')] };

interface Said {
  readonly type?: string;
  readonly schemaVersion?: number;
  readonly data?: unknown;
}

/** Appends these events to the stream one by one, with data that tells their versions unless another is given. */
async function say(log: EventLog, events: readonly Said[], from = 0): Promise<void> {
  for (const [index, { type = 'Said', schemaVersion = 1, data }] of events.entries()) {
    const expected = from + index;
    const time = expected === 0 ? null : '2026-01-01T00:00:00.000Z';
    const append = appendOf(STREAM, expected, [], {
      createdAt: time,
      lastActivityAt: time,
      state: { version: expected + 1 },
      events: [{ type, schemaVersion, data: data ?? { said: `„${expected + 1}“ \\ "` } }],
    });
    expect(await log.append(append)).toMatchObject({ status: 'ok' });
  }
}
const some = (count: number): Said[] => Array.from({ length: count }, () => ({}));
const said = (version: number) => ({ version, type: 'Said', data: { said: `„${version}“ \\ "` } });

const next = (log: EventLog, after: number, limit = 100): Promise<Stretch | undefined> =>
  log.stretches.next(log.laneOf(STREAM), after, limit, KNOWN);
/** What a statement on the stretch finds. */
const eventsOf = (stretch: Stretch | undefined): Promise<unknown[]> =>
  db.query(`select version, type, data from ${stretch?.events ?? ''} e order by version`, [
    ...(stretch?.values ?? []),
  ]);

describe.each<[string, () => EventLogOptions]>([
  ['plain', () => ({})],
  ['sealed', () => KEYED],
  [
    'sealed in part',
    () => ({ codec: sealingCodec({ isSealing: ({ version }) => version > 3 && version % 3 > 0 }) }),
  ],
])('the stretches of a log that is %s', (_, options) => {
  it('given a log, when they are taken one after the other, then they have each event once, and end with it', async () => {
    const log = await nodes.start(db.url, options());
    await say(log, some(12));

    const found: unknown[] = [];
    let after = 0;
    for (let one = await next(log, 0, 5); one; one = await next(log, after, 5)) {
      expect(one.end).toBeGreaterThan(after);
      found.push(...(await eventsOf(one)));
      after = one.end;
    }
    expect(after).toBe(12);
    expect(found).toEqual(Array.from({ length: 12 }, (_one, index) => said(index + 1)));
  });

  it.each([
    ['type', { type: 'Unknown' }],
    ['schema version', { schemaVersion: 3 }],
  ])(
    'given an event of an unknown %s, then the stretch ends before it, and there is none at it',
    async (_what, odd) => {
      const log = await nodes.start(db.url, options());
      await say(log, [...some(6), odd, { schemaVersion: 2 }]);

      let after = 0;
      for (let one = await next(log, 0); one; one = await next(log, after)) after = one.end;
      expect(after).toBe(6);
      expect(await eventsOf(await next(log, 7))).toEqual([said(8)]);
    },
  );
});

it('given events whose key was destroyed, when a stretch is taken, then it goes past them and is without them', async () => {
  const log = await nodes.start(db.url, KEYED);
  await say(log, some(4));
  await db.query('update data_key set wrapped = null, destroyed_at = now() where wrapped is not null');
  const later = await nodes.start(db.url);
  await say(later, some(2), 4);

  const stretch = await next(await nodes.start(db.url, KEYED), 0);
  expect(stretch?.end).toBe(6);
  expect(await eventsOf(stretch)).toEqual([said(5), said(6)]);
});

it('given sealed bytes that were moved to another event, when stretches are taken, then they end before that event', async () => {
  const log = await nodes.start(db.url, KEYED);
  await say(log, some(8));
  await db.query(`
    insert into event (lane, position, tenant, stream_id, version, incarnation, id, type, schema_version, time,
                       actor, correlation_id, sealed, key_id)
    select e.lane, e.position + 1, e.tenant, e.stream_id, e.version + 1, e.incarnation, gen_random_uuid(), e.type,
           e.schema_version, e.time, e.actor, e.correlation_id, forged.sealed, e.key_id
    from event e, event forged where e.version = 8 and forged.version = 2`);

  expect((await next(log, 0))?.end).toBe(8);
  expect(await next(log, 8)).toBeUndefined();
});

it('given large events, when stretches are taken, then none has more than fits into memory, and one that does not fit comes alone', async () => {
  const log = await nodes.start(db.url, KEYED);
  const sizes = [1, 900_000, 900_000, 900_000, 900_000, 900_000, 5_000_000, 1];
  await say(
    log,
    sizes.map((size) => ({ data: { text: 'x'.repeat(size) } })),
  );

  const ends: number[] = [];
  let after = 0;
  for (let one = await next(log, 0); one; one = await next(log, after)) ends.push((after = one.end));
  expect(after).toBe(8);
  expect(ends).toContain(7);
  for (const [index, end] of ends.entries()) {
    const taken = sizes.slice(ends[index - 1] ?? 0, end);
    const bytes = taken.reduce((sum, size) => sum + size, 0);
    if (taken.length > 1) expect(bytes).toBeLessThan(4 * 1024 * 1024);
  }
});

it('given sealed events, when a process that has no keys asks for a stretch, then that is an error of the process', async () => {
  const keyless = await nodes.start(db.url);
  await say(await nodes.start(db.url, KEYED), some(1));

  await expect(next(keyless, 0)).rejects.toThrow('this process has no keys');
});
