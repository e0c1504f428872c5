import { type HandleOptions } from '../../../src/event-store/stream-handler.js';
import { KeyReused, VersionMismatch } from '../../../src/event-store/refusals.js';
import { appendOf } from '../../support/append.js';
import { type TestDatabase } from '../../support/database.js';
import { type Add, blocked, by, logPerTest, seeded, sized, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = logPerTest((made) => {
  db = made;
});

const stream = { tenant: 'acme', streamId: 's' };
const keyOf = (key: string, fingerprint = 'f') => ({
  scope: 'POST /x',
  key,
  fingerprint,
  reference: () => ({ key }),
});
const commits = async () => (await db.query('select distinct xmin::text from event')).length;
const stored = () =>
  db.query<{ version: number; number: number }>(
    `select version, (data ->> 'number')::int as number from event order by version`,
  );

/** Blocks all commits until the returned function is called. */
async function holdLanes(): Promise<() => Promise<unknown>> {
  await db.query('select pg_advisory_lock(7301, l) from generate_series(0, 15) as l');
  return () => db.query('select pg_advisory_unlock_all()');
}

describe('commands that wait for one stream', () => {
  it('given 50 commands at once, when they are handled, then each is decided upon the one before, and few commits hold all of them', async () => {
    const handler = tallies(await nodes.start(db.url));
    await handler.handle(stream, { numbers: [0] }, by);
    const release = await holdLanes();

    const handled = Array.from({ length: 50 }, (_, index) =>
      // Each command holds only if the sum is that of all commands before it.
      handler.handle(stream, { numbers: [1], onlyAt: index }, by),
    );
    await blocked(db, 1);
    await release();

    expect((await Promise.all(handled)).map(({ state }) => state)).toMatchObject(
      Array.from({ length: 50 }, (_, index) => ({ version: index + 2, sum: index + 1 })),
    );
    // The first command, the one that was alone in its commit, and the others.
    expect(await commits()).toBeLessThanOrEqual(4);
  });

  it('given a command in the middle that is refused, when the others are handled, then they are decided without it', async () => {
    const handler = tallies(await nodes.start(db.url));
    const numbers = [1, 2, 3, 4, 5, 6];

    const outcomes = await Promise.allSettled(
      numbers.map((number) =>
        handler.handle(stream, { numbers: [number], ...(number === 3 && { onlyAt: 1_000 }) }, by),
      ),
    );

    expect(outcomes.map(({ status }) => status)).toEqual(
      numbers.map((number) => (number === 3 ? 'rejected' : 'fulfilled')),
    );
    expect((await stored()).map(({ number }) => number)).toEqual([1, 2, 4, 5, 6]);
  });

  it('given a command in the middle that another node overtakes, when the others are handled, then they are decided upon what that node appended', async () => {
    const handler = tallies(await nodes.start(db.url));
    const other = tallies(await nodes.start(db.url));
    await handler.handle(stream, { numbers: [0] }, by);
    await other.load(stream);
    const release = await holdLanes();
    const overtaking = other.handle(stream, { numbers: [100] }, by);
    await blocked(db, 1);
    const overtaken = [1, 2, 3, 4].map((number) => handler.handle(stream, { numbers: [number] }, by));
    await blocked(db, 2);

    await release();

    await overtaking;
    const sums = (await Promise.all(overtaken)).map(({ state }) => state.sum);
    expect(sums).toEqual([101, 103, 106, 110]);
    expect((await stored()).map(({ number }) => number)).toEqual([0, 100, 1, 2, 3, 4]);
  });

  it('given If-Match and idempotency keys, when commands wait together, then each means what it means alone', async () => {
    const handler = tallies(await nodes.start(db.url));
    await handler.handle(stream, { numbers: [0] }, by);
    const handle = (number: number, more: Partial<HandleOptions>) =>
      handler.handle(stream, { numbers: [number] }, { ...by, ...more }).catch((error: unknown) => error);

    const [first, matching, mismatched, keyed, again, reused, last] = await Promise.all([
      handle(1, {}),
      handle(2, { ifMatch: [2] }),
      handle(3, { ifMatch: [2] }),
      handle(4, { key: keyOf('k') }),
      handle(4, { key: keyOf('k') }),
      handle(5, { key: keyOf('k', 'other') }),
      handle(6, { ifMatch: [4] }),
    ]);

    expect(first).toMatchObject({ state: { version: 2 } });
    expect(matching).toMatchObject({ state: { version: 3 } });
    expect(mismatched).toBeInstanceOf(VersionMismatch);
    expect(keyed).toMatchObject({ state: { version: 4 }, events: [{}] });
    expect(again).toMatchObject({ events: [], duplicate: { version: 4, reference: { key: 'k' } } });
    expect(reused).toBeInstanceOf(KeyReused);
    expect(last).toMatchObject({ state: { version: 5 } });
    expect((await stored()).map(({ number }) => number)).toEqual([0, 1, 2, 4, 6]);
  });

  it('given a command that makes a stream and others behind it, when they are handled, then creation and last use are those of the log, and the stored state is that of the last', async () => {
    const store = await nodes.start(db.url);
    const handler = tallies(store, { storesAlways: true });

    const handled = await Promise.all(
      [1, 2, 3, 4].map((number) => handler.handle(stream, { numbers: [number] }, by)),
    );

    const events = await store.streams.read(stream);
    const [first, last] = [events[0]?.time, events.at(-1)?.time];
    expect(handled.at(-1)).toMatchObject({ createdAt: first, lastActivityAt: last });
    expect(await store.streams.load(stream)).toMatchObject({
      version: 4,
      createdAt: first,
      lastActivityAt: last,
      state: { sum: 10 },
      since: [],
    });
  });

  it('given a counter at its limit, when commands that raise it wait together with others, then as many of them succeed as there is room, and all others', async () => {
    const handler = tallies(await nodes.start(db.url));
    const counter = () => ({ key: 'active', max: 3 });

    const outcomes = await Promise.allSettled(
      Array.from({ length: 12 }, (_, index) =>
        handler.handle(stream, { numbers: [1], ...(index % 2 === 0 && { count: 1 }) }, { ...by, counter }),
      ),
    );

    expect(outcomes.map(({ status }) => status === 'fulfilled')).toEqual(
      Array.from({ length: 12 }, (_, index) => index % 2 === 1 || index < 6),
    );
    expect(await db.query('select value::int from counter')).toEqual([{ value: 3 }]);
    expect(await stored()).toHaveLength(9);
  });

  it('given large appends that follow one another, when they wait for a commit, then they do not share one, and small ones do', async () => {
    const store = await nodes.start(db.url);
    const append = async (streamId: string, bytes: number): Promise<string[]> => {
      const chain = { version: 0, createdAt: null, lastActivityAt: null };
      const results: Promise<{ status: string }>[] = [];
      for (let expected = 0; expected < 3; expected += 1) {
        const events = [{ type: 'Written', data: { text: 'x'.repeat(bytes) } }];
        const more = { chain, begins: expected === 0 };
        const to = { tenant: 'acme', streamId };
        results.push((await store.submit(appendOf(to, expected, events, more))).result);
      }
      return (await Promise.all(results)).map(({ status }) => status);
    };
    const commitsOf = async (streamId: string) =>
      (await db.query(`select distinct xmin::text from event where stream_id = $1`, [streamId])).length;
    const release = await holdLanes();
    const held = append('held', 10);
    await blocked(db, 1);
    const [large, small] = [append('large', 200_000), append('small', 200)];
    await new Promise((resolve) => setImmediate(resolve));
    await release();

    expect(await Promise.all([held, large, small])).toEqual(
      Array.from({ length: 3 }, () => ['ok', 'ok', 'ok']),
    );
    expect(await commitsOf('large')).toBe(3);
    expect(await commitsOf('small')).toBe(1);
  });

  it.each([1, 2])(
    'given %i node(s) and random commands with keys, conditions, counters and lost connections, when all are done, then each took effect as it was answered',
    async (count) => {
      const random = seeded();
      const stores = await Promise.all(Array.from({ length: count }, () => nodes.start(db.url)));
      const handlers = stores.map((store) => tallies(store));
      const max = 1_000;
      const acknowledged = new Map<number, number>();
      const doubtful = new Set<number>();
      let counted = 0;
      let next = 0;
      const work = async (writer: number): Promise<void> => {
        for (let round = 0; round < sized(60, 12); round += 1) {
          const number = (next += 1);
          const command: Add = {
            numbers: [number],
            ...(random(5) === 0 && { count: 1 }),
            ...(random(9) === 0 && { onlyAt: -1 }),
          };
          const options = {
            ...by,
            counter: () => ({ key: 'active', max }),
            ...(random(3) === 0 && { key: keyOf(`k${number}`) }),
            ...(random(7) === 0 && { ifMatch: [random(200)] }),
          };
          const handler = handlers[writer % count] ?? handlers[0];
          const tries = options.key && random(2) === 0 ? 2 : 1;
          await Promise.all(
            Array.from({ length: tries }, async () => {
              try {
                const { events, state } = (await handler?.handle(stream, command, options)) ?? {};
                if (!events?.length) return;
                if (acknowledged.has(number)) throw new Error(`${number} took effect twice`);
                acknowledged.set(number, state?.version ?? 0);
                counted += command.count ?? 0;
              } catch (error) {
                const { name, message } = error as Error;
                if (name === 'DatabaseUnavailable') doubtful.add(number);
                else if (name !== 'VersionMismatch' && !message.startsWith('the sum is')) throw error;
              }
            }),
          );
          if (random(50) === 0) {
            await db.query(
              `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'colloquy writer'
               and datname = current_database()`,
            );
          }
        }
      };

      await Promise.all(Array.from({ length: 24 }, (_, writer) => work(writer)));

      const found = new Map((await stored()).map(({ version, number }) => [number, version]));
      for (const [number, version] of acknowledged)
        expect([number, found.get(number)]).toEqual([number, version]);
      const unexpected = [...found.keys()].filter(
        (number) => !acknowledged.has(number) && !doubtful.has(number),
      );
      expect(unexpected).toEqual([]);
      const [row] = await db.query<{ value: number }>(`select value::int from counter where key = 'active'`);
      if (doubtful.size === 0) expect(row?.value ?? 0).toBe(counted);
      // The stored state and the versions that the commands saw are those of a fold of the log.
      const store = await nodes.start(db.url);
      const folded = await tallies(store, { stateVersion: 2 }).load(stream);
      expect((await tallies(store).load(stream)).state).toEqual(folded.state);
    },
    60_000,
  );
});
