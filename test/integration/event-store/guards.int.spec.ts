import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { expectSoundLog, Nodes } from './fixture.js';

let db: TestDatabase;
let store: EventLog;
const nodes = new Nodes();
beforeEach(async () => {
  db = await createTestDatabase();
  store = await nodes.start(db.url);
});
afterEach(async () => {
  await nodes.stopAll();
  await expectSoundLog(db).finally(() => db.drop());
});

const HOUR_MS = 3_600_000;
const stream = { tenant: 'acme', streamId: 'a' };
const written = [{ type: 'Written', data: {} }];

interface Times {
  readonly createdAt: string | null;
  readonly lastActivityAt: string | null;
}
/** What a writer knows about the end of the stream. */
let known: Times;
beforeEach(() => {
  known = { createdAt: null, lastActivityAt: null };
});

async function append(
  expected: number,
  more: Parameters<typeof appendOf>[3] = {},
): Promise<{ version: number; time: string; createdAt: string; lastActivityAt: string }> {
  const result = await store.append(appendOf(stream, expected, written, { ...known, ...more }));
  if (result.status !== 'ok') throw new Error(result.status);
  known = { createdAt: result.createdAt, lastActivityAt: result.lastActivityAt };
  return result;
}
const refusedBy = async (expected: number, more: Parameters<typeof appendOf>[3]) => {
  const before = await store.streams.load(stream);
  const { status } = await store.append(appendOf(stream, expected, written, { ...known, ...more }));
  expect(await store.streams.load(stream)).toEqual(before);
  return status;
};
const msBetween = (from: string, to: string) => Date.parse(to) - Date.parse(from);

describe('guards', () => {
  it('given a stream, when it was idle for a moment less than required, then idleFor does not hold; a moment later it does', async () => {
    await append(0);
    expect(await refusedBy(1, { guard: { idleFor: HOUR_MS } })).toBe('guard');
    await db.setClock({ offsetMs: HOUR_MS - 10_000 });
    expect(await refusedBy(1, { guard: { idleFor: HOUR_MS } })).toBe('guard');
    await db.setClock({ offsetMs: HOUR_MS });
    await append(1, { guard: { idleFor: HOUR_MS }, activity: false });
    // Events that are no activity do not count as use.
    await append(2, { guard: { idleFor: HOUR_MS } });
    // The last append counted as use.
    expect(await refusedBy(3, { guard: { idleFor: 1_000 } })).toBe('guard');
  });

  it('given a point in time, when the append would be stamped at it or later, then before does not hold', async () => {
    const { time } = await append(0);
    const limit = new Date(Date.parse(time) + HOUR_MS).toISOString();

    await append(1, { guard: { before: limit } });
    await db.setClock({ offsetMs: HOUR_MS });
    expect(await refusedBy(2, { guard: { before: limit } })).toBe('guard');
    // When the clock goes back, the stamp does not, and the guard is checked against the stamp.
    await append(2);
    await db.setClock({ offsetMs: 0 });
    expect(await refusedBy(3, { guard: { before: limit } })).toBe('guard');
  });

  it('given a stamp that equals the limit, when the append is made, then before does not hold and idleFor does', async () => {
    const frozen = (time: string) =>
      db.query(`create or replace function colloquy_now() returns timestamptz language sql volatile as
        $$ select timestamptz '${time}' $$`);
    await frozen('2026-11-22 10:00:00Z');
    await append(0);
    await frozen('2026-11-22 10:00:05Z');

    expect(await refusedBy(1, { guard: { before: '2026-11-22T10:00:05Z' } })).toBe('guard');
    expect(await refusedBy(1, { guard: { idleFor: 5_001 } })).toBe('guard');
    await append(1, { guard: { idleFor: 5_000 }, activity: false });
    await append(2, { guard: { before: '2026-11-22T10:00:05.001Z' } });
  });

  it('given a lease, when it is valid, then leaseOver does not hold; when it is missing or has expired, it does', async () => {
    const take = `select * from lease_take(array['generation:g'], gen_random_uuid(), 6000)`;
    await append(0, { guard: { leaseOver: 'generation:g' } });
    await db.query(take);
    expect(await refusedBy(1, { guard: { leaseOver: 'generation:g' } })).toBe('guard');
    await append(1, { guard: { leaseOver: 'generation:other' } });
    await db.setClock({ offsetMs: 7_000 });
    await append(2, { guard: { leaseOver: 'generation:g' } });
  });

  it('given a wrong version and a guard that does not hold, when an append has both, then the conflict is reported', async () => {
    await append(0);
    expect(await refusedBy(7, { guard: { idleFor: HOUR_MS } })).toBe('conflict');
  });
});

