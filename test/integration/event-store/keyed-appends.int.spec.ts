import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { KeyReused } from '../../../src/event-store/refusals.js';
import { blocked, by, logPerTest, sized, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

const HOUR_MS = 3_600_000;
const written = [{ type: 'Written', data: {} }];
const stream = (streamId: string) => ({ tenant: 'acme', streamId });
const key = (more: object = {}) => ({
  scope: 'POST /x',
  key: 'k',
  fingerprint: 'f',
  reference: { n: 1 },
  ...more,
});
const kept = () => db.query('select key, fingerprint, stream_id, version from command order by key');
const eventCount = async () => (await db.query('select from event')).length;

describe('a keyed append', () => {
  it('given an append that was made, when it is sent again, then it gets the first result and nothing is appended', async () => {
    const store = await nodes.start(db.url);
    const first = await store.append(appendOf(stream('a'), 0, written, { key: key() }));
    await store.append(appendOf(stream('a'), 1, written));

    // The retry does not know the stream's version, and its reference would be another one.
    const again = await store.append(
      appendOf(stream('a'), 2, written, { key: key({ reference: { n: 2 } }) }),
    );

    expect(first).toMatchObject({ status: 'ok', version: 1 });
    expect(again).toEqual({ status: 'duplicate', version: 1, reference: { n: 1 } });
    expect(await store.keyed.find('acme', 'POST /x', 'k')).toEqual({
      fingerprint: 'f',
      reference: { n: 1 },
      streamId: 'a',
      version: 1,
    });
    expect(await eventCount()).toBe(2);
  });

  it('given a used key, when another request uses it, then it is refused as reused; in another tenant or scope it is a new key', async () => {
    const store = await nodes.start(db.url);
    await store.append(appendOf(stream('a'), 0, written, { key: key() }));

    const other = { key: key({ fingerprint: 'other' }) };
    expect(await store.append(appendOf(stream('a'), 1, written, other))).toEqual({ status: 'reused' });
    expect(await store.append(appendOf(stream('b'), 0, written, other))).toEqual({ status: 'reused' });
    expect(await store.append(appendOf({ tenant: 'beta', streamId: 'a' }, 0, written, other))).toMatchObject({
      status: 'ok',
    });
    expect(
      await store.append(
        appendOf(stream('c'), 0, written, { key: key({ fingerprint: 'other', scope: 'PUT /x' }) }),
      ),
    ).toMatchObject({ status: 'ok' });
    expect(await eventCount()).toBe(3);
  });

  it('given two nodes, when appends with the same key are made at once on two streams, then only one takes effect', async () => {
    const [one, two] = [await nodes.start(db.url), await nodes.start(db.url)];
    const rounds = sized(300, 60, 25);
    for (let round = 0; round < rounds; round += 1) {
      const append = (streamId: string) =>
        appendOf(stream(`${streamId}${round}`), 0, written, { key: key({ key: `k${round}` }) });
      const outcomes = await Promise.all([one.append(append('a')), two.append(append('b'))]);
      const statuses = outcomes.map(({ status }) => status).sort();
      expect(['duplicate,ok', 'ok,retry']).toContain(statuses.join());
    }
    expect(await eventCount()).toBe(rounds);
  });

  it('given two nodes that both found a key unused, when both append with it on two lanes, then one takes effect and the other has to ask again', async () => {
    const [one, two] = [await nodes.start(db.url), await nodes.start(db.url)];
    const other = ['b', 'c', 'd', 'e', 'f'].find((id) => one.laneOf(stream(id)) !== one.laneOf(stream('a')));
    // Under this lock both can look for the key, and neither can write it.
    await db.query('begin');
    await db.query('lock table command in exclusive mode');
    const both = Promise.all([
      one.append(appendOf(stream('a'), 0, written, { key: key() })),
      two.append(appendOf(stream(other ?? ''), 0, written, { key: key() })),
    ]);
    await blocked(db, 2, { locktype: 'relation' });
    await db.query('commit');

    expect((await both).map(({ status }) => status).sort()).toEqual(['ok', 'retry']);
    expect(await eventCount()).toBe(1);
  });

  it('given one node, when appends with the same key are in one batch for two streams, then only one takes effect', async () => {
    const store = await nodes.start(db.url);
    for (let round = 0; round < 20; round += 1) {
      const outcomes = await Promise.all(
        ['a', 'b', 'c', 'd'].map((name) =>
          store.append(appendOf(stream(`${name}${round}`), 0, written, { key: key({ key: `k${round}` }) })),
        ),
      );
      expect(outcomes.filter(({ status }) => status === 'ok')).toHaveLength(1);
      expect(await eventCount()).toBe(round + 1);
    }
  });

  it('given handlers on two nodes, when both get the same command with a key, then both return the same result', async () => {
    const handlers = [tallies(await nodes.start(db.url)), tallies(await nodes.start(db.url))];
    const options = (round: number, fingerprint = 'f') => ({
      ...by,
      key: { scope: 's', key: `k${round}`, fingerprint, reference: () => ({ round }) },
    });
    for (let round = 0; round < 20; round += 1) {
      const handled = await Promise.all(
        handlers.map((handler) => handler.handle(stream('a'), { numbers: [1, 2] }, options(round))),
      );
      expect(handled.filter(({ events }) => events.length === 2)).toHaveLength(1);
      expect(handled.find(({ duplicate }) => duplicate)?.duplicate).toMatchObject({
        version: 2 * (round + 1),
        reference: { round },
      });
      for (const { state } of handled) expect(state.sum).toBe(3 * (round + 1));
    }
    await expect(
      handlers[0]?.handle(stream('a'), { numbers: [1] }, options(3, 'other')),
    ).rejects.toBeInstanceOf(KeyReused);
  });

  it('given a key that was used a day ago, when it is used again, then it is a new key; a minute earlier it is still known', async () => {
    const store = await nodes.start(db.url);
    await store.append(appendOf(stream('a'), 0, written, { key: key() }));

    await db.setClock({ offsetMs: 24 * HOUR_MS - 60_000 });
    expect(await store.keyed.find('acme', 'POST /x', 'k')).toBeDefined();
    expect(await store.append(appendOf(stream('b'), 0, written, { key: key() }))).toMatchObject({
      status: 'duplicate',
    });
    await store.keyed.prune();
    expect(await kept()).toHaveLength(1);

    await db.setClock({ offsetMs: 24 * HOUR_MS + 1_000 });
    expect(await store.keyed.find('acme', 'POST /x', 'k')).toBeUndefined();
    expect(
      await store.append(appendOf(stream('b'), 0, written, { key: key({ fingerprint: 'other' }) })),
    ).toMatchObject({ status: 'ok' });
    expect(await kept()).toEqual([{ key: 'k', fingerprint: 'other', stream_id: 'b', version: 1 }]);

    await db.setClock({ offsetMs: 48 * HOUR_MS + 2_000 });
    await store.keyed.prune();
    expect(await kept()).toEqual([]);
  });

  it('given an append with a key, when it is refused, then the key is free', async () => {
    const store = await nodes.start(db.url);
    await store.append(appendOf(stream('a'), 0, written, { counters: [{ key: 'c', delta: 1, max: 1 }] }));
    const refused = [
      appendOf(stream('a'), 5, written, { key: key() }),
      appendOf(stream('a'), 1, written, { key: key(), guard: { idleFor: HOUR_MS } }),
      appendOf(stream('b'), 0, written, { key: key(), counters: [{ key: 'c', delta: 1, max: 1 }] }),
    ];

    const statuses = [];
    for (const append of refused) statuses.push((await store.append(append)).status);

    expect(statuses).toEqual(['conflict', 'guard', 'counter']);
    expect(await kept()).toEqual([]);
    expect(await store.append(appendOf(stream('b'), 0, written, { key: key() }))).toMatchObject({
      status: 'ok',
    });
  });

  it('given an append that is refused, when it is in a batch with others, then only its key is free', async () => {
    const store = await nodes.start(db.url);
    const limit = [{ key: 'c', delta: 1, max: 3 }];

    const results = await Promise.all(
      Array.from({ length: 8 }, (_, index) =>
        store.append(
          appendOf(stream(`s${index}`), 0, written, { key: key({ key: `k${index}` }), counters: limit }),
        ),
      ),
    );

    const ok = results.flatMap(({ status }, index) => (status === 'ok' ? [`k${index}`] : []));
    expect(ok).toHaveLength(3);
    expect((await kept()).map((row) => row['key'])).toEqual(ok);
  });

  it('given a command that changes nothing, when it has a key, then its result is stored without an event', async () => {
    const store = await nodes.start(db.url);
    await store.append(appendOf(stream('a'), 0, written));
    const before = await store.streams.load(stream('a'));

    const result = await store.append(appendOf(stream('a'), 1, [], { key: key(), state: { other: true } }));

    expect(result).toMatchObject({ status: 'ok', version: 1, position: before?.position });
    expect(await kept()).toEqual([{ key: 'k', fingerprint: 'f', stream_id: 'a', version: 1 }]);
    expect(await store.streams.load(stream('a'))).toEqual(before);
    expect(await store.append(appendOf(stream('a'), 1, written, { key: key() }))).toMatchObject({
      status: 'duplicate',
      version: 1,
    });
    // The same holds for a stream that does not exist, and the command does not create it.
    await store.append(appendOf(stream('none'), 0, [], { key: key({ key: 'other' }) }));
    expect(await store.streams.load(stream('none'))).toBeUndefined();
    expect(await eventCount()).toBe(1);
  });
});
