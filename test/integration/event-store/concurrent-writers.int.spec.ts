import { type AppendResult, type StreamEnd } from '../../../src/event-store/append.js';
import { type EventLog } from '../../../src/event-store/log.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { sealingCodec } from '../../support/sealing-codec.js';
import { by, expectSoundLog, logPerTest, seeded, sized, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

describe('many writers on one stream', () => {
  it.each([1, 2])(
    'given 64 writers over %i node(s), when each appends again and again, then versions are 1…N without gaps or duplicates',
    async (count) => {
      const stores = await Promise.all(Array.from({ length: count }, () => nodes.start(db.url)));
      const handlers = stores.map((store) => tallies(store));
      const stream = { tenant: 'acme', streamId: 'hot' };
      const random = seeded();
      const rounds = sized(40, 8);
      const versions: number[] = [];
      let sum = 0;

      await Promise.all(
        Array.from({ length: 64 }, async (_, writer) => {
          for (let round = 0; round < rounds; round += 1) {
            const number = random(1_000);
            const handled = await handlers[writer % count]?.handle(stream, { numbers: [number] }, by);
            versions.push(handled?.state.version ?? 0);
            sum += number;
          }
        }),
      );

      const total = 64 * rounds;
      expect(versions.sort((a, b) => a - b)).toEqual(Array.from({ length: total }, (_, index) => index + 1));
      // The stored state equals a fold of the log, so no writer decided on an outdated state.
      const folded = await tallies(stores[0] as EventLog, { stateVersion: 2 }).load(stream);
      expect(folded.state).toMatchObject({ version: total, sum });
      expect((await tallies(stores[0] as EventLog).load(stream)).state).toEqual(folded.state);
    },
    60_000,
  );
});

describe('a batch', () => {
  it('given 20 appends in one commit, when one expects a wrong version, then it conflicts alone', async () => {
    const store = await nodes.start(db.url);
    const stream = (index: number) => ({ tenant: 'acme', streamId: `s${index}` });
    const written = [{ type: 'Written', data: {} }];
    await store.append(appendOf(stream(7), 0, written));

    const results = await Promise.all(
      Array.from({ length: 20 }, (_, index) => store.append(appendOf(stream(index), 0, written))),
    );

    expect(results.map((result) => result.status)).toEqual(
      Array.from({ length: 20 }, (_, index) => (index === 7 ? 'conflict' : 'ok')),
    );
    expect(results[7]).toEqual({ status: 'conflict', version: 1 });
    // Even and odd lanes have a writer each, so at most two transactions committed the 19 appends.
    const commits = await db.query(`select distinct xmin::text from event where stream_id <> 's7'`);
    expect(commits.length).toBeLessThanOrEqual(2);
  });

  it('given 20 appends in one commit, when the server cannot store one, then that one fails alone', async () => {
    const store = await nodes.start(db.url);

    const outcomes = await Promise.allSettled(
      Array.from({ length: 20 }, (_, index) =>
        store.append(
          appendOf({ tenant: 'acme', streamId: `s${index}` }, 0, [
            // jsonb cannot store NUL.
            { type: 'Written', data: { text: index === 7 ? '\u0000' : 'fine' } },
          ]),
        ),
      ),
    );

    expect(outcomes.map((outcome) => outcome.status)).toEqual(
      Array.from({ length: 20 }, (_, index) => (index === 7 ? 'rejected' : 'fulfilled')),
    );
    expect(await db.query('select stream_id from event order by 1')).toHaveLength(19);
  });

  it('given several appends to one stream, when none waits for the one before, then they are committed in order', async () => {
    const store = await nodes.start(db.url);
    const stream = { tenant: 'acme', streamId: 'in-order' };

    const results = await Promise.all(
      Array.from({ length: 30 }, (_, version) =>
        store.append(appendOf(stream, version, [{ type: 'Written', data: { version } }])),
      ),
    );

    expect(results.map((result) => result.status === 'ok' && result.version)).toEqual(
      Array.from({ length: 30 }, (_, index) => index + 1),
    );
  });
});

describe('the two ways into the log', () => {
  it.each(['plain', 'sealed'])(
    'given %s payloads, when the same appends go through append_event and append_chains, then the rows are the same',
    async (kind) => {
      const other = await createTestDatabase();
      try {
        // The codec does not wait, so that appends that are requested together reach the writer together.
        const options = kind === 'sealed' ? { codec: sealingCodec({ wait: () => Promise.resolve() }) } : {};
        // Each database lacks the other function, so that it is certain which function an append uses.
        for (const statement of ['drop function append_chains', fixedClock(0)]) await db.query(statement);
        for (const statement of ['drop function append_event', fixedClock(0)]) await other.query(statement);
        const lone = await nodes.start(db.url, options);
        const batched = await nodes.start(other.url, options);
        const stream = { tenant: 'acme', streamId: 'twin' };
        // The companion is in another lane of the same writer, so that there is one batch and positions stay
        // comparable.
        const companion = companionOf(lone, stream.streamId);
        const results: [AppendResult, AppendResult][] = [];
        const both = async (...[expected, events, more]: ParametersAfterStream) => {
          const [ours, theirs] = await Promise.all([
            lone.append(appendOf(stream, expected, events, more)),
            batched.append(appendOf(stream, expected, events, more)),
            batched.append(appendOf({ tenant: 'acme', streamId: companion }, results.length, [written(0)])),
          ]);
          results.push([ours, theirs]);
        };

        await both(0, [written(1)], { causationId: 'cause' });
        const { createdAt = '', lastActivityAt = '' } = { ...results[0]?.[0] } as Partial<StreamEnd>;
        const known = { createdAt, lastActivityAt };
        await both(1, [written(2)], { ...known, activity: false });
        await setBoth(db, other, 60_000);
        await both(2, [written(3)], { ...known, state: null, stateVersion: 7 });
        await setBoth(db, other, -60_000);
        await both(3, [written(4)], { incarnation: 2, actor: 'another' });
        // After so few events the stored state is not updated.
        const lag = { events: 0, bytes: 0 };
        await both(4, [{ type: 'Nothing', data: null }], { ...known, lag, activity: false, incarnation: 2 });
        // append_event takes only one sealed event at a time.
        const last =
          kind === 'plain' ? [written(6), { type: 'Nothing', data: null }, written(7)] : [written(6)];
        const owner = '00000000-0000-4000-8000-000000000002';
        await both(5, last, { incarnation: 2, lease: { name: 'work', owner, ms: 5_000 } });
        await both(3, [written(8)], { lease: { name: 'refused', owner, ms: 5_000 } });

        expect(results.map(([one]) => one.status)).toEqual(['ok', 'ok', 'ok', 'ok', 'ok', 'ok', 'conflict']);
        for (const [one, batch] of results) expect(batch).toEqual(one);
        const rows = (from: TestDatabase, table: string) =>
          from.query(
            `select to_jsonb(t) - 'id' as row from ${table} t where stream_id = 'twin' order by version`,
          );
        expect(await rows(db, 'event')).toHaveLength(5 + last.length);
        expect(await rows(other, 'event')).toEqual(await rows(db, 'event'));
        expect(await rows(other, 'stream_state')).toEqual(await rows(db, 'stream_state'));
        const leases = (from: TestDatabase) =>
          from.query('select name, owner, epoch > 0 as drawn, until from lease');
        expect(await leases(db)).toMatchObject([{ name: 'work', owner, drawn: true }]);
        expect(await leases(other)).toEqual(await leases(db));
        // An event without data reads like one whose data was erased.
        const read = (store: typeof lone) => store.streams.read(stream, { erasedToo: true });
        expect(await read(batched)).toMatchObject(
          (await read(lone)).map(({ data, version, time }) => ({ data, version, time })),
        );
        await nodes.stopAll();
        await expectSoundLog(other);
      } finally {
        await nodes.stopAll();
        await other.drop();
      }
    },
  );

  type ParametersAfterStream = Parameters<typeof appendOf> extends [unknown, ...infer Rest] ? Rest : never;
  const written = (number: number) => ({ type: 'Written', data: { number, text: 'ä "quoted"' } });
  const fixedClock = (offsetMs: number) =>
    `create or replace function colloquy_now() returns timestamptz language sql volatile as
     $$ select timestamptz '2026-11-22 10:00:00Z' + ${offsetMs} * interval '1 millisecond' $$`;
  const setBoth = async (one: TestDatabase, other: TestDatabase, offsetMs: number) => {
    await one.query(fixedClock(offsetMs));
    await other.query(fixedClock(offsetMs));
  };

  function companionOf(store: EventLog, streamId: string): string {
    const lane = store.laneOf({ tenant: 'acme', streamId });
    for (let index = 0; ; index += 1) {
      const candidate = `companion-${index}`;
      const other = store.laneOf({ tenant: 'acme', streamId: candidate });
      if (other !== lane && other % 2 === lane % 2) return candidate;
    }
  }
});