describe('stamps', () => {
  it('given a clock that goes back an hour, when events are appended, then the time of the stream does not go back, whichever function appends', async () => {
    await db.setClock({ offsetMs: HOUR_MS });
    const first = await append(0);
    await db.setClock({ offsetMs: 0 });

    const lone = await append(1);
    const guarded = await append(2, { guard: { idleFor: 0 } });
    const other = await store.append(appendOf({ tenant: 'acme', streamId: 'b' }, 0, written));

    expect([lone.time, guarded.time]).toEqual([first.time, first.time]);
    // Another stream has a time of its own.
    expect(other.status === 'ok' && msBetween(other.time, first.time)).toBeGreaterThan(HOUR_MS - 60_000);
    await db.setClock({ offsetMs: 2 * HOUR_MS });
    expect(msBetween(first.time, (await append(3)).time)).toBeGreaterThan(HOUR_MS - 60_000);
  });

  it('given a stream, when events are appended, then its creation is that of its incarnation, and its last activity that of the last event that counts as activity', async () => {
    const at = async (minutes: number) => db.setClock({ offsetMs: minutes * 60_000 });
    const created = await append(0);
    await at(1);
    const used = await append(1);
    await at(2);
    const unused = await append(2, { activity: false });
    await at(3);
    const again = await append(3, { incarnation: 2, createdAt: null, guard: { idleFor: 0 } });
    await at(4);
    const same = await append(4, { incarnation: 2, activity: false, guard: { idleFor: 0 } });

    expect(created).toMatchObject({ createdAt: created.time, lastActivityAt: created.time });
    expect(msBetween(created.time, used.time)).toBeGreaterThanOrEqual(60_000);
    expect(used).toMatchObject({ createdAt: created.time, lastActivityAt: used.time });
    expect(unused).toMatchObject({ createdAt: created.time, lastActivityAt: used.time });
    expect(again).toMatchObject({ createdAt: again.time, lastActivityAt: again.time });
    expect(same).toMatchObject({ createdAt: again.time, lastActivityAt: again.time });
    expect(await store.streams.load(stream)).toMatchObject({
      version: 5,
      incarnation: 2,
      time: same.time,
      createdAt: again.time,
      lastActivityAt: again.time,
    });
  });

  it('given many streams in one commit, when their events are stamped, then times are whole milliseconds', async () => {
    await Promise.all(
      Array.from({ length: 10 }, (_, index) =>
        store.append(appendOf({ tenant: 'acme', streamId: `s${index}` }, 0, [...written, ...written])),
      ),
    );
    expect(await db.query(`select time from event where time <> date_trunc('milliseconds', time)`)).toEqual(
      [],
    );
  });

  it('given a stream, when its version at a time is requested, then it is the last version up to that time', async () => {
    const times = [];
    for (let version = 0; version < 4; version += 1) {
      await db.setClock({ offsetMs: version * 60_000 });
      times.push((await append(version, { incarnation: version < 2 ? 1 : 2 })).time);
    }
    expect(await store.streams.lastVersion(stream, 1)).toEqual({ version: 2, time: times[1] });
    expect(await store.streams.lastVersion(stream, 2)).toMatchObject({ version: 4 });
    expect(await store.streams.lastVersion(stream, 3)).toBeUndefined();
    expect(await store.streams.lastVersion(stream, 2, { time: times[2] ?? '' })).toMatchObject({
      version: 3,
    });
    expect(await store.streams.lastVersion(stream, 2, { version: 3 })).toMatchObject({ version: 3 });
    expect(await store.streams.lastVersion(stream, 2, { time: times[1] ?? '' })).toBeUndefined();
  });
});
