import { Client } from 'pg';
import { Overloaded } from '../../../src/event-store/append.js';
import { appendOf } from '../../support/append.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';
import { eventually } from '../../support/http.js';
import { blocked, by, expectSoundLog, Nodes, tallies } from './fixture.js';

let db: TestDatabase;
const nodes = new Nodes();
beforeEach(async () => {
  db = await createTestDatabase();
});
afterEach(async () => {
  await db.query('select pg_advisory_unlock_all()');
  await nodes.stopAll();
  await expectSoundLog(db).finally(() => db.drop());
});

const holdLanes = () => db.query('select pg_advisory_lock(7301, l) from generate_series(0, 15) as l');
const stream = (index: number) => ({ tenant: 'acme', streamId: `s${index}` });

it.each([
  ['appends', { queueLimit: 8 }, 'x'],
  ['bytes', { queueBytes: 50_000 }, 'x'.repeat(10_000)],
] as const)(
  'given a database that does not keep up, when more %s wait than may, then the rest is overloaded, leaves nothing, and the writer recovers',
  async (_, limits, text) => {
    const store = await nodes.start(db.url, limits);
    const append = (index: number) =>
      store.append(appendOf(stream(index), 0, [{ type: 'Written', data: { text } }]));
    await holdLanes();
    // These appends are already being committed and are blocked: one for each writer.
    const stuck = [append(1_000), append(1_001), append(1_002), append(1_003)];
    await new Promise((resolve) => setTimeout(resolve, 50));

    const outcomes = Array.from({ length: 40 }, (__, index) => append(index));
    const refused = await Promise.all(
      outcomes.map((outcome) =>
        // Refused appends are answered at once, while the others wait.
        Promise.race([
          outcome.then(
            () => 'ok',
            (error: unknown) => error,
          ),
          new Promise((resolve) => setTimeout(resolve, 100, 'waits')),
        ]),
      ),
    );
    const accepted = refused.flatMap((outcome, index) => (outcome === 'waits' ? [`s${index}`] : []));
    expect(accepted.length).toBeGreaterThan(0);
    expect(accepted.length).toBeLessThanOrEqual(8);
    expect(refused.filter((outcome) => outcome instanceof Overloaded)).toHaveLength(40 - accepted.length);
    expect(refused.find((outcome) => outcome instanceof Overloaded)).toMatchObject({ code: 'overloaded' });

    await db.query('select pg_advisory_unlock_all()');
    await Promise.all(stuck);
    await Promise.allSettled(outcomes);
    const stored = await db.query<{ stream_id: string }>(
      `select stream_id from stream_state where stream_id not like 's10__'`,
    );
    expect(stored.map((row) => row.stream_id).sort()).toEqual(accepted.sort());
    for (let index = 2_000; index < 2_020; index += 1) {
      expect(await append(index)).toMatchObject({ status: 'ok' });
    }
  },
);

it('given a tenant that fills the queue, when another tenant appends, then its append is accepted and committed among the first', async () => {
  const store = await nodes.start(db.url, { queueLimit: 40 });
  const append = (tenant: string, index: number) =>
    store.append(appendOf({ tenant, streamId: `s${index}` }, 0, [{ type: 'Written', data: {} }]));
  await holdLanes();
  const stuck = Array.from({ length: 4 }, (_, index) => append('flood', 1_000 + index));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const order: string[] = [];
  const flood = Array.from({ length: 60 }, (_, index) =>
    append('flood', index).then(
      () => order.push('flood'),
      () => 'refused',
    ),
  );
  const quiet = Array.from({ length: 10 }, (_, index) =>
    append('quiet', index).then(() => order.push('quiet')),
  );
  await db.query('select pg_advisory_unlock_all()');
  await Promise.all([...stuck, ...quiet]);
  const floodBefore = order.filter((one) => one === 'flood').length;
  const outcomes = await Promise.all(flood);

  expect(outcomes.filter((one) => one === 'refused').length).toBeGreaterThanOrEqual(20);
  expect(order.filter((one) => one === 'quiet')).toHaveLength(10);
  // With a single queue, all accepted appends of the first tenant would have been answered before it.
  expect(floodBefore).toBeLessThanOrEqual(40);
});

it('given waiting commands on one stream, when there are more than the limit, then the surplus is refused as overloaded, and other streams work', async () => {
  const store = await nodes.start(db.url);
  const handler = tallies(store);
  const add = (streamId: string) => handler.handle({ tenant: 'acme', streamId }, { numbers: [1] }, by);
  await add('hot');
  await holdLanes();
  const commands = Array.from({ length: 1_200 }, () => add('hot'));
  const refused = await Promise.all(
    commands.slice(1_000).map((command) =>
      command.then(
        () => undefined,
        (error: unknown) => (error as Overloaded).code,
      ),
    ),
  );
  expect(new Set(refused)).toEqual(new Set(['overloaded']));

  const other = add('cold');
  await db.query('select pg_advisory_unlock_all()');
  await other;
  const done = await Promise.all(commands.slice(0, 1_000));
  expect(done.at(-1)?.state.version).toBe(1_001);
  // Refused commands left nothing behind, and their places are free again.
  expect((await add('hot')).state.version).toBe(1_002);
  // A thousand commits in a row take a while on a busy machine.
}, 30_000);

it('given waiting commands with many bytes, when they exceed the limit, then the surplus is refused as overloaded', async () => {
  const store = await nodes.start(db.url);
  const handler = tallies(store, { weigh: () => 1024 * 1024 });
  const add = () => handler.handle({ tenant: 'acme', streamId: 'hot' }, { numbers: [1] }, by);
  await holdLanes();
  const commands = Array.from({ length: 20 }, () =>
    add().then(
      () => 'done',
      (error: unknown) => (error as Overloaded).code,
    ),
  );
  await db.query('select pg_advisory_unlock_all()');
  const outcomes = await Promise.all(commands);
  expect(outcomes.filter((one) => one === 'done')).toHaveLength(16);
  expect(outcomes.filter((one) => one === 'overloaded')).toHaveLength(4);
});

it('given appends that were taken late, when commands follow while others wait, then those of this tenant are refused at once, until none waits', async () => {
  const store = await nodes.start(db.url);
  const handler = tallies(store);
  const add = (tenant: string) => handler.handle({ tenant, streamId: 'new' }, { numbers: [1] }, by);
  const append = (index: number) => store.append(appendOf(stream(index), 0, [{ type: 'Written', data: {} }]));
  await holdLanes();
  // More than the batches that can be taken at a time, and more than are taken until the lanes are held again.
  const waiting = Array.from({ length: 3_000 }, (_, index) => append(index));
  // Both writers are in the queues of the lanes before the other holder is, which would otherwise get them first.
  await blocked(db, 2);
  await new Promise((resolve) => setTimeout(resolve, 600));
  // A database that does not answer is no sign of too many appends.
  expect(store.isBehind('acme')).toBe(false);
  const another = new Client({ connectionString: db.url });
  await another.connect();
  const held = another.query('select pg_advisory_lock(7301, l) from generate_series(0, 15) as l');
  await blocked(db, 3);
  await db.query('select pg_advisory_unlock_all()');
  await held;
  // A batch that is blocked may be one of the first; the answer that makes the next one be taken may still be under way.
  await eventually(() => Promise.resolve(store.isBehind('acme')));

  await expect(add('acme')).rejects.toMatchObject({ code: 'overloaded' });
  expect(store.isBehind('other')).toBe(false);

  await another.end();
  await Promise.all(waiting);
  expect(store.isBehind('acme')).toBe(false);
  await add('acme');
}, 30_000);

it('given waiting appends, when the store closes, then they are answered first', async () => {
  const store = await nodes.start(db.url);
  const appends = Array.from({ length: 500 }, (_, index) =>
    store.append(appendOf(stream(index), 0, [{ type: 'Written', data: {} }])),
  );
  let answered = 0;
  for (const append of appends) void append.then(() => (answered += 1));

  await nodes.stopAll();

  expect(answered).toBe(500);
  expect((await Promise.all(appends)).filter(({ status }) => status === 'ok')).toHaveLength(500);
});
